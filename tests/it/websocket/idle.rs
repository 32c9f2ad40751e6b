//! What an idle socket costs. `scripts/idle-sockets` runs it: it needs more open files than a test may take for granted.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{client::Socket, create, limits::memory, started};
use crate::support::app::Mode;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "opens as many sockets as IDLE_SOCKETS says; `scripts/idle-sockets` runs it"]
async fn idle_sockets_cost_little() {
    let count: usize = std::env::var("IDLE_SOCKETS").unwrap().parse().unwrap();
    let app = started(Mode::Distributed, "[websocket]\nmax_sockets_per_key = 100000\nmax_sockets = 100000\n").await;
    let address = app.url().trim_start_matches("http://").to_owned();
    let head = format!(
        "GET /api/v1/ws HTTP/1.1\r\nHost: {address}\r\nx-api-key: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        app.key()
    );
    // What is kept once, whatever comes: connections to stores, caches, threads.
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..100 {
        sockets.push(opened(&address, &head).await);
    }
    let before = memory(app.front_doors[0].id());
    while sockets.len() < count {
        sockets.push(opened(&address, &head).await);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let grown = memory(app.front_doors[0].id()) - before;
    let each = grown / (count as u64 - 100);
    println!("{count} idle sockets: {} KiB more, {each} bytes a socket", grown / 1024);
    // Among them, a run is as quick as ever.
    let mut socket = Socket::open(&app, 0).await;
    let since = std::time::Instant::now();
    socket.say(&create("a", "Ada")).await;
    socket.until("run.completed").await;
    println!("a run on one more socket took {:?}", since.elapsed());
    // A key that is revoked closes all of its sockets.
    let keys = app.cli(&["key", "list", "--account", "acme", "--json"]).json();
    let keys = keys.as_array().or(keys["keys"].as_array()).unwrap().clone();
    let since = std::time::Instant::now();
    for key in keys {
        assert_eq!(app.cli(&["key", "revoke", key["id"].as_str().unwrap()]).code, 0);
    }
    let mut closed = 0;
    for mut socket in sockets {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut rest)).await.unwrap();
        // The last frame is the goodbye: a close of so many bytes, with the code 1008.
        closed += usize::from(rest.windows(4).any(|bytes| bytes[0] == 0x88 && bytes[2..4] == 1008_u16.to_be_bytes()));
    }
    println!("{closed} sockets were closed in {:?}", since.elapsed());
    assert_eq!(json!(closed), json!(count));
}

async fn opened(address: &str, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await.unwrap();
        text.push(byte[0]);
    }
    assert!(text.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&text));
    stream
}
