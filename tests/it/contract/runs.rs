//! Runs that are started: their answers, their status, their ends.

use std::time::Duration;

use reqwest::Method;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use super::{
    EMAIL_DE_BIENVENUE, assert_refused, cancel, configured, email, get, greeting, import_email, send, started,
};
use crate::support::{
    app::{Answer, App, Mode},
    provider::{Answer as Script, Gate},
};

crate::support::in_both_modes!(
    the_contract_s_example_is_answered,
    a_run_that_fails_is_500_and_its_status_says_why,
    a_run_that_misses_its_deadline_is_504,
    an_async_run_is_202_and_ends_on_its_own,
    a_caller_with_little_patience_is_told_where_to_look,
    a_run_is_cancelled_in_every_state_but_the_last,
    a_caller_that_waits_is_told_of_a_cancellation,
    a_caller_that_hangs_up_cancels_its_run,
    a_run_belongs_to_its_account,
);

const SOON: Duration = Duration::from_secs(20);

fn status_path(id: &str) -> String {
    format!("/api/v1/runs/{id}")
}

/// RFC 3339 in UTC with milliseconds, and nothing else.
#[track_caller]
fn assert_moment(value: &Value) {
    let text = value.as_str().unwrap();
    assert!(text.len() == "2026-01-01T00:00:00.000Z".len() && text.ends_with('Z'), "{text}");
    chrono::DateTime::parse_from_rfc3339(text).unwrap();
}

async fn the_contract_s_example_is_answered(mode: Mode) {
    let app = started(mode).await;
    import_email(&app);
    app.provider().push(Script::text("Bonjour Steph,\n\nBienvenue sur Prompt Manager!..."));
    let response =
        app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(&email()).send();
    let response = response.await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let headers = response.headers().clone();
    let text = response.text().await.unwrap();

    let contract = r#"{"success":true,"output":"Bonjour Steph,\n\nBienvenue sur Prompt Manager!...","promptVersion":3,"durationMs":"#;
    let rest = text.strip_prefix(contract).unwrap_or_else(|| panic!("{text}"));
    let (duration, rest) = rest.split_once(',').unwrap();
    assert!(duration.parse::<u64>().unwrap() < 30_000, "{duration}");
    assert!(rest.starts_with(r#""model":"gpt-4","#), "{rest}");

    let body: Value = serde_json::from_str(&text).unwrap();
    // 10 tokens at 2.5 and 5 at 10 dollars a million.
    let usage = json!({ "inputTokens": 10, "outputTokens": 5, "costUsd": 0.000_075 });
    assert_eq!(body["usage"], usage);
    assert!(text.contains(r#""costUsd":0.000075}"#), "{text}");
    assert_eq!((&body["cached"], &body["finishReason"]), (&json!(false), &json!("stop")));

    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["x-run-id"], body["runId"].as_str().unwrap());
    assert_eq!(headers["x-prompt-version"], "3");
    headers["x-queue-ms"].to_str().unwrap().parse::<u64>().unwrap();
    assert!(headers.contains_key("x-request-id") && !headers.contains_key("preference-applied"));

    let requests = app.provider().requests();
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].model(), requests[0].user_text()), ("gpt-4", "Écris à Steph pour Prompt Manager."));

    let run = app.ended(0, body["runId"].as_str().unwrap(), SOON).await;
    assert_eq!((&run["state"], &run["output"]), (&json!("succeeded"), &body["output"]), "{run}");
    assert_eq!((&run["usage"], &run["success"]), (&usage, &json!(true)));
    assert_eq!((&run["promptName"], &run["promptVersion"]), (&json!(EMAIL_DE_BIENVENUE), &json!(3)));
    assert_eq!((&run["priority"], &run["metadata"]), (&json!("interactive"), &json!({})));
    for moment in ["createdAt", "startedAt", "finishedAt"] {
        assert_moment(&run[moment]);
    }
    let attempts = run["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{run}");
    assert_eq!((&attempts[0]["number"], &attempts[0]["provider"]), (&json!(1), &json!("scripted")));
    assert_eq!((&attempts[0]["outcome"], &attempts[0]["usage"]), (&json!("succeeded"), &usage));
    assert_moment(&attempts[0]["startedAt"]);
}

