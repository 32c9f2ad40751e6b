//! How sockets end, and what becomes of their runs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{SOON, client::Socket, create, create_that_continues, other_door, started, text};
use crate::support::{
    app::{App, Mode},
    eventually,
    provider::{Answer as Script, Gate},
};

crate::support::in_both_modes!(
    hanging_up_cancels_what_does_not_continue,
    a_revoked_key_closes_its_sockets,
    an_expired_key_closes_its_sockets,
    a_drain_says_so_first,
);

/// Starts a run on a socket, and answers with its id once a provider is called for it.
async fn running(app: &App, socket: &mut Socket, message: &Value) -> String {
    let before = app.provider().requests().len();
    socket.say(message).await;
    let run = loop {
        // Other runs of the socket go on meanwhile.
        let event = socket.hear().await;
        if event["id"] == message["id"] {
            break event["runId"].as_str().unwrap().to_owned();
        }
    };
    app.provider().wait_for_requests(before + 1).await;
    run
}

async fn hanging_up_cancels_what_does_not_continue(mode: Mode) {
    let app = started(mode, "").await;
    let gate = Gate::new();
    app.provider().set_default(Script::echo().held(&gate));
    let mut ended = Vec::new();
    for is_polite in [true, false] {
        let mut socket = Socket::open(&app, 0).await;
        let cancelled = running(&app, &mut socket, &create("a", "Ada")).await;
        let continued = running(&app, &mut socket, &create_that_continues("b")).await;
        // Following another socket's run is not being its caller.
        let mut follower = Socket::open(&app, other_door(&app)).await;
        follower.say(&json!({ "type": "run.resume", "runId": continued })).await;
        follower.hear().await;
        follower.close().await;
        if is_polite {
            socket.close().await
        } else {
            socket.break_off().await
        }
        ended.push((cancelled, continued));
    }
    for (cancelled, _) in &ended {
        assert_eq!(app.ended(0, cancelled, SOON).await["state"], "cancelled");
    }
    gate.open();
    for (_, continued) in &ended {
        assert_eq!(app.ended(0, continued, SOON).await["state"], "succeeded");
    }
}

async fn a_revoked_key_closes_its_sockets(mode: Mode) {
    let app = started(mode, "").await;
    app.provider().set_default(Script::hang());
    let key = app.new_key("acme");
    let mut revoked = [Socket::open_as(&app, 0, &key).await, Socket::open_as(&app, other_door(&app), &key).await];
    let mut other = Socket::open(&app, 0).await;
    let run = running(&app, &mut revoked[0], &create("a", "Ada")).await;
    let keys = app.cli(&["key", "list", "--account", "acme", "--json"]).json();
    let mask = format!("sk_***{}", &key[key.len() - 6..]);
    let keys = keys.as_array().or(keys["keys"].as_array()).unwrap().clone();
    let id = keys.iter().find(|record| record["mask"] == mask.as_str()).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(app.cli(&["key", "revoke", &id]).code, 0);
    let since = tokio::time::Instant::now();
    for socket in &mut revoked {
        assert_eq!(socket.closed_with().await, 1008);
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(app.ended(0, &run, SOON).await["state"], "cancelled");
    app.provider().set_default(Script::echo());
    other.say(&create("b", "Bob")).await;
    assert_eq!(text(&other.until("run.completed").await), "Greet Bob.");
}

async fn an_expired_key_closes_its_sockets(mode: Mode) {
    let app = started(mode, "").await;
    let expires = (chrono::Utc::now() + chrono::Duration::seconds(4)).to_rfc3339();
    let created = app.cli(&["key", "create", "short", "--account", "acme", "--expires", &expires, "--json"]).json();
    let mut socket = Socket::open_as(&app, 0, created["key"].as_str().unwrap()).await;
    assert_eq!(socket.closed_with().await, 1008);
}

/// The runs of a front door that drains go on. Where there is another one, they are resumed there.
async fn a_drain_says_so_first(mode: Mode) {
    let mut app = started(mode, "[server]\ndrain_timeout_ms = 20000\n").await;
    let gate = Gate::new();
    app.provider().set_default(Script::text("one two three").held_after(2, &gate));
    let mut idle = Socket::open(&app, 0).await;
    let mut socket = Socket::open(&app, 0).await;
    let mut told = Vec::new();
    socket.say(&create("a", "Ada")).await;
    while text(&told) != "one two " {
        told.push(socket.hear().await);
    }
    let run = told[0]["runId"].as_str().unwrap().to_owned();
    let continued = running(&app, &mut socket, &create_that_continues("b")).await;
    app.front_doors[0].signal("TERM");
    // Both at once: each of them waits for its peer's goodbye.
    let (first, second) = tokio::join!(idle.closed_with(), socket.closed_with());
    assert_eq!((first, second), (1001, 1001));
    if mode == Mode::Embedded {
        gate.open();
        assert!(app.front_doors[0].exited(SOON).success());
        app.restart_front_door(0).await;
        for run in [&run, &continued] {
            assert_eq!(app.ended(0, run, SOON).await["output"], "one two three", "it had the time to end");
        }
        return;
    }
    // Nothing is left to wait for, and nothing was cut off.
    assert!(app.front_doors[0].exited(Duration::from_secs(10)).success());
    let mut socket = Socket::open(&app, 1).await;
    let after = told.last().unwrap()["seq"].clone();
    socket.say(&json!({ "type": "run.resume", "id": "a", "runId": run, "after": after })).await;
    eventually("the run is running", async || app.run(1, &run).await.body["state"] == "running").await;
    gate.open();
    let rest = socket.until("run.completed").await;
    assert_eq!(text(&rest), "three", "{rest:?}");
    assert_eq!(app.ended(1, &continued, SOON).await["state"], "succeeded");
}
