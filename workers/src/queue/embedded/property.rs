//! Any order of steps keeps the promises: checked against a model that only knows what it was told.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{run::Now, state::State};
use crate::{
    job::{
        AccountId, Ending, Failure, Fence, Job, Lane, ModelRequest, Outcome, PromptId, RunId, Target, UnixMillis,
        WIRE_VERSION, WorkerId,
    },
    queue::{Cancelled, Claim, Held, MAX_LOSSES, Release, Renewal, Restored, ScopeLimits, Submission, Work},
};

const LEASE: Duration = Duration::from_secs(15);
const MINUTE: Duration = Duration::from_secs(60);
const SCOPES: [&str; 2] = ["tight", "loose"];
const WORKERS: usize = 2;

fn limits() -> Vec<ScopeLimits> {
    let scope = |scope: &str, slots, requests, tokens| ScopeLimits {
        scope: scope.into(),
        max_concurrency: Some(slots),
        requests_per_minute: requests,
        tokens_per_minute: tokens,
    };
    vec![scope(SCOPES[0], 2, Some(5), Some(12)), scope(SCOPES[1], 4, None, None)]
}

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
        2 => (index.clone(), 0..30_000_u64, 0..4_usize).prop_map(|(lease, millis, target)| Step::Retry { lease, millis, target }),
        1 => index.clone().prop_map(|lease| Step::HandBack { lease }),
        2 => index.prop_map(|run| Step::Cancel { run }),
        3 => (0..WORKERS, 0..4_usize).prop_map(|(worker, limit)| Step::Reap { worker, limit }),
        1 => (0..2_usize, 0..90_000_u64).prop_map(|(scope, millis)| Step::PauseScope { scope, millis }),
        1 => any::<bool>().prop_map(|paused| Step::Pause { paused }),
    ]
}

/// What the model believes of a run.
#[derive(Clone, Debug, PartialEq)]
enum Life {
    Waiting,
    /// Somebody has it under a fence; `None` when it was given back for a reaper to finish.
    Owned {
        fence: Option<Fence>,
        expires: Instant,
        work: Kind,
        asked: bool,
    },
    Ended {
        fence: Fence,
        expires: Instant,
        outcome: Outcome,
    },
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Call,
    Lost,
    Other,
}

#[derive(Debug)]
struct Known {
    job: Arc<Job>,
    life: Life,
    deadline: Instant,
    attempts: i32,
    losses: u32,
    endings: u32,
    finished_at: Option<Instant>,
}

/// A right that somebody was given, and may use long after it is gone.
#[derive(Clone, Copy, Debug)]
struct Given {
    worker: usize,
    run: RunId,
    fence: Fence,
}

