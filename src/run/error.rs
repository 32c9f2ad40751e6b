//! Why a run was refused or could not be looked after, shaped by what its caller is told.

use std::{error::Error, time::Duration};

use chrono::DateTime;
use serde_json::{Value, json};
use workers::{
    SubmitError,
    job::{Failure, Outcome, RunId, UnixMillis},
    ledger::LedgerError,
    queue::{RateLeft, Unreachable},
};

use super::{InvalidRequest, PromptName, budget::Month};
use crate::{db::StoreError, money::Usd, prompts::RenderError, webhooks::UrlProblem};

/// When a caller should come back to a server that shuts down, or whose stores do not answer.
const COME_BACK: Duration = Duration::from_secs(2);
/// When a caller should come back to a database without room: somebody has to make some first.
const COME_BACK_WHEN_FULL: Duration = Duration::from_secs(60);

/// A refusal. `Display` is the sentence for the caller; sources are for the log.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Invalid(#[from] InvalidRequest),
    #[error("{} not supported by this server", named(.0))]
    NotSupported(Vec<&'static str>),
    #[error("'timeoutMs' must be at most {}, not {}", .max.as_millis(), .asked.as_millis())]
    TimeoutTooLong { asked: Duration, max: Duration },
    #[error("'webhookUrl' {0}")]
    WebhookUrl(UrlProblem),
    #[error("This account has no webhook secret to sign with; an operator makes one")]
    WebhookSecretMissing,
    #[error("Missing variables: {}", .0.join(", "))]
    MissingVariables(Vec<String>),
    #[error("The prompt's template failed: {0}")]
    TemplateFailed(String),
    #[error("The prompt is larger than {max_bytes} bytes with these variables")]
    InputTooLarge { max_bytes: usize },
    #[error("The public API needs the PRO plan; this account has the FREE plan")]
    PlanRequired,
    #[error("The subscription of this account ended on {}", day(*.ended))]
    SubscriptionExpired { ended: UnixMillis },
    #[error("The model '{0}' is not allowed for this account")]
    ModelNotAllowed(String),
    #[error(
        "The budget of this account for {} is spent; new runs are accepted again from {} 00:00 UTC",
        month.name(), month.next()
    )]
    BudgetSpent { month: Month, budget: Usd, spent: Usd },
    // The public contract fixes this sentence to the letter.
    #[error("Prompt '{0}' not found or has no PRODUCTION version")]
    PromptNotFound(PromptName),
    #[error("Prompt '{prompt}' not found or has no version {version}")]
    VersionNotFound { prompt: PromptName, version: i32 },
    #[error("The run was not found")]
    RunNotFound,
    #[error("The run has already ended and cannot be cancelled")]
    AlreadyEnded(RunId),
    #[error("This Idempotency-Key was used for another request")]
    KeyReused(RunId),
    #[error("This {} has no request left in this minute; try again in {} s", whose(.rule), seconds(*.after))]
    Limited { rule: &'static str, after: Duration, rates: Vec<RateLeft> },
    #[error("The queue is full; try again in {} s", seconds(*.after))]
    QueueFull { after: Duration },
    #[error("The server takes no new runs for now; try again")]
    Draining,
    #[error("The server is shutting down and cannot wait for the run; try again")]
    SentAway(RunId),
    #[error("The queue is unreachable; try again")]
    QueueUnreachable(#[source] Unreachable),
    #[error("The database is unreachable; try again")]
    DatabaseUnreachable(#[source] Box<dyn Error + Send + Sync>),
    #[error("The database cannot store more; try again later")]
    DatabaseFull(#[source] Box<dyn Error + Send + Sync>),
    #[error("The model '{0}' of this prompt is not configured on this server")]
    ModelNotConfigured(String),
    #[error("The server failed")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl RunError {
    /// The number of the public contract, whatever the door: an HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid(_)
            | Self::NotSupported(_)
            | Self::TimeoutTooLong { .. }
            | Self::WebhookUrl(_)
            | Self::WebhookSecretMissing
            | Self::MissingVariables(_)
            | Self::TemplateFailed(_)
            | Self::InputTooLarge { .. } => 400,
            Self::PlanRequired | Self::SubscriptionExpired { .. } | Self::ModelNotAllowed(_) => 403,
            Self::BudgetSpent { .. } => 402,
            Self::PromptNotFound(_) | Self::VersionNotFound { .. } | Self::RunNotFound => 404,
            Self::AlreadyEnded(_) => 409,
            Self::KeyReused(_) => 422,
            Self::Limited { .. } => 429,
            Self::QueueFull { .. }
            | Self::Draining
            | Self::SentAway(_)
            | Self::QueueUnreachable(_)
            | Self::DatabaseUnreachable(_)
            | Self::DatabaseFull(_) => 503,
            Self::ModelNotConfigured(_) | Self::Internal(_) => 500,
        }
    }

    /// Stable snake_case, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(error) => error.code(),
            Self::NotSupported(_) => "not_supported",
            Self::TimeoutTooLong { .. } | Self::WebhookUrl(_) => "invalid_request",
            Self::WebhookSecretMissing => "webhook_secret_missing",
            Self::MissingVariables(_) => "missing_variables",
            Self::TemplateFailed(_) => "template_failed",
            Self::InputTooLarge { .. } => "input_too_large",
            Self::PlanRequired => "plan_required",
            Self::SubscriptionExpired { .. } => "subscription_expired",
            Self::ModelNotAllowed(_) => "model_not_allowed",
            Self::BudgetSpent { .. } => "budget_spent",
            Self::PromptNotFound(_) => "prompt_not_found",
            Self::VersionNotFound { .. } => "version_not_found",
            Self::RunNotFound => "run_not_found",
            Self::AlreadyEnded(_) => "run_already_ended",
            Self::KeyReused(_) => "idempotency_key_reused",
            Self::Limited { .. } => "rate_limited",
            Self::QueueFull { .. } => "queue_full",
            Self::Draining | Self::SentAway(_) => "draining",
            Self::QueueUnreachable(_) => "queue_unreachable",
            Self::DatabaseUnreachable(_) => "database_unreachable",
            Self::DatabaseFull(_) => "database_full",
            Self::ModelNotConfigured(_) => "model_not_configured",
            Self::Internal(_) => "internal_error",
        }
    }

    /// The same request may succeed when it is sent again, unchanged.
    pub fn retryable(&self) -> bool {
        self.retry_after().is_some() || matches!(self, Self::Internal(_))
    }

    /// How long to wait before that; known for every 429 and 503.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { after, .. } | Self::QueueFull { after } => Some(*after),
            Self::Draining | Self::SentAway(_) | Self::QueueUnreachable(_) | Self::DatabaseUnreachable(_) => {
                Some(COME_BACK)
            }
            Self::DatabaseFull(_) => Some(COME_BACK_WHEN_FULL),
            _ => None,
        }
    }

    /// The facts of the sentence, for programs.
    pub fn details(&self) -> Option<Value> {
        match self {
            Self::Invalid(error) => error.details(),
            Self::NotSupported(fields) => Some(json!({ "fields": fields })),
            Self::TimeoutTooLong { max, .. } => {
                Some(json!({ "maxTimeoutMs": u64::try_from(max.as_millis()).unwrap_or(u64::MAX) }))
            }
            Self::WebhookUrl(problem) => Some(json!({
                "fields": [{ "field": "webhookUrl", "expected": problem.expected, "found": problem.found }],
            })),
            Self::MissingVariables(names) => Some(json!({ "missing": names })),
            Self::InputTooLarge { max_bytes } => Some(json!({ "maxBytes": max_bytes })),
            Self::Limited { rule, .. } => Some(json!({ "limit": rule })),
            Self::BudgetSpent { month, budget, spent } => Some(json!({
                "month": month.number(),
                "monthlyBudgetUsd": budget,
                "spentUsd": spent,
                "resetsAt": format!("{}T00:00:00Z", month.next()),
            })),
            _ => None,
        }
    }

    /// The run that it is about, when there is one.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::AlreadyEnded(run) | Self::SentAway(run) | Self::KeyReused(run) => Some(*run),
            _ => None,
        }
    }

    /// What is left of the caller's limits, as far as they were asked.
    pub fn rates(&self) -> &[RateLeft] {
        match self {
            Self::Limited { rates, .. } => rates,
            _ => &[],
        }
    }
}

