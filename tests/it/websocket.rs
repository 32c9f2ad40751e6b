//! `GET /api/v1/ws`: many runs on one socket, told as they happen, in both modes.

mod client;
mod ending;
mod idle;
mod limits;
mod opening;
mod others;
mod refusals;

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use self::client::Socket;
use crate::support::{
    app::{App, Mode, Shape},
    provider::{Answer as Script, Gate},
};

crate::support::in_both_modes!(
    a_run_is_told_as_it_happens,
    many_runs_share_a_socket,
    a_failed_run_is_told_like_any_other,
    a_run_is_cancelled_by_either_name,
    a_run_is_cancelled_before_it_has_started,
    a_run_is_resumed_where_its_socket_broke,
    a_finished_run_is_told_again,
);

const SOON: Duration = Duration::from_secs(20);

/// A product with two front doors, where the mode has more than one.
async fn started(mode: Mode, config: &str) -> App {
    let config = format!("{config}\n[retry]\nbase_ms = 1\ncap_ms = 1\n");
    let app = App::shaped(Shape { front_doors: 2, config, ..Shape::of(mode) }).await;
    app.import_greeting();
    app
}

/// The last front door: another one than the first, where there is more than one.
fn other_door(app: &App) -> usize {
    app.urls().len() - 1
}

fn create(id: &str, name: &str) -> Value {
    json!({ "type": "run.create", "id": id, "promptName": "Greeting", "variables": { "name": name } })
}

fn create_that_continues(id: &str) -> Value {
    let mut message = create(id, "Ada");
    message["onDisconnect"] = json!("continue");
    message
}

/// What a run says up to its end.
fn text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["delta"].as_str()).collect()
}

/// The numbers of events, and that they grow by one.
#[track_caller]
fn assert_in_order(events: &[Value], from: u64) {
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (from..from + events.len() as u64).collect::<Vec<_>>(), "{events:?}");
}

async fn a_run_is_told_as_it_happens(mode: Mode) {
    let app = started(mode, "").await;
    let gate = Gate::new();
    app.provider().push(Script::text("Bonjour chère Ada").held_after(1, &gate));
    let mut socket = Socket::open(&app, 0).await;
    socket.say(&create("a", "Ada")).await;
    let mut events = socket.until("run.output_text.delta").await;
    assert_eq!(text(&events), "Bonjour ", "the beginning is told while the rest is not there yet");
    gate.open();
    events.extend(socket.until("run.completed").await);
    assert_in_order(&events, 1);
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("run.queued"), &json!("run.started")));
    assert_eq!((&events[0]["promptVersion"], &events[1]["attempt"]), (&json!(1), &json!(1)));
    let run = events[0]["runId"].as_str().unwrap();
    assert!(events.iter().all(|event| event["id"] == "a" && event["runId"] == run), "{events:?}");
    assert_eq!(text(&events), "Bonjour chère Ada");
    let end = events.last().unwrap();
    assert_eq!((&end["output"], &end["model"]), (&json!("Bonjour chère Ada"), &json!("gpt-4")));
    assert_eq!(end["usage"], json!({ "inputTokens": 10, "outputTokens": 5, "costUsd": 0.000_075 }));
    let status = app.ended(other_door(&app), run, SOON).await;
    assert_eq!((&status["state"], &status["output"]), (&json!("succeeded"), &end["output"]));
    // The name is free again.
    socket.say(&create("a", "Bob")).await;
    assert_eq!(text(&socket.until("run.completed").await), "Greet Bob.");
}

async fn many_runs_share_a_socket(mode: Mode) {
    let app = started(mode, "").await;
    let gate = Gate::new();
    app.provider().set_default(Script::echo().held_after(1, &gate));
    let mut socket = Socket::open(&app, 0).await;
    for number in 0..20 {
        socket.say(&create(&format!("r{number}"), &format!("n{number}"))).await;
    }
    let mut told: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut ended = 0;
    while ended < 20 {
        let event = socket.hear().await;
        ended += usize::from(event["type"] == "run.completed");
        told.entry(event["id"].as_str().unwrap().to_owned()).or_default().push(event);
        if told.len() == 20 && told.values().all(|events| events.len() >= 3) {
            // All of them have begun, and none could end.
            gate.open();
        }
    }
    for (id, events) in &told {
        assert_in_order(events, 1);
        assert_eq!(text(events), format!("Greet n{}.", &id[1..]));
    }
}

async fn a_failed_run_is_told_like_any_other(mode: Mode) {
    let app = started(mode, "").await;
    app.provider().set_default(Script::error(400, "no"));
    let mut socket = Socket::open(&app, 0).await;
    socket.say(&create("a", "Ada")).await;
    let end = socket.until("run.failed").await.pop().unwrap();
    assert_eq!((&end["id"], &end["code"], &end["success"]), (&json!("a"), &json!("provider_rejected"), &json!(false)));
    let mut late = create("b", "Ada");
    late["timeoutMs"] = json!(300);
    app.provider().set_default(Script::hang());
    socket.say(&late).await;
    let end = socket.until("run.failed").await.pop().unwrap();
    assert_eq!((&end["id"], &end["code"], &end["retryable"]), (&json!("b"), &json!("deadline_exceeded"), &json!(true)));
}