struct World {
    state: State,
    now: Now,
    workers: [WorkerId; WORKERS],
    accounts: [AccountId; 3],
    runs: BTreeMap<RunId, Known>,
    order: Vec<RunId>,
    given: Vec<Given>,
    /// When calls were handed out, and until when each holds a slot, by scope.
    calls: HashMap<String, Vec<Instant>>,
    scopes_of_calls: HashMap<RunId, String>,
    last_fence: Fence,
    paused: bool,
    paused_scopes: HashMap<&'static str, Instant>,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::new(LEASE),
            now: Now { at: Instant::now(), micros: 1_700_000_000_000_000 },
            workers: std::array::from_fn(|_| WorkerId::new()),
            accounts: std::array::from_fn(|_| AccountId::new()),
            runs: BTreeMap::new(),
            order: Vec::new(),
            given: Vec::new(),
            calls: HashMap::new(),
            scopes_of_calls: HashMap::new(),
            last_fence: Fence::default(),
            paused: false,
            paused_scopes: HashMap::new(),
        }
    }

    fn apply(&mut self, step: Step) {
        self.state.tidy(self.now);
        match step {
            Step::Enqueue { account, lane, scope, tokens, seconds, restored } => {
                let job = self.job(account, Lane::ALL[lane], scope, tokens, seconds);
                let attempts = if restored { 2 } else { 0 };
                if restored {
                    self.state.restore(&[Restored { job: Arc::clone(&job), attempts }], self.now);
                } else {
                    self.state.enqueue(Submission { job: Arc::clone(&job), reply_to: None }, None, self.now);
                }
                let deadline = self.now.at + Duration::from_secs(seconds);
                self.order.push(job.id);
                self.runs.insert(
                    job.id,
                    Known { job, life: Life::Waiting, deadline, attempts, losses: 0, endings: 0, finished_at: None },
                );
            }
            Step::Repeat { run } => {
                let known = self.pick(run).map(|id| &self.runs[&id]);
                // When its tombstone is gone, a run that comes again is a new one.
                let stands = |known: &&Known| known.finished_at.is_none_or(|at| at + MINUTE > self.now.at);
                if let Some(known) = known.filter(stands) {
                    let job = Arc::clone(&known.job);
                    self.state.enqueue(Submission { job: Arc::clone(&job), reply_to: None }, None, self.now);
                    self.state.restore(&[Restored { job, attempts: 9 }], self.now);
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
            Step::Retry { lease, millis, target } => {
                if let Some(given) = self.pick_given(lease) {
                    self.release(given, Release::Retry { after: Duration::from_millis(millis), target });
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

    /// A claim hands out only what waits, within all limits, under a fence above every other.
    fn claimed(&mut self, worker: usize, claim: Claim) {
        self.taken(worker, &claim);
        let now = self.now.at;
        let expires = now + LEASE;
        let known = self.runs.get_mut(&claim.job.id).unwrap();
        assert_eq!(known.life, Life::Waiting);
        let work = match claim.work {
            Work::Call => {
                assert!(known.deadline > now);
                known.attempts += 1;
                assert_eq!(claim.attempt, known.attempts);
                Kind::Call
            }
            Work::Expire => {
                assert!(known.deadline <= now);
                Kind::Other
            }
            other => panic!("a claim hands out calls and expired runs, not {other:?}"),
        };
        known.life = Life::Owned { fence: Some(claim.fence), expires, work, asked: false };
        if work == Kind::Call {
            let scope = claim.job.targets[claim.target].provider.clone();
            assert!(self.paused_scopes.get(scope.as_str()).is_none_or(|&until| until <= now), "the scope is paused");
            self.scopes_of_calls.insert(claim.job.id, scope.clone());
            self.calls.entry(scope.clone()).or_default().push(now);
            self.check_limits(&scope);
        }
    }

    /// A reaper gets what nobody has any more, and is told what is left to do.
    fn reaped(&mut self, worker: usize, claim: Claim) {
        self.taken(worker, &claim);
        let now = self.now.at;
        let known = self.runs.get_mut(&claim.job.id).unwrap();
        let owned = |work, asked| Life::Owned { fence: Some(claim.fence), expires: now + LEASE, work, asked };
        known.life = match (&known.life, &claim.work) {
            (Life::Waiting, Work::Expire) => {
                assert!(known.deadline <= now);
                owned(Kind::Other, false)
            }
            (Life::Owned { expires, asked: true, .. }, Work::Cancel) => {
                assert!(*expires <= now);
                owned(Kind::Other, true)
            }
            (Life::Owned { expires, work: Kind::Other, asked: false, .. }, Work::Expire) => {
                assert!(*expires <= now);
                owned(Kind::Other, false)
            }
            (Life::Owned { expires, work, asked: false, .. }, Work::Lost(lost) | Work::Poison(lost)) => {
                assert!(*expires <= now);
                known.losses += u32::from(*work == Kind::Call);
                assert_eq!(lost.attempt, known.attempts);
                assert_eq!(matches!(claim.work, Work::Poison(_)), known.losses > MAX_LOSSES);
                owned(Kind::Lost, false)
            }
            (Life::Ended { expires, outcome, .. }, Work::Record(ending)) => {
                assert!(*expires <= now);
                assert_eq!(&ending.outcome, outcome);
                Life::Ended { fence: claim.fence, expires: now + LEASE, outcome: outcome.clone() }
            }
            (life, work) => panic!("{work:?} for a run that was {life:?}"),
        };
    }

    fn taken(&mut self, worker: usize, claim: &Claim) {
        assert!(claim.fence > self.last_fence, "fences grow");
        self.last_fence = claim.fence;
        self.given.push(Given { worker, run: claim.job.id, fence: claim.fence });
    }

    fn check_limits(&self, scope: &str) {
        let now = self.now.at;
        let limits = limits().into_iter().find(|limits| limits.scope == scope).unwrap();
        let slots = self.runs.values().filter(|known| {
            let here = self.scopes_of_calls.get(&known.job.id).is_some_and(|of| of == scope);
            here && matches!(known.life, Life::Owned { work: Kind::Call, expires, fence: Some(_), .. } if expires > now)
        });
        assert!(slots.count() <= limits.max_concurrency.unwrap() as usize, "more calls than slots in {scope}");
        if let Some(requests) = limits.requests_per_minute {
            let recent = self.calls[scope].iter().filter(|&&at| at + MINUTE > now).count();
            assert!(recent <= requests as usize, "{recent} requests in a minute of {scope}");
        }
    }

    fn heartbeat(&mut self, worker: usize) {
        let held = self
            .given
            .iter()
            .filter(|given| given.worker == worker)
            .map(|given| (given.run, given.fence))
            .collect::<Vec<_>>();
        let renewals = self.state.heartbeat(self.workers[worker], &held, self.now);
        assert_eq!(renewals.len(), held.len());
        let now = self.now.at;
        for (&(run, fence), renewal) in held.iter().zip(renewals) {
            let expected = match &mut self.runs.get_mut(&run).unwrap().life {
                Life::Owned { fence: Some(mine), expires, asked, work }
                    if *mine == fence && (*expires > now || *work != Kind::Call) =>
                {
                    *expires = now + LEASE;
                    if *asked { Renewal::Cancel } else { Renewal::Held }
                }
                Life::Ended { fence: mine, expires, .. } if *mine == fence => {
                    *expires = now + LEASE;
                    Renewal::Held
                }
                _ => Renewal::Lost,
            };
            assert_eq!(renewal, expected, "{run} under {fence:?}");
        }
    }

    /// One ending, from the owner under the newest fence.
    fn stash(&mut self, given: Given, tokens: Option<u64>) {
        let known = self.runs.get_mut(&given.run).unwrap();
        let failure = Failure { code: format!("{}", given.fence.0), message: String::new(), retryable: false };
        let mut ending = ending(given, Outcome::Failed(failure), self.now.wall());
        ending.attempt = tokens.map(|tokens| attempt(given, self.workers[given.worker], tokens));
        let (held, _) = self.state.stash(&ending);
        let expected = match &known.life {
            Life::Owned { fence: Some(mine), expires, .. } if *mine == given.fence => {
                known.endings += 1;
                known.life = Life::Ended { fence: *mine, expires: *expires, outcome: ending.outcome };
                vec![Held::Done]
            }
            Life::Ended { fence, .. } if *fence == given.fence => vec![Held::Done],
            // Its tombstone may be gone.
            Life::Finished => vec![Held::Elsewhere, Held::Unknown],
            _ => vec![Held::Elsewhere],
        };
        assert!(expected.contains(&held), "{held:?}, not {expected:?}");
    }

    fn finish(&mut self, given: Given) {
        self.state.finish(&[(given.run, given.fence)], self.now);
        let known = self.runs.get_mut(&given.run).unwrap();
        match known.life {
            Life::Owned { fence: Some(mine), .. } if mine == given.fence => {
                // An owner may write an ending down that it could not stash.
                known.endings += 1;
                known.life = Life::Finished;
            }
            Life::Ended { fence, .. } if fence == given.fence => known.life = Life::Finished,
            _ => return,
        }
        known.finished_at.get_or_insert(self.now.at);
    }

    fn release(&mut self, given: Given, how: Release) {
        let held = self.state.release(given.run, given.fence, how.clone(), self.now);
        let now = self.now.at;
        let known = self.runs.get_mut(&given.run).unwrap();
        match &mut known.life {
            Life::Owned { fence, expires, work, asked } if *fence == Some(given.fence) => {
                assert_eq!(held, Held::Done);
                if *asked || (how == Release::HandBack && *work == Kind::Lost) {
                    (*fence, *expires) = (None, now);
                } else {
                    if how == Release::HandBack && *work == Kind::Call {
                        known.attempts -= 1;
                    }
                    known.life = Life::Waiting;
                }
            }
            Life::Finished => assert!(matches!(held, Held::Elsewhere | Held::Unknown)),
            _ => assert_eq!(held, Held::Elsewhere),
        }
    }

    fn cancel(&mut self, id: RunId) {
        let (cancelled, _) = self.state.cancel(id, Outcome::Cancelled, self.now);
        let expires = self.now.at + LEASE;
        let known = self.runs.get_mut(&id).unwrap();
        match (&mut known.life, cancelled) {
            (Life::Waiting, Cancelled::Ended { ending, .. }) => {
                assert!(ending.fence > self.last_fence);
                self.last_fence = ending.fence;
                self.given.push(Given { worker: 0, run: id, fence: ending.fence });
                known.endings += 1;
                known.life = Life::Ended { fence: ending.fence, expires, outcome: Outcome::Cancelled };
            }
            (Life::Owned { asked, .. }, Cancelled::Signalled) => *asked = true,
            (Life::Ended { .. }, Cancelled::Finished) => {}
            (Life::Finished, Cancelled::Finished | Cancelled::Unknown) => {}
            (life, cancelled) => panic!("{cancelled:?} for a run that was {life:?}"),
        }
    }

    /// What must hold after every step: every run is somewhere, once, and the counts say so.
    fn check(&self) {
        self.state.check();
        let count = |is: fn(&Life) -> bool| self.runs.values().filter(|known| is(&known.life)).count() as u64;
        let stats = self.state.stats(self.now);
        let ready = stats.lanes.iter().map(|lane| lane.ready).sum::<u64>();
        assert_eq!(ready + stats.delayed, count(|life| *life == Life::Waiting));
        assert_eq!(stats.leased, count(|life| matches!(life, Life::Owned { .. } | Life::Ended { .. })));
        for (id, known) in &self.runs {
            assert!(known.endings <= 1, "{id} ended {} times", known.endings);
            let located = self.state.locate(*id);
            match known.life {
                Life::Waiting => assert!(located.is_some_and(|sighting| !sighting.leased)),
                Life::Owned { .. } => assert!(located.is_some_and(|sighting| sighting.leased)),
                Life::Ended { .. } | Life::Finished => assert_eq!(located, None),
            }
        }
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

    fn job(&self, account: usize, lane: Lane, scope: usize, tokens: u64, seconds: u64) -> Arc<Job> {
        let target = |scope: usize| Target {
            model: SCOPES[scope].into(),
            provider: SCOPES[scope].into(),
            upstream: String::new(),
            price: None,
        };
        Arc::new(Job {
            v: WIRE_VERSION,
            id: RunId::new(),
            account: self.accounts[account],
            key: None,
            prompt: PromptId::new(),
            prompt_name: "property".into(),
            prompt_version: 1,
            lane,
            targets: vec![target(scope), target(1 - scope)],
            request: ModelRequest::default(),
            stream: false,
            metadata: BTreeMap::new(),
            created_at: self.now.wall(),
            deadline: self.now.wall().plus(seconds * 1_000),
            keep_content: true,
            tokens,
            repeat_streamed: false,
        })
    }

    fn pick(&self, index: usize) -> Option<RunId> {
        (!self.order.is_empty()).then(|| self.order[index % self.order.len()])
    }

    /// The newest rights are the first indices, so that live ones are picked often.
    fn pick_given(&self, index: usize) -> Option<Given> {
        (!self.given.is_empty()).then(|| self.given[self.given.len() - 1 - index / 4 % self.given.len()])
    }
}

fn ending(given: Given, outcome: Outcome, now: UnixMillis) -> Ending {
    Ending {
        v: WIRE_VERSION,
        run: given.run,
        fence: given.fence,
        outcome,
        model: String::new(),
        started_at: None,
        finished_at: now,
        queue_ms: 0,
        attempt: None,
    }
}

fn attempt(given: Given, worker: WorkerId, tokens: u64) -> crate::job::Attempt {
    crate::job::Attempt {
        number: 1,
        fence: given.fence,
        provider: String::new(),
        model: String::new(),
        worker,
        started_at: UnixMillis(0),
        duration_ms: 0,
        first_token_ms: None,
        outcome: crate::job::AttemptOutcome::Succeeded,
        status: None,
        detail: None,
        usage: crate::job::Usage { input_tokens: Some(tokens), output_tokens: Some(0) },
        cost_nano_usd: None,
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
