//! What one client may take, and what a slow one costs the others.

use std::{collections::BTreeMap, fs, sync::Mutex, time::Duration};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{
    SOON,
    client::{Socket, refused},
    create, started, text,
};
use crate::{
    contract::assert_refused,
    support::{
        app::Mode,
        eventually,
        provider::{Answer as Script, Gate},
    },
};

crate::support::in_both_modes!(
    a_key_has_so_many_sockets,
    a_socket_follows_so_many_runs,
    a_message_that_is_too_large_closes_the_socket,
    what_is_no_websocket_closes_the_socket,
    a_slow_reader_costs_nobody_anything,
    a_reader_that_takes_nothing_is_let_go,
    a_peer_that_does_not_answer_is_let_go,
    a_flood_of_messages_is_taken_no_faster_than_it_is_answered,
);

async fn a_key_has_so_many_sockets(mode: Mode) {
    let app = started(mode, "[websocket]\nmax_sockets_per_key = 2\nmax_sockets = 3\n").await;
    let (key, other) = (app.key(), app.new_key("acme"));
    let first = Socket::open(&app, 0).await;
    let _second = Socket::open(&app, 0).await;
    assert_refused(&refused(&app, &[("x-api-key", Some(&key))]).await, 429, "too_many_sockets");
    let _third = Socket::open_as(&app, 0, &other).await;
    assert_refused(&refused(&app, &[("x-api-key", Some(&other))]).await, 503, "too_many_sockets");
    first.close().await;
    let opened = Mutex::new(None);
    eventually("the place is free again", async || {
        let socket = Socket::try_open(&app, 0, &[("x-api-key", &other)]).await.ok();
        let is_open = socket.is_some();
        *opened.lock().unwrap() = socket;
        is_open
    })
    .await;
    let (mut socket, _) = opened.into_inner().unwrap().unwrap();
    socket.say(&create("a", "Ada")).await;
    socket.until("run.completed").await;
}

async fn a_socket_follows_so_many_runs(mode: Mode) {
    let app = started(mode, "[websocket]\nmax_runs = 2\n").await;
    app.provider().set_default(Script::hang());
    let mut socket = Socket::open(&app, 0).await;
    for id in ["a", "b"] {
        socket.say(&create(id, id)).await;
        socket.until("run.started").await;
    }
    socket.say(&create("c", "c")).await;
    let answer = socket.hear().await;
    assert_eq!((&answer["code"], &answer["status"]), (&json!("too_many_runs"), &json!(429)), "{answer}");
    assert_eq!((&answer["id"], &answer["details"]), (&json!("c"), &json!({ "maxRuns": 2 })));
    socket.say(&json!({ "type": "run.cancel", "id": "a" })).await;
    socket.until("run.cancelled").await;
    app.provider().set_default(Script::echo());
    socket.say(&create("c", "c")).await;
    socket.until("run.completed").await;
}

async fn a_message_that_is_too_large_closes_the_socket(mode: Mode) {
    let app = started(mode, "[websocket]\nmax_message_bytes = 1000\n").await;
    let mut socket = Socket::open(&app, 0).await;
    socket.send(Message::text("x".repeat(1000))).await;
    assert_eq!(socket.hear().await["code"], "invalid_json");
    // Much more than the buffers between the two hold: it is read on for a while, so that the reason arrives.
    socket.send(Message::text("x".repeat(3 << 20))).await;
    assert_eq!(socket.closed_with().await, 1009);
}

async fn what_is_no_websocket_closes_the_socket(mode: Mode) {
    let app = started(mode, "").await;
    let mut socket = Socket::open(&app, 0).await;
    socket.send_raw(b"\xff\xff\xff\xff nonsense, and more of it").await;
    assert_eq!(socket.closed_with().await, 1002);
    let mut socket = Socket::open(&app, 0).await;
    // A text of one byte that is not UTF-8, masked with zeros.
    socket.send_raw(b"\x81\x81\0\0\0\0\xff").await;
    assert_eq!(socket.closed_with().await, 1007);
}

/// Bytes of memory that a process has.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

