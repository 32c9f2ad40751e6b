//! What the model asks of a queue, with the time in the model's hands.

use std::time::Duration;

use crate::{
    job::{Ending, Fence, Job, Outcome, RunId, UnixMillis, WorkerId},
    queue::{
        Admission, Admitted, Cancelled, Claim, Claimed, Epoch, Held, QueueStats, Recalled, Release, Renewal, Restored,
        ScopeLimits, Sighting, Submission,
    },
};

/// The moment 0 of every world, in milliseconds since 1970.
const START: i64 = 1_700_000_000_000;

/// A moment of a world on the wall clock.
pub(in crate::queue) fn wall(now: u64) -> UnixMillis {
    UnixMillis(START).plus(now)
}

/// A queue whose clock is set, in milliseconds since the world began.
pub(in crate::queue) trait Driver {
    const WAYS: Ways;

    /// The clock shows this moment from now on; what time alone brings about has happened.
    fn set_clock(&mut self, now: u64);
    /// The queue loses its memory, at the moment that it is told next.
    fn forget(&mut self);

    fn enqueue(&mut self, submission: Submission, admission: Option<&Admission>) -> Admitted;
    fn claim(&mut self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Claimed;
    /// What is offered to a worker that has claimed before. When nothing is there for it, it need not wait.
    fn wait(&mut self, worker: WorkerId, free: usize) -> Vec<Claim>;
    fn heartbeat(&mut self, worker: WorkerId, held: &[(RunId, Fence)]) -> Vec<Renewal>;
    fn stash(&mut self, ending: &Ending) -> Held;
    fn finish(&mut self, run: RunId, fence: Fence);
    fn release(&mut self, run: RunId, fence: Fence, how: Release) -> Held;
    fn reap(&mut self, worker: WorkerId, limit: usize) -> Vec<Claim>;
    fn cancel(&mut self, run: RunId, outcome: Outcome) -> Cancelled;
    fn pause_scope(&mut self, scope: &str, millis: u64);
    fn set_paused(&mut self, paused: bool);
    fn missing(&mut self, runs: &[RunId]) -> Vec<RunId>;
    fn restore(&mut self, runs: &[Restored]);
    fn was_reset(&mut self) -> Option<Epoch>;
    fn restored(&mut self, epoch: Epoch);
    fn locate(&mut self, run: RunId) -> Option<Sighting>;
    fn recall(&mut self, run: RunId) -> Option<Recalled>;
    fn stats(&mut self) -> QueueStats;

    /// The endings that were sent to front doors since this was last asked.
    fn sent(&mut self) -> Vec<Ending>;
    /// What a waiting job takes of the bytes that the queue counts.
    fn weight(&self, job: &Job) -> u64;
    /// Checks what only this queue knows of itself.
    fn check(&mut self);
    /// What is there although no run is, after all that lasts for a while has gone.
    fn left_over(&mut self) -> Vec<String>;
}

/// Where queues differ, and each keeps the protocol.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct Ways {
    /// A run that somebody wants to end, and that is released, waits again, and a claim may be told to end it. Otherwise it is left
    /// under a lease that has run out, for a reaper.
    pub asked_runs_wait: bool,
    /// Work that is no call stays under its fence when it is handed back, until a reaper takes it. Otherwise nobody has it until then, and a
    /// run that is only to be expired waits again.
    pub work_handed_back_is_kept: bool,
    /// The workers outlive the memory of their queue. A late ending leaves a tombstone then, or ends the restored run that nobody has taken yet;
    /// and what was forgotten still counts against the limits. Otherwise worker and queue are one process, and die as one.
    pub workers_outlive_memory: bool,
    /// How many milliseconds a request of an account counts. Redis counts in whole ones, and keeps it for the last one, too.
    pub minute: u64,
    /// Until when it is known of a run that it ended at this moment.
    pub buried_until: fn(u64) -> u64,
    /// Whether that begins anew when it is said again.
    pub buried_again: bool,
    /// Whether a run may be offered as it comes, to a worker that waits. Otherwise it waits for a claim.
    pub offers: bool,
    /// How old an offer may be that a wait brings. An older one goes with a claim.
    pub offers_stand: Duration,
    /// How many runs are looked at after every step, in turn. At the end it is all of them.
    pub looks: usize,
}
