//! The ledger: the `runs` and `attempts` tables, the truth about every run. The only place that changes a state.

mod fault;

use std::{collections::BTreeMap, sync::Arc};

use sea_orm::DatabaseConnection;

pub use self::fault::Fault;
use crate::{
    job::{AccountId, Attempt, Ending, Failure, Job, Lane, RunId, RunState, UnixMillis, Usage},
    queue::Restored,
};

/// The database does not answer, or refused the write. The message says which, for people; the source is for the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// Nothing is known about whether the write was done; every write may be repeated.
    #[error("the database is unreachable")]
    Unreachable(#[source] Arc<sea_orm::DbErr>),
    /// The disk is full, or the database is read-only.
    #[error("the database cannot store more: {0}")]
    Full(String),
    /// The database refused the write for what the row holds, or for a fault of its own set-up: repeating it is useless.
    #[error("the database refused the write")]
    Refused(#[source] Arc<sea_orm::DbErr>),
    /// A row that this version cannot read.
    #[error("the database holds a row that this version cannot read")]
    Unreadable(String),
}

/// What became of an ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// This ending is now the run's only one.
    Won,
    /// The run had ended already; the attempt was recorded all the same.
    AlreadyEnded,
}

/// A run as the ledger knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    pub id: RunId,
    pub account: AccountId,
    pub state: RunState,
    pub prompt_name: String,
    pub prompt_version: i32,
    pub model: String,
    pub lane: Lane,
    pub metadata: BTreeMap<String, String>,
    pub created_at: UnixMillis,
    pub deadline: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub finished_at: Option<UnixMillis>,
    pub queue_ms: Option<u64>,
    /// In the order of their numbers.
    pub attempts: Vec<Attempt>,
    /// `None` until it succeeded, or when content is not kept.
    pub output: Option<String>,
    pub finish_reason: Option<String>,
    pub failure: Option<Failure>,
    pub usage: Usage,
    pub cost_nano_usd: Option<i64>,
}

/// The tables, with their writers. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    _db: DatabaseConnection,
}

impl Ledger {
    /// Starts the writers on the current tokio runtime.
    pub fn new(_db: DatabaseConnection) -> Self {
        todo!()
    }

    /// Commits the row of a queued run; concurrent inserts share a transaction. A row that is there already is left as it is.
    pub async fn insert(&self, _job: Arc<Job>) -> Result<(), LedgerError> {
        todo!()
    }

    /// Writes endings, each with its job, in one transaction: the row is completed (or written, if it was never inserted) unless it is
    /// terminal already, and the attempt is recorded in any case. Answers in the order of `batch`. One bad ending does not fail the others.
    pub async fn finish(&self, _batch: &[(Arc<Job>, Arc<Ending>)]) -> Result<Vec<Settled>, LedgerError> {
        todo!()
    }

    /// Records calls of runs that go on. Repeating one changes nothing.
    pub async fn record_attempts(&self, _batch: &[(RunId, Attempt)]) -> Result<(), LedgerError> {
        todo!()
    }

    /// One run of an account with its attempts. A terminal one never changes again.
    pub async fn find(&self, _account: AccountId, _run: RunId) -> Result<Option<RunRecord>, LedgerError> {
        todo!()
    }

    /// Runs that have not ended, in the order of their ids, after `after`; with what the queue needs to know of them.
    pub async fn unfinished(&self, _after: Option<RunId>, _limit: u64) -> Result<Vec<Restored>, LedgerError> {
        todo!()
    }

    /// One run that has not ended, as [`Ledger::unfinished`] gives it.
    pub async fn unfinished_one(&self, _run: RunId) -> Result<Option<Restored>, LedgerError> {
        todo!()
    }

    /// The endings of those of these runs that have ended.
    pub async fn endings(&self, _runs: &[RunId]) -> Result<Vec<Ending>, LedgerError> {
        todo!()
    }

    /// Answers when the database does.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        todo!()
    }
}