/// What a caller reads about a run that did not succeed, whatever the way it ended; `None` for one that did.
pub fn failure_of(outcome: &Outcome) -> Option<Failure> {
    let failure =
        |code: &str, message: &str, retryable| Failure { code: code.into(), message: message.into(), retryable };
    match outcome {
        Outcome::Succeeded { .. } => None,
        Outcome::Failed(failed) => Some(failed.clone()),
        Outcome::Cancelled => Some(failure("run_cancelled", "The run was cancelled", false)),
        Outcome::Expired => Some(failure("deadline_exceeded", "The run missed its deadline", true)),
    }
}

impl From<RenderError> for RunError {
    fn from(error: RenderError) -> Self {
        match error {
            RenderError::Missing(names) => Self::MissingVariables(names),
            RenderError::TooLarge { max_bytes } => Self::InputTooLarge { max_bytes },
            RenderError::Failed(sentence) => Self::TemplateFailed(sentence),
        }
    }
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => Self::DatabaseUnreachable(error.into()),
            StoreError::Refused(_) => Self::Internal(error.into()),
        }
    }
}

impl From<LedgerError> for RunError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Unreachable(_) => Self::DatabaseUnreachable(error.into()),
            LedgerError::Full(_) => Self::DatabaseFull(error.into()),
            LedgerError::Refused(_) | LedgerError::Unreadable(_) => Self::Internal(error.into()),
        }
    }
}

