//! Batches: up to a hundred thousand runs in one request, each line a run.
//!
//! An upload writes its lines to the database as they arrive ([`upload`]); only when the body has ended does the batch run, and only then is
//! it answered. A feeder in every front door ([`feeder`]) takes batches that nobody feeds and hands their lines to the queue, a bounded
//! number at a time, through the very code that accepts a single run. The ledger says which of them have ended; the feeder moves the
//! lines' states and the batch's counts in one transaction, so that progress is one row to read.
//!
//! Decisions that callers can see:
//!
//! - A line is a run in the lane `batch`, whatever its `priority` says. `onDisconnect` means nothing in it; `stream: true` is an error of the line.
//! - A line that cannot be a run fails alone, with the code that a single request would have got. What only says "not now" (a rate limit, a full
//!   queue, a drain, a store that does not answer) makes the line wait.
//! - A batch takes no more than half of a rate limit, and half of the queue: the rest is left to callers that wait.
//! - The batch goes with its key: once that is revoked or has expired, the lines that were not handed out fail.

mod feeder;
mod lines;
mod results;
mod store;
mod table;
mod upload;

use std::sync::Arc;

use sea_orm::DatabaseConnection;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use workers::{
    Engine,
    job::{AccountId, RunId, UnixMillis},
};

use self::store::Store;
pub use self::{
    results::{EndedLine, LineResult, Results},
    table::BatchState,
    upload::Receiving,
};
use crate::{
    config::BatchesConfig,
    db::StoreError,
    keys::{Keys, Principal},
    run::{RunError, Runner},
};

/// One batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub Uuid);

/// A batch as its progress shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchView {
    pub id: BatchId,
    pub state: BatchState,
    pub total: u32,
    /// Lines that neither run nor have ended.
    pub queued: u32,
    /// Lines whose runs a worker has.
    pub running: u32,
    pub succeeded: u32,
    /// Refused, failed and expired.
    pub failed: u32,
    pub cancelled: u32,
    pub created_at: UnixMillis,
    /// When its last line ended.
    pub finished_at: Option<UnixMillis>,
}

/// Why something about a batch was refused. `Display` is the sentence for the caller.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("The batch was not found")]
    NotFound,
    #[error("The batch has already completed and cannot be cancelled")]
    AlreadyCompleted,
    #[error("The batch has no lines")]
    Empty,
    #[error("The batch has more than {max} lines")]
    TooManyLines { max: u32 },
    #[error("Line {number} is longer than {max_bytes} bytes")]
    LineTooLong { number: u32, max_bytes: usize },
    #[error("The batch is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: u64 },
    /// It was given up because it did not grow for long.
    #[error("The batch took too long to arrive")]
    GivenUp,
}

impl From<StoreError> for BatchError {
    fn from(error: StoreError) -> Self {
        Self::Run(error.into())
    }
}

/// The batches of all accounts. Cheap to clone.
#[derive(Clone)]
pub struct Batches(Arc<Inner>);

struct Inner {
    store: Store,
    runner: Runner,
    engine: Engine,
    keys: Keys,
    settings: BatchesConfig,
    max_line_bytes: usize,
    /// Told when there is something for the feeder of this front door.
    news: Notify,
    /// Uploads that broke off and are being dropped.
    tasks: TaskTracker,
}

impl Batches {
    /// `max_line_bytes`: what the body of a single run may have.
    pub fn new(
        db: DatabaseConnection,
        runner: Runner,
        engine: Engine,
        keys: Keys,
        settings: BatchesConfig,
        max_line_bytes: usize,
    ) -> Self {
        let (store, news, tasks) = (Store::new(db), Notify::new(), TaskTracker::new());
        Self(Arc::new(Inner { store, runner, engine, keys, settings, max_line_bytes, news, tasks }))
    }

    /// Begins to receive a batch, if the account may start runs now.
    pub async fn receive(&self, principal: &Principal) -> Result<Receiving, BatchError> {
        self.0.runner.admit(principal).await?;
        let now = self.0.engine.now();
        let id = BatchId(RunId::at(now).0);
        self.0.store.open(id, principal.account.id, principal.key, now).await?;
        Ok(Receiving::new(self.0.clone(), principal.account.id, id))
    }

    /// The progress of a batch of the account.
    pub async fn find(&self, account: AccountId, id: BatchId) -> Result<BatchView, BatchError> {
        self.0.find(account, id).await
    }

    /// The lines of a batch of the account that have ended so far, in their order, after the one with the index `after`.
    pub async fn results(&self, account: AccountId, id: BatchId, after: Option<u32>) -> Result<Results, BatchError> {
        if self.0.store.find(account, id).await?.is_none() {
            return Err(BatchError::NotFound);
        }
        Results::open(self.0.clone(), account, id, after).await
    }

    /// Cancels what waits and what runs. Lines end shortly after; the batch has a `finished_at` once all have.
    pub async fn cancel(&self, account: AccountId, id: BatchId) -> Result<BatchView, BatchError> {
        if self.0.store.cancel(account, id).await? {
            self.0.news.notify_waiters();
        }
        let view = self.find(account, id).await?;
        if view.state == BatchState::Cancelled { Ok(view) } else { Err(BatchError::AlreadyCompleted) }
    }

    /// Waits until what broken uploads left is dropped.
    pub async fn settle(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Inner {
    async fn find(&self, account: AccountId, id: BatchId) -> Result<BatchView, BatchError> {
        let row = self.store.find(account, id).await?.ok_or(BatchError::NotFound)?;
        let view = row.view().map_err(StoreError::from)?;
        if view.queued == 0 {
            return Ok(view);
        }
        let fed: Vec<RunId> = self.store.fed(id).await?.into_iter().map(|(_, run)| run).collect();
        let running = u32::try_from(self.engine.count_leased(&fed).await).unwrap_or(u32::MAX).min(view.queued);
        Ok(BatchView { queued: view.queued - running, running, ..view })
    }
}
