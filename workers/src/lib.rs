//! The run engine: what stands between an accepted request and a model.

pub mod job;
pub mod ledger;
pub mod providers;
pub mod queue;
pub mod retry;

use std::{sync::Arc, time::Duration};

use crate::{
    job::{AccountId, Ending, Job, RunId, UnixMillis},
    ledger::{Ledger, LedgerError, RunRecord},
    queue::{Queue, RateLeft, RateRule, Unreachable},
};

/// What the engine allows to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Runs that wait, at most; more are answered with `SubmitError::Full`.
    pub max_depth: u64,
    /// Bytes of waiting jobs, at most.
    pub max_bytes: u64,
}

/// When the caller is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// The caller waits for the ending: the row and the queue entry are written side by side.
    Wait,
    /// The caller leaves with the run's id: the row is committed before the run is enqueued.
    Committed,
}

/// A run that was accepted.
pub struct Accepted {
    pub run: RunId,
    pub rates: Vec<RateLeft>,
    pub waiter: Waiter,
}

/// The ending to come. Dropping it stops waiting, and changes nothing about the run.
pub struct Waiter {
    _private: (),
}

impl Waiter {
    /// The ending of the run. Pending for as long as the run is; bound it with the run's deadline.
    pub async fn ending(&mut self) -> Ending {
        todo!()
    }
}

/// Why a run was not accepted; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("the {rule} has no request left in this minute")]
    Limited { rule: &'static str, after: Duration, rates: Vec<RateLeft> },
    #[error("the queue is full")]
    Full { after: Duration },
    #[error("the server is shutting down")]
    Draining,
    #[error(transparent)]
    Queue(#[from] Unreachable),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A run as its status shows it: the ledger's record, with what the queue knows of a run that has not ended
/// (`state` is `Running` and `started_at` is set while a worker has it).
pub type RunView = RunRecord;

/// What a cancellation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The run is cancelled, now or since before.
    Cancelled,
    /// A worker was told; the run ends within a second when everything is up.
    Requested,
    /// The run succeeded, failed or expired before.
    AlreadyEnded,
    /// The account has no such run.
    NotFound,
}

/// The engine as front doors see it: submit, watch, cancel. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    _ledger: Ledger,
    _queue: Arc<dyn Queue>,
}

impl Engine {
    /// Opens this boot's reply channel.
    pub async fn start(
        _ledger: Ledger,
        _queue: Arc<dyn Queue>,
        _settings: EngineSettings,
    ) -> Result<Self, Unreachable> {
        todo!()
    }

    /// Accepts a run, if `rules` and the queue's depth admit it.
    pub async fn submit(&self, _job: Job, _rules: Vec<RateRule>, _promise: Promise) -> Result<Accepted, SubmitError> {
        todo!()
    }

    /// A run of an account, with its attempts.
    pub async fn find(&self, _account: AccountId, _run: RunId) -> Result<Option<RunView>, LedgerError> {
        todo!()
    }

    /// Cancels a run of an account.
    pub async fn cancel(&self, _account: AccountId, _run: RunId) -> Result<CancelOutcome, SubmitError> {
        todo!()
    }

    /// Ends a run whose caller has gone, in the background; used when a waiting caller hangs up.
    pub fn abandon(&self, _run: RunId) {
        todo!()
    }

    /// Ends a run that missed its deadline, in the background, whoever has it.
    pub fn expire(&self, _run: RunId) {
        todo!()
    }

    /// From now on every new run is refused with `Draining`.
    pub fn drain(&self) {
        todo!()
    }

    pub fn is_draining(&self) -> bool {
        todo!()
    }

    /// Whether database and queue answer.
    pub async fn ready(&self) -> Result<(), SubmitError> {
        todo!()
    }

    /// The moment a run that is accepted now and may take this long would expire.
    pub fn deadline(&self, created_at: UnixMillis, timeout: Duration) -> UnixMillis {
        created_at.plus(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
    }
}