async fn a_slow_reader_costs_nobody_anything(mode: Mode) {
    let app = started(mode, "[websocket]\nmax_runs = 40\n").await;
    const RUNS: usize = 20;
    const WORDS: usize = 2_000;
    let word = "x".repeat(999) + " ";
    let gate = Gate::new();
    app.provider().set_default(Script::text(&word.repeat(WORDS)).held_after(WORDS - 1, &gate));
    let before = memory(app.front_doors[0].id());
    let mut socket = Socket::open(&app, 0).await;
    // 40 MB, of which nothing is read.
    for number in 0..RUNS {
        let mut message = create(&format!("r{number}"), "Ada");
        message["timeoutMs"] = json!(300_000);
        socket.say(&message).await;
    }
    eventually("the executors have taken what there is, up to the last word", async || gate.holds() == RUNS).await;
    // Others are served as always.
    app.provider().push(Script::echo());
    let since = tokio::time::Instant::now();
    let answer = app.post(&json!({ "promptName": "Greeting", "variables": { "name": "Bob" } })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(since.elapsed() < SOON);
    let grown = memory(app.front_doors[0].id()).saturating_sub(before);
    // Embedded, the process has what Redis and the workers have otherwise.
    assert!(mode == Mode::Embedded || grown < 20 << 20, "{grown} bytes");
    gate.open();
    let mut told = BTreeMap::<String, String>::new();
    let mut ended = 0;
    while ended < RUNS {
        let event = socket.hear().await;
        let id = event["id"].as_str().unwrap().to_owned();
        if event["type"] == "run.completed" {
            ended += 1;
            assert_eq!(event["output"].as_str().unwrap().len(), word.len() * WORDS);
        } else if event["type"] == "run.output_text.delta" {
            told.entry(id).or_default().push_str(&text(&[event]));
        } else {
            assert_ne!(event["type"], "error", "{event}");
        }
    }
    let told: Vec<_> = told.values().map(String::len).collect();
    assert!(told.len() == RUNS && told.iter().all(|length| *length > 0), "{told:?}");
}

async fn a_reader_that_takes_nothing_is_let_go(mode: Mode) {
    let app = started(mode, "[websocket]\nping_ms = 1000\n").await;
    let long = "x".repeat(999) + " ";
    // More than the system's buffers take, and then nothing, so that the run could go on for ever.
    app.provider().push(Script::text(&long.repeat(16_000)).then_after(15_999, crate::support::provider::Act::Hang));
    let mut socket = Socket::open(&app, 0).await;
    let mut message = create("a", "Ada");
    message["timeoutMs"] = json!(60_000);
    socket.say(&message).await;
    app.provider().wait_for_requests(1).await;
    app.provider().wait_until("its run to lose its caller", |all| all[0].hung_up()).await;
    drop(socket);
}

async fn a_peer_that_does_not_answer_is_let_go(mode: Mode) {
    let app = started(mode, "[websocket]\nping_ms = 300\n").await;
    app.provider().set_default(Script::hang());
    // One answers pings, because it reads.
    let mut alive = Socket::open(&app, 0).await;
    alive.say(&create("b", "Bob")).await;
    alive.until("run.started").await;
    let mut silent = Socket::open(&app, 0).await;
    silent.say(&create("a", "Ada")).await;
    app.provider().wait_for_requests(2).await;
    let reading = async {
        loop {
            alive.pings_answered(Duration::from_millis(50)).await;
        }
    };
    let let_go = app.provider().wait_until("the silent one's run to lose its caller", |all| {
        all.iter().any(|request| request.user_text() == "Greet Ada." && request.hung_up())
    });
    tokio::select! {
        () = reading => {}
        () = let_go => {}
    }
    assert_eq!(silent.closed_with().await, 1011);
    assert!(!app.provider().requests().iter().any(|call| call.user_text() == "Greet Bob." && call.hung_up()));
}

async fn a_flood_of_messages_is_taken_no_faster_than_it_is_answered(mode: Mode) {
    let app = started(mode, "").await;
    let mut socket = Socket::open(&app, 0).await;
    let before = memory(app.front_doors[0].id());
    // No answer is read, so that sooner or later nothing more is taken.
    let message = format!("{{}}{}", " ".repeat(500));
    let blocked = async {
        while tokio::time::timeout(Duration::from_secs(2), socket.send(Message::text(&message))).await.is_ok() {}
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), blocked).await.is_ok(), "it is taken without end");
    let grown = memory(app.front_doors[0].id()).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes");
    assert_eq!(app.post(&json!({ "promptName": "Greeting", "variables": { "name": "Bob" } })).await.status, 200);
}
