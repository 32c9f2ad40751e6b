//! What somebody outside the queue can know of it, and what must hold then.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use uuid::Uuid;

use super::driver::{Driver, wall};
use crate::{
    job::{
        AccountId, Caching, Fence, FrontDoorId, Job, Lane, ModelRequest, Outcome, PromptId, RunId, Target,
        WIRE_VERSION, WorkerId,
    },
    queue::{LEASE, ScopeLimits},
};

pub(super) const MINUTE: u64 = 60_000;
/// The one without limits.
pub(super) const OPEN: &str = "open";
pub(super) const SCOPES: [&str; 3] = ["tight", "loose", OPEN];
pub(super) const WORKERS: usize = 2;
pub(in crate::queue) const FRONT_DOOR: FrontDoorId = FrontDoorId(Uuid::from_u128(3));

pub(super) fn limits() -> Vec<ScopeLimits> {
    let scope = |scope: &str, slots, requests, tokens| ScopeLimits {
        scope: scope.into(),
        max_concurrency: Some(slots),
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        at_once: None,
    };
    vec![scope(SCOPES[0], 2, Some(5), Some(12)), scope(SCOPES[1], 4, None, None), ScopeLimits::unlimited(OPEN)]
}

/// What the model believes of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Life {
    Waiting {
        /// Somebody wants it to end so.
        asked: Option<Outcome>,
        /// Somebody has had it since it last came into the queue.
        taken: bool,
    },
    /// It was leased as it came, to whoever takes it first, and nobody has.
    Offered {
        at: u64,
        expires: u64,
    },
    /// Somebody has it under a fence; `None` when it was given back for a reaper to finish.
    Owned {
        fence: Option<Fence>,
        expires: u64,
        work: Kind,
        asked: Option<Outcome>,
    },
    Ended {
        fence: Fence,
        expires: u64,
        outcome: Outcome,
    },
    /// The queue lost its memory. The ledger knows that the run has not ended.
    Forgotten,
    /// It has ended, and the ledger knows.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Lost,
    Answer,
    Other,
}

#[derive(Debug)]
pub(super) struct Known {
    pub job: Arc<Job>,
    pub life: Life,
    pub deadline: u64,
    pub target: usize,
    pub attempts: i32,
    pub limited: i32,
    pub losses: u32,
    /// Since the queue last lost its memory. What it had not told the ledger may end again then.
    pub endings: u32,
    /// Who made the last call, and under which fence.
    pub called: Option<(WorkerId, Fence)>,
    pub last_fence: Fence,
    /// It waits behind another run.
    pub behind: bool,
    /// It was to wait for a while when it last was released.
    pub delayed: bool,
    /// The queue knows who waits for the ending.
    pub addressed: bool,
    /// Since when the queue knows that it has ended.
    pub tombstone: Option<u64>,
}

impl Known {
    pub fn scope(&self) -> &str {
        &self.job.targets[self.target].provider
    }

    /// Whether it is sure to be ready.
    pub fn is_in_line(&self) -> bool {
        matches!(self.life, Life::Waiting { .. }) && !self.behind && !self.delayed
    }
}

/// A right that somebody was given, and may use long after it is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right {
    pub worker: usize,
    pub run: RunId,
    pub fence: Fence,
}

/// A call that was handed out, as its scope counts it.
#[derive(Debug)]
pub(super) struct Call {
    pub run: RunId,
    pub fence: Fence,
    pub scope: String,
    pub at: u64,
    pub tokens: u64,
}

