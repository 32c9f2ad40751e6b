//! A throw-away Redis on a free port.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
};

use super::*;

pub(super) struct Server {
    pub port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more arguments of `redis-server`.
    pub async fn with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| argument.to_string()).collect();
        let mut server = Self { port: 0, arguments, process: None };
        loop {
            server.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            // Another process may have taken the port in the meantime: then the server exits, and the next port is tried.
            if server.restart().await {
                return server;
            }
        }
    }

    /// On the same port, with no memory of before; false when the port is taken.
    pub async fn restart(&mut self) -> bool {
        let mut process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(&self.arguments)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let until = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            assert!(Instant::now() < until, "redis-server does not start");
            sleep(Duration::from_millis(10)).await;
        }
        // Whoever listens may be another server: ours has gone then, or is about to.
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let ours = process.id().to_string();
        let listens = eventually(async || {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            match redis::cmd("INFO").arg("server").query_async::<redis::InfoDict>(&mut connection).await {
                Ok(info) => Some(info.get::<String>("process_id")? == ours),
                // One that wants a password was started by the only test that sets one, on a port of its own.
                Err(_) => Some(true),
            }
        })
        .await;
        if listens {
            self.process = Some(process);
        } else {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        listens
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// It keeps its connections and says nothing, or goes on.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let process = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    pub fn settings(&self) -> RedisSettings {
        let url = Secret::new(format!("redis://127.0.0.1:{}", self.port));
        RedisSettings { url, pool: "test".into(), max_connections: 4 }
    }

    pub async fn queue(&self) -> RedisQueue {
        RedisQueue::connect(self.settings()).await.unwrap()
    }

    /// A queue whose leases run out while a test waits.
    pub async fn hasty_queue(&self) -> RedisQueue {
        self.queue().await.with_lease(Duration::from_millis(300))
    }

    /// Any command, as an operator would give it.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[impl AsRef<[u8]>]) -> T {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let command = words.iter().fold(redis::Cmd::new(), |mut command, word| {
            command.arg(word.as_ref());
            command
        });
        command.query_async(&mut connection).await.unwrap()
    }

    /// Changes since when a run waits, which is the last word of its record.
    pub async fn set_ready(&self, run: RunId, ready: &str) {
        const WRITE: &str = "redis.call('SET', KEYS[1], (string.gsub(redis.call('GET', KEYS[1]), '%d+$', ARGV[1])))";
        self.command::<()>(&["EVAL", WRITE, "1", &format!("{{q:test}}:run:{run}"), ready]).await;
    }
}

impl Server {
    /// How often commands of such names were carried out, those inside steps too.
    pub async fn calls(&self, counts: impl Fn(&str) -> bool) -> u64 {
        let stats: String = self.command(&["INFO", "commandstats"]).await;
        let lines = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
        let calls = |(_, line): (&str, &str)| line.split(',').next().unwrap().parse::<u64>().unwrap();
        lines.filter(|(command, _)| counts(command)).map(calls).sum()
    }

    /// Some worker blocks.
    pub async fn until_blocked(&self) {
        eventually(async || {
            let clients: String = self.command(&["CLIENT", "LIST"]).await;
            clients.contains("cmd=blmpop").then_some(())
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
