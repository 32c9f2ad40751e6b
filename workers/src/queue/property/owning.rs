//! Runs are handed out, and their owners use the rights that they have, or had.

use std::time::Duration;

use super::{
    driver::{Driver, wall},
    world::{Call, Kind, Life, Right, World, limits},
};
use crate::{
    job::{Attempt, AttemptOutcome, Ending, Failure, Fence, Outcome, UnixMillis, Usage, WIRE_VERSION, WorkerId},
    queue::{Claim, Held, MAX_LOSSES, Release, Renewal, Work},
};

impl<D: Driver> World<D> {
    pub fn claim(&mut self, worker: usize, free: usize) {
        let claimed = self.queue.claim(self.workers[worker], free, &limits());
        assert!(claimed.claims.len() <= free);
        assert!(!self.paused || claimed.claims.is_empty());
        let left = free - claimed.claims.len();
        let found_less = left > 0;
        self.give_room(worker, left);
        for claim in claimed.claims {
            self.claimed(worker, claim);
        }
        if found_less && !self.paused {
            let offers = self.offers(|_, _| true);
            assert!(offers.is_empty(), "offers that nobody took are left: {offers:?}");
        }
        if found_less && !self.paused && claimed.next.is_none() {
            let waits = self.runs.values().find(|known| matches!(known.life, Life::Waiting { .. }));
            assert!(waits.is_none(), "nobody is told when this run may go: {waits:?}");
        }
    }

    /// A claim hands out only what waits, within all limits, under a fence above every other of the run.
    fn claimed(&mut self, worker: usize, claim: Claim) {
        let fence = self.taken(worker, &claim);
        let (now, expires) = (self.now, self.lease());
        let id = claim.job.id;
        let known = self.runs.get_mut(&id).unwrap();
        let asked = match known.life.clone() {
            Life::Waiting { asked, .. } => asked,
            Life::Offered { .. } => None,
            life => panic!("{:?} is handed out, and it is {life:?}", claim.work),
        };
        let work = match (&claim.work, &asked) {
            (Work::Call, None) => {
                assert!(known.deadline > now, "it has expired");
                assert!(!known.behind, "it waits behind another run");
                known.attempts += 1;
                assert_eq!(claim.attempt, known.attempts);
                known.called = Some((self.workers[worker], fence));
                Kind::Call
            }
            (Work::Expire(_), None) => {
                assert!(known.deadline <= now, "it has not expired");
                Kind::Other
            }
            (Work::Expire(_), Some(Outcome::Expired)) | (Work::Cancel(_), Some(Outcome::Cancelled)) => Kind::Other,
            (work, asked) => panic!("{work:?} for a run that waits, and is asked to end as {asked:?}"),
        };
        known.life = Life::Owned { fence: Some(fence), expires, work, asked };
        if work == Kind::Call {
            let scope = claim.job.targets[claim.target].provider.clone();
            assert!(self.paused_scopes.get(scope.as_str()).is_none_or(|&until| until <= now), "the scope is paused");
            // What reserves more than a minute allows goes alone.
            let most = limits().iter().find(|limits| limits.scope == scope).unwrap().tokens_per_minute;
            let tokens = claim.job.tokens.min(most.unwrap_or(u64::MAX));
            self.calls.push(Call { run: id, fence, scope: scope.clone(), at: now, tokens });
            self.check_limits(&scope);
        }
    }

    pub fn reap(&mut self, worker: usize, limit: usize) {
        let claims = self.queue.reap(self.workers[worker], limit);
        assert!(claims.len() <= limit);
        // An offer that nobody took within its lease waits again; it may have expired there at once.
        let mut seen = claims.len();
        for id in self.offers(|_, expires| expires <= self.now) {
            let is_reaped = claims.iter().any(|claim| claim.job.id == id);
            if is_reaped || self.queue.locate(id).is_some_and(|sighting| !sighting.leased) {
                self.withdraw(id);
                seen += usize::from(!is_reaped);
            }
        }
        let found_less = seen < limit;
        for claim in claims {
            self.reaped(worker, claim);
        }
        if found_less {
            let overdue = self.runs.values().find(|known| match known.life {
                Life::Waiting { .. } => known.deadline <= self.now,
                Life::Offered { expires, .. } | Life::Owned { expires, .. } | Life::Ended { expires, .. } => {
                    expires <= self.now
                }
                Life::Forgotten | Life::Finished => false,
            });
            assert!(overdue.is_none(), "no reaper takes {overdue:?}");
        }
    }

