use std::{net::SocketAddr, sync::Arc};

use axum::{extract::State, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    task::JoinHandle,
};

use super::*;

const HEAD_TIME: Duration = Duration::from_secs(5);
const DRAIN_TIME: Duration = Duration::from_secs(20);

/// A server with a route that answers at once, and one that answers when it is told to.
struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    /// One permit for every request to `/slow` that has begun.
    begun: Arc<Notify>,
    finish: Arc<Notify>,
    served: JoinHandle<Cut>,
}

impl Server {
    async fn start() -> Self {
        let (begun, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = |State((begun, finish)): State<(Arc<Notify>, Arc<Notify>)>| async move {
            begun.notify_one();
            finish.notified().await;
            "slow"
        };
        let router = Router::new()
            .route("/", get(|| async { "fine" }))
            .route("/slow", get(slow))
            .with_state((begun.clone(), finish.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = ServerConfig {
            listen: address,
            metrics_listen: None,
            max_body_bytes: 1024,
            header_read_timeout: HEAD_TIME,
            drain_timeout: DRAIN_TIME,
        };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let served = tokio::spawn(async move { serve_and_count(listener, router, &config, token).await });
        Self { address, stop, begun, finish, served }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_SLOW: &[u8] = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n";

/// Reads until `end`, or the end of the connection.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    while !text.contains(end) {
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => text.push_str(std::str::from_utf8(&buffer[..count]).unwrap()),
            _ => break,
        }
    }
    text
}

/// How long the server lets this connection be, from now.
async fn closed_after(stream: &mut TcpStream) -> Duration {
    let since = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    since.elapsed()
}

fn check_about(took: Duration, expect: Duration) {
    let slack = Duration::from_millis(50);
    assert!(expect <= took && took <= expect + slack, "{took:?}, not {expect:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_has_the_time_of_one_head() {
    let server = Server::start().await;
    check_about(closed_after(&mut server.connect().await).await, HEAD_TIME);
}

#[tokio::test(start_paused = true)]
async fn a_preface_that_stops_halfway_has_no_more() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(b"PRI * HTTP/2.0").await.unwrap();
    check_about(closed_after(&mut stream).await, HEAD_TIME);
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_without_a_request_has_no_more() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    check_about(closed_after(&mut stream).await, HEAD_TIME);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_in_is_cut_off() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let since = tokio::time::Instant::now();
    for byte in GET {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(500)).await;
        if since.elapsed() > HEAD_TIME {
            break;
        }
    }
    let text = read_until(&mut stream, "fine").await;
    assert!(!text.contains("200 OK"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_may_be_idle_for_long_but_its_next_head_may_not_drip() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(GET).await.unwrap();
    assert!(read_until(&mut stream, "fine").await.starts_with("HTTP/1.1 200 OK"));
    sleep(IDLE - Duration::from_secs(10)).await;
    stream.write_all(GET).await.unwrap();
    assert!(read_until(&mut stream, "fine").await.starts_with("HTTP/1.1 200 OK"));
    check_about(closed_after(&mut stream).await, IDLE);

    let mut stream = server.connect().await;
    stream.write_all(GET).await.unwrap();
    read_until(&mut stream, "fine").await;
    sleep(Duration::from_secs(30)).await;
    stream.write_all(&GET[..10]).await.unwrap();
    check_about(closed_after(&mut stream).await, HEAD_TIME);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_take_longer_than_its_head() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(GET_SLOW).await.unwrap();
    server.begun.notified().await;
    sleep(IDLE * 3).await;
    server.finish.notify_one();
    assert!(read_until(&mut stream, "slow").await.ends_with("slow"));
}

#[tokio::test(start_paused = true)]
async fn stopping_closes_what_is_idle_and_answers_what_is_in_flight() {
    let server = Server::start().await;
    let (mut new, mut idle, mut busy) = (server.connect().await, server.connect().await, server.connect().await);
    idle.write_all(GET).await.unwrap();
    read_until(&mut idle, "fine").await;
    busy.write_all(GET_SLOW).await.unwrap();
    server.begun.notified().await;

    server.stop.cancel();
    assert_eq!(closed_after(&mut idle).await, ON_ITS_WAY, "its next request may be on its way");
    assert_eq!(closed_after(&mut new).await, Duration::ZERO, "as may the first one of this");
    assert!(TcpStream::connect(server.address).await.is_err(), "the listener is closed");

    sleep(DRAIN_TIME / 2).await;
    server.finish.notify_one();
    let text = read_until(&mut busy, "slow").await;
    assert!(text.ends_with("slow") && text.contains("connection: close"), "{text}");
    assert_eq!(server.served.await.unwrap(), Cut(0));
}

#[tokio::test]
async fn a_request_that_was_on_its_way_when_the_server_stopped_is_answered() {
    let server = Server::start().await;
    let mut new = server.connect().await;
    server.stop.cancel();
    tokio::task::yield_now().await;
    new.write_all(GET).await.unwrap();
    let answer = read_until(&mut new, "fine").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.served.await.unwrap(), Cut(0));
}

#[tokio::test]
async fn so_is_the_next_one_of_a_connection_that_was_answered_just_before() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(GET).await.unwrap();
    let answer = read_until(&mut stream, "fine").await;
    assert!(!answer.contains("connection: close"), "{answer}");
    server.stop.cancel();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    stream.write_all(GET).await.unwrap();
    let answer = read_until(&mut stream, "fine").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(server.served.await.unwrap(), Cut(0));
}

#[tokio::test(start_paused = true)]
async fn what_outlives_the_drain_is_cut_off() {
    let server = Server::start().await;
    let mut busy = server.connect().await;
    busy.write_all(GET_SLOW).await.unwrap();
    server.begun.notified().await;
    let since = tokio::time::Instant::now();
    server.stop.cancel();
    assert_eq!(server.served.await.unwrap(), Cut(1));
    check_about(since.elapsed(), DRAIN_TIME);
    assert_eq!(read_until(&mut busy, "slow").await, "");
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let server = Server::start().await;
    let check = async |head: String| {
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        read_until(&mut stream, "\r\n").await
    };
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD_BYTES));
    assert!(check(long).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(2 * MAX_HEADERS));
    assert!(check(many).await.starts_with("HTTP/1.1 431"));
    let fine = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES / 2));
    assert!(check(fine).await.starts_with("HTTP/1.1 200"));
    assert!(check("nonsense\r\n\r\n".into()).await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn old_clients_and_pipelines_are_served() {
    let server = Server::start().await;
    let mut old = server.connect().await;
    old.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.0 200 OK") && text.ends_with("fine"), "{text}");

    let mut stream = server.connect().await;
    stream.write_all(&[GET, GET, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
}
