//! The bodies that tell about a run: its result, and its status.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;
use workers::{
    RunView,
    job::{Attempt, CacheUse, Failure, Lane, Outcome, RunId, RunState, UnixMillis, Usage},
};

use super::openapi::schemas;
use crate::{money::Usd, run::failure_of};

/// The 200 of a run that its caller waited for. The contract's fields come first, in the contract's order.
#[derive(Serialize, ToSchema)]
#[schema(as = RunResult)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResultBody<'a> {
    pub success: bool,
    pub output: &'a str,
    pub prompt_version: i32,
    pub duration_ms: u64,
    pub model: &'a str,
    /// Left out where the run is named beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>, nullable = false)]
    pub run_id: Option<RunId>,
    pub usage: UsageBody,
    /// Whether the output is that of another run.
    pub cached: bool,
    #[schema(required = true)]
    pub finish_reason: Option<&'a str>,
}

/// Tokens and cost, `null` where unknown.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageBody {
    #[schema(required = true)]
    input_tokens: Option<u64>,
    #[schema(required = true)]
    output_tokens: Option<u64>,
    #[schema(value_type = Option<f64>, required = true)]
    cost_usd: Option<Usd>,
}

impl UsageBody {
    pub(super) fn new(usage: Usage, cost_nano_usd: Option<i64>) -> Self {
        let Usage { input_tokens, output_tokens } = usage;
        Self { input_tokens, output_tokens, cost_usd: cost_nano_usd.map(Usd) }
    }

    /// The usage of one call, when anything is known of it.
    fn known(usage: Usage, cost_nano_usd: Option<i64>) -> Option<Self> {
        let known = usage != Usage::default() || cost_nano_usd.is_some();
        known.then(|| Self::new(usage, cost_nano_usd))
    }
}

/// A run as its status shows it, and as a 202 announces it.
#[derive(Serialize, ToSchema)]
#[schema(as = Run)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunBody<'a> {
    success: bool,
    #[schema(value_type = Uuid)]
    run_id: RunId,
    #[schema(schema_with = schemas::state)]
    state: RunState,
    prompt_name: &'a str,
    prompt_version: i32,
    model: &'a str,
    #[schema(schema_with = schemas::lane)]
    priority: Lane,
    #[schema(schema_with = schemas::metadata)]
    metadata: &'a BTreeMap<String, String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    queue_ms: Option<u64>,
    /// From its creation to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    duration_ms: Option<u64>,
    attempts: Vec<AttemptBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    output: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    code: Option<String>,
    /// Once a call was made, or was not needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    usage: Option<UsageBody>,
    /// Whether the output is that of another run.
    cached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>, nullable = false)]
    requeued_from: Option<RunId>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Attempt)]
#[serde(rename_all = "camelCase")]
struct AttemptBody<'a> {
    number: i32,
    provider: &'a str,
    model: &'a str,
    #[schema(format = DateTime)]
    started_at: String,
    duration_ms: u64,
    #[schema(schema_with = schemas::outcome)]
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    usage: Option<UsageBody>,
}

impl<'a> RunBody<'a> {
    pub(super) fn new(run: &'a RunView) -> Self {
        let failure = failure(run);
        let cached = run.cache.is_some_and(CacheUse::is_cached);
        Self {
            success: true,
            run_id: run.id,
            state: run.state,
            prompt_name: &run.prompt_name,
            prompt_version: run.prompt_version,
            model: &run.model,
            priority: run.lane,
            metadata: &run.metadata,
            created_at: rfc3339(run.created_at),
            started_at: run.started_at.map(rfc3339),
            finished_at: run.finished_at.map(rfc3339),
            queue_ms: run.queue_ms,
            duration_ms: run.finished_at.map(|finished| finished.since(run.created_at)),
            attempts: run.attempts.iter().map(attempt).collect(),
            output: run.output.as_deref(),
            finish_reason: run.finish_reason.as_deref(),
            error: failure.as_ref().map(|failure| failure.message.clone()),
            code: failure.map(|failure| failure.code),
            usage: (!run.attempts.is_empty() || cached).then(|| UsageBody::new(run.usage, run.cost_nano_usd)),
            cached,
            requeued_from: run.requeued_from,
        }
    }
}

/// The status of a run as the API shows it, for whoever is told of it in another way.
pub fn status_of(run: &RunView) -> Box<RawValue> {
    // Texts, numbers and maps with string keys always serialise.
    to_raw_value(&RunBody::new(run)).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// A cancelled or expired run has no failure of its own in the ledger, but its reader wants the same two fields.
pub(super) fn failure(run: &RunView) -> Option<Failure> {
    let outcome = match run.state {
        RunState::Cancelled => Outcome::Cancelled,
        RunState::Expired => Outcome::Expired,
        _ => return run.failure.clone(),
    };
    failure_of(&outcome)
}

fn attempt(attempt: &Attempt) -> AttemptBody<'_> {
    AttemptBody {
        number: attempt.number,
        provider: &attempt.provider,
        model: &attempt.model,
        started_at: rfc3339(attempt.started_at),
        duration_ms: attempt.duration_ms,
        outcome: attempt.outcome.as_str(),
        usage: UsageBody::known(attempt.usage, attempt.cost_nano_usd),
    }
}

