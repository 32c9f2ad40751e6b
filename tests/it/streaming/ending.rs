//! Every way in which a streamed run ends while its text is on the way.

use std::time::Duration;

use serde_json::{Value, json};

use super::{app, greeting, other};
use crate::support::{
    app::{Answer as Reply, App, Mode, client},
    events::{EventStream, Told, check_whole, names, text},
    invariants,
    provider::{Act, Answer, Gate, Recorded},
};

const PATIENCE: Duration = Duration::from_secs(30);

crate::support::in_both_modes! {
    a_caller_that_hangs_up_cancels
    a_caller_that_wants_it_to_go_on_may_hang_up
    what_broke_off_is_never_complete
    only_the_second_call_counts_after_a_retry
    a_deadline_ends_a_stream
    a_cancellation_ends_a_stream
}

/// A stream whose first word has come, and whose provider holds the rest back.
pub(super) async fn begun(app: &App, body: &Value, gate: &Gate) -> (EventStream, Vec<Told>) {
    app.provider().push(Answer::pieces(["one ", "two"]).held_after(1, gate));
    let mut stream = app.stream(0, body).await;
    let events = stream.until("run.output_text.delta").await;
    assert_eq!(text(&events), "one ");
    (stream, events)
}

async fn a_caller_that_hangs_up_cancels(mode: Mode) {
    let app = app(mode).await;
    let (stream, _) = begun(&app, &greeting(), &Gate::new()).await;
    let run = stream.run();
    drop(stream);
    app.provider().wait_until("a hang-up", |requests| requests.last().is_some_and(Recorded::hung_up)).await;
    let shown = app.ended(other(&app), &run, PATIENCE).await;
    assert_eq!(shown["state"], "cancelled", "{shown}");
    let told = app.follow(other(&app), &run, 0).await.rest().await;
    check_whole(&told, &run, 0);
    let expect = ["run.queued", "run.started", "run.output_text.delta", "run.cancelled", "[DONE]"];
    assert_eq!(names(&told), expect);
    // Who only looks at a run changes nothing about it.
    let gate = Gate::new();
    let (mut stream, _) = begun(&app, &greeting(), &gate).await;
    let second = stream.run();
    let mut follower = app.follow(other(&app), &second, 0).await;
    follower.until("run.output_text.delta").await;
    drop(follower);
    gate.open();
    assert_eq!(names(&stream.rest().await).last(), Some(&"[DONE]"));
    assert_eq!(app.ended(0, &second, PATIENCE).await["state"], "succeeded");
    invariants::hold(&app, &[run, second]).await;
}

async fn a_caller_that_wants_it_to_go_on_may_hang_up(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    let mut body = greeting();
    body["onDisconnect"] = "continue".into();
    let (stream, events) = begun(&app, &body, &gate).await;
    let run = stream.run();
    drop(stream);
    let mut follower = app.follow(other(&app), &run, 0).await;
    assert_eq!(follower.until("run.output_text.delta").await, events);
    gate.open();
    let shown = app.ended(other(&app), &run, PATIENCE).await;
    assert_eq!((&shown["state"], &shown["output"]), (&json!("succeeded"), &json!("one two")), "{shown}");
    check_whole(&app.follow(other(&app), &run, 0).await.rest().await, &run, 0);
    invariants::hold(&app, &[run]).await;
}

async fn what_broke_off_is_never_complete(mode: Mode) {
    let app = app(mode).await;
    let broken = [
        Answer::pieces(["one ", "two"]).then_after(1, Act::Close),
        Answer::pieces(["one ", "two"]).without_finish().without_done(),
        Answer::pieces(["one ", "two"]).then_after(2, Act::Close),
    ];
    for answer in broken {
        app.provider().push(answer);
    }
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let events = stream.rest().await;
    check_whole(&events, &run, 0);
    let retries = events.iter().filter(|told| told.name == "run.retrying").count();
    assert_eq!(retries, 2, "{events:#?}");
    let last = &events[events.len() - 2];
    assert_eq!((last.name.as_str(), &last.data["success"]), ("run.failed", &json!(false)));
    assert_eq!((&last.data["code"], &last.data["retryable"]), (&json!("provider_truncated"), &json!(true)), "{last:?}");
    let shown = app.ended(other(&app), &run, PATIENCE).await;
    assert_eq!((&shown["state"], &shown["code"]), (&json!("failed"), &last.data["code"]), "{shown}");
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 3, "{shown}");
    // What the provider said before it broke off was paid for.
    let usages: Vec<&Value> = attempts.iter().map(|attempt| &attempt["usage"]["outputTokens"]).collect();
    assert_eq!(usages, [&Value::Null, &json!(5), &Value::Null], "{shown}");
    invariants::hold(&app, &[run]).await;
}

async fn only_the_second_call_counts_after_a_retry(mode: Mode) {
    let app = app(mode).await;
    app.provider().push(Answer::pieces(["lost ", "words"]).then_after(1, Act::Close));
    app.provider().push(Answer::pieces(["one ", "two"]));
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let events = stream.rest().await;
    check_whole(&events, &run, 0);
    let at = events.iter().position(|told| told.name == "run.retrying").expect("a retry");
    assert_eq!(text(&events[..at]), "lost ");
    assert_eq!((events[at + 1].name.as_str(), &events[at + 1].data["attempt"]), ("run.started", &json!(2)));
    assert_eq!(text(&events), "one two");
    assert_eq!(app.follow(other(&app), &run, 0).await.rest().await, events);
    invariants::hold(&app, &[run]).await;
}

async fn a_deadline_ends_a_stream(mode: Mode) {
    let app = app(mode).await;
    let mut body = greeting();
    body["timeoutMs"] = 3_000.into();
    let (mut stream, mut events) = begun(&app, &body, &Gate::new()).await;
    let run = stream.run();
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    let last = &events[events.len() - 2];
    assert_eq!((last.name.as_str(), &last.data["code"]), ("run.failed", &json!("deadline_exceeded")), "{last:?}");
    let shown = app.ended(other(&app), &run, PATIENCE).await;
    assert_eq!(shown["state"], "expired", "{shown}");
    assert_eq!(app.follow(other(&app), &run, 0).await.rest().await, events);
    app.provider().wait_until("a hang-up", |requests| requests.last().is_some_and(Recorded::hung_up)).await;
    invariants::hold(&app, &[run]).await;
}

async fn a_cancellation_ends_a_stream(mode: Mode) {
    let app = app(mode).await;
    let (mut stream, mut events) = begun(&app, &greeting(), &Gate::new()).await;
    let run = stream.run();
    let url = format!("{}/api/v1/runs/{run}/cancel", app.urls()[other(&app)]);
    let answer = Reply::of(client().post(url).header("x-api-key", app.key()).send().await.unwrap()).await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    let last = &events[events.len() - 2];
    assert_eq!((last.name.as_str(), &last.data["code"]), ("run.cancelled", &json!("run_cancelled")), "{last:?}");
    assert_eq!(app.ended(other(&app), &run, PATIENCE).await["state"], "cancelled");
    app.provider().wait_until("a hang-up", |requests| requests.last().is_some_and(Recorded::hung_up)).await;
    invariants::hold(&app, &[run]).await;
}
