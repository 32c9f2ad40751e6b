//! The queue of a single process, in memory. It keeps the promises of [`Queue`] with one mutex around a state machine.
//!
//! [`state::State`] holds every rule and does no I/O: each step takes the time as an argument and returns what the step
//! changed. This file gives it a clock, wakes whoever waits for work, and carries endings and cancellations to their
//! receivers after the lock is released; the lock is never held across an await. Jobs are shared and never serialised.
//!
//! Nothing here survives the process. A new queue answers [`Queue::was_reset`] with yes, and the reconciler restores the
//! unfinished runs from the ledger, with their last fences, so that those of the next boot are higher.

mod admission;
mod claim;
mod clock;
mod doors;
mod flights;
mod lanes;
mod leases;
mod letting_go;
mod limits;
mod line;
mod log;
mod memory;
mod minute;
#[cfg(test)]
mod property;
mod run;
mod state;
mod waiting;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    pin,
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::{
    clock::Clock,
    doors::Doors,
    run::{Now, far},
    state::{Pending, State},
};
use super::{
    Admission, Admitted, Cancelled, Claim, Claimed, Epoch, Followed, Held, LEASE, NewText, Queue, QueueStats, Recalled,
    Release, Renewal, Reply, Restored, ScopeLimits, Sighting, Submission, Unreachable,
};
use crate::{
    clock::wall_micros,
    job::{Ending, Fence, FrontDoorId, Job, Outcome, RunId, UnixMillis, WorkerId},
};

/// What an [`EmbeddedQueue`] may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedSettings {
    /// How long a worker owns a run without a heartbeat.
    pub lease: Duration,
}

impl Default for EmbeddedSettings {
    fn default() -> Self {
        Self { lease: LEASE }
    }
}

/// The queue of one process. Its methods never fail.
pub struct EmbeddedQueue {
    state: Mutex<(State, Clock)>,
    lease: Duration,
    /// Wakes [`Queue::wait`]. It carries no permit: whoever waits compares the state with what its last claim saw.
    wake: Notify,
    doors: Arc<Doors>,
}

impl EmbeddedQueue {
    pub fn new(settings: EmbeddedSettings) -> Self {
        Self {
            state: Mutex::new((State::new(settings.lease), Clock::new(wall_micros(), Instant::now()))),
            lease: settings.lease,
            wake: Notify::new(),
            doors: Arc::default(),
        }
    }

    /// Makes one step of the state machine, and wakes waiters when it may have made a run claimable.
    fn step<T>(&self, step: impl FnOnce(&mut State, Now) -> T) -> T {
        let (answer, changed, outbox) = {
            let (state, clock) = &mut *self.lock();
            // Read under the lock, so that time never runs backwards from one step to the next.
            let at = Instant::now();
            let now = Now { at, micros: clock.read(at) };
            let before = state.changes();
            state.tidy(now);
            let answer = step(state, now);
            (answer, state.changes() != before, state.take_outbox())
        };
        for (front_door, reply) in outbox {
            self.doors.send(front_door, || reply);
        }
        if changed {
            self.wake.notify_waiters();
        }
        answer
    }

