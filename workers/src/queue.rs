//! The queue: who runs what, and when. It dispatches and remembers nothing that the ledger does not know.
//!
//! # The protocol
//!
//! A run is *ready* (waits in a list of its lane, limit scope and account), *delayed* (waits for a moment), *leased* (one worker
//! has the right to it until its lease ends), or *done* (a tombstone that stops a late copy from coming back to life).
//!
//! 1. **Enqueue** admits a run (limits of its account and key, depth and bytes of the queue), puts it in its list and wakes
//!    as many idle workers as there is new work. Enqueueing an id that the queue knows changes nothing but this: a run that was
//!    restored before its own front door enqueued it learns who waits, and an ending that is stashed already is sent there.
//! 2. **Claim** hands out up to `free` runs. Lanes share by weight 8:3:1 with ageing, accounts inside a lane take turns by the
//!    cost of what they ran. A run is handed out only when its scope has a free concurrency slot, a request and
//!    its tokens left in the last minute, is not paused, and its worker would call it at once; the claim takes them all in the same step,
//!    together with a lease and a new **fence**. The answer also says when a run that was held back could go.
//!
//!    A worker that has free executors left **waits**. A run that comes while nothing waits in its scope, and the scope has no limits, need not
//!    wait either: it may be *offered*, leased as it comes, and whoever waits and takes it first has claimed it. An offer that nobody takes is
//!    handed out by the next claim, or waits again. Offers take no turn of their account: nobody waited for one.
//! 3. **Heartbeat** renews the leases (and slots) that the worker still owns, and reports cancellation.
//! 4. **Stash** stores the ending of a run under its fence, frees its slot, settles its tokens, and sends the ending to the
//!    front door that waits, all in one step. From here on the run has ended: nobody can cancel it or call a model for it again.
//! 5. The ledger is written. Then **finish** drops the lease and leaves the tombstone.
//! 6. **Release** gives a leased run back: to be retried after a while (calls that a provider limited are counted apart), or handed back
//!    uncounted when a worker drains.
//! 7. **Reap** takes over what its owner lost: a lease that ran out, a deadline that passed in the queue. The reaper becomes
//!    the owner, under a new fence, and is told what is left to do ([`Work`]).
//! 8. **Cancel** takes a waiting run over in the same way (its ending is stashed in the same step), or flags a leased one and tells its owner.
//! 9. The **reconciler** asks which unfinished rows of the ledger the queue does not know ([`Queue::missing`]) and restores them.
//!
//! A run whose events somebody follows has a **log**: what happened to it, numbered from 1. A run that its caller wants streamed has one from
//! the start, any other from the moment when somebody follows it first. Enqueue, claim, release and stash write to it in the same
//! step in which the thing happens, and the worker that makes a streamed call **appends** the text as it comes, under its fence. Each event is
//! sent to the front doors that follow the run; whoever misses some reads them from the log, which stays for a while after the end. An
//! append names the place of its first event, so that repeating it writes nothing twice.
//!
//! Runs that would be the same call ([`Job::caching`]) share a **flight**. The first one leads it, and is handed out like any other; those that come
//! while it has not been finished wait *behind* it, delayed, and no claim hands them out. A run that is more urgent than a leader which
//! nobody has called yet does not wait behind it: it leads from then on. When the leader is finished, what becomes of the others depends on how it
//! ended. It succeeded, and its result is in the ledger: a reaper takes them over, to end them with that result and without a call
//! ([`Work::Answer`]). It failed: each of them becomes ready, for a try of its own. It was cancelled, or expired: the first of them
//! becomes ready, and leads.
//!
//! Every step is atomic, fenced where it changes a leased run, and safe to repeat: whoever dies between two of them leaves a lease
//! that runs out, and the reaper finds in the run itself what to do next.
//!
//! A queue that lost its memory does not know which calls are under way, nor what the last minute held. It hands out nothing in a scope with
//! limits until that is past: for as long as a lease, or a minute.
//!
//! A run's deadline, and every other moment that it is given, is one of the queue's clock ([`Queue::now`]). So nobody's wall clock has to
//! agree with anybody's: a deadline that one process computed means the same to every other one.
//!
//! Fences come from the same clock in microseconds and never fall behind the last one of the run, so that they keep growing even when
//! the queue lost everything it knew: the ledger's last fence comes back with the run, should the new queue's clock be behind.

mod admission;
mod claim;
pub mod embedded;
mod log;
#[cfg(test)]
mod property;
pub mod redis;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::{
    admission::{Admission, Admitted, RateLeft, RateRule},
    claim::{AtOnce, Claim, Claimed, LostCall, ScopeLimits, Work},
    log::{Followed, LOG_BYTES, LOG_PAGE, LOG_RETENTION, LogMark, NewText},
};
use crate::job::{Ending, Fence, FrontDoorId, Job, Lane, Logged, Outcome, RunId, UnixMillis, WorkerId};

