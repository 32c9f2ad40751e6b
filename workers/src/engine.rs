//! The engine as front doors see it: submit, watch, cancel.

mod cached;
mod ending;
mod events;
mod fed;
mod handover;
mod inbox;
mod list;
mod rows;
#[cfg(test)]
mod tests;
mod view;
mod waiters;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use crate::engine::{events::Events, list::Page, waiters::Waiter};
use crate::{
    engine::waiters::Waiters,
    fail,
    job::{AccountId, CacheUse, Ending, FrontDoorId, Job, RunId, RunState, UnixMillis},
    ledger::{Entered, IdempotencyKey, KnownRun, Ledger, LedgerError, RunRecord},
    queue::{Admission, Admitted, Queue, RateLeft, RateRule, Submission, Unreachable},
};

/// No log has so many events; every number up to it is exact wherever it is counted.
const MAX_SEQ: u64 = 1 << 53;

/// What the engine allows to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Runs that wait, at most; more are answered with [`SubmitError::Full`].
    pub max_depth: u64,
    /// Bytes of waiting jobs, at most.
    pub max_bytes: u64,
}

/// When the caller is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// The caller waits for the ending: the row is written beside the run, if that does not end at once.
    Wait,
    /// The caller leaves with the run's id: the row is committed before the run is enqueued.
    Committed,
    /// The same, for a request that may be sent again: of all that carry the key, one makes a run.
    Keyed(IdempotencyKey),
}

/// A run that was accepted, with its caller's way to hear of it: a [`Waiter`], its [`Events`], or nothing.
pub struct Accepted<W> {
    pub rates: Vec<RateLeft>,
    /// [`CacheUse::Hit`] when the run has ended already, with a result that was there; [`CacheUse::Miss`] when it shares its result and there was none
    /// for it. `None` when it does not share.
    pub cache: Option<CacheUse>,
    pub waiter: W,
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
    /// Its key stands for another run.
    #[error("the request was sent before")]
    Known(KnownRun),
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
    /// A worker was told, or the run's ending is being recorded; the run ends within a second when everything is up.
    Requested,
    /// The run succeeded, failed or expired before.
    AlreadyEnded,
    /// The account has no such run.
    NotFound,
}

