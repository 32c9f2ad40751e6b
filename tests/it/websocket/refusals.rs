//! Messages that cannot be honoured: each is answered, and the socket stays open.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{client::Socket, create, started};
use crate::support::{app::Mode, provider::Answer as Script};

crate::support::in_both_modes!(every_refusal_is_answered_and_the_socket_stays, limits_of_a_key_are_told_with_a_time);

#[track_caller]
fn assert_error(answer: &Value, id: Option<&str>, status: u16, code: &str) {
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
    assert_eq!((answer["id"].as_str(), &answer["status"]), (id, &json!(status)), "{answer}");
    assert!(!answer["error"].as_str().unwrap().is_empty(), "{answer}");
    assert!(!answer["requestId"].as_str().unwrap().is_empty(), "{answer}");
    assert!(answer["retryable"].is_boolean(), "{answer}");
}

async fn every_refusal_is_answered_and_the_socket_stays(mode: Mode) {
    let app = started(mode, "").await;
    let mut socket = Socket::open(&app, 0).await;
    let absent = "01a2091c-cfe8-75ce-96d7-252e74adc8aa";
    let stranger = app.account("stranger", &["--plan", "pro"]);
    let theirs = {
        app.import_prompt_of("stranger", "name = \"P\"\nmodel = \"gpt-4\"\ntemplate = \"Hi.\"\n");
        app.post_as(&stranger, &json!({ "promptName": "P" })).await.body["runId"].as_str().unwrap().to_owned()
    };
    for (message, id, status, code) in [
        (json!({ "type": "run.start", "id": "a" }), Some("a"), 400, "unknown_type"),
        (json!({ "id": "a" }), Some("a"), 400, "unknown_type"),
        (json!([]), None, 400, "invalid_request"),
        (json!({ "type": "run.create", "promptName": "Greeting" }), None, 400, "missing_id"),
        (json!({ "type": "run.create", "id": 7, "promptName": "Greeting" }), None, 400, "invalid_id"),
        (json!({ "type": "run.create", "id": "a" }), Some("a"), 400, "invalid_request"),
        (
            json!({ "type": "run.create", "id": "a", "promptName": "Greeting", "x": 1 }),
            Some("a"),
            400,
            "invalid_request",
        ),
        (json!({ "type": "run.create", "id": "a", "promptName": "Greeting" }), Some("a"), 400, "missing_variables"),
        (json!({ "type": "run.create", "id": "a", "promptName": "Absent" }), Some("a"), 404, "prompt_not_found"),
        (json!({ "type": "run.cancel" }), None, 400, "missing_id"),
        (json!({ "type": "run.cancel", "id": "b" }), Some("b"), 404, "run_not_found"),
        (json!({ "type": "run.cancel", "runId": absent }), None, 404, "run_not_found"),
        (json!({ "type": "run.cancel", "runId": theirs, "id": "b" }), Some("b"), 404, "run_not_found"),
        (json!({ "type": "run.resume", "id": "b" }), Some("b"), 400, "invalid_request"),
        (json!({ "type": "run.resume", "runId": "x", "id": "b" }), Some("b"), 404, "run_not_found"),
        (json!({ "type": "run.resume", "runId": absent, "id": "b" }), Some("b"), 404, "run_not_found"),
        (json!({ "type": "run.resume", "runId": theirs, "id": "b" }), Some("b"), 404, "run_not_found"),
        (json!({ "type": "run.resume", "runId": absent, "after": -1 }), None, 400, "invalid_request"),
    ] {
        socket.say(&message).await;
        assert_error(&socket.hear().await, id, status, code);
    }
    for text in ["", "nonsense", "{\"type\":", "{\"id\":\"a\",\"id\":\"b\"}"] {
        socket.send(Message::text(text)).await;
        assert_error(&socket.hear().await, None, 400, "invalid_json");
    }
    socket.send(Message::binary(create("a", "Ada").to_string().into_bytes())).await;
    assert_error(&socket.hear().await, None, 400, "invalid_request");
    // The details of a request are those of HTTP.
    socket.say(&json!({ "type": "run.create", "id": "a", "promptName": "Greeting" })).await;
    assert_eq!(socket.hear().await["details"], json!({ "missing": ["name"] }));

    app.provider().push(Script::hang());
    socket.say(&create("a", "Ada")).await;
    socket.until("run.started").await;
    // A run that is cancelled before its call leaves the script to the next one.
    app.provider().wait_for_requests(2).await;
    socket.say(&create("a", "Bob")).await;
    assert_error(&socket.hear().await, Some("a"), 409, "duplicate_id");
    socket.say(&json!({ "type": "run.cancel", "id": "a" })).await;
    let run = socket.until("run.cancelled").await[0]["runId"].clone();
    socket.say(&json!({ "type": "run.cancel", "id": "a" })).await;
    assert_error(&socket.hear().await, Some("a"), 404, "run_not_found");

    socket.say(&create("a", "Ada")).await;
    let done = socket.until("run.completed").await[0]["runId"].clone();
    assert_ne!(done, run);
    socket.say(&json!({ "type": "run.cancel", "runId": done })).await;
    let answer = socket.hear().await;
    assert_error(&answer, None, 409, "run_already_ended");
    assert_eq!(answer["runId"], done);
}

async fn limits_of_a_key_are_told_with_a_time(mode: Mode) {
    let app = started(mode, "[limits]\nkey_requests_per_minute = 1\n").await;
    let mut socket = Socket::open(&app, 0).await;
    socket.say(&create("a", "Ada")).await;
    socket.until("run.completed").await;
    socket.say(&create("b", "Bob")).await;
    let answer = socket.hear().await;
    assert_error(&answer, Some("b"), 429, "rate_limited");
    assert_eq!(answer["retryable"], true);
    assert!((1..=60_000).contains(&answer["retryAfterMs"].as_u64().unwrap()), "{answer}");
}