/// How long a worker owns a run without a heartbeat, unless it is told otherwise.
pub const LEASE: Duration = Duration::from_secs(15);
/// A run that lost more leases than this in a call is poison: it ends as failed and is listed as dead.
pub const MAX_LOSSES: u32 = 3;
/// The store behind the queue does not answer. Nothing is known about whether the step was done; every step may be repeated.
#[derive(Debug, thiserror::Error)]
#[error("the queue store is unreachable")]
pub struct Unreachable(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A run on its way into the queue.
#[derive(Clone, Debug)]
pub struct Submission {
    pub job: Arc<Job>,
    /// Who waits for the ending; `None` when nobody does.
    pub reply_to: Option<FrontDoorId>,
}

/// What became of a step on a leased run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The lease was ours and the step is done.
    Done,
    /// The run has another owner, or has ended; nothing changed.
    Elsewhere,
    /// The queue knows no such run (it lost its memory); nothing changed.
    Unknown,
}

/// The answer to a heartbeat, for one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    Held,
    /// Still ours, and somebody wants it to end.
    Cancel,
    /// No longer ours.
    Lost,
}

/// How a leased run is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// Ready again after a while, for another attempt at the given target.
    Retry { after: Duration, target: usize },
    /// The same after a call that its provider put off (429). [`Claim::limited`] tells how often, because that is no failure.
    Limited { after: Duration, target: usize },
    /// Ready at once, in front, as if it had not been claimed.
    HandBack,
}

/// What a cancellation found.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// The run was waiting. Its ending is stashed and sent; the canceller owns it, writes it to the ledger and finishes it.
    Ended { job: Arc<Job>, ending: Box<Ending> },
    /// A worker has it, was told, and will end it.
    Signalled,
    /// It has ended already.
    Finished,
    /// The queue does not know it.
    Unknown,
}

/// A run that the ledger knows and the queue does not.
#[derive(Clone, Debug)]
pub struct Restored {
    pub job: Arc<Job>,
    /// Attempts that are recorded already.
    pub attempts: i32,
    /// How many of them were limited by their provider.
    pub limited: i32,
    /// The last fence that the ledger knows of it; zero when there is none. The next one is greater.
    pub fence: Fence,
}

/// One memory of the queue, from one loss to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub uuid::Uuid);

/// A run in the queue, as its status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub leased: bool,
    pub started_at: Option<UnixMillis>,
}

/// What the queue holds of a run until its row is complete.
#[derive(Clone, Debug)]
pub struct Recalled {
    pub job: Arc<Job>,
    /// Set from the stash on: the run has ended, whatever the ledger knows by now.
    pub ending: Option<Box<Ending>>,
}

/// A message to a front door.
#[derive(Clone, Debug)]
pub enum Reply {
    Ended(Box<Ending>),
    /// Something happened to a run that this front door follows. The ending of such a run comes as its last event, and only so.
    Event(RunId, Logged),
    /// Messages may have been missed, because the connection was broken, the queue lost its memory, or one could not be read: ask for what is
    /// outstanding.
    Resumed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    pub ready: u64,
    /// Age of the run that waits longest, in milliseconds.
    pub oldest_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// In the order of [`Lane::ALL`].
    pub lanes: [LaneStats; Lane::ALL.len()],
    pub delayed: u64,
    pub leased: u64,
    pub bytes: u64,
    pub paused: bool,
}

/// How often a worker renews leases of this length.
pub fn heartbeat_of(lease: Duration) -> Duration {
    lease / 3
}

/// When a worker that could not renew a lease of this length gives the run up by its own clock, before anybody else may take it.
pub fn self_abort_of(lease: Duration) -> Duration {
    lease * 4 / 5
}

