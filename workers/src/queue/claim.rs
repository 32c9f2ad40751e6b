//! What a worker asks for, and what it is given.

use std::{sync::Arc, time::Duration};

use super::log::LogMark;
use crate::job::{Ending, Fence, Job, UnixMillis, WorkerId};

/// A limit scope: a provider, with what it allows. `None` is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeLimits {
    pub scope: String,
    pub max_concurrency: Option<u32>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u64>,
    /// Holds for the one claim that names it: how many calls its worker would let leave at once.
    pub at_once: Option<AtOnce>,
}

impl ScopeLimits {
    /// Whether nothing but executors is needed to call there.
    pub fn is_unlimited(&self) -> bool {
        let Self { scope: _, max_concurrency, requests_per_minute, tokens_per_minute, at_once } = self;
        max_concurrency.is_none() && requests_per_minute.is_none() && tokens_per_minute.is_none() && at_once.is_none()
    }

    pub fn unlimited(scope: impl Into<String>) -> Self {
        Self {
            scope: scope.into(),
            max_concurrency: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            at_once: None,
        }
    }
}

/// What one worker may call now. A run that could not be called at once is not handed out, because the claim counts it against the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    pub calls: u32,
    /// Until one more call may leave than these.
    pub next: Duration,
}

/// Leased runs, and when to ask again.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    pub claims: Vec<Claim>,
    /// When a run that was held back by a limit or a delay could go; `None` when none is.
    pub next: Option<Duration>,
}

/// The right to one run under one fence.
#[derive(Clone, Debug)]
pub struct Claim {
    pub job: Arc<Job>,
    pub fence: Fence,
    /// The number of the attempt that a call would be, from 1.
    pub attempt: i32,
    /// How many attempts before it ended with [`Release::Limited`].
    pub limited: i32,
    /// Index into [`Job::targets`].
    pub target: usize,
    /// How long the run waited since it was last ready, in milliseconds.
    pub queue_ms: u64,
    /// When a worker first took the run; now, for the first one.
    pub started_at: UnixMillis,
    /// Where the run's log stands; `None` when it has none.
    pub log: Option<LogMark>,
    pub work: Work,
}

impl Claim {
    /// The limit scope that a call of it counts against.
    pub fn scope(&self) -> Option<&str> {
        self.job.targets.get(self.target).map(|target| target.provider.as_str())
    }
}

/// What is left to do for a claimed run.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Call the model.
    Call,
    /// Its deadline passed, or somebody wants it to end so: end it as expired, with the call that was lost before, if one was.
    Expire(Option<LostCall>),
    /// It was cancelled while its owner was lost: end it as cancelled, with the call that was lost before, if one was.
    Cancel(Option<LostCall>),
    /// Its ending was stashed: write that to the ledger, and make no call.
    Record(Box<Ending>),
    /// It waited behind a run that would have been the same call, and that one's result is in the ledger: end it with that. Should the result be
    /// gone, release it, for a call of its own.
    Answer,
    /// A worker lost it in a call: record the lost attempt, then release it.
    Lost(LostCall),
    /// As `Lost`, and it was lost too often: end it as failed with `poison`.
    Poison(LostCall),
}

impl Work {
    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Work::Call => "call",
            Work::Expire(_) => "expire",
            Work::Cancel(_) => "cancel",
            Work::Record(_) => "record",
            Work::Answer => "answer",
            Work::Lost(_) => "lost",
            Work::Poison(_) => "poison",
        }
    }
}

/// A call whose worker is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostCall {
    /// [`WorkerId::UNKNOWN`] when it took an offer, and was lost before its first heartbeat.
    pub worker: WorkerId,
    pub fence: Fence,
    pub attempt: i32,
    pub started_at: UnixMillis,
}
