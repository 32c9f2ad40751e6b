//! An embedded queue whose steps fail when they are told to, as those of a store that cannot be reached do.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    job::{Ending, Fence, FrontDoorId, Job, Outcome, RunId, UnixMillis, WorkerId},
    queue::{
        Admission, Admitted, Cancelled, Claim, Claimed, Epoch, Followed, Held, NewText, Queue, QueueStats, Recalled,
        Release, Renewal, Reply, Restored, ScopeLimits, Sighting, Submission, Unreachable,
        embedded::{EmbeddedQueue, EmbeddedSettings},
    },
};

/// The steps that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Enqueue,
    Claim,
    Heartbeat,
    Append,
    Stash,
    Finish,
    Release,
}

/// What is lost when a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The question: nothing was done.
    Question,
    /// The answer: the step was done, and nobody was told.
    Answer,
    /// Whoever takes the step: it panics.
    Asker,
}

pub struct FaultyQueue {
    inner: EmbeddedQueue,
    faults: Mutex<HashMap<Step, Loss>>,
}

impl FaultyQueue {
    pub fn new(lease: Duration) -> Self {
        let inner = EmbeddedQueue::new(EmbeddedSettings { lease });
        Self { inner, faults: Mutex::default() }
    }

    /// From now on these steps fail.
    pub fn fail(&self, steps: &[Step], loss: Loss) {
        self.faults().extend(steps.iter().map(|step| (*step, loss)));
    }

    /// From now on every step works.
    pub fn heal(&self) {
        self.faults().clear();
    }

    fn faults(&self) -> MutexGuard<'_, HashMap<Step, Loss>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn step<T>(&self, step: Step, work: impl Future<Output = Result<T, Unreachable>>) -> Result<T, Unreachable> {
        let loss = self.faults().get(&step).copied();
        match loss {
            None => work.await,
            Some(loss) => {
                match loss {
                    Loss::Question => {}
                    Loss::Answer => drop(work.await?),
                    Loss::Asker => panic!("{step:?} was told to panic"),
                }
                Err(Unreachable(format!("{step:?} was told to fail").into()))
            }
        }
    }
}

#[async_trait]
impl Queue for FaultyQueue {
    fn lease(&self) -> Duration {
        self.inner.lease()
    }

    fn now(&self) -> UnixMillis {
        self.inner.now()
    }

    async fn admit(&self, job: &Job, admission: &Admission) -> Result<Admitted, Unreachable> {
        self.inner.admit(job, admission).await
    }

    async fn enqueue(&self, submission: Submission, admission: Option<&Admission>) -> Result<Admitted, Unreachable> {
        self.step(Step::Enqueue, self.inner.enqueue(submission, admission)).await
    }

    async fn claim(&self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Result<Claimed, Unreachable> {
        self.step(Step::Claim, self.inner.claim(worker, free, scopes)).await
    }

    async fn wait(
        &self,
        worker: WorkerId,
        free: usize,
        at_most: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Claim>, Unreachable> {
        self.inner.wait(worker, free, at_most, stop).await
    }

    async fn heartbeat(&self, worker: WorkerId, held: &[(RunId, Fence)]) -> Result<Vec<Renewal>, Unreachable> {
        self.step(Step::Heartbeat, self.inner.heartbeat(worker, held)).await
    }

    async fn append(&self, run: RunId, fence: Fence, text: &NewText) -> Result<Held, Unreachable> {
        self.step(Step::Append, self.inner.append(run, fence, text)).await
    }

    async fn follow(&self, run: RunId, front_door: FrontDoorId, after: u64) -> Result<Followed, Unreachable> {
        self.inner.follow(run, front_door, after).await
    }

    async fn stash_after(&self, text: &NewText, ending: &Ending) -> Result<Held, Unreachable> {
        self.step(Step::Stash, self.inner.stash_after(text, ending)).await
    }

    async fn finish(&self, runs: &[(RunId, Fence)]) -> Result<(), Unreachable> {
        self.step(Step::Finish, self.inner.finish(runs)).await
    }

    async fn release(&self, run: RunId, fence: Fence, how: Release) -> Result<Held, Unreachable> {
        self.step(Step::Release, self.inner.release(run, fence, how)).await
    }

    async fn reap(&self, worker: WorkerId, limit: usize) -> Result<Vec<Claim>, Unreachable> {
        self.inner.reap(worker, limit).await
    }

    async fn cancel(&self, run: RunId, outcome: Outcome) -> Result<Cancelled, Unreachable> {
        self.inner.cancel(run, outcome).await
    }

    async fn pause_scope(&self, scope: &str, after: Duration) -> Result<(), Unreachable> {
        self.inner.pause_scope(scope, after).await
    }

    async fn missing(&self, runs: &[RunId]) -> Result<Vec<RunId>, Unreachable> {
        self.inner.missing(runs).await
    }

    async fn restore(&self, runs: &[Restored]) -> Result<(), Unreachable> {
        self.inner.restore(runs).await
    }

    async fn was_reset(&self) -> Result<Option<Epoch>, Unreachable> {
        self.inner.was_reset().await
    }

    async fn restored(&self, epoch: Epoch) -> Result<(), Unreachable> {
        self.inner.restored(epoch).await
    }

    async fn claim_sweep(&self, worker: WorkerId, every: Duration) -> Result<bool, Unreachable> {
        self.inner.claim_sweep(worker, every).await
    }

    async fn locate(&self, run: RunId) -> Result<Option<Sighting>, Unreachable> {
        self.inner.locate(run).await
    }

    async fn count_leased(&self, runs: &[RunId]) -> Result<usize, Unreachable> {
        self.inner.count_leased(runs).await
    }

    async fn recall(&self, run: RunId) -> Result<Option<Recalled>, Unreachable> {
        self.inner.recall(run).await
    }

    async fn replies(
        &self,
        front_door: FrontDoorId,
        stop: CancellationToken,
    ) -> Result<mpsc::Receiver<Reply>, Unreachable> {
        self.inner.replies(front_door, stop).await
    }

    async fn cancellations(&self, stop: CancellationToken) -> Result<mpsc::Receiver<RunId>, Unreachable> {
        self.inner.cancellations(stop).await
    }

    async fn set_paused(&self, paused: bool) -> Result<(), Unreachable> {
        self.inner.set_paused(paused).await
    }

    async fn stats(&self) -> Result<QueueStats, Unreachable> {
        self.inner.stats().await
    }

    async fn ping(&self) -> Result<(), Unreachable> {
        self.inner.ping().await
    }
}
