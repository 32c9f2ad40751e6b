//! Processes and stores that go away while text is on its way.

use std::time::Duration;

use serde_json::json;

use super::{app, app_with, ending::begun, greeting, other};
use crate::support::{
    app::{App, Mode},
    events::{check_whole, names, text},
    eventually, invariants,
    provider::{Answer, Gate},
};

const PATIENCE: Duration = Duration::from_secs(60);
const DRAIN: &str = "[server]\ndrain_timeout_ms = 1500\n";

/// A run that was streamed and lost ends as failed, with one call.
async fn was_lost(app: &App, run: &str) {
    let shown = app.ended(other(app), run, PATIENCE).await;
    assert_eq!((&shown["state"], &shown["code"]), (&json!("failed"), &json!("worker_lost")), "{shown}");
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!((attempts.len(), &attempts[0]["outcome"]), (1, &json!("worker_lost")), "{shown}");
    assert_eq!(app.provider().requests().len(), 1);
}

/// The worker goes, told to or not, and another one comes.
fn replace_worker(app: &mut App, graceful: bool) {
    if graceful {
        app.workers[0].signal("TERM");
        assert!(app.workers[0].exited(PATIENCE).success());
    } else {
        app.workers[0].kill();
    }
    app.restart_worker(0);
}

async fn a_worker_that_goes_is_told(graceful: bool) {
    let mut app = app_with(Mode::Distributed, DRAIN, "").await;
    let (mut stream, mut events) = begun(&app, &greeting(), &Gate::new()).await;
    let run = stream.run();
    replace_worker(&mut app, graceful);
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    let last = &events[events.len() - 2];
    assert_eq!((last.name.as_str(), &last.data["code"]), ("run.failed", &json!("worker_lost")), "{last:?}");
    assert_eq!(last.data["retryable"], true);
    was_lost(&app, &run).await;
    invariants::hold(&app, &[run]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_worker_dies_has_failed() {
    a_worker_that_goes_is_told(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_worker_shuts_down_has_failed() {
    a_worker_that_goes_is_told(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_may_ask_for_its_stream_to_be_repeated() {
    let mut app = app_with(Mode::Distributed, DRAIN, "").await;
    app.import_prompt(
        "name = \"Again\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\nrepeat_streamed = true\n",
    );
    for graceful in [false, true] {
        let mut body = greeting();
        body["promptName"] = "Again".into();
        let (mut stream, mut events) = begun(&app, &body, &Gate::new()).await;
        let run = stream.run();
        app.provider().push(Answer::pieces(["three ", "four"]));
        replace_worker(&mut app, graceful);
        events.extend(stream.rest().await);
        check_whole(&events, &run, 0);
        assert!(names(&events).contains(&"run.retrying"), "{events:#?}");
        assert_eq!(text(&events), "three four");
        let shown = app.ended(other(&app), &run, PATIENCE).await;
        assert_eq!(shown["state"], "succeeded", "{shown}");
        assert_eq!(shown["attempts"].as_array().unwrap().len(), 2, "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_forgets_a_stream_ends_it_once() {
    let app = app(Mode::Distributed).await;
    let gate = Gate::new();
    let mut body = greeting();
    body["onDisconnect"] = "continue".into();
    app.provider().set_default(Answer::pieces(["one ", "two"]));
    let (mut stream, mut events) = begun(&app, &body, &gate).await;
    let run = stream.run();
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    events.extend(stream.rest().await);
    // Whether the call is known as lost before the run is restored is a race; either way its caller is told one story.
    check_whole(&events, &run, 0);
    let shown = app.ended(other(&app), &run, PATIENCE).await;
    let last = &events[events.len() - 2];
    match shown["state"].as_str().unwrap() {
        "succeeded" => assert_eq!((last.name.as_str(), &last.data["output"]), ("run.completed", &shown["output"])),
        "failed" => assert_eq!((last.name.as_str(), &last.data["code"]), ("run.failed", &json!("worker_lost"))),
        state => panic!("{state}: {shown}"),
    }
    gate.open();
    invariants::hold(&app, &[run]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_front_door_that_drains_goes_on_elsewhere() {
    let mut app = app_with(Mode::Distributed, DRAIN, "").await;
    let gate = Gate::new();
    let (mut stream, mut events) = begun(&app, &greeting(), &gate).await;
    let run = stream.run();
    app.front_doors[0].signal("TERM");
    // It ends cleanly, and says of no end.
    let rest = stream.rest().await;
    assert_eq!(rest, [], "nothing more was said");
    assert!(app.front_doors[0].exited(PATIENCE).success());
    assert_eq!(app.run(1, &run).await.body["state"], "running");
    let mut resumed = app.follow(1, &run, events.last().unwrap().seq).await;
    gate.open();
    events.extend(resumed.rest().await);
    check_whole(&events, &run, 0);
    assert_eq!(text(&events), "one two");
    app.restart_front_door(0).await;
    invariants::hold(&app, &[run]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_reader_of_a_front_door_that_drains_has_not_hung_up() {
    let mut app = app_with(Mode::Distributed, DRAIN, "max_response_bytes = 67108864").await;
    let gate = Gate::new();
    let piece = "a".repeat(64 * 1024);
    let pieces = std::iter::repeat_n(piece.as_str(), 200).chain(["end"]);
    app.provider().push(Answer::pieces(pieces).piece_delay(Duration::from_millis(2)).held_after(200, &gate));
    let stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let key = format!("{{q:default}}:events:{run}");
    eventually("more was said than the way to the reader holds", async || {
        let length = app.redis.as_ref().unwrap().cli(&["LLEN", &key]);
        length.trim().parse::<u64>().unwrap() > 2
            && app.redis.as_ref().unwrap().cli(&["LINDEX", &key, "-1"]).trim() == "x"
    })
    .await;
    app.front_doors[0].signal("TERM");
    assert!(app.front_doors[0].exited(PATIENCE).success());
    drop(stream);
    gate.open();
    let shown = app.ended(1, &run, PATIENCE).await;
    assert_eq!(shown["state"], "succeeded");
    app.restart_front_door(0).await;
    invariants::hold(&app, &[run]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_that_shuts_down_leaves_an_ending() {
    let mut app = app_with(Mode::Embedded, DRAIN, "").await;
    let (mut stream, events) = begun(&app, &greeting(), &Gate::new()).await;
    let run = stream.run();
    app.front_doors[0].signal("TERM");
    assert_eq!(stream.rest().await, []);
    assert!(app.front_doors[0].exited(PATIENCE).success());
    app.restart_front_door(0).await;
    let read = events.last().unwrap().seq;
    let told = app.follow(0, &run, read).await.rest().await;
    check_whole(&told, &run, read);
    assert_eq!((told[0].name.as_str(), &told[0].data["code"]), ("run.failed", &json!("worker_lost")));
    was_lost(&app, &run).await;
    invariants::hold(&app, &[run]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_that_dies_calls_again() {
    let mut app = app_with(Mode::Embedded, "", "").await;
    let mut body = greeting();
    body["onDisconnect"] = "continue".into();
    let (stream, _) = begun(&app, &body, &Gate::new()).await;
    let run = stream.run();
    app.front_doors[0].kill();
    drop(stream);
    app.restart_front_door(0).await;
    let told = app.follow(0, &run, 0).await.rest().await;
    check_whole(&told, &run, 0);
    assert_eq!(told[told.len() - 2].name, "run.completed");
    assert_eq!(app.ended(0, &run, PATIENCE).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_began_anew_is_told_from_its_beginning() {
    let app = app(Mode::Distributed).await;
    let gate = Gate::new();
    let (mut stream, events) = begun(&app, &greeting(), &gate).await;
    let run = stream.run();
    // As after a loss of memory: the run was restored, and its new log is longer by now than what was read of the old one.
    let redis = app.redis.as_ref().unwrap();
    let key = format!("{{q:default}}:events:{run}");
    redis.cli(&["DEL", &key]);
    redis.cli(&["RPUSH", &key, "q1763920000000000", "s2", "da", "db", "dc"]);
    gate.open();
    let rest = stream.rest().await;
    let expect = ["run.retrying", "run.queued", "run.started", "run.output_text.delta", "run.output_text.delta"];
    // That log was made up: at the end the reader is told what the model really said.
    let last = ["run.output_text.delta", "run.retrying", "run.output_text.delta", "run.completed", "[DONE]"];
    assert_eq!(names(&rest), [&expect[..], &last].concat());
    assert_eq!(text(&rest[..6]), "abc");
    assert_eq!(rest[rest.len() - 2].data["output"], text(&rest[6..]));
    let first = events.last().unwrap().seq + 1;
    let (_, told) = rest.split_last().unwrap();
    assert!(told.iter().zip(first..).all(|(told, seq)| told.seq == seq && told.data["seq"] == seq), "{rest:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone_is_noticed_while_it_is_followed() {
    let app = app(Mode::Distributed).await;
    let gate = Gate::new();
    let (mut stream, _) = begun(&app, &greeting(), &gate).await;
    let run = stream.run();
    assert_eq!(app.redis.as_ref().unwrap().cli(&["DEL", &format!("{{q:default}}:events:{run}")]).trim(), "1");
    gate.open();
    let rest = stream.rest().await;
    assert_eq!(rest[0].name, "run.retrying", "{rest:#?}");
    let last = &rest[rest.len() - 2];
    assert_eq!((last.name.as_str(), &last.data["output"]), ("run.completed", &json!("one two")));
    assert!(rest.iter().take(rest.len() - 1).zip(rest[0].seq..).all(|(told, seq)| told.seq == seq), "{rest:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_whole_when_redis_was_away() {
    let mut app = app(Mode::Distributed).await;
    let gate = Gate::new();
    app.redis.as_ref().unwrap().keep_everything().await;
    let (mut stream, mut events) = begun(&app, &greeting(), &gate).await;
    let run = stream.run();
    app.redis.as_mut().unwrap().restart_from_disk().await;
    eventually("Redis is back", async || app.run(1, &run).await.body["state"] == "running").await;
    gate.open();
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    assert_eq!(app.ended(1, &run, PATIENCE).await["state"], "succeeded");
    invariants::hold(&app, &[run]).await;
}

/// Nothing is lost with a message: the log and the ledger have it.
#[tokio::test(flavor = "multi_thread")]
async fn a_front_door_that_hears_nothing_tells_its_callers_all_the_same() {
    let app = app(Mode::Distributed).await;
    let redis = app.redis.as_ref().unwrap();
    let listening = || redis.cli(&["PUBSUB", "CHANNELS", "{q:default}:reply:*"]).split_whitespace().count();
    let gate = Gate::new();
    let (mut stream, mut events) = begun(&app, &greeting(), &gate).await;
    let run = stream.run();
    // The worker too: it has called the provider.
    let all = listening();
    assert_eq!(all, 3);
    // Nobody can subscribe again.
    redis.cli(&["ACL", "SETUSER", "default", "-subscribe"]);
    assert_ne!(redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).trim(), "0");
    gate.open();
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    assert_eq!(text(&events), "one two");
    let answer = app.post(&greeting()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(listening(), 0);
    redis.cli(&["ACL", "SETUSER", "default", "+subscribe"]);
    eventually("they subscribe", async || listening() == all).await;
    invariants::hold(&app, &[run]).await;
}