/// RFC 3339 in UTC with milliseconds. A moment outside the calendar cannot come from a clock; it is shown as its start.
pub(super) fn rfc3339(moment: UnixMillis) -> String {
    DateTime::from_timestamp_millis(moment.0).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use workers::job::{AccountId, AttemptOutcome, Fence, WorkerId};

    use super::*;

    #[test]
    fn a_result_starts_with_the_contract_s_fields() {
        let id = RunId::new();
        let body = ResultBody {
            success: true,
            output: "Bonjour Steph,\n\nBienvenue sur Prompt Manager!...",
            prompt_version: 3,
            duration_ms: 1245,
            model: "gpt-4",
            run_id: Some(id),
            usage: UsageBody::new(Usage { input_tokens: Some(12), output_tokens: None }, None),
            cached: false,
            finish_reason: Some("stop"),
        };
        let expect = format!(
            r#"{{"success":true,"output":"Bonjour Steph,\n\nBienvenue sur Prompt Manager!...","promptVersion":3,"durationMs":1245,"model":"gpt-4","runId":"{id}","usage":{{"inputTokens":12,"outputTokens":null,"costUsd":null}},"cached":false,"finishReason":"stop"}}"#
        );
        assert_eq!(serde_json::to_string(&body).unwrap(), expect);
    }

    fn view(state: RunState) -> RunView {
        RunView {
            id: RunId::new(),
            account: AccountId::new(),
            state,
            prompt_name: "a".into(),
            prompt_version: 2,
            model: "gpt-4".into(),
            lane: Lane::Batch,
            metadata: BTreeMap::from([("order".into(), "17".into())]),
            created_at: UnixMillis(1_700_000_000_000),
            deadline: UnixMillis(1_700_000_030_000),
            started_at: None,
            finished_at: None,
            queue_ms: None,
            attempts: Vec::new(),
            output: None,
            finish_reason: None,
            failure: None,
            usage: Usage::default(),
            cost_nano_usd: None,
            cache: None,
            requeued_from: None,
        }
    }

    #[test]
    fn a_queued_run_shows_what_is_known() {
        let run = view(RunState::Queued);
        let expect = json!({
            "success": true, "runId": run.id, "state": "queued", "promptName": "a", "promptVersion": 2, "model": "gpt-4",
            "priority": "batch", "metadata": {"order": "17"}, "createdAt": "2023-11-14T22:13:20.000Z", "attempts": [],
            "cached": false,
        });
        assert_eq!(serde_json::to_value(RunBody::new(&run)).unwrap(), expect);
    }

    #[test]
    fn a_failed_run_shows_its_attempts_and_its_words() {
        let mut run = view(RunState::Failed);
        run.started_at = Some(UnixMillis(1_700_000_000_005));
        run.finished_at = Some(UnixMillis(1_700_000_001_005));
        run.queue_ms = Some(5);
        run.usage = Usage { input_tokens: Some(10), output_tokens: Some(0) };
        run.cost_nano_usd = Some(25_000);
        let failure = Failure { code: "provider_error".into(), message: "The provider failed".into(), retryable: true };
        run.failure = Some(failure);
        run.attempts = vec![Attempt {
            number: 1,
            fence: Fence(1),
            provider: "local".into(),
            model: "gpt-4".into(),
            worker: WorkerId::new(),
            started_at: UnixMillis(1_700_000_000_005),
            duration_ms: 1_000,
            first_token_ms: None,
            outcome: AttemptOutcome::ProviderError,
            status: Some(500),
            detail: Some("a detail for operators".into()),
            usage: Usage::default(),
            cost_nano_usd: None,
        }];
        let body = serde_json::to_value(RunBody::new(&run)).unwrap();
        assert_eq!(body["durationMs"], 1_005);
        assert_eq!((&body["error"], &body["code"]), (&json!("The provider failed"), &json!("provider_error")));
        assert_eq!(body["usage"], json!({"inputTokens": 10, "outputTokens": 0, "costUsd": 0.000025}));
        let attempt = json!({
            "number": 1, "provider": "local", "model": "gpt-4", "startedAt": "2023-11-14T22:13:20.005Z",
            "durationMs": 1000, "outcome": "provider_error",
        });
        assert_eq!(body["attempts"], Value::from(vec![attempt]));
        assert!(!body.to_string().contains("operators"));
    }

    #[test]
    fn every_terminal_state_but_success_has_an_error() {
        let code = |state| serde_json::to_value(RunBody::new(&view(state))).unwrap()["code"].clone();
        assert_eq!(code(RunState::Cancelled), "run_cancelled");
        assert_eq!(code(RunState::Expired), "deadline_exceeded");
        assert_eq!(code(RunState::Running), Value::Null);
        assert_eq!(code(RunState::Succeeded), Value::Null);
    }
}