pub(super) struct World<D> {
    pub queue: D,
    /// Milliseconds since the world began.
    pub now: u64,
    pub steps: u64,
    pub workers: [WorkerId; WORKERS],
    pub runs: BTreeMap<RunId, Known>,
    pub order: Vec<RunId>,
    pub rights: Vec<Right>,
    /// By their digest: who leads, and who came behind.
    pub flights: HashMap<String, (RunId, VecDeque<RunId>)>,
    pub calls: Vec<Call>,
    /// When runs were admitted, and for whom.
    pub admitted: Vec<(AccountId, u64)>,
    /// Calls that the queue forgot, until when each had a slot of its scope.
    pub ghosts: Vec<(String, u64)>,
    pub paused: bool,
    pub paused_scopes: HashMap<&'static str, u64>,
    /// The queue has lost its memory, and nobody has asked since.
    pub fresh: bool,
    /// Who has claimed, and who has waited after that.
    pub has_claimed: [bool; WORKERS],
    pub waits: [bool; WORKERS],
    /// How many runs may be offered at most, until a claim says so again.
    pub room: usize,
    pub offered: u64,
    pub taken_offers: u64,
    /// Endings that the front door is to hear of after this step.
    pub to_be_sent: Vec<(RunId, Outcome)>,
    looked: usize,
    made: u128,
}

impl<D: Driver> World<D> {
    pub fn new(mut queue: D) -> Self {
        queue.set_clock(0);
        let epoch = queue.was_reset().expect("it is new");
        queue.restored(epoch);
        let id = |number| Uuid::from_u128(number);
        Self {
            queue,
            now: 0,
            steps: 0,
            workers: [WorkerId(id(1)), WorkerId(id(2))],
            runs: BTreeMap::new(),
            order: Vec::new(),
            rights: Vec::new(),
            flights: HashMap::new(),
            calls: Vec::new(),
            admitted: Vec::new(),
            ghosts: Vec::new(),
            paused: false,
            paused_scopes: HashMap::new(),
            fresh: false,
            has_claimed: [false; WORKERS],
            waits: [false; WORKERS],
            room: 0,
            offered: 0,
            taken_offers: 0,
            to_be_sent: Vec::new(),
            looked: 0,
            made: 100,
        }
    }

    pub fn pass(&mut self, millis: u64) {
        self.now += millis;
        self.queue.set_clock(self.now);
    }

    pub fn lease(&self) -> u64 {
        self.now + u64::try_from(LEASE.as_millis()).unwrap()
    }

    /// Whether the queue knows that a run has ended.
    pub fn is_buried(&self, known: &Known) -> bool {
        known.tombstone.is_some_and(|at| (D::WAYS.buried_until)(at) > self.now)
    }

    /// Bytes and number of the runs that wait.
    pub fn waiting(&self) -> (u64, u64) {
        let waiting = self.runs.values().filter(|known| matches!(known.life, Life::Waiting { .. }));
        waiting.fold((0, 0), |(bytes, depth), known| (bytes + self.queue.weight(&known.job), depth + 1))
    }

    /// What must hold after every step: every run is somewhere, once, and the counts say so. Looks at so many runs, in turn.
    pub fn check(&mut self, looks: usize) {
        self.queue.check();
        let sent = self.queue.sent().into_iter().map(|ending| (ending.run, ending.outcome)).collect::<Vec<_>>();
        assert_eq!(sent, std::mem::take(&mut self.to_be_sent), "every ending is sent to whoever waits, once");

        let leased =
            |known: &&Known| matches!(known.life, Life::Offered { .. } | Life::Owned { .. } | Life::Ended { .. });
        let (bytes, depth) = self.waiting();
        let stats = self.queue.stats();
        let ready = stats.lanes.iter().map(|lane| lane.ready).sum::<u64>();
        assert_eq!(ready + stats.delayed, depth);
        assert_eq!(stats.leased, self.runs.values().filter(leased).count() as u64);
        assert_eq!((stats.bytes, stats.paused), (bytes, self.paused));

        let is_gone = |known: &Known| matches!(known.life, Life::Forgotten | Life::Finished) && !self.is_buried(known);
        let gone = self.order.iter().copied().filter(|id| is_gone(&self.runs[id])).collect::<Vec<_>>();
        assert_eq!(self.queue.missing(&self.order), gone);
        for known in self.runs.values() {
            assert!(known.endings <= 1, "{} ended {} times", known.job.id, known.endings);
        }
        for _ in 0..looks.min(self.order.len()) {
            self.looked += 1;
            self.look(self.order[self.looked % self.order.len()]);
        }
    }

