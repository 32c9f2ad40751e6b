//! The queue of a distributed engine: everything lives in Redis 7 (or Valkey), so that any process may die at any time.
//!
//! # Keys
//!
//! All keys of a pool start with its hash tag, `{q:<pool>}:`, so they share one slot of a cluster and a script may touch them all.
//!
//! A run is three keys. `run:<id>` is its record, which the steps read and write as a whole (`record.lua`): its state, the fence, whose it is, where
//! it stands, what its owner does with it. `job:<id>` and `end:<id>` are the bytes of the job and of the stashed ending. The
//! states are `ready`, `delayed`, `leased` and `ended` (its ending is stashed and has to be recorded). A run that is done has none of these keys,
//! and a tombstone: `done:<minute>` are the ids of the runs that were done in a minute, kept for one to two minutes.
//!
//! Runs that wait stand in `ready:<lane>:<scope>:<account>`, a list. `turns:<lane>:<scope>` orders the accounts with such a list by their virtual
//! time, `virtual:<lane>` is each account's virtual time over all scopes, and the hash `meta` holds the lanes' own and the credit that
//! their weights earned them. `waiting:<lane>` has all ready runs of a lane by the moment since when, `delay` the delayed ones by
//! when they become ready, `deadlines` both by when they expire. A run that is cancelled leaves these at once, but its entry stays in the
//! list until a claim comes across it: what counts is the state in its record.
//!
//! `lease` has every owned run by the end of its lease, `slots:<scope>` the runs in a call by when their slot frees itself.
//! `requests:<scope>` and `calls:<rule>:<subject>` are the moments of the last minute's requests, `tokens:<scope>` and `amounts:<scope>` its tokens.
//! `paused:<scope>` and `paused` hold a scope, or everything, back.
//!
//! `flight:<digest>` is the run that leads those which would be the same call, `behind:<digest>` the list of those that wait behind it. They are
//! delayed; `behind` in their record says why. When their delay is over, they look whether their leader is still there. Both keys have
//! a time to live, should nobody clear them away.
//!
//! `events:<id>` is the log of a run's events, a list: its n-th element is event n. It outlives the run by its own time to live.
//!
//! `idle:<scope>` has the workers that found nothing (more) to claim, `wake:<scope>` a token for each of them that was woken since;
//! they block on it, and on `offers:<scope>`, which holds runs that were leased as they came and that nobody has taken yet. How many more may be, until when,
//! in which scopes and with which lease is in `room`, `room_until` and `room:<scope>` (`offer.lua`). `epoch` is there unless Redis has lost its memory; `unrestored` names it until its runs have been
//! restored from the ledger, and `restoring` is there while somebody should be at it. `forgot` says since when the memory is lost, for a minute:
//! what was forgotten still counts against the limits of the scopes, so that those wait until it cannot any more. `swept` is the worker that compared the ledger
//! with the queue last, or is at it, and keeps others from that for a while.
//!
//! # Channels
//!
//! They have the same prefix; nothing of them is kept. On `reply:<front door>` the endings and events are published that this front door waits for
//! (`replies.rs`), on `cancel` the cancellations of leased runs, for all workers. A user of Redis with rights of its own needs those to the keys
//! and to the channels of its pool.
//!
//! # Time
//!
//! Every moment is one of Redis's clock, the deadlines of runs too. A process knows that clock as its own monotonic clock and an offset that it
//! measured (`clock.rs`): when it connects, and every other second.
//! Nobody's wall clock is asked, so none can be wrong.
//!
//! When the clock of Redis itself is set, the processes follow it. What was written down by the old clock is then read by the new one: set
//! forward, leases and deadlines pass early and minutes are forgotten; set back, they last longer by as much. Tombstones are forgotten either way.