    /// A reaper gets what nobody has any more, and is told what is left to do.
    fn reaped(&mut self, worker: usize, claim: Claim) {
        let fence = self.taken(worker, &claim);
        let (now, lease) = (self.now, self.lease());
        let known = self.runs.get_mut(&claim.job.id).unwrap();
        if !matches!(claim.work, Work::Record(_)) {
            assert_eq!(claim.attempt, known.attempts + 1, "the next call would be another attempt than that");
        }
        let owned = |work, asked| Life::Owned { fence: Some(fence), expires: lease, work, asked };
        known.life = match (known.life.clone(), &claim.work) {
            (Life::Waiting { asked: None, .. }, Work::Expire(_)) => {
                assert!(known.deadline <= now);
                owned(Kind::Other, None)
            }
            (Life::Waiting { asked: asked @ Some(Outcome::Cancelled), .. }, Work::Cancel(_))
            | (Life::Waiting { asked: asked @ Some(Outcome::Expired), .. }, Work::Expire(_)) => {
                owned(Kind::Other, asked)
            }
            (Life::Owned { expires, asked: asked @ Some(Outcome::Cancelled), .. }, Work::Cancel(_))
            | (Life::Owned { expires, asked: asked @ Some(Outcome::Expired), .. }, Work::Expire(_))
            | (Life::Owned { expires, work: Kind::Other, asked: asked @ None, .. }, Work::Expire(_)) => {
                assert!(expires <= now);
                owned(Kind::Other, asked)
            }
            (Life::Owned { expires, work, asked: None, .. }, Work::Lost(lost) | Work::Poison(lost)) => {
                assert!(expires <= now);
                assert!(matches!(work, Kind::Call | Kind::Lost));
                known.losses += u32::from(work == Kind::Call);
                assert_eq!((Some((lost.worker, lost.fence)), lost.attempt), (known.called, known.attempts));
                assert_eq!(matches!(claim.work, Work::Poison(_)), known.losses > MAX_LOSSES);
                owned(Kind::Lost, None)
            }
            (Life::Owned { expires, work: Kind::Answer, asked: None, .. }, Work::Answer) => {
                assert!(expires <= now);
                owned(Kind::Answer, None)
            }
            (Life::Ended { expires, outcome, .. }, Work::Record(ending)) => {
                assert!(expires <= now);
                assert_eq!(ending.outcome, outcome);
                Life::Ended { fence, expires: lease, outcome }
            }
            (life, work) => panic!("{work:?} for a run that was {life:?}"),
        };
    }

    /// Calls are handed out to a worker that is never heard of again, taken over, and to be made again.
    pub fn lose(&mut self) {
        self.claim(0, 3);
        self.pass(self.lease() - self.now);
        let before = self.rights.len();
        self.reap(1, 9);
        for right in self.rights.split_off(before) {
            self.rights.push(right);
            self.release(right, Release::Retry { after: Duration::ZERO, target: self.runs[&right.run].target });
        }
    }

    fn taken(&mut self, worker: usize, claim: &Claim) -> Fence {
        let known = self.runs.get_mut(&claim.job.id).unwrap();
        assert!(claim.fence > known.last_fence, "fences grow");
        assert_eq!((claim.target, claim.limited), (known.target, known.limited));
        known.last_fence = claim.fence;
        self.rights.push(Right { worker, run: claim.job.id, fence: claim.fence });
        claim.fence
    }

    pub fn heartbeat(&mut self, worker: usize) {
        let mine = self.rights.iter().filter(|right| right.worker == worker);
        let held = mine.map(|right| (right.run, right.fence)).collect::<Vec<_>>();
        let renewals = self.queue.heartbeat(self.workers[worker], &held);
        assert_eq!(renewals.len(), held.len());
        let (now, lease, mine) = (self.now, self.lease(), self.workers[worker]);
        for (&(run, fence), renewal) in held.iter().zip(renewals) {
            let known = self.runs.get_mut(&run).unwrap();
            let expected = match &mut known.life {
                Life::Owned { fence: Some(newest), expires, asked, work }
                    if *newest == fence && (*expires > now || *work != Kind::Call) =>
                {
                    *expires = lease;
                    if *work == Kind::Call {
                        known.called = Some((mine, fence));
                    }
                    if asked.is_some() { Renewal::Cancel } else { Renewal::Held }
                }
                Life::Ended { fence: newest, expires, .. } if *newest == fence => {
                    *expires = lease;
                    Renewal::Held
                }
                _ => Renewal::Lost,
            };
            assert_eq!(renewal, expected, "{run} under {fence:?}");
        }
    }