/// Submit, watch, cancel. Cheap to clone; the last clone to go stops its tasks.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    queue: Arc<dyn Queue>,
    settings: EngineSettings,
    front_door: FrontDoorId,
    waiters: Arc<Waiters>,
    draining: AtomicBool,
    dismiss: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Engine {
    /// Opens this boot's reply channel.
    pub async fn start(ledger: Ledger, queue: Arc<dyn Queue>, settings: EngineSettings) -> Result<Self, Unreachable> {
        let front_door = FrontDoorId::new();
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let waiters = Arc::new(Waiters::default());
        let replies = queue.replies(front_door, stop.clone()).await?;
        tasks.spawn(waiters::listen(waiters.clone(), replies));
        tasks.spawn(waiters::sweep(waiters.clone(), ledger.clone(), stop.clone()));
        tasks.spawn(rows::write(waiters.rows.clone(), ledger.clone(), tasks.clone(), stop.clone()));
        let (draining, dismiss) = (AtomicBool::new(false), CancellationToken::new());
        Ok(Self(Arc::new(Inner { ledger, queue, settings, front_door, waiters, draining, dismiss, stop, tasks })))
    }

    /// The queue's clock: where the moments of a run come from.
    pub fn now(&self) -> UnixMillis {
        self.0.queue.now()
    }

    /// Accepts a run, if `rules` and the queue's depth admit it. One that got into a store whose answer was lost is ended again, if that
    /// store can be reached: its caller is told that it was not accepted, and may send it once more.
    pub async fn submit(
        &self,
        job: Job,
        rules: Vec<RateRule>,
        promise: Promise,
    ) -> Result<Accepted<Waiter>, SubmitError> {
        // Registered before anything is sent, so that no ending can come too early.
        let waiter = self.0.waiters.register(job.id);
        let Entry { rates, cache, ending } = self.enter(job, rules, promise, Some(self.0.front_door)).await?;
        if let Some(ending) = ending {
            self.0.waiters.end(ending);
        }
        Ok(Accepted { rates, cache, waiter })
    }

    /// The same for a caller that leaves with the run's id: nobody is told of the ending.
    pub async fn leave(&self, job: Job, rules: Vec<RateRule>, promise: Promise) -> Result<Accepted<()>, SubmitError> {
        let Entry { rates, cache, .. } = self.enter(job, rules, promise, None).await?;
        Ok(Accepted { rates, cache, waiter: () })
    }

    /// The same for a caller that wants to be told of everything. The job says that it is streamed.
    pub async fn submit_streamed(
        &self,
        job: Job,
        rules: Vec<RateRule>,
        promise: Promise,
    ) -> Result<Accepted<Events>, SubmitError> {
        let mut waiter = self.events(job.id, 0).begin();
        let Entry { rates, cache, ending } = self.enter(job, rules, promise, Some(self.0.front_door)).await?;
        if let Some(ending) = ending {
            waiter = waiter.end_with(ending);
        }
        Ok(Accepted { rates, cache, waiter })
    }

    /// A run of an account as it is now, and its events from after the event `after`; `None` when there is no such run.
    pub async fn follow(
        &self,
        account: AccountId,
        run: RunId,
        after: u64,
    ) -> Result<Option<(RunView, Events)>, SubmitError> {
        let Some(view) = self.find(account, run).await? else { return Ok(None) };
        let mut events = self.events(run, after.min(MAX_SEQ));
        events.look().await?;
        events.look_back().await?;
        Ok(Some((view, events)))
    }

    fn events(&self, run: RunId, after: u64) -> Events {
        let Inner { queue, ledger, front_door, waiters, .. } = &*self.0;
        Events::new(run, after, waiters, queue.clone(), ledger.clone(), *front_door)
    }

    async fn enter(
        &self,
        job: Job,
        rules: Vec<RateRule>,
        promise: Promise,
        reply_to: Option<FrontDoorId>,
    ) -> Result<Entry, SubmitError> {
        let inner = &self.0;
        if self.is_draining() {
            return Err(SubmitError::Draining);
        }
        let run = job.id;
        let job = Arc::new(job);
        if let Some(result) = self.look_up(&job).await {
            return Box::pin(self.answer(job, result, rules, promise)).await;
        }
        let cache = job.caching.as_ref().map(|_| CacheUse::Miss);
        let admission = Admission { rules, max_depth: inner.settings.max_depth, max_bytes: inner.settings.max_bytes };
        let submission = Submission { job: job.clone(), reply_to };
        let rates = match promise {
            Promise::Wait => {
                let entered = fail::around("enqueue", inner.queue.enqueue(submission, Some(&admission))).await;
                let rates = admitted(entered.inspect_err(|_| self.abandon(run))?)?;
                inner.waiters.hold_row(job);
                rates
            }
            Promise::Committed | Promise::Keyed(_) => {
                let rates = admitted(inner.queue.admit(&job, &admission).await?)?;
                match promise {
                    // Whoever is not told what became of it sends it again, and finds the run if there is one.
                    Promise::Keyed(key) => {
                        if let Entered::Known(known) =
                            fail::around("insert", inner.ledger.insert_keyed(job, key)).await?
                        {
                            return Err(SubmitError::Known(known));
                        }
                    }
                    _ => fail::around("insert", inner.ledger.insert(job)).await.inspect_err(|_| self.abandon(run))?,
                }
                // The row is committed: from here on the run is accepted.
                self.hand_over(submission).await;
                fail::point("accepted").await;
                rates
            }
        };
        Ok(Entry { rates, cache, ending: None })
    }

    /// A run of an account, with its attempts. Knows every run that a caller was told of, even while its row is on its way.
    pub async fn find(&self, account: AccountId, run: RunId) -> Result<Option<RunView>, LedgerError> {
        let row = self.0.ledger.find(account, run).await?;
        if row.as_ref().is_some_and(|row| row.state.is_terminal()) {
            return Ok(row);
        }
        match self.look_in_queue(account, run, row.clone()).await {
            // Its earlier calls are recorded one by one, beside its row.
            Ok(Some(view)) if view.state.is_terminal() => {
                let recorded = self.0.ledger.attempts(run).await?;
                Ok(Some(view.with_recorded(recorded)))
            }
            Ok(Some(view)) => Ok(Some(view)),
            // It was finished between the two looks, so that its row is complete by now; or there is no such run.
            Ok(None) => self.0.ledger.find(account, run).await,
            // The ledger alone is the truth about every run; only what is not written yet is missing.
            Err(error) => {
                tracing::debug!(%run, %error, "a status is shown without the queue");
                Ok(row)
            }
        }
    }

    async fn look_in_queue(
        &self,
        account: AccountId,
        run: RunId,
        row: Option<RunRecord>,
    ) -> Result<Option<RunView>, Unreachable> {
        let sighting = self.0.queue.locate(run).await?;
        let record = match (row, sighting) {
            (Some(row), Some(_)) => row,
            // The row is missing, or the run has ended and its row does not say so: the job and the ending are worth their bytes.
            (row, _) => match self.0.queue.recall(run).await? {
                Some(recalled) if recalled.job.account == account => RunRecord::completed(row, &recalled),
                _ => return Ok(None),
            },
        };
        Ok(Some(match sighting {
            Some(sighting) if !record.state.is_terminal() => RunRecord {
                state: if sighting.leased { RunState::Running } else { RunState::Queued },
                started_at: sighting.started_at.map(|started_at| started_at.max(record.created_at)),
                ..record
            },
            _ => record,
        }))
    }

    /// What is known to have been spent for an account's runs of a time, in nano-dollars ([`Ledger::spent`]).
    pub async fn spent(&self, account: AccountId, accepted: Range<UnixMillis>) -> Result<i64, LedgerError> {
        self.0.ledger.spent(account, accepted).await
    }

    /// The run that an account's key stands for.
    pub async fn keyed(&self, account: AccountId, key: &IdempotencyKey) -> Result<Option<KnownRun>, LedgerError> {
        self.0.ledger.keyed(account, key, self.now()).await
    }

    /// From now on every new run is refused with [`SubmitError::Draining`].
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// The process is about to end: nobody is to wait here any longer.
    pub fn dismiss(&self) {
        self.0.dismiss.cancel();
    }

    /// Ends when waiting here has become useless.
    pub async fn dismissed(&self) {
        self.0.dismiss.cancelled().await;
    }

    /// Whether waiting here has become useless.
    pub fn is_dismissed(&self) -> bool {
        self.0.dismiss.is_cancelled()
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Waits for what goes on in the background: rows of runs that were answered, cancellations.
    pub async fn settle(&self, at_most: Duration) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(at_most, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("some writes in the background did not end in time");
        }
    }

    /// Whether the queue answers.
    pub async fn queue_ready(&self) -> Result<(), Unreachable> {
        self.0.queue.ping().await
    }

    /// Whether the database answers.
    pub async fn ledger_ready(&self) -> Result<(), LedgerError> {
        self.0.ledger.ping().await
    }

    /// The queue itself, for operators' verbs.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.0.queue
    }
}

/// What came of a run that was let in.
struct Entry {
    rates: Vec<RateLeft>,
    cache: Option<CacheUse>,
    /// Set when it has ended already.
    ending: Option<Box<Ending>>,
}

fn admitted(admitted: Admitted) -> Result<Vec<RateLeft>, SubmitError> {
    match admitted {
        Admitted::Yes { rates } => Ok(rates),
        Admitted::Limited { rule, after, rates } => Err(SubmitError::Limited { rule, after, rates }),
        Admitted::Full { after } => Err(SubmitError::Full { after }),
    }
}