async fn a_run_that_fails_is_500_and_its_status_says_why(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    // What is wrong between us and the provider is never the caller's 401 or 400.
    for (script, attempt) in [
        (Script::error(401, "bad key provider-secret"), "unauthorized"),
        (Script::error(400, "bad request"), "rejected"),
        (Script::error(500, "ill"), "provider_error"),
    ] {
        app.provider().set_default(script);
        let answer = app.post(&greeting()).await;
        let code = answer.body["code"].as_str().unwrap().to_owned();
        assert_refused(&answer, 500, &code);
        assert!(!answer.body.to_string().contains("provider-secret"), "{answer:?}");
        let id = answer.body["runId"].as_str().unwrap();
        assert_eq!(answer.header("x-run-id"), Some(id));

        let run = app.ended(0, id, SOON).await;
        assert_eq!((&run["state"], &run["success"]), (&json!("failed"), &json!(true)), "{run}");
        assert_eq!((&run["code"], &run["error"]), (&answer.body["code"], &answer.body["error"]));
        assert!(run.get("output").is_none(), "{run}");
        assert_eq!(run["attempts"].as_array().unwrap().last().unwrap()["outcome"], attempt, "{run}");
    }
    // The contract's "after its retries".
    let run = app.post(&greeting()).await;
    let id = run.body["runId"].as_str().unwrap();
    assert!(app.ended(0, id, SOON).await["attempts"].as_array().unwrap().len() > 1);
}

async fn a_run_that_misses_its_deadline_is_504(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    app.provider().set_default(Script::hang());
    let mut body = greeting();
    body["timeoutMs"] = json!(600);
    let since = tokio::time::Instant::now();
    let answer = app.post(&body).await;
    let took = since.elapsed();
    assert_refused(&answer, 504, "deadline_exceeded");
    // Its worker, which ends it, may read the queue's clock a little differently.
    assert!(took >= Duration::from_millis(500), "{took:?}");
    let run = app.ended(0, answer.body["runId"].as_str().unwrap(), SOON).await;
    assert_eq!((&run["state"], &run["code"]), (&json!("expired"), &json!("deadline_exceeded")), "{run}");
    app.provider().wait_until("the call to be broken off", |requests| requests[0].hung_up()).await;
}

async fn an_async_run_is_202_and_ends_on_its_own(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    let mut body = greeting();
    body["priority"] = json!("batch");
    body["metadata"] = json!({ "order": "17" });
    let answer = app.post_with(0, &body, &[("prefer", "respond-async")]).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.body["runId"].as_str().unwrap();
    assert_eq!(answer.header("location"), Some(status_path(id).as_str()));
    assert_eq!(answer.header("preference-applied"), Some("respond-async"));
    assert_eq!(answer.header("x-run-id"), Some(id));
    let created_at = answer.body["createdAt"].clone();
    assert_moment(&created_at);
    let queued = json!({
        "success": true, "runId": id, "state": "queued", "promptName": "Greeting", "promptVersion": 1,
        "model": "gpt-4", "priority": "batch", "metadata": { "order": "17" }, "createdAt": created_at,
        "attempts": [], "cached": false,
    });
    assert_eq!(answer.body, queued);

    let run = app.ended(0, id, SOON).await;
    assert_eq!((&run["state"], &run["output"]), (&json!("succeeded"), &json!("Greet Ada.")), "{run}");
    assert_eq!((&run["metadata"], &run["createdAt"]), (&json!({ "order": "17" }), &created_at));
}

async fn a_caller_with_little_patience_is_told_where_to_look(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    let fast = app.post_with(0, &greeting(), &[("prefer", "wait=20")]).await;
    assert_eq!((fast.status, fast.header("preference-applied")), (200, Some("wait=20")), "{fast:?}");

    let gate = Gate::new();
    app.provider().set_default(Script::text("late").held(&gate));
    let slow = app.post_with(0, &greeting(), &[("prefer", "respond-async, wait=1")]).await;
    assert_eq!(slow.status, 202, "{slow:?}");
    assert_eq!(slow.header("preference-applied"), Some("respond-async, wait=1"));
    let id = slow.body["runId"].as_str().unwrap();
    assert_eq!(slow.header("location"), Some(status_path(id).as_str()));
    assert_eq!(slow.body["state"], "running", "a run that a worker has is not shown as queued: {slow:?}");
    gate.open();
    assert_eq!(app.ended(0, id, SOON).await["output"], "late");
}

