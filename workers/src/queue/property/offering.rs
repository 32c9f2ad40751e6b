//! Runs are offered as they come, to workers that wait.

use std::time::Duration;

use super::{
    driver::{Driver, wall},
    world::{Call, Kind, Life, OPEN, Right, SCOPES, World},
};
use crate::{
    job::{Fence, Lane, RunId, WorkerId},
    queue::Work,
};

impl<D: Driver> World<D> {
    /// What a claim that leaves executors free says: so many runs may be offered, if its worker waits after its claims.
    pub fn give_room(&mut self, worker: usize, left: usize) {
        self.has_claimed[worker] = true;
        if self.waits[worker] && !self.paused {
            self.room = if self.is_paused(OPEN) { 0 } else { left };
        }
    }

    pub fn is_paused(&self, scope: &str) -> bool {
        self.paused_scopes.get(scope).is_some_and(|&until| until > self.now)
    }

    /// Whether a run that has just come was offered. That it was not is always right.
    pub fn was_offered(&mut self, id: RunId) -> bool {
        let offered = self.queue.locate(id).is_some_and(|sighting| sighting.leased);
        if offered {
            let known = &self.runs[&id];
            assert!(D::WAYS.offers);
            assert_eq!(known.scope(), OPEN, "a run is offered whose scope has limits");
            assert!(known.job.flight().is_none(), "a run is offered that may share its call");
            assert!(known.deadline > self.now, "a run is offered that has expired");
            assert!(!self.paused && !self.is_paused(OPEN), "a run is offered during a pause");
            assert!(self.room > 0, "a run is offered, and nobody has room for it");
            let in_line =
                self.runs.values().find(|other| other.job.id != id && other.scope() == OPEN && other.is_in_line());
            assert!(in_line.is_none(), "a run is offered past {in_line:?}");
            self.room -= 1;
            self.offered += 1;
        }
        offered
    }

    /// A run has come into the queue, as a new one.
    pub fn arrive(&mut self, id: RunId) {
        let offered = self.was_offered(id);
        let (at, expires) = (self.now, self.lease());
        let known = self.runs.get_mut(&id).unwrap();
        known.delayed = false;
        if offered {
            // Nobody was told its fence yet, but it is of this moment.
            known.last_fence = known.last_fence.max(Fence(wall(at).0 * 1_000));
            known.life = Life::Offered { at, expires };
        } else {
            known.life = Life::Waiting { asked: None, taken: false };
            self.come_in(id);
        }
    }

    /// An offer is taken back: the run waits, and it is as if it had come just so.
    pub fn withdraw(&mut self, id: RunId) {
        self.room = 0;
        let known = self.runs.get_mut(&id).unwrap();
        known.delayed = false;
        known.life = Life::Waiting { asked: None, taken: true };
    }

    pub fn withdraw_all(&mut self) {
        self.room = 0;
        for id in self.offers(|_, _| true) {
            self.withdraw(id);
        }
    }

    /// The offers that are such, by when they were made and when their leases run out.
    pub fn offers(&self, are: impl Fn(u64, u64) -> bool) -> Vec<RunId> {
        let offers = self.order.iter().copied();
        offers.filter(|id| matches!(self.runs[id].life, Life::Offered { at, expires } if are(at, expires))).collect()
    }

    /// Workers that have little to do are offered what comes.
    pub fn attend(&mut self, worker: usize, free: usize, come: usize, seconds: u64, waits: usize) {
        self.claim(worker, free);
        self.wait(worker, free);
        self.claim(worker, free);
        for account in 0..come {
            let job = self.job(account, Lane::Default, SCOPES.len() - 1, 1, seconds, None);
            self.submit(job, true);
        }
        for _ in 0..waits {
            self.wait(worker, free);
        }
    }

    /// A worker waits, and takes what is offered to it. That it finds nothing is always right: something else may have woken it.
    pub fn wait(&mut self, worker: usize, free: usize) {
        // One that waits before it has ever claimed is offered nothing.
        if !self.has_claimed[worker] {
            return;
        }
        self.waits[worker] = true;
        let claims = self.queue.wait(self.workers[worker], free);
        assert!(claims.len() <= free.max(1));
        for claim in claims {
            let known = self.runs.get_mut(&claim.job.id).unwrap();
            let Life::Offered { at, expires } = known.life else {
                panic!("a run is offered that is {:?}", known.life);
            };
            assert!(Duration::from_millis(self.now - at) <= D::WAYS.offers_stand, "the offer stood for too long");
            assert!(claim.fence >= known.last_fence, "fences grow");
            known.last_fence = claim.fence;
            assert_eq!((claim.attempt, claim.target, claim.limited, &claim.work), (1, 0, 0, &Work::Call));
            assert_eq!((known.attempts, known.target, claim.queue_ms), (0, 0, 0));
            known.attempts = 1;
            // Whose it is, the queue hears with the first heartbeat.
            known.called = Some((WorkerId::UNKNOWN, claim.fence));
            known.life = Life::Owned { fence: Some(claim.fence), expires, work: Kind::Call, asked: None };
            let (run, fence, tokens) = (claim.job.id, claim.fence, claim.job.tokens);
            self.calls.push(Call { run, fence, scope: OPEN.into(), at: self.now, tokens });
            self.rights.push(Right { worker, run, fence });
            self.taken_offers += 1;
        }
        // One that is no longer fresh is put back for a claim.
        for id in self.offers(|_, _| true) {
            if self.queue.locate(id).is_some_and(|sighting| !sighting.leased) {
                self.withdraw(id);
            }
        }
    }
}