    fn look(&mut self, id: RunId) {
        let leased = self.queue.locate(id).map(|sighting| sighting.leased);
        let recalled = self.queue.recall(id).map(|recalled| {
            assert_eq!(recalled.job.id, id);
            recalled.ending.map(|ending| ending.outcome)
        });
        let expected = match &self.runs[&id].life {
            Life::Waiting { .. } => (Some(false), Some(None)),
            Life::Offered { .. } | Life::Owned { .. } => (Some(true), Some(None)),
            Life::Ended { outcome, .. } => (None, Some(Some(outcome.clone()))),
            Life::Forgotten | Life::Finished => (None, None),
        };
        assert_eq!((leased, recalled), expected, "{id}");
    }

    /// A scope has not handed out more than it may.
    pub fn check_limits(&self, scope: &str) {
        let limits = limits().into_iter().find(|limits| limits.scope == scope).unwrap();
        let calls = self.runs.values().filter(|known| {
            let calling = matches!(known.life, Life::Owned { work: Kind::Call, expires, fence: Some(_), .. } if expires > self.now);
            calling && known.job.targets[known.target].provider == scope
        });
        let ghosts = self.ghosts.iter().filter(|(of, until)| of == scope && *until > self.now);
        let slots = calls.count() + ghosts.count();
        if let Some(limit) = limits.max_concurrency {
            assert!(slots <= limit as usize, "{slots} calls at a time in {scope}");
        }
        let recent = || self.calls.iter().filter(|call| call.scope == scope && call.at + MINUTE > self.now);
        if let Some(limit) = limits.requests_per_minute {
            assert!(recent().count() <= limit as usize, "{} requests in a minute of {scope}", recent().count());
        }
        if let Some(limit) = limits.tokens_per_minute {
            // The last call reserved what is left; one that used more than it reserved holds the next one back.
            let spent = recent().map(|call| call.tokens).sum::<u64>();
            assert!(spent <= limit, "{spent} tokens in a minute of {scope}");
        }
    }

    pub fn job(
        &mut self,
        account: usize,
        lane: Lane,
        scope: usize,
        tokens: u64,
        seconds: u64,
        flight: Option<usize>,
    ) -> Arc<Job> {
        let target = |scope: usize| Target {
            model: SCOPES[scope].into(),
            provider: SCOPES[scope].into(),
            upstream: String::new(),
            price: None,
        };
        // Ids decide between runs of the same moment, so they must be the same when a seed is repeated.
        self.made += 1;
        Arc::new(Job {
            v: WIRE_VERSION,
            id: RunId(Uuid::from_u128(self.made)),
            account: AccountId(Uuid::from_u128(10 + account as u128)),
            key: None,
            prompt: PromptId(Uuid::from_u128(20)),
            prompt_name: "property".into(),
            prompt_version: 1,
            lane,
            targets: vec![target(scope), target((scope + 1) % SCOPES.len())],
            request: ModelRequest::default(),
            stream: false,
            metadata: BTreeMap::new(),
            created_at: wall(self.now),
            deadline: wall(self.now + seconds * 1_000),
            keep_content: true,
            tokens,
            repeat_streamed: false,
            webhook_url: None,
            caching: flight.map(|flight| Caching { digest: format!("f{flight}"), ttl_ms: 60_000 }),
        })
    }

    /// Mostly one that has not ended.
    pub fn pick(&self, index: usize) -> Option<RunId> {
        let is_live = |id: &RunId| {
            let life = &self.runs[id].life;
            matches!(life, Life::Waiting { .. } | Life::Offered { .. } | Life::Owned { .. } | Life::Ended { .. })
        };
        let live = self.order.iter().copied().filter(is_live).collect::<Vec<_>>();
        let runs = if index.is_multiple_of(4) || live.is_empty() { &self.order } else { &live };
        (!runs.is_empty()).then(|| runs[index / 4 % runs.len()])
    }

    /// The newest rights are the first indices, so that live ones are picked often.
    pub fn pick_right(&self, index: usize) -> Option<Right> {
        (!self.rights.is_empty()).then(|| self.rights[self.rights.len() - 1 - index / 4 % self.rights.len()])
    }
}