async fn a_run_is_cancelled_by_either_name(mode: Mode) {
    let app = started(mode, "").await;
    app.provider().set_default(Script::hang());
    let (mut socket, mut other) = (Socket::open(&app, 0).await, Socket::open(&app, other_door(&app)).await);
    let mut runs = Vec::new();
    for id in ["a", "b", "c"] {
        socket.say(&create(id, id)).await;
        runs.push(socket.until("run.started").await[0]["runId"].as_str().unwrap().to_owned());
    }
    app.provider().wait_for_requests(3).await;
    socket.say(&json!({ "type": "run.cancel", "id": "a" })).await;
    let end = socket.hear().await;
    assert_eq!(
        (&end["type"], &end["id"], &end["code"]),
        (&json!("run.cancelled"), &json!("a"), &json!("run_cancelled"))
    );
    socket.say(&json!({ "type": "run.cancel", "runId": runs[1] })).await;
    let end = socket.hear().await;
    assert_eq!((&end["type"], &end["id"]), (&json!("run.cancelled"), &json!("b")));
    // From a socket that does not follow it.
    other.say(&json!({ "type": "run.cancel", "runId": runs[2], "id": "x" })).await;
    let answer = other.hear().await;
    assert_eq!((&answer["type"], &answer["id"]), (&json!("run.cancel.accepted"), &json!("x")), "{answer}");
    assert_eq!((&answer["runId"], answer["cancelled"].is_boolean()), (&json!(runs[2]), true));
    let end = socket.hear().await;
    assert_eq!((&end["type"], &end["id"]), (&json!("run.cancelled"), &json!("c")));
    app.provider().wait_until("the calls to be broken off", |all| all.iter().all(|request| request.hung_up())).await;
    for run in &runs {
        assert_eq!(app.ended(0, run, SOON).await["state"], "cancelled");
    }
    // Cancelling twice is the same as once.
    other.say(&json!({ "type": "run.cancel", "runId": runs[2] })).await;
    let answer = other.hear().await;
    assert_eq!((&answer["type"], &answer["cancelled"]), (&json!("run.cancel.accepted"), &json!(true)), "{answer}");
    assert_eq!(answer.get("id"), None);
}

async fn a_run_is_cancelled_before_it_has_started(mode: Mode) {
    let app = started(mode, "").await;
    app.provider().set_default(Script::hang());
    let mut socket = Socket::open(&app, 0).await;
    // Both are on their way at once, so that the second is read while the first is being carried out.
    socket.say(&create_that_continues("a")).await;
    socket.say(&json!({ "type": "run.cancel", "id": "a" })).await;
    let events = socket.until("run.cancelled").await;
    assert!(events.iter().all(|event| event["type"] != "error"), "{events:?}");
    let run = events[0]["runId"].as_str().unwrap();
    assert_eq!(app.ended(0, run, SOON).await["state"], "cancelled");
}

async fn a_run_is_resumed_where_its_socket_broke(mode: Mode) {
    let app = started(mode, "").await;
    let gate = Gate::new();
    app.provider().push(Script::text("one two three").held_after(2, &gate));
    let mut socket = Socket::open(&app, 0).await;
    socket.say(&create_that_continues("a")).await;
    let mut before = Vec::new();
    while text(&before) != "one two " {
        before.push(socket.hear().await);
    }
    let run = before[0]["runId"].clone();
    socket.break_off().await;
    let mut socket = Socket::open(&app, other_door(&app)).await;
    let after = before.last().unwrap()["seq"].clone();
    socket.say(&json!({ "type": "run.resume", "runId": run, "after": after })).await;
    // Nobody else tells of it under this name, twice is once too often.
    socket.say(&json!({ "type": "run.resume", "runId": run })).await;
    let answer = socket.hear().await;
    assert_eq!((&answer["code"], &answer["status"]), (&json!("already_followed"), &json!(409)), "{answer}");
    assert_eq!(answer["runId"], run);
    gate.open();
    let rest = socket.until("run.completed").await;
    assert_in_order(&rest, after.as_u64().unwrap() + 1);
    assert_eq!(text(&rest), "three");
    assert!(rest.iter().all(|event| event.get("id").is_none() && event["runId"] == run), "{rest:?}");
    assert_eq!(rest.last().unwrap()["output"], "one two three");
}

async fn a_finished_run_is_told_again(mode: Mode) {
    let app = started(mode, "").await;
    let mut socket = Socket::open(&app, 0).await;
    socket.say(&create("a", "Ada")).await;
    let first = socket.until("run.completed").await;
    let mut socket = Socket::open(&app, other_door(&app)).await;
    socket.say(&json!({ "type": "run.resume", "id": "again", "runId": first[0]["runId"] })).await;
    let again = socket.until("run.completed").await;
    let unnamed = |events: &[Value]| {
        let mut events = events.to_vec();
        events.iter_mut().for_each(|event| drop(event.as_object_mut().unwrap().remove("id")));
        events
    };
    assert_eq!(unnamed(&first), unnamed(&again));
    assert!(again.iter().all(|event| event["id"] == "again"));
}
