//! The ledger: the `runs` and `attempts` tables, the truth about every run. The only place that changes a state.
//!
//! Beside them it keeps what is written in the transactions of these: idempotency keys, results that runs share, and the outbox of webhooks.
//!
//! Every write may be repeated: a row that is there is left as it is, a terminal row never changes, and an attempt is known by its run and
//! fence. So a write whose answer was lost is simply made again.
//!
//! Texts are stored with the NUL character replaced by U+FFFD, because PostgreSQL has no text with a NUL.

mod attempts;
mod columns;
mod dead;
mod fault;
mod group;
mod idempotency;
mod list;
mod outbox;
mod prune;
mod read;
mod results;
mod runs;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod upserts;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use sea_orm::{DatabaseConnection, DbErr};
use tokio::sync::{mpsc, oneshot};

pub use self::{
    dead::DeadRun,
    fault::Fault,
    idempotency::{IdempotencyKey, KEY_LIFE, KnownRun},
    list::RunFilter,
    outbox::{Claimed, Delivery, DeliveryState, Outbox, Redelivery, Try, Verdict},
    results::CachedResult,
};
use self::{group::Insert, prune::prune, runs::Texts, store::Store};
use crate::{
    job::{AccountId, Attempt, CacheUse, Ending, Failure, Job, Lane, RunId, RunState, UnixMillis, Usage},
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
    /// The database refused the write for what the row holds: repeating it is useless.
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
    /// The run had ended already, or a newer claim of it is known; the attempt was recorded all the same.
    AlreadyEnded,
}

/// A run on its way into the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub job: Arc<Job>,
    pub key: Option<IdempotencyKey>,
}

/// What became of a run that was to be inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Its row is committed.
    New,
    /// Nothing was written: its key stands for another run.
    Known(KnownRun),
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
    /// Where the output came from; `None` when there is none, or the run does not share.
    pub cache: Option<CacheUse>,
    /// The dead run that an operator started again as this one.
    pub requeued_from: Option<RunId>,
}

/// What the ledger has written since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerStats {
    /// Runs that were committed by [`Ledger::insert`].
    pub inserts: u64,
    /// Transactions that it took: fewer than `inserts` under load.
    pub insert_commits: u64,
}

/// The tables, with their writers. Cheap to clone. The writers stop when the last clone is dropped.
#[derive(Clone)]
pub struct Ledger {
    store: Store,
    inserts: mpsc::Sender<Insert>,
}

impl Ledger {
    /// Starts the writers on the current tokio runtime.
    pub fn new(db: DatabaseConnection) -> Self {
        let store = Store::new(db);
        let inserts = group::start(store.clone());
        Self { store, inserts }
    }

    /// Commits the row of a queued run; concurrent inserts share a transaction. A row that is there already is left as it is.
    /// When the returned future is dropped, the row may be written all the same.
    pub async fn insert(&self, job: Arc<Job>) -> Result<(), LedgerError> {
        self.enter(Accepted { job, key: None }).await.map(|_| ())
    }

    /// The same, unless the account's key stands for another run.
    pub async fn insert_keyed(&self, job: Arc<Job>, key: IdempotencyKey) -> Result<Entered, LedgerError> {
        self.enter(Accepted { job, key: Some(key) }).await
    }

    async fn enter(&self, row: Accepted) -> Result<Entered, LedgerError> {
        let stopped = || LedgerError::from(DbErr::Custom("the writer of the ledger has stopped".to_owned()));
        let (done, result) = oneshot::channel();
        self.inserts.send(Insert { row, done }).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }

    /// Writes endings, each with its job, in one transaction: the row is completed (or written, if it was never inserted) unless it is
    /// terminal already, and the attempt is recorded in any case. Answers in the order of `batch`. One bad ending does not fail the others:
    /// what the database refuses for its texts is written without them.
    pub async fn finish(&self, batch: &[(Arc<Job>, Arc<Ending>)]) -> Result<Vec<Settled>, LedgerError> {
        match self.store.settle(batch, Texts::Kept).await {
            Err(error) if Fault::of(&error) == Fault::Data => self.finish_apart(batch).await,
            result => Ok(result?),
        }
    }

