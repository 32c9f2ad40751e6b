//! What somebody outside the queue can know of it, and what must hold then.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

use crate::queue::embedded::{run::Now, state::State};
use crate::{
    job::{
        AccountId, Ending, Failure, Fence, Job, Lane, ModelRequest, Outcome, PromptId, RunId, Target, UnixMillis,
        WIRE_VERSION, WorkerId,
    },
    queue::{Cancelled, Claim, Held, MAX_LOSSES, Release, Renewal, ScopeLimits, Work},
};

const LEASE: Duration = Duration::from_secs(15);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const SCOPES: [&str; 2] = ["tight", "loose"];
pub(super) const WORKERS: usize = 2;

pub(super) fn limits() -> Vec<ScopeLimits> {
    let scope = |scope: &str, slots, requests, tokens| ScopeLimits {
        scope: scope.into(),
        max_concurrency: Some(slots),
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        at_once: None,
    };
    vec![scope(SCOPES[0], 2, Some(5), Some(12)), scope(SCOPES[1], 4, None, None)]
}

/// What the model believes of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Life {
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
pub(super) enum Kind {
    Call,
    Lost,
    Other,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) job: Arc<Job>,
    pub(super) life: Life,
    pub(super) deadline: Instant,
    pub(super) attempts: i32,
    pub(super) limited: i32,
    pub(super) losses: u32,
    pub(super) endings: u32,
    pub(super) finished_at: Option<Instant>,
}

/// A right that somebody was given, and may use long after it is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) worker: usize,
    pub(super) run: RunId,
    pub(super) fence: Fence,
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Now,
    pub(super) workers: [WorkerId; WORKERS],
    pub(super) accounts: [AccountId; 3],
    pub(super) runs: BTreeMap<RunId, Known>,
    pub(super) order: Vec<RunId>,
    pub(super) given: Vec<Given>,
    /// When calls were handed out, and until when each holds a slot, by scope.
    pub(super) calls: HashMap<String, Vec<Instant>>,
    pub(super) scopes_of_calls: HashMap<RunId, String>,
    pub(super) last_fence: Fence,
    pub(super) paused: bool,
    pub(super) paused_scopes: HashMap<&'static str, Instant>,
}

impl World {
    pub(super) fn new() -> Self {
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

    /// A claim hands out only what waits, within all limits, under a fence above every other.
    pub(super) fn claimed(&mut self, worker: usize, claim: Claim) {
        self.taken(worker, &claim);
        let now = self.now.at;
        let expires = now + LEASE;
        let known = self.runs.get_mut(&claim.job.id).unwrap();
        assert_eq!(known.life, Life::Waiting);
        let work = match claim.work {
            Work::Call => {
                assert!(known.deadline > now);
                known.attempts += 1;
                assert_eq!((claim.attempt, claim.limited), (known.attempts, known.limited));
                Kind::Call
            }
            Work::Expire(_) => {
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
    pub(super) fn reaped(&mut self, worker: usize, claim: Claim) {
        self.taken(worker, &claim);
        let now = self.now.at;
        let known = self.runs.get_mut(&claim.job.id).unwrap();
        let owned = |work, asked| Life::Owned { fence: Some(claim.fence), expires: now + LEASE, work, asked };
        known.life = match (&known.life, &claim.work) {
            (Life::Waiting, Work::Expire(None)) => {
                assert!(known.deadline <= now);
                owned(Kind::Other, false)
            }
            (Life::Owned { expires, asked: true, .. }, Work::Cancel(_)) => {
                assert!(*expires <= now);
                owned(Kind::Other, true)
            }
            (Life::Owned { expires, work: Kind::Other, asked: false, .. }, Work::Expire(_)) => {
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

    pub(super) fn heartbeat(&mut self, worker: usize) {
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
    pub(super) fn stash(&mut self, given: Given, tokens: Option<u64>) {
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

    pub(super) fn finish(&mut self, given: Given) {
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

    pub(super) fn release(&mut self, given: Given, how: Release) {
        let held = self.state.release(given.run, given.fence, how.clone(), self.now);
        let now = self.now.at;
        let known = self.runs.get_mut(&given.run).unwrap();
        match &mut known.life {
            Life::Owned { fence, expires, work, asked } if *fence == Some(given.fence) => {
                assert_eq!(held, Held::Done);
                if *asked || (how == Release::HandBack && *work == Kind::Lost) {
                    (*fence, *expires) = (None, now);
                } else {
                    match how {
                        Release::HandBack if *work == Kind::Call => known.attempts -= 1,
                        Release::Limited { .. } if *work == Kind::Call => known.limited += 1,
                        _ => {}
                    }
                    known.life = Life::Waiting;
                }
            }
            Life::Finished => assert!(matches!(held, Held::Elsewhere | Held::Unknown)),
            _ => assert_eq!(held, Held::Elsewhere),
        }
    }

    pub(super) fn cancel(&mut self, id: RunId) {
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
    pub(super) fn check(&self) {
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

    pub(super) fn job(&self, account: usize, lane: Lane, scope: usize, tokens: u64, seconds: u64) -> Arc<Job> {
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

    pub(super) fn pick(&self, index: usize) -> Option<RunId> {
        (!self.order.is_empty()).then(|| self.order[index % self.order.len()])
    }

    /// The newest rights are the first indices, so that live ones are picked often.
    pub(super) fn pick_given(&self, index: usize) -> Option<Given> {
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