    fn lock(&self) -> MutexGuard<'_, (State, Clock)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    fn lease(&self) -> Duration {
        self.lease
    }

    fn now(&self) -> UnixMillis {
        let (state, clock) = &mut *self.lock();
        let at = Instant::now();
        clock.follow(wall_micros(), at, !state.is_empty());
        UnixMillis::from_micros(clock.tell(at))
    }

    async fn admit(&self, job: &Job, admission: &Admission) -> Result<Admitted, Unreachable> {
        Ok(self.step(|state, now| state.admit(job, admission, now)))
    }

    async fn enqueue(&self, submission: Submission, admission: Option<&Admission>) -> Result<Admitted, Unreachable> {
        let (admitted, missed) = self.step(|state, now| state.enqueue(submission, admission, now));
        if let Some((front_door, ending)) = missed {
            self.doors.send(front_door, || Reply::Ended(ending));
        }
        Ok(admitted)
    }

    async fn claim(&self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Result<Claimed, Unreachable> {
        Ok(self.step(|state, now| state.claim(worker, free, scopes, now)))
    }

    /// Offers nothing: a claim costs no trip here.
    async fn wait(
        &self,
        worker: WorkerId,
        _free: usize,
        at_most: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Claim>, Unreachable> {
        let give_up = far(Instant::now(), at_most);
        loop {
            let woken = self.wake.notified();
            pin!(woken);
            // Registered before the state is looked at, so that a change in between is not missed.
            woken.as_mut().enable();
            let until = match self.step(|state, _| state.pending(worker)) {
                Pending::Now => return Ok(Vec::new()),
                Pending::At(due) => due.min(give_up),
                Pending::Nothing => give_up,
            };
            let woken = timeout_at(until, stop.run_until_cancelled(woken)).await;
            if stop.is_cancelled() || (woken.is_err() && Instant::now() >= give_up) {
                return Ok(Vec::new());
            }
        }
    }

    async fn heartbeat(&self, worker: WorkerId, held: &[(RunId, Fence)]) -> Result<Vec<Renewal>, Unreachable> {
        Ok(self.step(|state, now| state.heartbeat(worker, held, now)))
    }

    async fn append(&self, run: RunId, fence: Fence, text: &NewText) -> Result<Held, Unreachable> {
        Ok(self.step(|state, _| state.append(run, fence, text)))
    }

    async fn follow(&self, run: RunId, front_door: FrontDoorId, after: u64) -> Result<Followed, Unreachable> {
        Ok(self.step(|state, now| state.follow(run, front_door, after, now)))
    }

    async fn stash_after(&self, text: &NewText, ending: &Ending) -> Result<Held, Unreachable> {
        let (held, reply_to) = self.step(|state, _| {
            if !text.deltas.is_empty() {
                state.append(ending.run, ending.fence, text);
            }
            state.stash(ending)
        });
        if let Some(front_door) = reply_to {
            self.doors.send(front_door, || Reply::Ended(Box::new(ending.clone())));
        }
        Ok(held)
    }

    async fn finish(&self, runs: &[(RunId, Fence)]) -> Result<(), Unreachable> {
        self.step(|state, now| state.finish(runs, now));
        Ok(())
    }

    async fn release(&self, run: RunId, fence: Fence, how: Release) -> Result<Held, Unreachable> {
        Ok(self.step(|state, now| state.release(run, fence, how, now)))
    }

    async fn reap(&self, worker: WorkerId, limit: usize) -> Result<Vec<Claim>, Unreachable> {
        Ok(self.step(|state, now| state.reap(worker, limit, now)))
    }

    async fn cancel(&self, run: RunId, outcome: Outcome) -> Result<Cancelled, Unreachable> {
        let (cancelled, reply_to) = self.step(|state, now| state.cancel(run, outcome, now));
        match &cancelled {
            Cancelled::Ended { ending, .. } => {
                if let Some(front_door) = reply_to {
                    self.doors.send(front_door, || Reply::Ended(ending.clone()));
                }
            }
            Cancelled::Signalled => self.doors.signal(run),
            Cancelled::Finished | Cancelled::Unknown => {}
        }
        Ok(cancelled)
    }

    async fn pause_scope(&self, scope: &str, after: Duration) -> Result<(), Unreachable> {
        self.step(|state, now| state.pause_scope(scope, after, now));
        Ok(())
    }

    async fn missing(&self, runs: &[RunId]) -> Result<Vec<RunId>, Unreachable> {
        Ok(self.step(|state, _| state.missing(runs)))
    }

    async fn restore(&self, runs: &[Restored]) -> Result<(), Unreachable> {
        self.step(|state, now| state.restore(runs, now));
        Ok(())
    }

    async fn was_reset(&self) -> Result<Option<Epoch>, Unreachable> {
        Ok(self.step(|state, now| state.memory.due(self.lease, now.at)))
    }

    async fn restored(&self, epoch: Epoch) -> Result<(), Unreachable> {
        self.step(|state, _| state.memory.restored(epoch));
        Ok(())
    }

    async fn claim_sweep(&self, worker: WorkerId, every: Duration) -> Result<bool, Unreachable> {
        Ok(self.step(|state, now| state.memory.claim_sweep(worker, every, now.at)))
    }

    async fn locate(&self, run: RunId) -> Result<Option<Sighting>, Unreachable> {
        Ok(self.step(|state, _| state.locate(run)))
    }

    async fn count_leased(&self, runs: &[RunId]) -> Result<usize, Unreachable> {
        let is_leased = |state: &State, run: &RunId| state.locate(*run).is_some_and(|seen| seen.leased);
        Ok(self.step(|state, _| runs.iter().filter(|run| is_leased(state, run)).count()))
    }

    async fn recall(&self, run: RunId) -> Result<Option<Recalled>, Unreachable> {
        Ok(self.step(|state, _| state.recall(run)))
    }

    async fn replies(
        &self,
        front_door: FrontDoorId,
        stop: CancellationToken,
    ) -> Result<mpsc::Receiver<Reply>, Unreachable> {
        Ok(self.doors.open(front_door, stop))
    }

    async fn cancellations(&self, stop: CancellationToken) -> Result<mpsc::Receiver<RunId>, Unreachable> {
        Ok(self.doors.listen(stop))
    }

    async fn set_paused(&self, paused: bool) -> Result<(), Unreachable> {
        self.step(|state, _| state.set_paused(paused));
        Ok(())
    }

    async fn stats(&self) -> Result<QueueStats, Unreachable> {
        Ok(self.step(|state, now| state.stats(now)))
    }

    async fn ping(&self) -> Result<(), Unreachable> {
        Ok(())
    }
}
