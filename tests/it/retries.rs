//! Which calls use up a run's attempts, as a caller sees it.

use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape},
    provider::Answer,
};

/// Two failures end a run, and no pause is long.
const QUICK: &str = "[retry]\nmax_attempts = 2\nbase_ms = 10\ncap_ms = 20\n";

async fn app(mode: Mode) -> App {
    let app = App::shaped(Shape { config: QUICK.into(), ..Shape::of(mode) }).await;
    app.import_greeting();
    app
}

/// Runs a greeting; answers with the HTTP answer, the run's status and the outcomes of its attempts.
async fn greet(app: &App) -> (Value, Value, Vec<String>) {
    let answer = app.post(&json!({ "promptName": "Greeting", "variables": { "name": "Ada" } })).await;
    let id = answer.body["runId"].as_str().unwrap();
    let run = app.ended(0, id, std::time::Duration::from_secs(10)).await;
    let attempts = run["attempts"].as_array().unwrap();
    let numbers: Vec<u64> = attempts.iter().map(|attempt| attempt["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..).take(attempts.len()).collect::<Vec<_>>(), "every call is shown: {run}");
    let outcomes = attempts.iter().map(|attempt| attempt["outcome"].as_str().unwrap().to_owned()).collect();
    (answer.body, run, outcomes)
}

async fn limited_calls_use_up_no_attempt(mode: Mode) {
    let app = app(mode).await;
    for _ in 0..5 {
        app.provider().push(Answer::limited(0));
    }
    app.provider().push(Answer::error(500, "ill"));
    app.provider().push(Answer::limited(0));
    app.provider().push(Answer::text("Bonjour Ada"));
    let (answer, run, outcomes) = greet(&app).await;
    assert_eq!((&answer["success"], &answer["output"]), (&json!(true), &json!("Bonjour Ada")), "{run}");
    assert_eq!(run["state"], "succeeded", "{run}");
    let mut expected = vec!["rate_limited"; 5];
    expected.extend(["provider_error", "rate_limited", "succeeded"]);
    assert_eq!(outcomes, expected);
}

async fn failed_calls_do(mode: Mode) {
    let app = app(mode).await;
    for answer in [Answer::limited(0), Answer::error(500, "ill"), Answer::limited(0), Answer::error(500, "ill")] {
        app.provider().push(answer);
    }
    let (answer, run, outcomes) = greet(&app).await;
    assert_eq!((&answer["success"], &answer["code"]), (&json!(false), &json!("provider_error")), "{run}");
    assert_eq!(run["state"], "failed", "{run}");
    assert_eq!(outcomes, ["rate_limited", "provider_error", "rate_limited", "provider_error"]);
    assert_eq!(app.provider().requests().len(), 4);
}

crate::support::in_both_modes!(limited_calls_use_up_no_attempt, failed_calls_do);
