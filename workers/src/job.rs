//! What a run is: its ids, its states and the format in which it crosses the queue. Pure: no I/O and no clock.
//!
//! A [`Job`] carries everything an executor and the ledger need, so that a worker never has to read a table before
//! it can call a model, and so that the row of a run can be written by whoever comes first. It is written once as JSON
//! with its format's version in front ([`Job::encode`]), and lives unchanged until the run ends in an [`Ending`].

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The format of [`Job`] and [`Ending`] on the wire. A process that meets another number leaves the run to a newer one.
pub const WIRE_VERSION: u8 = 1;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by the time of its creation (UUID version 7, RFC 9562).
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(/// One run, for its whole life.
    RunId);
id!(/// An account: the owner of prompts, keys and runs.
    AccountId);
id!(/// An API key (its row, never its text).
    KeyId);
id!(/// A prompt, whatever its version.
    PromptId);
id!(/// One boot of a front door: where the replies of the runs that it accepted go.
    FrontDoorId);
id!(/// One boot of a worker process: who owns a lease.
    WorkerId);

/// A moment, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// The wall clock. Only for moments that leave the process; durations are measured with `Instant`.
    pub fn now() -> Self {
        Self(chrono::Utc::now().timestamp_millis())
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
    /// A call that was cut off after output was streamed may be made again (and billed again).
    #[serde(default)]
    pub repeat_streamed: bool,
}

/// One model at one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct ModelRequest {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<String>,
    pub user: String,
    #[serde(default)]
    pub parameters: Parameters,
    /// A JSON Schema that the output must follow.
    #[serde(skip_serializing_if = "Option::is_none", default)]
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

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded {
        output: String,
        /// Why the model stopped, in the field's words: `stop`, `length`, `content_filter`, …
        finish_reason: Option<String>,
    },
    Failed(Failure),
    Cancelled,
    Expired,
}

impl Outcome {
    pub fn state(&self) -> RunState {
        match self {
            Outcome::Succeeded { .. } => RunState::Succeeded,
            Outcome::Failed(_) => RunState::Failed,
            Outcome::Cancelled => RunState::Cancelled,
            Outcome::Expired => RunState::Expired,
        }
    }
}

/// Why a run failed, in the words that its caller reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable snake_case, for programs.
    pub code: String,
    /// One sentence, for people; names no secret and no address.
    pub message: String,
    /// The same run may succeed when it is sent again.
    pub retryable: bool,
}

/// The end of a run, as it is stashed, sent to the waiting front door and written to the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    pub v: u8,
    pub run: RunId,
    pub fence: Fence,
    pub outcome: Outcome,
    /// The model of the last attempt (a fallback has its own).
    pub model: String,
    /// When an executor first took the run; `None` when none did.
    pub started_at: Option<UnixMillis>,
    pub finished_at: UnixMillis,
    /// Waiting time before the last attempt, in milliseconds.
    pub queue_ms: u64,
    /// The call that ended the run; earlier ones were recorded as they ended. `None` when there was none.
    pub attempt: Option<Attempt>,
}

impl Ending {
    pub fn usage(&self) -> Usage {
        self.attempt.as_ref().map(|attempt| attempt.usage).unwrap_or_default()
    }

    pub fn cost_nano_usd(&self) -> Option<i64> {
        self.attempt.as_ref().and_then(|attempt| attempt.cost_nano_usd)
    }
}

/// One call to a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first call of a run.
    pub number: i32,
    pub fence: Fence,
    pub provider: String,
    pub model: String,
    pub worker: WorkerId,
    pub started_at: UnixMillis,
    pub duration_ms: u64,
    /// Time to first token, in milliseconds; known for streamed calls.
    pub first_token_ms: Option<u64>,
    pub outcome: AttemptOutcome,
    /// The provider's HTTP status, when it answered.
    pub status: Option<u16>,
    /// What went wrong, for operators.
    pub detail: Option<String>,
    pub usage: Usage,
    pub cost_nano_usd: Option<i64>,
}

/// The class of an attempt's end; a label of metrics and of the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    Succeeded,
    /// The provider answered 429.
    RateLimited,
    /// The provider refused our credentials (401, 403).
    Unauthorized,
    /// The provider refused this request (another 4xx).
    Rejected,
    /// The provider failed (5xx).
    ProviderError,
    /// No connection, or it broke before an answer.
    Unreachable,
    /// No answer, or a silence inside one, for too long.
    Timeout,
    /// The answer stopped before its end.
    Truncated,
    /// The answer could not be understood, or was too large.
    Garbage,
    Cancelled,
    Expired,
    /// The worker that made the call died or lost its lease.
    WorkerLost,
    /// The engine itself failed while it made the call.
    Internal,
}

impl AttemptOutcome {
    pub const ALL: [AttemptOutcome; 13] = [
        AttemptOutcome::Succeeded,
        AttemptOutcome::RateLimited,
        AttemptOutcome::Unauthorized,
        AttemptOutcome::Rejected,
        AttemptOutcome::ProviderError,
        AttemptOutcome::Unreachable,
        AttemptOutcome::Timeout,
        AttemptOutcome::Truncated,
        AttemptOutcome::Garbage,
        AttemptOutcome::Cancelled,
        AttemptOutcome::Expired,
        AttemptOutcome::WorkerLost,
        AttemptOutcome::Internal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            AttemptOutcome::Succeeded => "succeeded",
            AttemptOutcome::RateLimited => "rate_limited",
            AttemptOutcome::Unauthorized => "unauthorized",
            AttemptOutcome::Rejected => "rejected",
            AttemptOutcome::ProviderError => "provider_error",
            AttemptOutcome::Unreachable => "unreachable",
            AttemptOutcome::Timeout => "timeout",
            AttemptOutcome::Truncated => "truncated",
            AttemptOutcome::Garbage => "garbage",
            AttemptOutcome::Cancelled => "cancelled",
            AttemptOutcome::Expired => "expired",
            AttemptOutcome::WorkerLost => "worker_lost",
            AttemptOutcome::Internal => "internal",
        }
    }
}

impl FromStr for AttemptOutcome {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        AttemptOutcome::ALL.into_iter().find(|outcome| outcome.as_str() == text).ok_or(())
    }
}

/// A message that this process cannot read: written by another version, or damaged.
#[derive(Debug, thiserror::Error)]
#[error("a queued message has a format that this version cannot read")]
pub struct Unreadable(#[source] pub Option<serde_json::Error>);

macro_rules! wire {
    ($name:ident) => {
        impl $name {
            /// The bytes that cross the queue.
            pub fn encode(&self) -> Vec<u8> {
                // Strings, numbers and maps with string keys always serialise.
                serde_json::to_vec(self).unwrap_or_default()
            }

            pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
                let message: Self = serde_json::from_slice(bytes).map_err(|error| Unreadable(Some(error)))?;
                if message.v == WIRE_VERSION { Ok(message) } else { Err(Unreadable(None)) }
            }
        }
    };
}

wire!(Job);
wire!(Ending);

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

    #[test]
    fn another_wire_version_is_refused() {
        let ending = Ending {
            v: WIRE_VERSION + 1,
            run: RunId::new(),
            fence: Fence(1),
            outcome: Outcome::Cancelled,
            model: "demo".into(),
            started_at: None,
            finished_at: UnixMillis(0),
            queue_ms: 0,
            attempt: None,
        };
        assert!(Ending::decode(&ending.encode()).is_err());
        let same = Ending { v: WIRE_VERSION, ..ending };
        assert_eq!(Ending::decode(&same.encode()).unwrap(), same);
    }
}
