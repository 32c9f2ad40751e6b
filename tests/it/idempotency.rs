//! `Idempotency-Key`: of all requests that carry it one makes a run, whatever happens.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    eventually, invariants,
    load::new_name,
    provider::{Answer as Scripted, Gate},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn app(mode: Mode) -> App {
    let app = App::shaped(Shape { front_doors: 2, ..Shape::of(mode) }).await;
    app.import_greeting();
    app
}

fn greet(name: &str) -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": name } })
}

/// The other front door, where there is one.
fn other(app: &App) -> usize {
    app.urls().len() - 1
}

async fn keyed(app: &App, front_door: usize, key: &str, body: &Value) -> Answer {
    app.post_with(front_door, body, &[("idempotency-key", key)]).await
}

fn replayed(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

/// The body without what belongs to the request.
fn result(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    body.as_object_mut().unwrap().remove("requestId");
    body
}

async fn a_finished_run_is_replayed(mode: Mode) {
    let app = app(mode).await;
    let body = greet("Ada");
    let first = keyed(&app, 0, "order 17", &body).await;
    assert_eq!((first.status, replayed(&first)), (200, false), "{first:?}");
    let again = keyed(&app, other(&app), "order 17", &body).await;
    assert_eq!((again.status, replayed(&again)), (200, true), "{again:?}");
    assert_eq!(result(&again), result(&first));
    assert_eq!(again.header("x-run-id"), first.header("x-run-id"));
    // The same JSON in other words is the same request.
    let spaced = client()
        .post(format!("{}/api/v1/run", app.url()))
        .header("x-api-key", app.key())
        .header("content-type", "application/json")
        .header("idempotency-key", "order 17")
        .body(r#"{ "variables": {"name": "Ada"}, "promptName" : "Greeting" }"#);
    assert!(replayed(&Answer::of(spaced.send().await.unwrap()).await));
    // Whoever does not wait is shown the same run.
    let prefer = [("idempotency-key", "order 17"), ("prefer", "respond-async")];
    let shown = app.post_with(0, &body, &prefer).await;
    assert_eq!((shown.status, &shown.body["state"], replayed(&shown)), (202, &json!("succeeded"), true));
    assert_eq!(app.provider().requests().len(), 1);

    let another = keyed(&app, 0, "order 17", &greet("Grace")).await;
    assert_eq!((another.status, &another.body["code"]), (422, &json!("idempotency_key_reused")), "{another:?}");
    assert_eq!(another.body["runId"], first.body["runId"]);
    let unkeyed = app.post(&body).await;
    assert_ne!(unkeyed.body["runId"], first.body["runId"]);
}

async fn a_live_run_is_joined(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::pieces(["Hel", "lo"]).held_after(1, &gate));
    let body = greet("Ada");
    let streamed = json!({ "promptName": "Greeting", "variables": { "name": "Ada" }, "stream": false });
    let open = async {
        app.provider().wait_for_requests(1).await;
        // Both wait for the one call, as the second is not answered before the gate opens.
        gate.open();
    };
    let (first, second, ()) = tokio::join!(keyed(&app, 0, "k", &body), keyed(&app, other(&app), "k", &body), open);
    assert_eq!((first.status, second.status), (200, 200), "{first:?} {second:?}");
    assert_eq!(result(&first), result(&second));
    assert_ne!(replayed(&first), replayed(&second), "one of them made the run");
    assert_eq!(app.provider().requests().len(), 1);
    assert_eq!(keyed(&app, 0, "k", &streamed).await.status, 422);
}

async fn a_stream_is_joined_and_replayed(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::pieces(["Hel", "lo"]).held_after(1, &gate));
    let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" }, "stream": true });
    let stream = async |front_door: usize| {
        let url = format!("{}/api/v1/run", app.urls()[front_door]);
        let request = client().post(url).header("x-api-key", app.key()).header("idempotency-key", "s").json(&body);
        let response = request.send().await.unwrap();
        let replayed = response.headers().contains_key("idempotent-replayed");
        (replayed, response.text().await.unwrap())
    };
    let open = async {
        app.provider().wait_for_requests(1).await;
        gate.open();
    };
    let (first, second, ()) = tokio::join!(stream(0), stream(other(&app)), open);
    assert_eq!(first.1, second.1, "both are told the same events");
    assert_ne!(first.0, second.0);
    assert_eq!(stream(0).await, (true, first.1.clone()), "and so is whoever comes later");
    assert!(first.1.contains("run.completed") && first.1.ends_with("data: [DONE]\n\n"), "{}", first.1);
    assert_eq!(app.provider().requests().len(), 1);
}

