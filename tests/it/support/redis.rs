//! A throw-away Redis: its own process, port and directory; it ends with its handle, or with the test process.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{app::free_port, process};

/// How long a server may take to answer on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(20);

pub struct RedisServer {
    port: u16,
    process: Child,
    directory: TempDir,
}

impl RedisServer {
    /// Starts a server on a free port and returns when it answers.
    pub async fn start() -> Self {
        let give_up = Instant::now() + START;
        loop {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let port = free_port();
            // Another process may have taken the port in the meantime; then this one exits, and the next port is tried.
            if let Some(process) = start_on(port, directory.path(), &[], give_up).await {
                return Self { port, process, directory };
            }
            assert!(Instant::now() < give_up, "redis-server does not start");
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs one command through `redis-cli`.
    pub fn cli(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Kills the server. What it held is lost: it writes nothing to disk.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Keeps all its connections and its memory and says nothing more, until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// Starts it again, empty, on its old port.
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    /// Writes every command to disk from now on, before it is answered.
    pub async fn keep_everything(&self) {
        self.cli(&["CONFIG", "SET", "appendfsync", "always"]);
        self.cli(&["CONFIG", "SET", "appendonly", "yes"]);
        super::eventually("the append-only file is complete", async || {
            let info = self.cli(&["INFO", "persistence"]);
            info.contains("aof_enabled:1")
                && info.contains("aof_rewrite_in_progress:0\r")
                && info.contains("aof_rewrite_scheduled:0\r")
        })
        .await;
    }

    /// Kills it and starts it again with what it wrote since [`keep_everything`](Self::keep_everything).
    pub async fn restart_from_disk(&mut self) {
        self.restart_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    }

    async fn restart_with(&mut self, options: &[&str]) {
        self.stop();
        let started = start_on(self.port, self.directory.path(), options, Instant::now() + START).await;
        self.process = started.expect("the port is still free");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `None` when the server ended by itself.
async fn start_on(port: u16, directory: &Path, options: &[&str], give_up: Instant) -> Option<Child> {
    let mut command = process::bound("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
        .args(["--maxmemory-policy", "noeviction", "--dir"])
        .arg(directory)
        .args(options)
        .stdout(Stdio::null());
    let mut process = process::spawn(command);
    while process.try_wait().expect("a child process").is_none() {
        if answers(port, process.id()).await {
            return Some(process);
        }
        assert!(Instant::now() < give_up, "redis-server does not answer on port {port}");
        sleep(Duration::from_millis(5)).await;
    }
    None
}

/// Whether this very process answers on the port: another test's server may have been faster to take it.
async fn answers(port: u16, process_id: u32) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"INFO server\r\nQUIT\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await.is_ok_and(|answer| answer.contains(&format!("process_id:{process_id}\r\n")))
}

#[tokio::test]
async fn a_server_answers_and_ends_with_its_handle() {
    let server = RedisServer::start().await;
    let port = server.port;
    assert_eq!(server.url(), format!("redis://127.0.0.1:{port}"));
    let process_id = server.process.id();
    drop(server);
    let give_up = Instant::now() + START;
    while answers(port, process_id).await {
        assert!(Instant::now() < give_up, "the server is still there");
        sleep(Duration::from_millis(5)).await;
    }
}
