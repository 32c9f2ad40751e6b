//! A throw-away Redis: its own process, port and directory; it ends with its handle.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

/// How long a server may take to answer on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(20);

pub struct RedisServer {
    port: u16,
    _process: Child,
    _directory: TempDir,
}

impl RedisServer {
    /// Starts a server on a free port and returns when it answers.
    pub async fn start() -> Self {
        let give_up = Instant::now() + START;
        loop {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let port = free_port();
            let mut process = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
                .args(["--maxmemory-policy", "noeviction", "--dir"])
                .arg(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("redis-server is installed");
            // Another process may have taken the port in the meantime; then this one exits, and the next port is tried.
            while process.try_wait().expect("a child process").is_none() {
                if answers(port).await {
                    return Self { port, _process: process, _directory: directory };
                }
                assert!(Instant::now() < give_up, "redis-server does not answer on port {port}");
                sleep(Duration::from_millis(5)).await;
            }
            assert!(Instant::now() < give_up, "redis-server does not start");
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Whether a PING is answered.
async fn answers(port: u16) -> bool {
    let ping = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(&answer == b"+PONG\r\n")
    };
    ping.await.unwrap_or(false)
}

#[tokio::test]
async fn a_server_answers_and_ends_with_its_handle() {
    let server = RedisServer::start().await;
    let port = server.port;
    assert_eq!(server.url(), format!("redis://127.0.0.1:{port}"));
    drop(server);
    let give_up = Instant::now() + START;
    while answers(port).await {
        assert!(Instant::now() < give_up, "the server is still there");
        sleep(Duration::from_millis(5)).await;
    }
}