async fn many_at_once_make_one_run(mode: Mode) {
    let app = app(mode).await;
    for _ in 0..5 {
        let (key, body) = (new_name(), greet(&new_name()));
        let before = app.provider().requests().len();
        let posts = (0..20).map(|post| keyed(&app, post % app.urls().len(), &key, &body));
        let answers = futures::future::join_all(posts).await;
        let ids: Vec<_> = answers.iter().map(|answer| (answer.status, answer.body["runId"].clone())).collect();
        assert!(ids.iter().all(|id| *id == (200, ids[0].1.clone())), "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
        assert_eq!(app.provider().requests().len(), before + 1);
    }
    invariants::hold(&app, &[]).await;
}

async fn a_failure_is_replayed_and_a_refusal_is_not(mode: Mode) {
    let app = app(mode).await;
    app.provider().push(Scripted::error(400, "no such thing"));
    let failed = keyed(&app, 0, "f", &greet("Ada")).await;
    assert_eq!(failed.status, 500, "{failed:?}");
    let again = keyed(&app, other(&app), "f", &greet("Ada")).await;
    assert_eq!((again.status, result(&again), replayed(&again)), (500, result(&failed), true));
    assert_eq!(app.provider().requests().len(), 1);

    let refused = keyed(&app, 0, "r", &json!({ "promptName": "Greeting" })).await;
    assert_eq!((refused.status, &refused.body["code"]), (400, &json!("missing_variables")));
    assert_eq!(keyed(&app, 0, "r", &greet("Ada")).await.status, 200, "the key was not used up");
    let bad = app.post_with(0, &greet("Ada"), &[("idempotency-key", &"a".repeat(256))]).await;
    assert_eq!((bad.status, &bad.body["code"]), (400, &json!("invalid_idempotency_key")));
}

async fn accounts_do_not_share_keys(mode: Mode) {
    let app = app(mode).await;
    app.account("another", &["--plan", "pro"]);
    app.import_prompt_of("another", "name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\n");
    let key = app.new_key("another");
    let first = keyed(&app, 0, "k", &greet("Ada")).await;
    let request = client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", key);
    let request = request.header("idempotency-key", "k").json(&greet("Grace"));
    let second = Answer::of(request.send().await.unwrap()).await;
    assert_eq!((first.status, second.status, replayed(&second)), (200, 200, false), "{second:?}");
    assert_ne!(first.body["runId"], second.body["runId"]);
}

async fn a_caller_whose_connection_broke_finds_its_run(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::text("Hello").held(&gate));
    let body = greet("Ada");
    // Both futures are dropped when the provider has been called: the caller hangs up.
    tokio::select! {
        answer = keyed(&app, 0, "k", &body) => panic!("{answer:?}"),
        () = app.provider().wait_for_requests(1) => {}
    }
    let open = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    let (again, ()) = tokio::join!(keyed(&app, other(&app), "k", &body), open);
    assert_eq!((again.status, replayed(&again)), (200, true), "{again:?}");
    assert_eq!(app.provider().requests().len(), 1);

    // Unless it said that hanging up is to cancel.
    app.provider().push(Scripted::hang());
    let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" }, "onDisconnect": "cancel" });
    tokio::select! {
        answer = keyed(&app, 0, "c", &body) => panic!("{answer:?}"),
        () = app.provider().wait_for_requests(2) => {}
    }
    let again = keyed(&app, other(&app), "c", &body).await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("run_cancelled")), "{again:?}");
}

crate::support::in_both_modes! {
    a_finished_run_is_replayed
    a_live_run_is_joined
    a_stream_is_joined_and_replayed
    many_at_once_make_one_run
    a_failure_is_replayed_and_a_refusal_is_not
    accounts_do_not_share_keys
    a_caller_whose_connection_broke_finds_its_run
}

/// The front door dies between the commit of the row and the queue; the retry meets a Redis that has lost everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_crash_and_a_loss_finds_the_one_run() {
    let mut app = app(Mode::Distributed).await;
    app.restart_front_door_with(0, &[("FAIL_POINTS", "insert.after=abort@1")]);
    let body = greet(&new_name());
    let url = format!("{}/api/v1/run", app.urls()[0]);
    eventually("it listens again", async || client().get(format!("{}/healthz", app.urls()[0])).send().await.is_ok())
        .await;
    let request = client().post(url).header("x-api-key", app.key()).header("idempotency-key", "k").json(&body);
    assert!(request.send().await.is_err(), "the front door is gone");
    let again = keyed(&app, 1, "k", &body).await;
    assert_eq!((again.status, replayed(&again)), (200, true), "{again:?}");
    assert_eq!(app.provider().requests().len(), 1);

    let (gate, body) = (Gate::new(), greet(&new_name()));
    app.provider().push(Scripted::text("Hello").held(&gate));
    let prefer = [("idempotency-key", "f"), ("prefer", "respond-async")];
    let first = app.post_with(1, &body, &prefer).await;
    app.provider().wait_for_requests(2).await;
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    gate.open();
    let joined = keyed(&app, 1, "f", &body).await;
    assert_eq!(joined.body["runId"], first.body["runId"], "{joined:?}");
    let id = first.body["runId"].as_str().unwrap().to_owned();
    assert_eq!(app.ended(1, &id, PATIENCE).await["state"], "succeeded");
    app.restart_front_door(0).await;
    invariants::hold(&app, &[id]).await;
}
