//! What to do after a failed call. Pure.

use std::time::Duration;

use crate::{
    job::{Failure, UnixMillis},
    providers::CallError,
};

/// The next step of a run whose call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call again, the target with this index, after a while.
    Retry { after: Duration, target: usize },
    /// The run ends as failed.
    Fail(Failure),
    /// The next try could not start before the deadline.
    Expire,
}

/// What [`next_step`] decides from.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// The number of the attempt that failed, from 1.
    pub attempt: i32,
    /// The index of the target that was called, and how many there are.
    pub target: usize,
    pub targets: usize,
    pub now: UnixMillis,
    pub deadline: UnixMillis,
    /// A uniformly random number in [0, 1): the jitter.
    pub roll: f64,
}

/// How often and how fast failed calls are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Calls of one run, at most, over all targets.
    pub max_attempts: i32,
    /// The first pause's upper bound; it doubles with each attempt (full jitter).
    pub base: Duration,
    /// The upper bound that the doubling stops at.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 4, base: Duration::from_millis(250), cap: Duration::from_secs(20) }
    }
}

/// Decides by the class of the error.
pub fn next_step(_policy: &RetryPolicy, _error: &CallError, _situation: Situation) -> Step {
    todo!()
}
