//! Runs come into the queue, are forgotten by it, brought back to it, and cancelled.

use std::sync::Arc;

use super::{
    driver::Driver,
    world::{FRONT_DOOR, Kind, Known, Life, Right, World},
};
use crate::{
    job::{Fence, Job, Outcome, RunId},
    queue::{Admission, Admitted, Cancelled, RateRule, Restored, Submission},
};

/// What an account may ask for.
const PER_MINUTE: u32 = 8;
const MAX_DEPTH: u64 = 16;
const MAX_BYTES: u64 = 12_000;

fn admission(job: &Job) -> Admission {
    let rule = RateRule { name: "account", subject: job.account.to_string(), per_minute: PER_MINUTE };
    Admission { rules: vec![rule], max_depth: MAX_DEPTH, max_bytes: MAX_BYTES }
}

impl<D: Driver> World<D> {
    pub fn submit(&mut self, job: Arc<Job>, waited_for: bool) {
        let reply_to = waited_for.then_some(FRONT_DOOR);
        let admission = admission(&job);
        let used = self.admitted.iter().filter(|(of, at)| *of == job.account && at + D::WAYS.minute > self.now).count();
        let left = usize::try_from(PER_MINUTE).unwrap() - used;
        let (bytes, depth) = self.waiting();
        let full = depth >= MAX_DEPTH || bytes + self.queue.weight(&job) > MAX_BYTES;
        match self.queue.enqueue(Submission { job: Arc::clone(&job), reply_to }, Some(&admission)) {
            Admitted::Yes { rates } => {
                assert!(left > 0);
                assert_eq!(usize::try_from(rates[0].remaining).unwrap(), left - 1);
                self.admitted.push((job.account, self.now));
            }
            Admitted::Limited { .. } => return assert_eq!(left, 0),
            Admitted::Full { .. } => return assert!(left > 0 && full),
        }
        self.order.push(job.id);
        let known = Known {
            deadline: self.now + job.deadline.since(job.created_at),
            life: Life::Waiting { asked: None, taken: false },
            target: 0,
            attempts: 0,
            limited: 0,
            losses: 0,
            endings: 0,
            called: None,
            behind: false,
            delayed: false,
            last_fence: Fence::default(),
            addressed: waited_for,
            tombstone: None,
            job,
        };
        let id = known.job.id;
        self.runs.insert(id, known);
        self.arrive(id);
        let is_offered = matches!(self.runs[&id].life, Life::Offered { .. });
        assert!(is_offered || !full, "a run waits, and it was full");
    }

    /// A run that is known stays as it is, and at most learns who waits. One that was forgotten is a new one.
    pub fn repeat(&mut self, id: RunId, waited_for: bool) {
        let known = &self.runs[&id];
        let is_buried = self.is_buried(known);
        if known.life == Life::Finished && !is_buried {
            // It would be made again: nobody sends a run that late.
            return;
        }
        let job = Arc::clone(&known.job);
        let reply_to = waited_for.then_some(FRONT_DOOR);
        self.queue.enqueue(Submission { job: Arc::clone(&job), reply_to }, None);
        self.queue.restore(&[Restored { job, attempts: 9, limited: 9, fence: Fence::default() }]);
        let known = self.runs.get_mut(&id).unwrap();
        match &known.life {
            Life::Forgotten if !is_buried => {
                (known.attempts, known.limited) = (0, 0);
                known.addressed |= waited_for;
                return self.arrive(id);
            }
            Life::Forgotten | Life::Finished => return,
            Life::Ended { outcome, .. } if waited_for && !known.addressed => {
                self.to_be_sent.push((id, outcome.clone()));
            }
            _ => {}
        }
        known.addressed |= waited_for;
    }

    /// The queue knows nothing any more, and the time has gone on.
    pub fn forget(&mut self) {
        for known in self.runs.values_mut() {
            if let Life::Owned { work: Kind::Call, expires, .. } = known.life {
                self.ghosts.push((known.job.targets[known.target].provider.clone(), expires));
            }
            known.tombstone = None;
            known.addressed = false;
            if known.life != Life::Finished {
                (known.life, known.endings, known.losses, known.target) = (Life::Forgotten, 0, 0, 0);
            }
        }
        self.admitted.clear();
        self.room = 0;
        self.flights.clear();
        if !D::WAYS.workers_outlive_memory {
            self.ghosts.clear();
            self.calls.clear();
        }
        (self.paused, self.fresh) = (false, true);
        self.paused_scopes.clear();
        self.queue.forget();
        // A queue does not come back in the millisecond in which it went.
        self.pass(1);
    }

    /// What the queue does not know and the ledger has as unfinished is restored, with the attempts that the ledger has.
    pub fn reconcile(&mut self) {
        let epoch = self.queue.was_reset();
        assert_eq!(epoch.is_some(), self.fresh, "a loss is told once");
        self.fresh = false;
        let unfinished =
            self.order.iter().copied().filter(|id| self.runs[id].life != Life::Finished).collect::<Vec<_>>();
        let missing = self.queue.missing(&unfinished);
        let restored = missing.iter().map(|id| {
            let known = &self.runs[id];
            Restored {
                job: Arc::clone(&known.job),
                attempts: known.attempts,
                limited: known.limited,
                fence: Fence::default(),
            }
        });
        self.queue.restore(&restored.collect::<Vec<_>>());
        if let Some(epoch) = epoch {
            self.queue.restored(epoch);
        }
        for id in missing {
            let known = self.runs.get_mut(&id).unwrap();
            assert_eq!(known.life, Life::Forgotten);
            known.life = Life::Waiting { asked: None, taken: false };
            known.delayed = false;
            self.come_in(id);
        }
    }

    pub fn cancel(&mut self, id: RunId, outcome: Outcome) {
        let cancelled = self.queue.cancel(id, outcome.clone());
        let expires = self.lease();
        let is_buried = self.is_buried(&self.runs[&id]);
        let known = self.runs.get_mut(&id).unwrap();
        match (&mut known.life, cancelled) {
            (life @ (Life::Waiting { .. } | Life::Offered { .. }), Cancelled::Ended { job, ending }) => {
                if matches!(life, Life::Offered { .. }) {
                    assert_eq!(ending.started_at, None, "nobody has started it");
                    self.room = 0;
                }
                assert_eq!((job.id, ending.run, &ending.outcome), (id, id, &outcome));
                assert!(ending.fence > known.last_fence, "fences grow");
                known.last_fence = ending.fence;
                known.endings += 1;
                *life = Life::Ended { fence: ending.fence, expires, outcome: outcome.clone() };
                self.rights.push(Right { worker: 0, run: id, fence: ending.fence });
                if known.addressed {
                    self.to_be_sent.push((id, outcome));
                }
            }
            (Life::Owned { asked, .. }, Cancelled::Signalled) => {
                // Whoever asked first decides.
                asked.get_or_insert(outcome);
            }
            (Life::Ended { .. }, Cancelled::Finished) => {}
            (Life::Forgotten | Life::Finished, Cancelled::Finished) => assert!(is_buried),
            (Life::Forgotten | Life::Finished, Cancelled::Unknown) => assert!(!is_buried),
            (life, cancelled) => panic!("{cancelled:?} for a run that was {life:?}"),
        }
    }
}
