//! Any order of steps keeps the promises: the state machine against a model that only knows what it was told.

mod model;

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

use self::model::{Known, Life, MINUTE, SCOPES, WORKERS, World, limits};
use crate::{
    job::{Fence, Lane},
    queue::{Release, Restored, Submission},
};

#[derive(Clone, Debug)]
enum Step {
    Enqueue {
        account: usize,
        lane: usize,
        scope: usize,
        tokens: u64,
        seconds: u64,
        restored: bool,
    },
    /// The same id again.
    Repeat {
        run: usize,
    },
    Claim {
        worker: usize,
        free: usize,
    },
    Heartbeat {
        worker: usize,
    },
    Pass {
        millis: u64,
    },
    Stash {
        lease: usize,
        tokens: Option<u64>,
    },
    Finish {
        lease: usize,
    },
    Retry {
        lease: usize,
        millis: u64,
        target: usize,
        limited: bool,
    },
    HandBack {
        lease: usize,
    },
    Cancel {
        run: usize,
    },
    Reap {
        worker: usize,
        limit: usize,
    },
    PauseScope {
        scope: usize,
        millis: u64,
    },
    Pause {
        paused: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..64_usize;
    prop_oneof![
        6 => (0..3_usize, 0..3_usize, 0..2_usize, 0..6_u64, 1..180_u64, proptest::bool::weighted(0.2)).prop_map(
            |(account, lane, scope, tokens, seconds, restored)| Step::Enqueue { account, lane, scope, tokens, seconds, restored }
        ),
        1 => index.clone().prop_map(|run| Step::Repeat { run }),
        6 => (0..WORKERS, 0..4_usize).prop_map(|(worker, free)| Step::Claim { worker, free }),
        2 => (0..WORKERS).prop_map(|worker| Step::Heartbeat { worker }),
        4 => (0..20_000_u64).prop_map(|millis| Step::Pass { millis }),
        4 => (index.clone(), proptest::option::of(0..20_u64)).prop_map(|(lease, tokens)| Step::Stash { lease, tokens }),
        3 => index.clone().prop_map(|lease| Step::Finish { lease }),
        2 => (index.clone(), 0..30_000_u64, 0..4_usize, any::<bool>())
            .prop_map(|(lease, millis, target, limited)| Step::Retry { lease, millis, target, limited }),
        1 => index.clone().prop_map(|lease| Step::HandBack { lease }),
        2 => index.prop_map(|run| Step::Cancel { run }),
        3 => (0..WORKERS, 0..4_usize).prop_map(|(worker, limit)| Step::Reap { worker, limit }),
        1 => (0..2_usize, 0..90_000_u64).prop_map(|(scope, millis)| Step::PauseScope { scope, millis }),
        1 => any::<bool>().prop_map(|paused| Step::Pause { paused }),
    ]
}

impl World {
    fn apply(&mut self, step: Step) {
        self.state.tidy(self.now);
        match step {
            Step::Enqueue { account, lane, scope, tokens, seconds, restored } => {
                let job = self.job(account, Lane::ALL[lane], scope, tokens, seconds);
                let (attempts, limited) = if restored { (2, 1) } else { (0, 0) };
                if restored {
                    self.state.restore(
                        &[Restored { job: Arc::clone(&job), attempts, limited, fence: Fence::default() }],
                        self.now,
                    );
                } else {
                    self.state.enqueue(Submission { job: Arc::clone(&job), reply_to: None }, None, self.now);
                }
                let deadline = self.now.at + Duration::from_secs(seconds);
                self.order.push(job.id);
                self.runs.insert(
                    job.id,
                    Known {
                        job,
                        life: Life::Waiting,
                        deadline,
                        attempts,
                        limited,
                        losses: 0,
                        endings: 0,
                        finished_at: None,
                    },
                );
            }
            Step::Repeat { run } => {
                let known = self.pick(run).map(|id| &self.runs[&id]);
                // When its tombstone is gone, a run that comes again is a new one.
                let stands = |known: &&Known| known.finished_at.is_none_or(|at| at + MINUTE > self.now.at);
                if let Some(known) = known.filter(stands) {
                    let job = Arc::clone(&known.job);
                    self.state.enqueue(Submission { job: Arc::clone(&job), reply_to: None }, None, self.now);
                    self.state.restore(&[Restored { job, attempts: 9, limited: 9, fence: Fence::default() }], self.now);
                }
            }
            Step::Claim { worker, free } => {
                let claimed = self.state.claim(self.workers[worker], free, &limits(), self.now);
                assert!(claimed.claims.len() <= free);
                assert!(!self.paused || claimed.claims.is_empty());
                for claim in claimed.claims {
                    self.claimed(worker, claim);
                }
            }
            Step::Reap { worker, limit } => {
                let claims = self.state.reap(self.workers[worker], limit, self.now);
                assert!(claims.len() <= limit);
                for claim in claims {
                    self.reaped(worker, claim);
                }
            }
            Step::Heartbeat { worker } => self.heartbeat(worker),
            Step::Pass { millis } => {
                self.now.at += Duration::from_millis(millis);
                self.now.micros += i64::try_from(millis * 1_000).unwrap();
                self.state.tidy(self.now);
            }
            Step::Stash { lease, tokens } => {
                if let Some(given) = self.pick_given(lease) {
                    self.stash(given, tokens);
                }
            }
            Step::Finish { lease } => {
                if let Some(given) = self.pick_given(lease) {
                    self.finish(given);
                }
            }
            Step::Retry { lease, millis, target, limited } => {
                let after = Duration::from_millis(millis);
                let how = if limited { Release::Limited { after, target } } else { Release::Retry { after, target } };
                if let Some(given) = self.pick_given(lease) {
                    self.release(given, how);
                }
            }
            Step::HandBack { lease } => {
                if let Some(given) = self.pick_given(lease) {
                    self.release(given, Release::HandBack);
                }
            }
            Step::Cancel { run } => {
                if let Some(id) = self.pick(run) {
                    self.cancel(id);
                }
            }
            Step::PauseScope { scope, millis } => {
                let until = self.now.at + Duration::from_millis(millis);
                self.state.pause_scope(SCOPES[scope], Duration::from_millis(millis), self.now);
                let paused = self.paused_scopes.entry(SCOPES[scope]).or_insert(until);
                *paused = until.max(*paused);
            }
            Step::Pause { paused } => {
                self.state.set_paused(paused);
                self.paused = paused;
            }
        }
        self.check();
    }

    /// Whatever happened: workers that do their duty bring every run to its end.
    fn drain(&mut self) {
        self.apply(Step::Pause { paused: false });
        for _ in 0..self.runs.len() * 2 + 20 {
            self.apply(Step::Pass { millis: 61_000 });
            self.apply(Step::Reap { worker: 0, limit: 1_000 });
            self.apply(Step::Claim { worker: 0, free: 1_000 });
            for given in std::mem::take(&mut self.given) {
                self.stash(given, None);
                self.finish(given);
            }
            if self.runs.values().all(|known| known.life == Life::Finished) {
                return;
            }
        }
        let lost = self.runs.iter().filter(|(_, known)| known.life != Life::Finished).collect::<Vec<_>>();
        panic!("these runs did not end: {lost:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_order_of_steps_keeps_the_promises(steps in proptest::collection::vec(step(), 1..160)) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.drain();
    }
}
