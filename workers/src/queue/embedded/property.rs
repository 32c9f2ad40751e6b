//! The state of the embedded queue against the model of all queues.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    run::{Now, weight},
    state::State,
};
use crate::{
    job::{Ending, Fence, FrontDoorId, Job, Outcome, RunId, WorkerId},
    queue::{
        Admission, Admitted, Cancelled, Claim, Claimed, Epoch, Held, LEASE, QueueStats, Recalled, Release, Renewal,
        Restored, ScopeLimits, Sighting, Submission,
        property::{self, Driver, Ways, wall},
    },
};

struct Embedded {
    state: State,
    began: Instant,
    now: Now,
    sent: Vec<Ending>,
}

impl Embedded {
    fn new() -> Self {
        let began = Instant::now();
        let now = Now { at: began, micros: wall(0).0 * 1_000 };
        Self { state: State::new(LEASE), began, now, sent: Vec::new() }
    }

    fn send(&mut self, to: Option<FrontDoorId>, ending: &Ending) {
        self.sent.extend(to.map(|_| ending.clone()));
    }
}

impl Driver for Embedded {
    const WAYS: Ways = Ways {
        asked_runs_wait: false,
        work_handed_back_is_kept: false,
        workers_outlive_memory: false,
        minute: 60_000,
        buried_until: |ended| ended + 60_000,
        buried_again: false,
        offers: false,
        offers_stand: Duration::ZERO,
        looks: usize::MAX,
    };

    fn set_clock(&mut self, now: u64) {
        self.now = Now { at: self.began + Duration::from_millis(now), micros: wall(now).0 * 1_000 };
        self.state.tidy(self.now);
    }

    fn forget(&mut self) {
        self.state = State::new(LEASE);
    }

    fn enqueue(&mut self, submission: Submission, admission: Option<&Admission>) -> Admitted {
        let (admitted, missed) = self.state.enqueue(submission, admission, self.now);
        self.sent.extend(missed.map(|(_, ending)| *ending));
        admitted
    }

    fn claim(&mut self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Claimed {
        self.state.claim(worker, free, scopes, self.now)
    }

    fn wait(&mut self, _: WorkerId, _: usize) -> Vec<Claim> {
        Vec::new()
    }

    fn heartbeat(&mut self, worker: WorkerId, held: &[(RunId, Fence)]) -> Vec<Renewal> {
        self.state.heartbeat(worker, held, self.now)
    }

    fn stash(&mut self, ending: &Ending) -> Held {
        let (held, reply_to) = self.state.stash(ending);
        self.send(reply_to, ending);
        held
    }

    fn finish(&mut self, run: RunId, fence: Fence) {
        self.state.finish(&[(run, fence)], self.now);
    }

    fn release(&mut self, run: RunId, fence: Fence, how: Release) -> Held {
        self.state.release(run, fence, how, self.now)
    }

    fn reap(&mut self, worker: WorkerId, limit: usize) -> Vec<Claim> {
        self.state.reap(worker, limit, self.now)
    }

    fn cancel(&mut self, run: RunId, outcome: Outcome) -> Cancelled {
        let (cancelled, reply_to) = self.state.cancel(run, outcome, self.now);
        if let Cancelled::Ended { ending, .. } = &cancelled {
            self.send(reply_to, ending);
        }
        cancelled
    }

    fn pause_scope(&mut self, scope: &str, millis: u64) {
        self.state.pause_scope(scope, Duration::from_millis(millis), self.now);
    }

    fn set_paused(&mut self, paused: bool) {
        self.state.set_paused(paused);
    }

    fn missing(&mut self, runs: &[RunId]) -> Vec<RunId> {
        self.state.missing(runs)
    }

    fn restore(&mut self, runs: &[Restored]) {
        self.state.restore(runs, self.now);
    }

    fn was_reset(&mut self) -> Option<Epoch> {
        self.state.memory.due(LEASE, self.now.at)
    }

    fn restored(&mut self, epoch: Epoch) {
        self.state.memory.restored(epoch);
    }

    fn locate(&mut self, run: RunId) -> Option<Sighting> {
        self.state.locate(run)
    }

    fn recall(&mut self, run: RunId) -> Option<Recalled> {
        self.state.recall(run)
    }

    fn stats(&mut self) -> QueueStats {
        self.state.stats(self.now)
    }

    fn sent(&mut self) -> Vec<Ending> {
        std::mem::take(&mut self.sent)
    }

    fn weight(&self, job: &Job) -> u64 {
        weight(job)
    }

    fn check(&mut self) {
        self.state.check();
    }

    fn left_over(&mut self) -> Vec<String> {
        let State { runs, waiting, leases, .. } = &self.state;
        let counts = [
            ("runs", runs.len() as u64),
            ("leases", leases.len() as u64),
            ("waiting", waiting.len()),
            ("delayed", waiting.delayed()),
            ("bytes", waiting.bytes()),
        ];
        counts.into_iter().filter(|&(_, count)| count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }
}

#[test]
fn any_order_of_steps_keeps_the_promises() {
    property::check(256, Embedded::new);
}