mod cancellations;
mod claim;
mod clock;
mod connect;
mod depth;
mod lines;
mod message;
mod parts;
mod replies;
mod restoring;
mod scripts;
mod subscription;
#[cfg(test)]
mod tests;
mod together;
mod wake;
mod wire;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::FromRedisValue;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::connect::ConnectError;
use self::{
    clock::Clock,
    connect::Connections,
    depth::Depth,
    parts::{Appended, Asking, Entering, Stashed},
    scripts::{Invocation, Step},
    together::Steps,
    wake::Waiters,
};
use super::{
    Admission, Admitted, Cancelled, Claim, Claimed, Epoch, Followed, Held, LEASE, LOG_PAGE, LaneStats, MAX_LOSSES,
    NewText, Queue, QueueStats, Recalled, Release, Renewal, Reply, Restored, ScopeLimits, Sighting, Submission,
    Unreachable,
};
use crate::{
    job::{Ending, Fence, FrontDoorId, Job, Outcome, RunId, UnixMillis, WorkerId},
    providers::Secret,
};

/// Runs handed out by one script: it keeps Redis busy for a few milliseconds, in which it answers nobody else.
const CLAIM_BATCH: usize = 50;
/// Runs in one script that touches a few fields of each.
const BATCH: usize = 500;

/// Where the queue is.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// `redis://`, `rediss://` or `unix://`.
    pub url: Secret,
    /// Which queue in that Redis: engines that name the same pool share their runs.
    pub pool: String,
    /// Connections for commands, at most; reads that block have their own.
    pub max_connections: usize,
}

/// A queue in Redis.
pub struct RedisQueue {
    connections: Connections,
    /// The hash tag, with its braces.
    tag: String,
    lease: Duration,
    steps: Steps,
    depth: Depth,
    warnings: Vec<String>,
    waiters: Waiters,
    clock: Arc<Clock>,
    /// The memory of the queue that this process has seen. If it is gone then, or another one, it was lost.
    known: Mutex<Option<Epoch>>,
}

impl RedisQueue {
    /// Connects within five seconds, and checks that the server can do what the queue needs.
    pub async fn connect(settings: RedisSettings) -> Result<RedisQueue, ConnectError> {
        let (connections, time, warnings) = Connections::open(&settings).await?;
        let tag = format!("{{q:{}}}", settings.pool);
        let (waiters, clock) = (Waiters::new(tag.clone()), Arc::new(Clock::new(time)));
        let (steps, lease) = (Steps::new(&connections, &tag, LEASE), LEASE);
        let (depth, known) = (Depth::default(), Mutex::default());
        let mut queue = Self { connections, tag, lease, steps, depth, warnings, waiters, clock, known };
        // The first step loads the library, if it is not there. Why it cannot is better told now than guessed from what fails later.
        if let Err(Unreachable(cause)) = queue.stats().await {
            queue.warnings.push(format!(
                "Redis does not carry out the steps of the queue, so no run is taken or executed yet ({cause}); its user needs FCALL and FUNCTION \
                 LOAD, and their library a little free memory"
            ));
        }
        Ok(queue)
    }

    /// The same queue with leases of another length than [`LEASE`]. Processes of a pool may differ: a lease is as long as its
    /// owner says.
    pub fn with_lease(self, lease: Duration) -> Self {
        Self { lease, steps: Steps::new(&self.connections, &self.tag, lease), ..self }
    }

    /// What the operator should know about this Redis, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn step(&self, step: Step) -> Invocation {
        Invocation::new(step, &self.tag)
    }

    async fn run<T: FromRedisValue + Send>(&self, step: Invocation) -> Result<T, Unreachable> {
        self.connections.ask(&step).await
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.tag)
    }

    fn known(&self) -> MutexGuard<'_, Option<Epoch>> {
        // Nothing panics while it holds the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the steps are told of it: empty when there is none.
    fn known_epoch(&self) -> String {
        self.known().map(|epoch| epoch.0.to_string()).unwrap_or_default()
    }

    async fn give_back(
        &self,
        run: RunId,
        fence: Fence,
        after: Duration,
        target: Option<usize>,
        what: &'static str,
    ) -> Result<Held, Unreachable> {
        let step = self
            .step(scripts::RELEASE)
            .arg(run.to_string())
            .arg(fence.0)
            .arg(millis(after))
            .arg(target.map(|target| target.to_string()).unwrap_or_default())
            .arg(what);
        wire::held(&self.run::<String>(step).await?)
    }
}

#[async_trait]
impl Queue for RedisQueue {
    fn lease(&self) -> Duration {
        self.lease
    }

    fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    async fn admit(&self, job: &Job, admission: &Admission) -> Result<Admitted, Unreachable> {
        // Its rendered text is what makes a run large.
        let text = job.request.user.len() + job.request.system.as_ref().map_or(0, String::len);
        if self.depth.lets_in(admission, text as u64) {
            return Ok(Admitted::Yes { rates: Vec::new() });
        }
        let asked = Instant::now();
        let asking = Asking { size: job.encode().len(), admission: admission.clone() };
        let (answer, waiting) = self.steps.admissions.ask(asking).await?;
        self.depth.heard(asked, waiting);
        wire::admitted(answer, Some(admission))
    }

    async fn enqueue(&self, submission: Submission, admission: Option<&Admission>) -> Result<Admitted, Unreachable> {
        let Submission { job, reply_to } = submission;
        let bytes = job.encode();
        let entering = Entering { job, bytes, reply_to, admission: admission.cloned() };
        wire::admitted(self.steps.enqueues.ask(entering).await?, admission)
    }

    async fn claim(&self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Result<Claimed, Unreachable> {
        self.claim_in_batches(worker, free, scopes).await
    }

    async fn wait(
        &self,
        worker: WorkerId,
        free: usize,
        at_most: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Claim>, Unreachable> {
        self.wait_for_runs(worker, free, at_most, stop).await
    }

    async fn heartbeat(&self, worker: WorkerId, held: &[(RunId, Fence)]) -> Result<Vec<Renewal>, Unreachable> {
        let mut renewals = Vec::with_capacity(held.len());
        for batch in held.chunks(BATCH) {
            let step =
                wire::with_fences(self.step(scripts::HEARTBEAT).arg(millis(self.lease)).arg(worker.to_string()), batch);
            renewals.extend(wire::renewals(self.run(step).await?, batch.len())?);
        }
        Ok(renewals)
    }

    async fn append(&self, run: RunId, fence: Fence, text: &NewText) -> Result<Held, Unreachable> {
        self.steps.appends.ask(Appended { run, fence, text: text.clone() }).await
    }

    async fn follow(&self, run: RunId, front_door: FrontDoorId, after: u64) -> Result<Followed, Unreachable> {
        let step = self.step(scripts::FOLLOW).arg(run.to_string()).arg(front_door.to_string());
        wire::followed(&self.run::<Vec<Vec<u8>>>(step.arg(after).arg(LOG_PAGE)).await?, after)
    }

    async fn stash_after(&self, text: &NewText, ending: &Ending) -> Result<Held, Unreachable> {
        let stashed = Stashed {
            run: ending.run,
            fence: ending.fence,
            tokens: ending.usage().total(),
            state: ending.outcome.state(),
            bytes: ending.encode(),
            text: text.clone(),
        };
        self.steps.stashes.ask(stashed).await
    }

    async fn finish(&self, runs: &[(RunId, Fence)]) -> Result<(), Unreachable> {
        for batch in runs.chunks(BATCH) {
            let step = wire::with_fences(self.step(scripts::FINISH), batch);
            self.run::<()>(step).await?;
        }
        Ok(())
    }

    async fn release(&self, run: RunId, fence: Fence, how: Release) -> Result<Held, Unreachable> {
        match how {
            Release::Retry { after, target } => self.give_back(run, fence, after, Some(target), "call").await,
            Release::Limited { after, target } => self.give_back(run, fence, after, Some(target), "limited").await,
            Release::HandBack => self.give_back(run, fence, Duration::ZERO, None, "uncounted").await,
        }
    }

    async fn reap(&self, worker: WorkerId, limit: usize) -> Result<Vec<Claim>, Unreachable> {
        let step = self
            .step(scripts::REAP)
            .arg(worker.to_string())
            .arg(limit.min(CLAIM_BATCH))
            .arg(millis(self.lease))
            .arg(MAX_LOSSES);
        self.claims(self.run(step).await?).await
    }

    async fn cancel(&self, run: RunId, outcome: Outcome) -> Result<Cancelled, Unreachable> {
        self.end_from_outside(run, outcome).await
    }

    async fn pause_scope(&self, scope: &str, after: Duration) -> Result<(), Unreachable> {
        self.run(self.step(scripts::PAUSE_SCOPE).arg(scope).arg(millis(after))).await
    }

    async fn missing(&self, runs: &[RunId]) -> Result<Vec<RunId>, Unreachable> {
        self.missing_of(runs).await
    }

    async fn restore(&self, runs: &[Restored]) -> Result<(), Unreachable> {
        self.put_back(runs).await
    }

    async fn was_reset(&self) -> Result<Option<Epoch>, Unreachable> {
        let step = self.step(scripts::WAS_RESET).arg(Uuid::now_v7().to_string()).arg(self.known_epoch());
        let (epoch, unrestored): (Vec<u8>, Option<Vec<u8>>) = self.run(step.arg(millis(self.lease))).await?;
        *self.known() = Some(wire::parse(&epoch).map(Epoch)?);
        unrestored.map(|epoch| wire::parse(&epoch).map(Epoch)).transpose()
    }

    async fn restored(&self, epoch: Epoch) -> Result<(), Unreachable> {
        self.run(self.step(scripts::RESTORED).arg(epoch.0.to_string())).await
    }

    async fn claim_sweep(&self, worker: WorkerId, every: Duration) -> Result<bool, Unreachable> {
        self.run(self.step(scripts::CLAIM_SWEEP).arg(worker.to_string()).arg(millis(every))).await
    }

    async fn locate(&self, run: RunId) -> Result<Option<Sighting>, Unreachable> {
        let (state, started): (String, String) = self.run(self.step(scripts::LOCATE).arg(run.to_string())).await?;
        let started_at = started.parse().ok().map(UnixMillis);
        Ok(match state.as_str() {
            "ready" | "delayed" => Some(Sighting { leased: false, started_at }),
            "leased" => Some(Sighting { leased: true, started_at }),
            _ => None,
        })
    }

    async fn count_leased(&self, runs: &[RunId]) -> Result<usize, Unreachable> {
        let mut leased = 0;
        for batch in runs.chunks(BATCH) {
            leased += self.run::<usize>(wire::with_runs(self.step(scripts::COUNT_LEASED), batch)).await?;
        }
        Ok(leased)
    }

    async fn recall(&self, run: RunId) -> Result<Option<Recalled>, Unreachable> {
        let (job, ending): (Vec<u8>, Vec<u8>) = self.run(self.step(scripts::RECALL).arg(run.to_string())).await?;
        // What another version wrote is for that version to show.
        let Ok(job) = Job::decode(&job) else { return Ok(None) };
        Ok(Some(Recalled { job: Arc::new(job), ending: Ending::decode(&ending).ok().map(Box::new) }))
    }

    async fn replies(
        &self,
        front_door: FrontDoorId,
        stop: CancellationToken,
    ) -> Result<mpsc::Receiver<Reply>, Unreachable> {
        let channel = self.key(&format!("reply:{front_door}"));
        replies::listen(self.connections.clone(), self.clock.clone(), channel, &self.key("epoch"), stop).await
    }

    async fn cancellations(&self, stop: CancellationToken) -> Result<mpsc::Receiver<RunId>, Unreachable> {
        cancellations::listen(self.connections.clone(), self.key("cancel"), stop).await
    }

    async fn set_paused(&self, paused: bool) -> Result<(), Unreachable> {
        self.run(self.step(scripts::SET_PAUSED).arg(u8::from(paused))).await
    }

    async fn stats(&self) -> Result<QueueStats, Unreachable> {
        let answer: [u64; 10] = self.run(self.step(scripts::STATS)).await?;
        let [ready0, oldest0, ready1, oldest1, ready2, oldest2, delayed, leased, bytes, paused] = answer;
        let lane = |ready, oldest_ms| LaneStats { ready, oldest_ms };
        Ok(QueueStats {
            lanes: [lane(ready0, oldest0), lane(ready1, oldest1), lane(ready2, oldest2)],
            delayed,
            leased,
            bytes,
            paused: paused != 0,
        })
    }

    async fn ping(&self) -> Result<(), Unreachable> {
        self.connections.ask(&redis::cmd("PING")).await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
