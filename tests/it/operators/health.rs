//! `/healthz` and `/readyz` of a worker and a front door while what they need is broken, and when it is whole again.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    app::{App, Mode, Shape, client, free_port},
    eventually, invariants, postgres,
    process::{self, Process},
    redis::RedisServer,
};

/// A process that answers probes.
struct Probed {
    _process: Process,
    operations: String,
}

impl Probed {
    fn start(folder: &std::path::Path, name: &str, args: &[&str], env: &[(String, String)]) -> Self {
        let operations = format!("127.0.0.1:{}", free_port());
        let mut env = env.to_vec();
        env.push(("PROMPT_MANAGER_METRICS_LISTEN".into(), operations.clone()));
        env.push(("PROMPT_MANAGER_LISTEN".into(), format!("127.0.0.1:{}", free_port())));
        Self { _process: Process::start(folder, name, args, &env), operations }
    }

    async fn ask(&self, path: &str) -> Option<(u16, Vec<String>)> {
        ask(&self.operations, path).await
    }

    async fn is_ready_but_for(&self, obstacles: &[&str]) {
        self.until("/readyz", obstacles).await;
    }

    async fn is_healthy(&self) {
        self.until("/healthz", &[]).await;
    }

    async fn is_unhealthy(&self) {
        self.until("/healthz", &["consuming"]).await;
    }

    async fn until(&self, path: &str, obstacles: &[&str]) {
        let expected = (if obstacles.is_empty() { 200 } else { 503 }, obstacles);
        eventually(&format!("{path} says {expected:?}"), async || {
            self.ask(path).await.is_some_and(|(status, said)| (status, said) == (expected.0, owned(obstacles)))
        })
        .await;
    }
}

/// The status, and what is in the way.
async fn ask(operations: &str, path: &str) -> Option<(u16, Vec<String>)> {
    let answer = client().get(format!("http://{operations}{path}")).send().await.ok()?;
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.ok()?;
    let obstacles = body["details"]["notReady"].as_array().into_iter().flatten();
    Some((status, obstacles.map(|obstacle| obstacle.as_str().unwrap().to_owned()).collect()))
}

fn owned(obstacles: &[&str]) -> Vec<String> {
    obstacles.iter().map(|obstacle| (*obstacle).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_tell_what_is_broken_and_that_it_is_whole_again() {
    let postgres = postgres::PostgresServer::start();
    let mut redis = RedisServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let env: Vec<(String, String)> = [
        ("PATH", std::env::var("PATH").unwrap()),
        ("PROMPT_MANAGER_DATABASE_URL", postgres.database().await),
        ("PROMPT_MANAGER_REDIS_URL", redis.url()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    assert_eq!(process::run(folder.path(), &["migrate"], &env, "").code, 0);
    let worker = Probed::start(folder.path(), "worker", &["worker"], &env);
    let front_door = Probed::start(folder.path(), "front-door", &["serve", "--no-workers"], &env);
    for process in [&worker, &front_door] {
        process.is_ready_but_for(&[]).await;
        process.is_healthy().await;
    }

    // The database goes: nothing is ready, and nothing needs to be started again.
    postgres.stop();
    for process in [&worker, &front_door] {
        process.is_ready_but_for(&["database"]).await;
        process.is_healthy().await;
    }
    postgres.restart();
    for process in [&worker, &front_door] {
        process.is_ready_but_for(&[]).await;
    }

    // Claims alone fail: every connection is well, and the worker consumes nothing all the same.
    let broken = Instant::now();
    redis.cli(&["SET", "{q:default}:delay", "no sorted set"]);
    worker.is_unhealthy().await;
    assert!(broken.elapsed() >= Duration::from_secs(15), "not for a short outage");
    worker.is_ready_but_for(&[]).await;
    front_door.is_healthy().await;
    redis.cli(&["DEL", "{q:default}:delay"]);
    worker.is_healthy().await;

    // Redis stops answering, its connections open.
    redis.pause();
    for process in [&worker, &front_door] {
        process.is_ready_but_for(&["queue"]).await;
    }
    worker.is_unhealthy().await;
    front_door.is_healthy().await;
    redis.resume();
    for process in [&worker, &front_door] {
        process.is_healthy().await;
        process.is_ready_but_for(&[]).await;
    }

    // Redis is gone.
    redis.stop();
    for process in [&worker, &front_door] {
        process.is_ready_but_for(&["queue"]).await;
    }
    worker.is_unhealthy().await;
    redis.restart().await;
    for process in [&worker, &front_door] {
        process.is_healthy().await;
        process.is_ready_but_for(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_executor_is_reported_and_holds_no_run() {
    let config = "[workers]\nslots = 2\nlease_ms = 3000\n".to_owned();
    let mut app = App::shaped(Shape { config, ..Shape::of(Mode::Distributed) }).await;
    app.import_greeting();
    let operations = format!("127.0.0.1:{}", free_port());
    app.workers[0].kill();
    // It dies with a stashed ending in its hands.
    let env = [("FAIL_POINTS", "hand_over=panic@1"), ("PROMPT_MANAGER_METRICS_LISTEN", &operations)];
    app.restart_worker_with(0, &env);
    eventually("the worker is healthy", async || ask(&operations, "/healthz").await == Some((200, vec![]))).await;
    let ids = app.accept_named(3).await;
    let dead = Some((503, owned(&["executors"])));
    eventually("the worker says so", async || ask(&operations, "/healthz").await == dead).await;
    invariants::hold(&app, &ids).await;
}
