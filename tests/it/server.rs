//! The front door's connections, spoken to in raw bytes: slow, large, broken, old and pipelined.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    app::{Answer, App, Mode, Shape},
    provider::{Answer as Script, Gate},
};

const SOON: Duration = Duration::from_secs(20);

async fn started() -> App {
    let config = "[server]\nmax_body_bytes = 4096\nheader_read_timeout_ms = 500\ndrain_timeout_ms = 10000\n";
    let app = App::shaped(Shape { config: config.into(), ..Shape::of(Mode::Embedded) }).await;
    app.import_greeting();
    app
}

async fn connect(app: &App) -> TcpStream {
    let url = app.url();
    TcpStream::connect(url.trim_start_matches("http://")).await.unwrap()
}

/// The head of a run request, without the empty line after it.
fn head(app: &App, more: &str) -> String {
    format!(
        "POST /api/v1/run HTTP/1.1\r\nHost: localhost\r\nx-api-key: {}\r\nContent-Type: application/json\r\n{more}",
        app.key()
    )
}

fn greeting() -> String {
    json!({ "promptName": "Greeting", "variables": { "name": "Ada" } }).to_string()
}

fn with_length(app: &App, body: &[u8]) -> Vec<u8> {
    let head = head(app, &format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// Sends bytes and reads until the server closes the connection.
async fn exchange(app: &App, bytes: &[u8]) -> String {
    let mut stream = connect(app).await;
    stream.write_all(bytes).await.unwrap();
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .expect("the server closes the connection")
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !text.contains(end) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "closed before {end:?}: {text}");
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    };
    tokio::time::timeout(SOON, read).await.unwrap_or_else(|_| panic!("waited in vain for {end:?}"));
    text
}

#[track_caller]
fn assert_refused(text: &str, status: u16, code: &str) {
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((&body["success"], &body["code"]), (&json!(false), &json!(code)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_cut_off() {
    let app = started().await;
    let since = tokio::time::Instant::now();
    for bytes in ["", "POST /api/v1/run HTTP/1.1\r\nHost: a\r\n", "PRI * HTTP/2.0\r\n\r\nSM"] {
        let text = exchange(&app, bytes.as_bytes()).await;
        assert!(!text.contains("200"), "{text}");
    }
    assert!(since.elapsed() < SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_a_size() {
    let app = started().await;
    let long = head(&app, &format!("x-long: {}\r\n\r\n", "x".repeat(1 << 20)));
    let mut stream = connect(&app).await;
    // The server may close before all of it is sent.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 431");
    assert!(exchange(&app, b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_what_they_should_be() {
    let app = started().await;
    assert_refused(&exchange(&app, &with_length(&app, b"{\"promptName\":\"\xff\"}")).await, 400, "invalid_json");
    assert_refused(&exchange(&app, &with_length(&app, &[b'x'; 4097])).await, 413, "body_too_large");
    // A body that never says how long it is, and never stops in time.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let chunks =
        head(&app, "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n") + &chunk.repeat(16) + "0\r\n\r\n";
    assert_refused(&exchange(&app, chunks.as_bytes()).await, 413, "body_too_large");
    let broken = head(&app, "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n") + "not a size\r\n";
    assert_refused(&exchange(&app, broken.as_bytes()).await, 400, "body_incomplete");
    let (first, second) = (&greeting()[..10], &greeting()[10..]);
    let good = head(&app, "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        + &format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    assert!(exchange(&app, good.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    // Two lengths are two requests for whoever stands in between.
    let smuggled = head(&app, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n");
    assert!(!exchange(&app, smuggled.as_bytes()).await.contains(" 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_caller_can_send_all_of_a_body_that_is_too_large_and_read_why() {
    let app = started().await;
    let bytes = with_length(&app, &[b'x'; 8 * 8192]);
    let mut stream = connect(&app).await;
    for part in bytes.chunks(8192) {
        stream.write_all(part).await.expect("the server still listens");
        // Slower than an answer, so that a server that closes at once has closed.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_refused(&rest(&mut stream).await, 413, "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_asks_first_is_invited_only_with_a_good_key() {
    let app = started().await;
    let expect = format!("Content-Length: {}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", greeting().len());
    let mut stream = connect(&app).await;
    stream.write_all(head(&app, &expect).as_bytes()).await.unwrap();
    assert!(until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 100 Continue\r\n"));
    stream.write_all(greeting().as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200 "));

    let bad = head(&app, &expect).replace(&app.key(), "sk_votre_cle_api_ici");
    assert_refused(&exchange(&app, bad.as_bytes()).await, 401, "invalid_api_key");
    let large = head(&app, "Content-Length: 4097\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    assert_refused(&exchange(&app, large.as_bytes()).await, 413, "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_versions_of_http_are_spoken() {
    let app = started().await;
    let old = String::from_utf8(with_length(&app, greeting().as_bytes())).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let text = exchange(&app, old.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.0 200 ") && text.contains("Greet Ada."), "{text}");

    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let request = || client.post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key());
    let responses = futures::future::join_all((0..20).map(|_| {
        let request = request().header("content-type", "application/json").body(greeting());
        async move { request.send().await.unwrap() }
    }));
    for response in responses.await {
        assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_their_order() {
    let app = started().await;
    let run = |name: &str| {
        let body = json!({ "promptName": "Greeting", "variables": { "name": name } }).to_string();
        head(&app, &format!("Content-Length: {}\r\n\r\n{body}", body.len()))
    };
    let last = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let text = exchange(&app, (run("Ada") + &run("Grace") + last).as_bytes()).await;
    let places: Vec<_> =
        ["Greet Ada.", "Greet Grace.", r#"{"status":"ok"}"#].map(|part| text.find(part).unwrap()).into();
    assert!(places.is_sorted(), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answers_what_is_in_flight() {
    let mut app = started().await;
    let gate = Gate::new();
    app.provider().push(Script::text("in time").held(&gate));
    let request = app
        .client()
        .post(format!("{}/api/v1/run", app.url()))
        .header("x-api-key", app.key())
        .header("content-type", "application/json")
        .body(greeting());
    let waiting = tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await });
    app.provider().wait_for_requests(1).await;
    app.front_doors[0].signal("TERM");
    // New connections are refused as soon as it stops.
    let deadline = tokio::time::Instant::now() + SOON;
    while TcpStream::connect(app.url().trim_start_matches("http://")).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the listener stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, &answer.body["output"]), (200, &json!("in time")), "{answer:?}");
    assert!(app.front_doors[0].exited(SOON).success());
}
