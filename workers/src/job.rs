//! What a run is: its ids, its states and the format in which it crosses the queue. Pure: no I/O and no clock.
//!
//! A [`Job`] carries everything an executor and the ledger need, so that a worker never has to read a table before
//! it can call a model, and so that the row of a run can be written by whoever comes first. It is written once
//! ([`Job::encode`]), with its format's version in front, and lives unchanged until the run ends in an [`Ending`].

mod caching;
mod ending;
mod event;
mod ids;
mod wire;

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::{
    caching::{CacheUse, Caching},
    ending::{Attempt, AttemptOutcome, Ending, Failure, Outcome},
    event::{Event, Logged},
    ids::{AccountId, DeliveryId, FrontDoorId, KeyId, PromptId, RunId, WorkerId},
    wire::Unreadable,
};

/// The format of [`Job`] and [`Ending`] on the wire. A process that meets another number leaves the run to a newer one.
pub const WIRE_VERSION: u8 = 1;

/// A moment, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// The wall clock: for keys, plans and whatever else people set a date for. Moments of runs are the queue's
    /// ([`Queue::now`](crate::queue::Queue::now)); durations are measured with `Instant`.
    pub fn now() -> Self {
        Self::from_micros(crate::clock::wall_micros())
    }

    pub(crate) fn from_micros(micros: i64) -> Self {
        Self(micros.div_euclid(1_000))
    }

    /// The moment `millis` later.
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add_unsigned(millis))
    }

    /// How many milliseconds `earlier` lies before this moment; 0 when it does not.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

/// A number that grows at every claim of a run. A write that carries an older fence changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub i64);

/// How urgent a run is. Lanes share the executors 8:3:1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    #[default]
    Interactive,
    Default,
    Batch,
}

impl Lane {
    pub const ALL: [Lane; 3] = [Lane::Interactive, Lane::Default, Lane::Batch];

    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Interactive => "interactive",
            Lane::Default => "default",
            Lane::Batch => "batch",
        }
    }

    /// How many turns this lane has in twelve.
    pub fn weight(self) -> u32 {
        match self {
            Lane::Interactive => 8,
            Lane::Default => 3,
            Lane::Batch => 1,
        }
    }
}

impl FromStr for Lane {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Lane::ALL.into_iter().find(|lane| lane.as_str() == text).ok_or(())
    }
}

/// The state of a run as callers see it. The last four are terminal: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

impl RunState {
    pub const ALL: [RunState; 6] = [
        RunState::Queued,
        RunState::Running,
        RunState::Succeeded,
        RunState::Failed,
        RunState::Cancelled,
        RunState::Expired,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Succeeded => "succeeded",
            RunState::Failed => "failed",
            RunState::Cancelled => "cancelled",
            RunState::Expired => "expired",
        }
    }

    pub fn is_terminal(self) -> bool {
        !matches!(self, RunState::Queued | RunState::Running)
    }
}

impl FromStr for RunState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        RunState::ALL.into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

/// One run to execute: what to call, for whom, and until when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    pub v: u8,
    pub id: RunId,
    pub account: AccountId,
    pub key: Option<KeyId>,
    pub prompt: PromptId,
    pub prompt_name: String,
    pub prompt_version: i32,
    pub lane: Lane,
    /// Where the call goes: the version's model first, then its fallbacks. Never empty.
    pub targets: Vec<Target>,
    pub request: ModelRequest,
    /// The caller asked for a stream, so the provider's own stream is read.
    pub stream: bool,
    pub metadata: BTreeMap<String, String>,
    pub created_at: UnixMillis,
    /// When the run ends as `expired`, whatever it is doing then.
    pub deadline: UnixMillis,
    /// Whether rendered input and output are stored with the ended run.
    pub keep_content: bool,
    /// How many tokens the call may use, as reserved against the provider's tokens per minute.
    pub tokens: u64,
    /// A call whose worker went away after output was streamed may be made again (and billed again).
    #[serde(default)]
    pub repeat_streamed: bool,
    /// Who is told of the end: a URL that was checked when the run was accepted.
    #[serde(default)]
    pub webhook_url: Option<String>,
    /// Its result may be another run's, and another run's may be its; `None` when each run is called for itself.
    #[serde(default)]
    pub caching: Option<Caching>,
}

impl Job {
    /// The name of those that would be the same call, if it shares.
    pub fn flight(&self) -> Option<&str> {
        self.caching.as_ref().map(|caching| caching.digest.as_str())
    }
}

/// One model at one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The model's name in prompts and replies.
    pub model: String,
    /// The provider's name in the configuration; also the scope of its limits.
    pub provider: String,
    /// What the provider is asked for.
    pub upstream: String,
    pub price: Option<Price>,
}

/// What a model costs, in nano-dollars (10⁻⁹ USD) for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: u64,
    pub output: u64,
}

impl Price {
    /// The cost of one call in nano-dollars, rounded to the nearest; `None` while a count is unknown.
    pub fn of(self, usage: Usage) -> Option<i64> {
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let micro_nanos = part(usage.input_tokens?, self.input) + part(usage.output_tokens?, self.output);
        i64::try_from((micro_nanos + 500_000) / 1_000_000).ok()
    }
}

/// What the model is asked: rendered text and parameters, the same for every target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRequest {
    #[serde(default)]
    pub system: Option<String>,
    pub user: String,
    #[serde(default, with = "wire::parameters")]
    pub parameters: Parameters,
    /// A JSON Schema that the output must follow.
    #[serde(default)]
    pub output_schema: Option<serde_json::Value>,
}

/// Sampling parameters of a prompt version. What is absent is left to the provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stop: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seed: Option<i64>,
}

/// Tokens of one call as the provider counted them; `None` where it did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
}

impl Usage {
    /// All tokens together; `None` while a part is unknown.
    pub fn total(self) -> Option<u64> {
        Some(self.input_tokens?.saturating_add(self.output_tokens?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_rounded_to_the_nearest_nano_dollar() {
        let check = |input, output, tokens: (u64, u64), expect| {
            let usage = Usage { input_tokens: Some(tokens.0), output_tokens: Some(tokens.1) };
            assert_eq!(Price { input, output }.of(usage), Some(expect));
        };
        // 2.5 USD and 10 USD a million tokens.
        check(2_500_000_000, 10_000_000_000, (1_000, 100), 3_500_000);
        check(37_500_000, 0, (1, 0), 38);
        check(0, 0, (u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn cost_is_unknown_while_a_count_is() {
        let usage = Usage { input_tokens: Some(1), output_tokens: None };
        assert_eq!(Price { input: 1, output: 1 }.of(usage), None);
    }

    #[test]
    fn names_of_states_round_trip() {
        for state in RunState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for outcome in AttemptOutcome::ALL {
            assert_eq!(outcome.as_str().parse(), Ok(outcome));
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
    }
}