    /// One ending, from the owner under the newest fence.
    pub fn stash(&mut self, right: Right, tokens: Option<u64>) {
        let Right { worker, run: id, fence } = right;
        let failure = Failure { code: format!("{}", fence.0), message: String::new(), retryable: false };
        let outcome = match tokens {
            Some(tokens) if tokens.is_multiple_of(2) => {
                Outcome::Succeeded { output: format!("{}", fence.0), finish_reason: None }
            }
            _ => Outcome::Failed(failure),
        };
        let mut ending = ending(right, outcome.clone(), wall(self.now));
        ending.attempt = tokens.map(|tokens| attempt(right, self.workers[worker], tokens));
        let held = self.queue.stash(&ending);
        let (now, lease) = (self.now, self.lease());
        let is_buried = self.is_buried(&self.runs[&id]);
        let known = self.runs.get_mut(&id).unwrap();
        // What the answer is, and until when the run is held if this ended it.
        let (expected, ended) = match known.life {
            Life::Owned { fence: Some(mine), expires, work, .. } if mine == fence => {
                let call = self.calls.iter_mut().find(|call| (call.run, call.fence) == (id, fence));
                if let (Kind::Call, Some(call), Some(tokens)) = (work, call, tokens) {
                    call.tokens = tokens;
                }
                (Held::Done, Some(expires))
            }
            Life::Ended { fence: mine, .. } if mine == fence => (Held::Done, None),
            // It was restored, and this is the result of whoever had it before.
            Life::Waiting { taken: false, .. } if D::WAYS.workers_outlive_memory => (Held::Done, Some(lease)),
            Life::Forgotten | Life::Finished if !is_buried => {
                if D::WAYS.workers_outlive_memory {
                    known.tombstone = Some(now);
                }
                (Held::Unknown, None)
            }
            _ => (Held::Elsewhere, None),
        };
        if let Some(expires) = ended {
            // Its executor is about to be free.
            self.room += 1;
            known.endings += 1;
            known.life = Life::Ended { fence, expires, outcome: outcome.clone() };
            if known.addressed {
                self.to_be_sent.push((id, outcome));
            }
        }
        assert_eq!(held, expected, "{id} under {fence:?}");
    }

    /// The owner has written an ending down, which it may not have been able to stash.
    pub fn finish(&mut self, right: Right) {
        self.queue.finish(right.run, right.fence);
        let is_buried = self.is_buried(&self.runs[&right.run]);
        let known = self.runs.get_mut(&right.run).unwrap();
        let mut outcome = None;
        match &known.life {
            Life::Owned { fence: Some(mine), .. } if *mine == right.fence => known.endings += 1,
            Life::Ended { fence, outcome: how, .. } if *fence == right.fence => outcome = Some(how.clone()),
            Life::Forgotten | Life::Finished if is_buried => {
                known.life = Life::Finished;
                if D::WAYS.buried_again {
                    known.tombstone = Some(self.now);
                }
                return;
            }
            Life::Forgotten | Life::Finished => {}
            _ => return,
        }
        known.life = Life::Finished;
        known.tombstone = Some(self.now);
        self.land(right.run, outcome.as_ref());
    }

    pub fn release(&mut self, right: Right, how: Release) {
        let held = self.queue.release(right.run, right.fence, how.clone());
        let now = self.now;
        let is_buried = self.is_buried(&self.runs[&right.run]);
        let known = self.runs.get_mut(&right.run).unwrap();
        let (call, undone) = match &mut known.life {
            Life::Owned { fence: Some(mine), work, .. } if *mine == right.fence => {
                (*work == Kind::Call, how == Release::HandBack && *work != Kind::Call)
            }
            Life::Forgotten | Life::Finished if !is_buried => return assert_eq!(held, Held::Unknown),
            _ => return assert_eq!(held, Held::Elsewhere),
        };
        assert_eq!(held, Held::Done);
        let Life::Owned { fence, expires, work, asked } = &mut known.life else { return };
        if undone && D::WAYS.work_handed_back_is_kept {
            *expires = now;
        } else if (undone && matches!(work, Kind::Lost | Kind::Answer)) || (asked.is_some() && !D::WAYS.asked_runs_wait)
        {
            (*fence, *expires) = (None, now);
        } else {
            known.life = Life::Waiting { asked: asked.take(), taken: true };
            known.behind = false;
            known.delayed = match how {
                Release::Retry { after, .. } | Release::Limited { after, .. } => !after.is_zero(),
                Release::HandBack => false,
            };
            match how {
                Release::HandBack => known.attempts -= i32::from(call),
                Release::Retry { target, .. } => known.target = target,
                Release::Limited { target, .. } => {
                    known.target = target;
                    known.limited += i32::from(call);
                }
            }
        }
    }
}

fn ending(right: Right, outcome: Outcome, now: UnixMillis) -> Ending {
    Ending {
        v: WIRE_VERSION,
        run: right.run,
        fence: right.fence,
        outcome,
        model: String::new(),
        started_at: None,
        finished_at: now,
        queue_ms: 0,
        attempt: None,
        cache: None,
    }
}

fn attempt(right: Right, worker: WorkerId, tokens: u64) -> Attempt {
    Attempt {
        number: 1,
        fence: right.fence,
        provider: String::new(),
        model: String::new(),
        worker,
        started_at: UnixMillis(0),
        duration_ms: 0,
        first_token_ms: None,
        outcome: AttemptOutcome::Succeeded,
        status: None,
        detail: None,
        usage: Usage { input_tokens: Some(tokens), output_tokens: Some(0) },
        cost_nano_usd: None,
    }
}