async fn a_run_is_cancelled_in_every_state_but_the_last(mode: Mode) {
    let app = configured(mode, "[workers]\nslots = 1\n").await;
    app.import_greeting();
    let done = app.post(&greeting()).await;
    let done = done.body["runId"].as_str().unwrap();
    app.ended(0, done, SOON).await;
    let refused = cancel(&app, done).await;
    assert_refused(&refused, 409, "run_already_ended");
    assert_eq!(refused.body["runId"], done);

    app.provider().set_default(Script::hang());
    let running = app.post_async(0).await;
    app.provider().wait_for_requests(2).await;
    // The only slot is taken, so this one waits.
    let queued = app.post_async(0).await;
    let answer = cancel(&app, &queued).await;
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelled")), "{answer:?}");
    let again = cancel(&app, &queued).await;
    assert_eq!((again.status, &again.body["state"]), (200, &json!("cancelled")), "{again:?}");

    let answer = cancel(&app, &running).await;
    assert!(answer.status == 200 || answer.status == 202, "{answer:?}");
    for id in [&queued, &running] {
        let run = app.ended(0, id, SOON).await;
        assert_eq!((&run["state"], &run["code"]), (&json!("cancelled"), &json!("run_cancelled")), "{run}");
        assert_eq!(cancel(&app, id).await.status, 200);
    }
    app.provider().wait_until("the call to be broken off", |requests| requests[1].hung_up()).await;
    assert_eq!(app.provider().requests().len(), 2, "the run that waited was never called for");
}

async fn a_caller_that_waits_is_told_of_a_cancellation(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    app.provider().set_default(Script::hang());
    let request =
        app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(&greeting());
    let waiting = tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await });
    app.provider().wait_for_requests(1).await;
    let id = only_run(&app).await;
    assert_eq!(get(&app, &status_path(&id)).await.body["state"], "running");
    assert!(cancel(&app, &id).await.status < 300);
    let answer = waiting.await.unwrap();
    assert_refused(&answer, 409, "run_cancelled");
    assert_eq!(answer.body["runId"], id);
}

/// The id of the one run in the database: whoever waits for it learns it only with the answer.
async fn only_run(app: &App) -> String {
    let (_, url) = app.env().iter().find(|(name, _)| name == "PROMPT_MANAGER_DATABASE_URL").unwrap();
    let db = sea_orm::Database::connect(url).await.unwrap();
    let query = sea_orm::Statement::from_string(db.get_database_backend(), "SELECT id FROM runs");
    let deadline = tokio::time::Instant::now() + SOON;
    // The row of a run that somebody waits for is written beside it, not before.
    loop {
        let rows = db.query_all_raw(query.clone()).await.unwrap();
        assert!(rows.len() < 2 && tokio::time::Instant::now() < deadline, "{} runs", rows.len());
        if let [row] = rows.as_slice() {
            let id: uuid::Uuid = row.try_get_by_index(0).unwrap();
            db.close().await.unwrap();
            return id.to_string();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_caller_that_hangs_up_cancels_its_run(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    app.provider().set_default(Script::hang());
    let hang_up = async |body: &Value, calls: usize| {
        let request = app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(body);
        let caller = tokio::spawn(request.send());
        app.provider().wait_for_requests(calls).await;
        caller.abort();
        let _ = caller.await;
    };
    hang_up(&greeting(), 1).await;
    app.provider().wait_until("the call to be broken off", |requests| requests[0].hung_up()).await;

    let gate = Gate::new();
    app.provider().set_default(Script::text("on and on").held(&gate));
    let mut body = greeting();
    body["onDisconnect"] = json!("continue");
    hang_up(&body, 2).await;
    // A run that would be cancelled is gone within a second when everything is up.
    tokio::time::sleep(Duration::from_secs(2)).await;
    gate.open();
    app.provider().wait_until("the call to end", |requests| requests[1].end.is_some()).await;
    assert!(!app.provider().requests()[1].hung_up(), "the run was to go on");
}

async fn a_run_belongs_to_its_account(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    let gate = Gate::new();
    app.provider().set_default(Script::text("mine").held(&gate));
    let id = app.post_async(0).await;
    let other = app.account("other", &["--plan", "pro"]);
    let absent = "00000000-0000-7000-8000-000000000000";
    for (method, suffix) in [(Method::GET, ""), (Method::POST, "/cancel")] {
        let theirs = send(&app, method.clone(), &format!("{}{suffix}", status_path(&id)), Some(&other)).await;
        let nobody_s = send(&app, method, &format!("{}{suffix}", status_path(absent)), Some(&other)).await;
        assert_refused(&theirs, 404, "run_not_found");
        assert_eq!(without_request_id(theirs), without_request_id(nobody_s));
    }
    gate.open();
    assert_eq!(app.ended(0, &id, SOON).await["state"], "succeeded", "nobody else could cancel it");
}

fn without_request_id(mut answer: Answer) -> Value {
    answer.body.as_object_mut().unwrap().remove("requestId");
    answer.body
}
