//! The bodies that tell what happens to a run, the same over server-sent events and WebSockets.

use serde::Serialize;
use workers::job::{Ending, Event, Logged, Outcome, RunId, RunState, UnixMillis};

use super::run_body::{ResultBody, UsageBody};
use crate::run::failure_of;

/// What is known of a run that its events do not say again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub run: RunId,
    pub prompt_version: i32,
    pub created_at: UnixMillis,
}

/// One event: `{type, runId, seq, …}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventBody<'a> {
    #[serde(rename = "type")]
    name: &'static str,
    run_id: RunId,
    seq: u64,
    #[serde(flatten)]
    facts: Facts<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Facts<'a> {
    #[serde(rename_all = "camelCase")]
    Queued {
        prompt_version: i32,
    },
    Started {
        attempt: i32,
    },
    Delta {
        delta: &'a str,
    },
    Completed(ResultBody<'a>),
    Failed {
        success: bool,
        error: String,
        code: String,
        retryable: bool,
    },
    Nothing {},
}

impl<'a> EventBody<'a> {
    /// `None` for an event that callers are not told of.
    pub(super) fn new(subject: Subject, logged: &'a Logged) -> Option<Self> {
        let (name, facts) = match &logged.event {
            Event::Queued => ("run.queued", Facts::Queued { prompt_version: subject.prompt_version }),
            Event::Started { attempt } => ("run.started", Facts::Started { attempt: *attempt }),
            Event::Delta(delta) => ("run.output_text.delta", Facts::Delta { delta }),
            Event::Retrying => ("run.retrying", Facts::Nothing {}),
            Event::Skipped => return None,
            Event::Ended(ending) => ended(subject, ending),
        };
        Some(Self { name, run_id: subject.run, seq: logged.seq, facts })
    }

    /// What `type` says.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

fn ended(subject: Subject, ending: &Ending) -> (&'static str, Facts<'_>) {
    if let Outcome::Succeeded { output, finish_reason } = &ending.outcome {
        let result = ResultBody {
            success: true,
            output,
            prompt_version: subject.prompt_version,
            duration_ms: ending.finished_at.since(subject.created_at),
            model: &ending.model,
            run_id: None,
            usage: UsageBody::new(ending.usage(), ending.cost_nano_usd()),
            cached: ending.is_cached(),
            finish_reason: finish_reason.as_deref(),
        };
        return ("run.completed", Facts::Completed(result));
    }
    let name = if ending.outcome.state() == RunState::Cancelled { "run.cancelled" } else { "run.failed" };
    match failure_of(&ending.outcome) {
        Some(failure) => {
            let (error, code, retryable) = (failure.message, failure.code, failure.retryable);
            (name, Facts::Failed { success: false, error, code, retryable })
        }
        None => (name, Facts::Nothing {}),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use workers::job::{Failure, Fence, WIRE_VERSION};

    use super::*;
    use crate::schema;

    fn subject() -> Subject {
        Subject { run: RunId::new(), prompt_version: 3, created_at: UnixMillis(1_000_000) }
    }

    fn body(event: Event) -> Value {
        let subject = subject();
        let logged = Logged { seq: 7, event };
        let body = EventBody::new(subject, &logged).unwrap();
        let value = serde_json::to_value(&body).unwrap();
        assert_eq!((&value["runId"], &value["seq"]), (&json!(subject.run), &json!(7)));
        assert_eq!(value["type"], body.name());
        // As the document describes it.
        schema::assert_is("RunEvent", &value);
        let mut value = value;
        let map = value.as_object_mut().unwrap();
        map.remove("runId");
        map.remove("seq");
        value
    }

    fn ending(outcome: Outcome) -> Event {
        Event::Ended(Box::new(Ending {
            v: WIRE_VERSION,
            run: RunId::new(),
            fence: Fence(1),
            outcome,
            model: "gpt-4".into(),
            started_at: None,
            finished_at: UnixMillis(1_001_245),
            queue_ms: 0,
            attempt: None,
            cache: None,
        }))
    }

    #[test]
    fn every_event_has_its_facts() {
        let check = |event, expect: Value| assert_eq!(body(event), expect);
        check(Event::Queued, json!({"type": "run.queued", "promptVersion": 3}));
        check(Event::Started { attempt: 2 }, json!({"type": "run.started", "attempt": 2}));
        check(Event::Delta("Bon".into()), json!({"type": "run.output_text.delta", "delta": "Bon"}));
        check(Event::Retrying, json!({"type": "run.retrying"}));
        check(
            ending(Outcome::Succeeded { output: "Bonjour".into(), finish_reason: Some("stop".into()) }),
            json!({
                "type": "run.completed", "success": true, "output": "Bonjour", "promptVersion": 3, "durationMs": 1245,
                "model": "gpt-4", "usage": {"inputTokens": null, "outputTokens": null, "costUsd": null}, "cached": false,
                "finishReason": "stop",
            }),
        );
        let failure = Failure { code: "provider_error".into(), message: "It failed".into(), retryable: true };
        check(
            ending(Outcome::Failed(failure)),
            json!({"type": "run.failed", "success": false, "error": "It failed", "code": "provider_error", "retryable": true}),
        );
        assert_eq!(body(ending(Outcome::Cancelled))["type"], "run.cancelled");
        assert_eq!(body(ending(Outcome::Cancelled))["code"], "run_cancelled");
        assert_eq!(body(ending(Outcome::Expired))["type"], "run.failed");
        assert_eq!(body(ending(Outcome::Expired))["code"], "deadline_exceeded");
    }

    #[test]
    fn text_that_the_log_did_not_keep_is_not_told() {
        let logged = Logged { seq: 1, event: Event::Skipped };
        assert!(EventBody::new(subject(), &logged).is_none());
    }
}
