//! What to do after a failed call. Pure.
//!
//! Two rules stand behind [`next_step`]. A provider that says *later* (429) has not failed: the run waits for as long as
//! its deadline allows, however often, and ends as expired when the wait would outlast it. Everything else is a failed
//! attempt and counts as one: it is made again with full jitter until the attempts are used up, or at once at the next
//! target when another try at this one is pointless, and then the run ends as failed.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::{
    job::{Failure, UnixMillis},
    providers::{CallError, ErrorClass},
};

/// The longest pause that a provider can ask for. Whatever it says, it is asked again after this.
pub const MAX_PAUSE: Duration = Duration::from_secs(600);

/// A provider that wants to be left alone for longer than this loses the run to the next target.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// How many of the attempts before it were limited: they were calls, but no failures.
    pub limited: i32,
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
    /// Failed calls of one run, at most, over all targets. Limited ones are not counted.
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
///
/// - *Limited*: wait for what the provider said, and never less than the policy's base or the jittered pause, whatever
///   the number of attempts. When the provider wants more than five seconds, or the wait would miss the deadline, the
///   next target is called at once; without one, a wait that would miss the deadline ends the run as expired, now
///   rather than then.
/// - *Failing, unreachable, timeout, truncated, garbage*: the jittered pause, and never less than the provider said.
///   Each target has its share of the attempts ([`RetryPolicy::max_attempts`] divided by the targets, the last one takes
///   the rest); when it is used up, or the provider wants a pause of more than five seconds, the next target is called
///   at once. A retry that cannot start before the deadline is not made, and the run ends as failed: the model call
///   failed, and the time that is left does not change that.
/// - *Unauthorized, rejected*: the next target at once, or the end.
/// - *Expired*: the end, as expired.
///
/// Attempts that were limited are numbered like all others, so that a run shows every call, but they use up no attempt
/// and no target's share: a run that was limited often has as many retries left for a failure as one that never was.
pub fn next_step(policy: &RetryPolicy, error: &CallError, situation: Situation) -> Step {
    let failures = situation.attempt.saturating_sub(situation.limited);
    let next = match error.class {
        ErrorClass::Expired => None,
        ErrorClass::Limited { after } => {
            // A limit without a time is still no invitation to call again at once: limited attempts are not counted.
            let after = after.unwrap_or_default().min(MAX_PAUSE);
            let pause = after.max(policy.base).max(jittered(policy, situation.attempt, situation.roll));
            wait_or_move(after > PATIENCE, pause, situation)
        }
        _ if failures >= policy.max_attempts => None,
        ErrorClass::Unauthorized | ErrorClass::Rejected => at_next_target(situation),
        ErrorClass::Failing { after } => {
            let after = after.unwrap_or_default().min(MAX_PAUSE);
            let pause = after.max(jittered(policy, failures, situation.roll));
            wait_or_move(after > PATIENCE || share_used(policy, failures, situation), pause, situation)
        }
        ErrorClass::Unreachable | ErrorClass::Timeout | ErrorClass::Truncated | ErrorClass::Garbage => {
            let pause = jittered(policy, failures, situation.roll);
            wait_or_move(share_used(policy, failures, situation), pause, situation)
        }
    };
    next.unwrap_or_else(|| give_up(&error.class))
}

/// Full jitter: anything between nothing and the base, doubled with each of the `times` after the first, so that runs that
/// failed together do not come back together.
fn jittered(policy: &RetryPolicy, times: i32, roll: f64) -> Duration {
    let doublings = u32::try_from(times.saturating_sub(1)).unwrap_or(0);
    let bound = 2_u32.checked_pow(doublings).map_or(policy.cap, |factor| policy.base.saturating_mul(factor));
    bound.min(policy.cap).mul_f64(roll.clamp(0.0, 1.0))
}

/// The same target after the pause, or the next one at once when the run should move on, or when the pause is too long
/// for it.
fn wait_or_move(should_move: bool, pause: Duration, situation: Situation) -> Option<Step> {
    let here = starts_in_time(pause, situation).then_some(Step::Retry { after: pause, target: situation.target });
    if should_move || here.is_none() { at_next_target(situation).or(here) } else { here }
}

fn at_next_target(situation: Situation) -> Option<Step> {
    let target = situation.target.saturating_add(1);
    let can = target < situation.targets && starts_in_time(Duration::ZERO, situation);
    can.then_some(Step::Retry { after: Duration::ZERO, target })
}

fn starts_in_time(pause: Duration, situation: Situation) -> bool {
    situation.now.plus(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)) < situation.deadline
}

/// Whether the target that was called has had its part of the attempts, so that those left belong to the targets after
/// it.
fn share_used(policy: &RetryPolicy, failures: i32, situation: Situation) -> bool {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let share = policy.max_attempts.checked_div(count(situation.targets)).unwrap_or(0).max(1);
    failures >= share.saturating_mul(count(situation.target).saturating_add(1))
}

/// The end of a run for which no other try is left. The sentence is the caller's: what the provider said stays with the
/// attempt.
fn give_up(class: &ErrorClass) -> Step {
    let (code, message, retryable) = match class {
        ErrorClass::Limited { .. } | ErrorClass::Expired => return Step::Expire,
        ErrorClass::Failing { .. } => ("provider_error", "The model's provider failed to answer", true),
        ErrorClass::Unreachable => ("provider_unreachable", "The model's provider could not be reached", true),
        ErrorClass::Timeout => ("provider_timeout", "The model's provider did not answer in time", true),
        ErrorClass::Truncated => ("provider_truncated", "The model's answer broke off before its end", true),
        ErrorClass::Garbage => ("provider_garbage", "The model's provider sent an answer that makes no sense", true),
        ErrorClass::Unauthorized => (
            "provider_unauthorized",
            "The model's provider refused this server's credentials; the server's operator has to correct them",
            false,
        ),
        ErrorClass::Rejected => ("provider_rejected", "The model's provider rejected the request", false),
    };
    Step::Fail(Failure { code: code.to_owned(), message: message.to_owned(), retryable })
}