#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// How long the leases are that are taken and renewed here.
    fn lease(&self) -> Duration;

    /// The queue's clock: the only one that a run's moments are taken from. Two processes read it alike, to about the time that
    /// a message takes between them and the queue; no wall clock of theirs has a part in it.
    fn now(&self) -> UnixMillis;

    /// Admits, without enqueueing: for a run whose row must be committed first.
    async fn admit(&self, job: &Job, admission: &Admission) -> Result<Admitted, Unreachable>;

    /// Enqueues a run; with `admission`, only if it is admitted, in the same step.
    async fn enqueue(&self, submission: Submission, admission: Option<&Admission>) -> Result<Admitted, Unreachable>;

    /// Leases up to `free` runs of the given scopes to `worker`.
    async fn claim(&self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Result<Claimed, Unreachable>;

    /// Returns when there may be something to claim, or after `at_most`. A worker may wait after any claim that gave it less than it asked
    /// for: what comes after that claim wakes it, or is offered to it. The answer has what was offered, no more than `free` runs. The wait of
    /// a worker that stops is ended with `stop`, and not dropped, or an offer may be lost on its way.
    async fn wait(
        &self,
        worker: WorkerId,
        free: usize,
        at_most: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Claim>, Unreachable>;

    /// Renews leases and slots; answers in the order of `held`.
    async fn heartbeat(&self, worker: WorkerId, held: &[(RunId, Fence)]) -> Result<Vec<Renewal>, Unreachable>;

    /// Adds the text of a call to the run's log, for the owner of its lease. What the log has already is left out.
    async fn append(&self, run: RunId, fence: Fence, text: &NewText) -> Result<Held, Unreachable>;

    /// Reads the log of a run after an event; from now on `front_door` is sent what happens to it.
    async fn follow(&self, run: RunId, front_door: FrontDoorId, after: u64) -> Result<Followed, Unreachable>;

    /// Stores the ending, frees the slot, settles the tokens and sends the ending to whoever waits.
    async fn stash(&self, ending: &Ending) -> Result<Held, Unreachable> {
        self.stash_after(&NewText::default(), ending).await
    }

    /// The same, with the last text of its call, which is [appended](Queue::append) before it in the same step.
    async fn stash_after(&self, text: &NewText, ending: &Ending) -> Result<Held, Unreachable>;

    /// Drops the leases of recorded runs and leaves tombstones.
    async fn finish(&self, runs: &[(RunId, Fence)]) -> Result<(), Unreachable>;

    /// Gives a leased run back.
    async fn release(&self, run: RunId, fence: Fence, how: Release) -> Result<Held, Unreachable>;

    /// Takes over up to `limit` runs whose lease or deadline has passed.
    async fn reap(&self, worker: WorkerId, limit: usize) -> Result<Vec<Claim>, Unreachable>;

    /// Ends a run from outside, as [`Outcome::Cancelled`] or [`Outcome::Expired`].
    async fn cancel(&self, run: RunId, outcome: Outcome) -> Result<Cancelled, Unreachable>;

    /// Holds all runs of a scope back for a while: its provider said so.
    async fn pause_scope(&self, scope: &str, after: Duration) -> Result<(), Unreachable>;

    /// Which of these runs the queue does not know, tombstones included.
    async fn missing(&self, runs: &[RunId]) -> Result<Vec<RunId>, Unreachable>;

    /// Puts runs back that the queue does not know; others are left as they are.
    async fn restore(&self, runs: &[Restored]) -> Result<(), Unreachable>;

    /// Whether the queue has lost its memory (or is new), and its runs are to be restored from the ledger. One asker is told, and another one
    /// when it has not said within a lease that they are [`restored`](Queue::restored).
    async fn was_reset(&self) -> Result<Option<Epoch>, Unreachable>;

    /// All runs of the ledger that the queue did not know have been restored since it told of this epoch.
    async fn restored(&self, epoch: Epoch) -> Result<(), Unreachable>;

    /// Whether this worker may compare the ledger with the queue, as one does now and then: unless another one was told so less than `every` ago.
    async fn claim_sweep(&self, worker: WorkerId, every: Duration) -> Result<bool, Unreachable>;

    /// Where a run is; `None` when the queue does not know it or it has ended.
    async fn locate(&self, run: RunId) -> Result<Option<Sighting>, Unreachable>;

    /// How many of these runs a worker has.
    async fn count_leased(&self, runs: &[RunId]) -> Result<usize, Unreachable>;

    /// The job and the ending of a run whose row may not be there, or complete, yet; `None` when the queue does not know the run, or it was
    /// finished.
    async fn recall(&self, run: RunId) -> Result<Option<Recalled>, Unreachable>;

    /// Starts to receive what is sent to a front door from now on. It stops with the token. Each message comes once at most, and
    /// [`Reply::Resumed`] after any that may have been missed.
    async fn replies(
        &self,
        front_door: FrontDoorId,
        stop: CancellationToken,
    ) -> Result<mpsc::Receiver<Reply>, Unreachable>;

    /// Starts to hear of cancellations of leased runs, anybody's. They stop with the token. May miss some: heartbeats tell them too.
    async fn cancellations(&self, stop: CancellationToken) -> Result<mpsc::Receiver<RunId>, Unreachable>;

    /// Stops, or starts again, handing out runs to all workers.
    async fn set_paused(&self, paused: bool) -> Result<(), Unreachable>;

    async fn stats(&self) -> Result<QueueStats, Unreachable>;

    /// Answers when the store does.
    async fn ping(&self) -> Result<(), Unreachable>;
}

/// The ending of a run that no worker had: for queues, when a waiting run is cancelled or expires.
pub(crate) fn ending_in_queue(
    job: &Job,
    fence: Fence,
    outcome: Outcome,
    now: UnixMillis,
    started_at: Option<UnixMillis>,
) -> Ending {
    // Two readings of one clock may differ by the way between them, and no run ends before it began.
    let started_at = started_at.map(|started_at| started_at.max(job.created_at));
    let now = now.max(started_at.unwrap_or(job.created_at));
    Ending {
        v: crate::job::WIRE_VERSION,
        run: job.id,
        fence,
        outcome,
        model: job.targets.first().map(|target| target.model.clone()).unwrap_or_default(),
        started_at,
        finished_at: now,
        queue_ms: now.since(job.created_at),
        attempt: None,
        cache: None,
    }
}
