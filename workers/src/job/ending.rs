//! How runs and the calls they made end.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{CacheUse, Fence, RunId, RunState, UnixMillis, Usage, WorkerId};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

impl Failure {
    /// The code of a run that was lost by too many workers: it is dead until an operator looks after it.
    pub const POISON: &str = "poison";

    pub fn is_poison(&self) -> bool {
        self.code == Self::POISON
    }
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
    /// Where the output came from; `None` when the run has none, or does not share.
    #[serde(default)]
    pub cache: Option<CacheUse>,
}

impl Ending {
    /// What the run used: nothing, when its result is another run's.
    pub fn usage(&self) -> Usage {
        if self.is_cached() {
            return Usage { input_tokens: Some(0), output_tokens: Some(0) };
        }
        self.attempt.as_ref().map(|attempt| attempt.usage).unwrap_or_default()
    }

    pub fn cost_nano_usd(&self) -> Option<i64> {
        if self.is_cached() {
            return Some(0);
        }
        self.attempt.as_ref().and_then(|attempt| attempt.cost_nano_usd)
    }

    /// Whether the result is another run's.
    pub fn is_cached(&self) -> bool {
        self.cache.is_some_and(CacheUse::is_cached)
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