impl From<SubmitError> for RunError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Limited { rule, after, rates } => Self::Limited { rule, after, rates },
            SubmitError::Full { after } => Self::QueueFull { after },
            SubmitError::Draining => Self::Draining,
            SubmitError::Known(known) => Self::KeyReused(known.run),
            SubmitError::Queue(error) => Self::QueueUnreachable(error),
            SubmitError::Ledger(error) => error.into(),
        }
    }
}

/// Whole seconds, rounded up, at least one: the precision of `Retry-After`.
fn seconds(after: Duration) -> u64 {
    after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1)
}

fn whose(rule: &str) -> &str {
    if rule == "key" { "API key" } else { rule }
}

fn named(fields: &[&str]) -> String {
    let quoted: Vec<_> = fields.iter().map(|field| format!("'{field}'")).collect();
    format!("{} {}", quoted.join(", "), if fields.len() == 1 { "is" } else { "are" })
}

fn day(moment: UnixMillis) -> String {
    DateTime::from_timestamp_millis(moment.0)
        .map_or_else(|| "an unknown day".to_owned(), |time| time.format("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Answer, RunRequest};

    fn prompt(name: &str) -> PromptName {
        RunRequest::parse(json!({ "promptName": name }).to_string().as_bytes(), Answer::Wait).unwrap().prompt
    }

    fn check(error: RunError, status: u16, code: &str, retry_after: Option<u64>, sentence: &str) {
        assert_eq!(error.to_string(), sentence);
        assert_eq!((error.status(), error.code()), (status, code), "{sentence}");
        assert_eq!(error.retry_after().map(seconds), retry_after, "{sentence}");
        assert!(!(status == 429 || status == 503) || error.retry_after().is_some(), "{sentence}");
    }

    #[test]
    fn what_callers_are_told() {
        check(
            RunError::PromptNotFound(prompt("Email de Bienvenue")),
            404,
            "prompt_not_found",
            None,
            "Prompt 'Email de Bienvenue' not found or has no PRODUCTION version",
        );
        let version = RunError::VersionNotFound { prompt: prompt("a"), version: 7 };
        check(version, 404, "version_not_found", None, "Prompt 'a' not found or has no version 7");
        check(
            RenderError::Missing(vec!["nom".into(), "âge".into()]).into(),
            400,
            "missing_variables",
            None,
            "Missing variables: nom, âge",
        );
        check(
            RenderError::TooLarge { max_bytes: 9 }.into(),
            400,
            "input_too_large",
            None,
            "The prompt is larger than 9 bytes with these variables",
        );
        check(
            RunError::SubscriptionExpired { ended: UnixMillis(1_767_225_600_000) },
            403,
            "subscription_expired",
            None,
            "The subscription of this account ended on 2026-01-01",
        );
        let month = Month::of(UnixMillis(1_767_225_600_000));
        let spent = RunError::BudgetSpent { month, budget: Usd(5_000_000_000), spent: Usd(5_100_000_001) };
        let details = json!({ "month": "2026-01", "monthlyBudgetUsd": 5, "spentUsd": 5.100000001, "resetsAt": "2026-02-01T00:00:00Z" });
        assert_eq!((spent.details(), spent.retryable()), (Some(details), false));
        let sentence = "The budget of this account for January 2026 is spent; new runs are accepted again from 2026-02-01 00:00 UTC";
        check(spent, 402, "budget_spent", None, sentence);
        check(
            RunError::NotSupported(vec!["cache", "webhookUrl"]),
            400,
            "not_supported",
            None,
            "'cache', 'webhookUrl' are not supported by this server",
        );
        let limited = |rule| SubmitError::Limited { rule, after: Duration::from_millis(11_001), rates: Vec::new() };
        let sentence = "This API key has no request left in this minute; try again in 12 s";
        check(limited("key").into(), 429, "rate_limited", Some(12), sentence);
        let sentence = "This account has no request left in this minute; try again in 12 s";
        check(limited("account").into(), 429, "rate_limited", Some(12), sentence);
        let full = SubmitError::Full { after: Duration::ZERO };
        check(full.into(), 503, "queue_full", Some(1), "The queue is full; try again in 1 s");
        check(
            SubmitError::Draining.into(),
            503,
            "draining",
            Some(2),
            "The server takes no new runs for now; try again",
        );
        let sent_away = RunError::SentAway(RunId::new());
        assert!(sent_away.run().is_some() && sent_away.retryable());
        let sentence = "The server is shutting down and cannot wait for the run; try again";
        check(sent_away, 503, "draining", Some(2), sentence);
    }

    #[test]
    fn sources_stay_out_of_sentences() {
        let queue = RunError::from(SubmitError::Queue(Unreachable("redis://secret@10.0.0.1".into())));
        check(queue, 503, "queue_unreachable", Some(2), "The queue is unreachable; try again");
        let refused = RunError::from(StoreError::Refused("table \"keys\"".into()));
        check(refused, 500, "internal_error", None, "The server failed");
        let database = std::sync::Arc::new(sea_orm::DbErr::Custom("postgres://secret@10.0.0.1".into()));
        let sentence = "The database is unreachable; try again";
        check(LedgerError::Unreachable(database).into(), 503, "database_unreachable", Some(2), sentence);
        let full = LedgerError::Full("/var/lib/secret".into());
        check(full.into(), 503, "database_full", Some(60), "The database cannot store more; try again later");
    }

    #[test]
    fn every_ending_but_success_has_words() {
        assert_eq!(failure_of(&Outcome::Succeeded { output: String::new(), finish_reason: None }), None);
        let failed = Failure { code: "provider_error".into(), message: "It failed".into(), retryable: true };
        assert_eq!(failure_of(&Outcome::Failed(failed.clone())), Some(failed));
        assert_eq!(failure_of(&Outcome::Cancelled).unwrap().code, "run_cancelled");
        assert_eq!(failure_of(&Outcome::Expired).unwrap().code, "deadline_exceeded");
    }
}