    async fn finish_apart(&self, batch: &[(Arc<Job>, Arc<Ending>)]) -> Result<Vec<Settled>, LedgerError> {
        let mut settled = Vec::with_capacity(batch.len());
        let mut refused = None;
        for entry in batch {
            let alone = std::slice::from_ref(entry);
            let result = match self.store.settle(alone, Texts::Kept).await {
                Err(error) if Fault::of(&error) == Fault::Data => {
                    tracing::error!(run = %entry.0.id, %error, "the database refused an ending; it is written without its texts");
                    self.store.settle(alone, Texts::Dropped).await
                }
                result => result,
            };
            match result {
                Ok(answers) => settled.extend(answers),
                Err(error) if Fault::of(&error) == Fault::Data => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        refused.map_or(Ok(settled), |error| Err(error.into()))
    }

    /// Records calls of runs that go on. Repeating one changes nothing. From then on an ending with an older fence than the call's changes
    /// nothing either. What the worker that made a call says replaces an earlier [`AttemptOutcome::WorkerLost`](crate::job::AttemptOutcome).
    pub async fn record_attempts(&self, batch: &[(RunId, Attempt)]) -> Result<(), LedgerError> {
        match self.store.record(batch, Texts::Kept).await {
            Err(error) if Fault::of(&error) == Fault::Data => {
                tracing::error!(%error, "the database refused an attempt; attempts are written without their details");
                Ok(self.store.record(batch, Texts::Dropped).await?)
            }
            result => Ok(result?),
        }
    }

    /// One run of an account with its attempts. A terminal one never changes again.
    pub async fn find(&self, account: AccountId, run: RunId) -> Result<Option<RunRecord>, LedgerError> {
        read::find(&self.store, account, run).await
    }

    /// Runs of an account before `before`, newest first, without their outputs. The ledger does not know which of those that have not ended has
    /// a worker.
    pub async fn list(
        &self,
        account: AccountId,
        filter: &RunFilter,
        before: Option<RunId>,
        limit: u64,
    ) -> Result<Vec<RunRecord>, LedgerError> {
        list::list(&self.store, account, filter, before, limit).await
    }

    /// Those of these runs that the account has, in no order. Their attempts are left out.
    pub async fn records(&self, account: AccountId, runs: &[RunId]) -> Result<Vec<RunRecord>, LedgerError> {
        read::records(&self.store, account, runs).await
    }

    /// The states of those of these runs that have a row, in no order. One that has not ended is `Queued`, wherever it is.
    pub async fn states(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunState)>, LedgerError> {
        read::states(&self.store, runs).await
    }

    /// The recorded attempts of a run, whether its row is there or not.
    pub async fn attempts(&self, run: RunId) -> Result<Vec<Attempt>, LedgerError> {
        read::attempts(&self.store, run).await
    }

    /// The ids of runs that have not ended, in their order, after `after`. Fewer than `limit` are the last ones.
    pub async fn unfinished_ids(&self, after: Option<RunId>, limit: u64) -> Result<Vec<RunId>, LedgerError> {
        read::unfinished_ids(&self.store, after, limit).await
    }

    /// The last of them.
    pub async fn last_unfinished(&self) -> Result<Option<RunId>, LedgerError> {
        read::last_unfinished(&self.store).await
    }

    /// Those of these runs that have not ended, with what the queue needs to know of them; in the order of their ids when those that are asked for
    /// are. A row whose job this version cannot read is left out, and logged.
    pub async fn unfinished(&self, runs: &[RunId]) -> Result<Vec<Restored>, LedgerError> {
        read::unfinished(&self.store, runs).await
    }

    /// One run that has not ended, as [`Ledger::unfinished`] gives it; `None` when it has ended, or is not there.
    pub async fn unfinished_one(&self, run: RunId) -> Result<Option<Restored>, LedgerError> {
        read::unfinished_one(&self.store, run).await
    }

    /// The endings of those of these runs that have ended, in no order, each with its last attempt. A run that succeeded and
    /// whose output was not kept is given as failed with `output_not_kept`: its ending is for somebody who waits for that output.
    pub async fn endings(&self, runs: &[RunId]) -> Result<Vec<Ending>, LedgerError> {
        read::endings(&self.store, runs).await
    }

    /// What is known to have been spent for the runs of an account that were accepted in a time, in nano-dollars: over all their calls, because
    /// failed ones are billed too. Calls of unknown cost count nothing.
    ///
    /// It reads a row for every call: a second for half a million of them, so that long times are better asked for in pieces.
    pub async fn spent(&self, account: AccountId, accepted: Range<UnixMillis>) -> Result<i64, LedgerError> {
        read::spent(&self.store, account, accepted).await
    }

    /// The run that an account's key stands for at `now`.
    pub async fn keyed(
        &self,
        account: AccountId,
        key: &IdempotencyKey,
        now: UnixMillis,
    ) -> Result<Option<KnownRun>, LedgerError> {
        idempotency::find(&self.store, account, key, now).await
    }

    /// The result that stands for a run's call at `now`, if the run shares.
    pub async fn cached(&self, job: &Job, now: UnixMillis) -> Result<Option<CachedResult>, LedgerError> {
        match job.flight() {
            // Boxed: most runs do not share, and have no use for the room that a reading needs.
            Some(digest) => Box::pin(results::find(&self.store, job.account, digest, now)).await,
            None => Ok(None),
        }
    }

    /// Drops some of the idempotency keys and results whose time is over; returns how many.
    pub async fn prune(&self, now: UnixMillis) -> Result<u64, LedgerError> {
        Ok(idempotency::drop_old(&self.store, now).await? + results::drop_old(&self.store, now).await?)
    }

    /// Runs that have not ended.
    pub async fn count_unfinished(&self) -> Result<u64, LedgerError> {
        read::count_unfinished(&self.store).await
    }

    /// Runs that ended as poison and that nobody has looked after, newest first.
    pub async fn dead(&self, limit: u64) -> Result<Vec<DeadRun>, LedgerError> {
        dead::list(&self.store, limit).await
    }

    /// How many of them there are.
    pub async fn count_dead(&self) -> Result<u64, LedgerError> {
        dead::count(&self.store).await
    }

    /// Commits a new run that does what a dead one could not, with as much time as that one had. `None`: the run is not dead, or
    /// was looked after. The queue does not know the new run yet; `now` is by its clock.
    pub async fn requeue(&self, dead: RunId, now: UnixMillis) -> Result<Option<Arc<Job>>, LedgerError> {
        dead::requeue(&self.store, dead, now).await
    }

    /// Looks after a dead run by dropping what it was to do; its history stays. Whether it was dead.
    pub async fn discard(&self, dead: RunId) -> Result<bool, LedgerError> {
        dead::discard(&self.store, dead).await
    }

    /// What is to be told of runs that have ended.
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.store.clone())
    }

    /// Answers when the database does.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        Ok(self.store.ping().await?)
    }

    pub fn stats(&self) -> LedgerStats {
        self.store.stats()
    }
}

impl From<DbErr> for LedgerError {
    fn from(error: DbErr) -> Self {
        match Fault::of(&error) {
            Fault::Full(reason) => LedgerError::Full(reason.to_owned()),
            Fault::Data => LedgerError::Refused(Arc::new(error)),
            // A fault of the set-up (a missing table) is nothing that the run's row could help: the same as no database.
            Fault::Unreachable { .. } | Fault::Other => LedgerError::Unreachable(Arc::new(error)),
        }
    }
}

/// A text that both databases can store.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A count as a column holds it.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A column as the count that it holds.
fn unsigned(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}

fn unreadable(run: uuid::Uuid, what: &str) -> LedgerError {
    LedgerError::Unreadable(format!("run {run}: its {what}"))
}
