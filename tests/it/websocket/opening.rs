//! Who may open a socket, and how.

use serde_json::json;

use super::{
    client::{Socket, refused},
    create, started,
};
use crate::{
    contract::assert_refused,
    support::app::{Answer, App, Mode},
};

crate::support::in_both_modes!(
    a_request_that_is_no_socket_is_answered_as_any_other,
    a_key_comes_by_header_or_by_subprotocol,
    pages_of_other_origins_need_to_be_listed,
);

async fn refused_with(app: &App, headers: &[(&str, Option<&str>)]) -> Answer {
    let key = app.key();
    let mut all = vec![("x-api-key", Some(key.as_str()))];
    all.extend(headers);
    refused(app, &all).await
}

async fn a_request_that_is_no_socket_is_answered_as_any_other(mode: Mode) {
    let app = started(mode, "").await;
    assert_refused(&refused(&app, &[]).await, 401, "missing_api_key");
    assert_refused(&refused(&app, &[("x-api-key", Some("sk_wrong"))]).await, 401, "invalid_api_key");
    // The key comes first.
    assert_refused(&refused(&app, &[("upgrade", None)]).await, 401, "missing_api_key");
    assert_refused(&refused_with(&app, &[("upgrade", None)]).await, 400, "upgrade_required");
    assert_refused(&refused_with(&app, &[("connection", None)]).await, 400, "upgrade_required");
    assert_refused(&refused_with(&app, &[("upgrade", Some("h2c"))]).await, 400, "upgrade_required");
    assert_refused(&refused_with(&app, &[("sec-websocket-key", None)]).await, 400, "invalid_handshake");
    let old = refused_with(&app, &[("sec-websocket-version", Some("8"))]).await;
    assert_refused(&old, 426, "unsupported_websocket_version");
    assert_eq!(old.header("sec-websocket-version"), Some("13"));
    let url = format!("{}/api/v1/ws", app.url());
    let posted = Answer::of(app.client().post(url).header("x-api-key", app.key()).send().await.unwrap()).await;
    assert_refused(&posted, 405, "method_not_allowed");
}

async fn a_key_comes_by_header_or_by_subprotocol(mode: Mode) {
    let app = started(mode, "").await;
    let key = app.key();
    let both = format!("prompt-manager.v1, {key}");
    let bearer = format!("Bearer {key}");
    for (headers, protocol) in [
        (vec![("x-api-key", key.as_str())], None),
        (vec![("authorization", bearer.as_str())], None),
        (vec![("x-api-key", key.as_str()), ("sec-websocket-protocol", "prompt-manager.v1")], Some("prompt-manager.v1")),
        (vec![("sec-websocket-protocol", both.as_str())], Some("prompt-manager.v1")),
        (vec![("sec-websocket-protocol", both.as_str()), ("x-api-key", key.as_str())], Some("prompt-manager.v1")),
    ] {
        let (mut socket, response) = Socket::open_with(&app, 0, &headers).await;
        let answered = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(answered, protocol, "the key is never repeated");
        assert!(response.headers().contains_key("x-request-id"));
        socket.say(&create("a", "Ada")).await;
        socket.until("run.completed").await;
    }
    let check = async |protocols: &str, status, code| {
        assert_refused(&refused(&app, &[("sec-websocket-protocol", Some(protocols))]).await, status, code);
    };
    check(&key, 400, "unsupported_subprotocol").await;
    check("prompt-manager.v1", 401, "missing_api_key").await;
    check("prompt-manager.v1, sk_wrong", 401, "invalid_api_key").await;
    check(&format!("{both}, sk_wrong"), 401, "invalid_api_key").await;
    let free = app.free_key();
    let two = refused(&app, &[("sec-websocket-protocol", Some(&both)), ("x-api-key", Some(&free))]).await;
    assert_refused(&two, 401, "invalid_api_key");
    // An account without the plan may look at what it has, and start nothing.
    let mut socket = Socket::open_as(&app, 0, &free).await;
    socket.say(&create("a", "Ada")).await;
    let answer = socket.hear().await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("plan_required")));
}

async fn pages_of_other_origins_need_to_be_listed(mode: Mode) {
    let app = started(mode, "[websocket]\nallowed_origins = [\"https://chat.example\"]\n").await;
    let key = app.key();
    let own = app.url();
    for origin in ["https://chat.example", own.as_str()] {
        Socket::open_with(&app, 0, &[("x-api-key", &key), ("origin", origin)]).await;
    }
    for origin in ["https://evil.example", "null", "https://chat.example.evil.example"] {
        assert_refused(&refused_with(&app, &[("origin", Some(origin))]).await, 403, "origin_not_allowed");
    }
}
