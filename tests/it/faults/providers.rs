//! Everything that goes wrong with providers, end to end: each fault ends as the right state, code and attempts.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape},
    invariants,
    load::new_name,
    provider::{Act, Answer as Scripted},
};

const CONFIG: &str = "[retry]\nmax_attempts = 2\nbase_ms = 50\n";
const PROVIDER: &str = "attempt_timeout_ms = 1200\nidle_timeout_ms = 400\n";

async fn post(app: &App, timeout_ms: u64) -> Answer {
    let variables = json!({ "name": new_name() });
    app.post(&json!({ "promptName": "Greeting", "variables": variables, "timeoutMs": timeout_ms })).await
}

async fn run_of(app: &App, answer: &Answer) -> (String, Value, Vec<String>) {
    let id = answer.body["runId"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    let run = app.ended(0, &id, Duration::from_secs(10)).await;
    let attempts = run["attempts"].as_array().unwrap().iter();
    let outcomes = attempts.map(|attempt| attempt["outcome"].as_str().unwrap().to_owned()).collect();
    (id, run, outcomes)
}

/// The fault once: the run succeeds at the second attempt. The fault for good: it fails after the second one.
async fn check(app: &App, fault: Scripted, outcome: &str, code: &str) -> [String; 2] {
    app.provider().push(fault.clone());
    let answer = post(app, 20_000).await;
    assert_eq!(answer.status, 200, "{code}: {answer:?}");
    let (healed, run, outcomes) = run_of(app, &answer).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(outcomes, [outcome, "succeeded"], "{run}");

    app.provider().push(fault.clone());
    app.provider().push(fault);
    let answer = post(app, 20_000).await;
    assert_eq!(answer.status, 500, "{code}: {answer:?}");
    assert_eq!((&answer.body["code"], &answer.body["retryable"]), (&json!(code), &json!(true)), "{answer:?}");
    let (failed, run, outcomes) = run_of(app, &answer).await;
    assert_eq!((&run["state"], &run["code"]), (&json!("failed"), &json!(code)), "{run}");
    assert_eq!(outcomes, [outcome, outcome], "{run}");
    [healed, failed]
}

async fn every_fault_of_a_provider_has_its_ending(mode: Mode) {
    let app = App::shaped(Shape { config: CONFIG.into(), provider: PROVIDER.into(), ..Shape::of(mode) }).await;
    app.import_greeting();
    let mut ids = Vec::new();
    for (fault, outcome, code) in [
        (Scripted::error(500, "ill"), "provider_error", "provider_error"),
        (Scripted::status(503), "provider_error", "provider_error"),
        (Scripted::hang(), "timeout", "provider_timeout"),
        (Scripted::hang_mid_body(), "timeout", "provider_timeout"),
        (Scripted::drip(Duration::from_millis(600)), "timeout", "provider_timeout"),
        (Scripted::drip(Duration::from_millis(100)), "timeout", "provider_timeout"),
        (Scripted::cut_short(), "truncated", "provider_truncated"),
        (Scripted::cut_chunks(), "truncated", "provider_truncated"),
        (Scripted::reset_mid_body(), "truncated", "provider_truncated"),
        (Scripted::reset(), "unreachable", "provider_unreachable"),
        (Scripted::acts([Act::Close]), "unreachable", "provider_unreachable"),
        (Scripted::garbage(), "garbage", "provider_garbage"),
        (Scripted::html(), "garbage", "provider_garbage"),
        (Scripted::not_http(), "garbage", "provider_garbage"),
        (Scripted::huge(50 << 20), "garbage", "provider_garbage"),
    ] {
        ids.extend(check(&app, fault, outcome, code).await);
    }

    // A provider that says later has not failed, however often it says so.
    for (limited, times) in [(Scripted::limited(1), 1), (Scripted::error(429, "later"), 3)] {
        (0..times).for_each(|_| app.provider().push(limited.clone()));
        let answer = post(&app, 20_000).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let (id, run, outcomes) = run_of(&app, &answer).await;
        let mut expected = vec!["rate_limited"; times];
        expected.push("succeeded");
        assert_eq!(outcomes, expected, "{run}");
        ids.push(id);
    }
    // A wait that would miss the deadline is not begun.
    app.provider().push(Scripted::limited(4));
    let answer = post(&app, 2_000).await;
    assert_eq!((answer.status, &answer.body["code"]), (504, &json!("deadline_exceeded")), "{answer:?}");
    let (id, run, outcomes) = run_of(&app, &answer).await;
    assert_eq!((&run["state"], outcomes), (&json!("expired"), vec!["rate_limited".to_owned()]), "{run}");
    ids.push(id);
    // The provider is left alone for as long as it said.
    assert_eq!(post(&app, 20_000).await.status, 200);
    // What another try cannot change is not tried.
    for (status, outcome, code) in
        [(401, "unauthorized", "provider_unauthorized"), (400, "rejected", "provider_rejected")]
    {
        app.provider().push(Scripted::error(status, "no"));
        let answer = post(&app, 20_000).await;
        assert_eq!((answer.status, &answer.body["code"]), (500, &json!(code)), "{answer:?}");
        let (id, run, outcomes) = run_of(&app, &answer).await;
        assert_eq!((&run["state"], outcomes), (&json!("failed"), vec![outcome.to_owned()]), "{run}");
        ids.push(id);
    }
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_provider_has_its_ending_embedded() {
    every_fault_of_a_provider_has_its_ending(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_provider_has_its_ending_distributed() {
    every_fault_of_a_provider_has_its_ending(Mode::Distributed).await;
}
