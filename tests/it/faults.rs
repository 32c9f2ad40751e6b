//! Accepted work under fault: processes killed, Redis emptied and stopped, databases behind.

mod clocks;
mod crashes;
mod network;
mod providers;
mod stores;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape, free_port},
    eventually, invariants, postgres,
    process::{self, Process},
    provider::Answer,
    redis::RedisServer,
};

/// The demo model with half a second of work in each run.
const SLOW_DEMO: &str = "[[provider]]\nname = \"demo\"\nkind = \"demo\"\ndemo_delay_ms = 500\n";
const SLOW_PROMPT: &str = "name = \"Greeting\"\nmodel = \"demo\"\ntemplate = \"Greet {{ name }}.\"\n";
/// Long enough for leases to run out (15 s) more than once.
const PATIENCE: Duration = Duration::from_secs(120);

/// A distributed deployment whose calls take so long.
async fn scripted(shape: Shape, delay: Duration) -> App {
    let app = App::shaped(shape).await;
    app.import_greeting();
    app.provider().set_default(Answer::echo().delay(delay));
    app
}

/// Every run succeeded, and its attempts are numbered, with only the last one successful.
async fn assert_all_succeeded(app: &App, ids: &[String]) {
    for id in ids {
        let run = app.ended(0, id, PATIENCE).await;
        assert_eq!(run["state"], "succeeded", "{run}");
        let outcomes: Vec<&str> =
            run["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect();
        let (last, earlier) = outcomes.split_last().unwrap();
        assert_eq!(*last, "succeeded", "{run}");
        assert!(earlier.iter().all(|outcome| *outcome == "worker_lost"), "{run}");
    }
}

/// The queue keeps nothing of runs that have ended: no waiting, no lease, no slot.
fn assert_queue_is_empty(app: &App) {
    let stats = app.cli(&["queue", "stats", "--json"]).json();
    assert_eq!(stats["running"], 0, "{stats}");
    assert_eq!(stats["delayed"], 0, "{stats}");
    for lane in ["interactive", "default", "batch"] {
        assert_eq!(stats["lanes"][lane]["ready"], 0, "{stats}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_runs_survive_workers_killed_every_two_seconds() {
    let config = "[workers]\nslots = 4\n".to_owned();
    let shape = Shape { workers: 2, front_doors: 2, config, ..Shape::of(Mode::Distributed) };
    let mut app = scripted(shape, Duration::from_millis(500)).await;
    let ids = app.accept_named(200).await;
    let mut kills = 0;
    // 200 runs of 0.5 s on 8 slots take 13 s undisturbed. A lost run goes on when its lease of 15 s has run out, so that none can be lost in its
    // fourth call within this time, which would make it poison.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(40) {
        let stats = app.cli(&["queue", "stats", "--json"]).json();
        if stats["running"] == 0 && stats["delayed"] == 0 && stats["lanes"]["interactive"]["ready"] == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let victim = kills % 2;
        app.workers[victim].kill();
        app.restart_worker(victim);
        kills += 1;
    }
    assert!(kills >= 2, "the runs ended before anything was killed");
    assert_all_succeeded(&app, &ids).await;
    assert_queue_is_empty(&app);
    invariants::hold_after_kills(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_killed_with_accepted_runs_loses_none() {
    let config = format!("[workers]\nslots = 4\n{SLOW_DEMO}");
    let mut app = App::shaped(Shape { config, ..Shape::of(Mode::Embedded) }).await;
    app.import_prompt(SLOW_PROMPT);
    let ids = app.accept(40).await;
    for _ in 0..3 {
        // Somewhere in the middle: some have ended, some run, some wait.
        app.ended(0, &ids[0], PATIENCE).await;
        app.front_doors[0].kill();
        app.restart_front_door(0).await;
    }
    for id in &ids {
        let run = app.ended(0, id, PATIENCE).await;
        assert_eq!(run["state"], "succeeded", "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_hands_back_what_it_cannot_finish() {
    let config = "[server]\ndrain_timeout_ms = 1000\n".to_owned();
    let shape = Shape { config, ..Shape::of(Mode::Distributed) };
    let mut app = scripted(shape, Duration::from_secs(4)).await;
    let ids = app.accept_named(10).await;
    for id in &ids {
        until_running(&app, id).await;
    }
    app.workers[0].signal("TERM");
    assert!(app.workers[0].exited(Duration::from_secs(20)).success(), "a drained worker exits with 0");
    let stats = app.cli(&["queue", "stats", "--json"]).json();
    assert_eq!(stats["running"], 0, "nothing is left under a lease that must run out first: {stats}");
    assert_eq!(stats["lanes"]["interactive"]["ready"], 10, "{stats}");
    app.provider().set_default(Answer::echo());
    app.add_worker();
    for id in &ids {
        assert_eq!(app.ended(0, id, PATIENCE).await["state"], "succeeded");
    }
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_finishes_what_it_can() {
    let mut app = scripted(Shape::of(Mode::Distributed), Duration::from_millis(500)).await;
    let id = app.accept_named(1).await.remove(0);
    until_running(&app, &id).await;
    app.workers[0].signal("TERM");
    assert!(app.workers[0].exited(Duration::from_secs(20)).success());
    let run = app.ended(0, &id, Duration::from_secs(5)).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "{run}");
    app.add_worker();
    invariants::hold(&app, &[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_redis_forgot_are_restored_from_the_ledger() {
    let shape = Shape { workers: 0, ..Shape::of(Mode::Distributed) };
    let mut app = scripted(shape, Duration::from_millis(500)).await;
    let mut all = app.accept_named(20).await;
    let ids = all.clone();
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    app.add_worker();
    assert_all_succeeded(&app, &ids).await;
    // And once more with workers that have the runs in their hands.
    let ids = app.accept_named(20).await;
    until_running(&app, &ids[0]).await;
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    for id in &ids {
        assert_eq!(app.ended(0, id, PATIENCE).await["state"], "succeeded");
    }
    all.extend(ids);
    invariants::hold(&app, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_door_without_redis_says_503_and_heals() {
    let mut app = App::start(Mode::Distributed).await;
    app.import_prompt("name = \"Greeting\"\nmodel = \"demo\"\ntemplate = \"Greet {{ name }}.\"\n");
    let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
    assert_eq!(app.post(&body).await.status, 200);
    app.redis.as_mut().unwrap().stop();
    let answer = app.post(&body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.body["code"], "queue_unreachable");
    assert_eq!(answer.body["retryable"], true);
    assert!(answer.header("retry-after").is_some());
    let (client, readyz) = (app.client(), format!("{}/readyz", app.url()));
    eventually("the worker says so", async || app.workers[0].said().contains("cannot claim runs")).await;
    eventually("it is not ready", async || client.get(&readyz).send().await.unwrap().status() == 503).await;
    app.redis.as_mut().unwrap().restart().await;
    eventually("the front door heals", async || app.post(&body).await.status == 200).await;
    // Workers try on twice a second, and say so once.
    let said = app.workers[0].said();
    let count = |words: &str| said.matches(words).count();
    assert_eq!((count("cannot claim runs"), count("runs can be claimed again")), (1, 1), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_survives_its_database_going_away() {
    let postgres = postgres::PostgresServer::start();
    let redis = RedisServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let env: Vec<(String, String)> = [
        ("PATH", std::env::var("PATH").unwrap()),
        ("PROMPT_MANAGER_DATABASE_URL", postgres.database().await),
        ("PROMPT_MANAGER_REDIS_URL", redis.url()),
        ("PROMPT_MANAGER_LISTEN", format!("127.0.0.1:{port}")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let cli = |args: &[&str]| process::run(folder.path(), args, &env, "");
    assert_eq!(cli(&["migrate"]).code, 0);
    assert_eq!(cli(&["account", "create", "acme", "--plan", "pro"]).code, 0);
    let key = cli(&["key", "create", "k", "--account", "acme", "--json"]).json()["key"].as_str().unwrap().to_owned();
    std::fs::write(folder.path().join("p.toml"), SLOW_PROMPT).unwrap();
    assert_eq!(cli(&["prompt", "import", "p.toml", "--account", "acme", "--promote"]).code, 0);
    let _server = Process::start(folder.path(), "serve", &["serve"], &env);
    let client = crate::support::app::client();
    let url = format!("http://127.0.0.1:{port}/api/v1/run");
    let post = async || {
        let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
        let answer = client.post(&url).header("x-api-key", &key).json(&body).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json::<Value>().await.ok()?))
    };
    eventually("the server is up", async || post().await.is_some_and(|(status, _)| status == 200)).await;
    postgres.stop();
    // Without its database the server admits nobody once its caches are too old; it answers so, and it heals.
    eventually("it says that the database is gone", async || {
        post().await.is_some_and(|(status, body)| status == 503 && body["code"] == "database_unreachable")
    })
    .await;
    postgres.restart();
    eventually("the server heals", async || post().await.is_some_and(|(status, _)| status == 200)).await;
}

async fn until_running(app: &App, id: &str) {
    eventually("the run is in execution", async || app.run(0, id).await.body["state"] != "queued").await;
}

/// The process ends by itself with this code, and its words contain each of these.
fn check_refusal(args: &[&str], env: &[(&str, String)], code: i32, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let env: Vec<(String, String)> = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let said = process::run(folder.path(), args, &env, "");
    assert_eq!(said.code, code, "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "`{word}` is missing: {said:?}");
    }
    assert!(!said.stderr.contains("hunter2"), "a password is shown: {said:?}");
}

#[test]
fn an_unreachable_redis_is_one_sentence_at_start() {
    let url = format!("redis://:hunter2@127.0.0.1:{}", free_port());
    check_refusal(&["worker"], &[("PROMPT_MANAGER_REDIS_URL", url)], 69, &["Redis", "127.0.0.1"]);
}

#[test]
fn an_unreachable_database_is_one_sentence_at_start() {
    let url = format!("postgres://pm:hunter2@127.0.0.1:{}/pm", free_port());
    check_refusal(&["serve"], &[("PROMPT_MANAGER_DATABASE_URL", url)], 69, &["127.0.0.1"]);
}

#[test]
fn a_worker_without_redis_says_what_it_needs() {
    check_refusal(&["worker"], &[], 78, &["PROMPT_MANAGER_REDIS_URL"]);
    check_refusal(&["serve", "--no-workers"], &[], 78, &["PROMPT_MANAGER_REDIS_URL"]);
}

#[test]
fn a_port_in_use_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check_refusal(&["serve"], &[("PROMPT_MANAGER_LISTEN", address.clone())], 1, &[&address, "--listen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_behind_its_migrations_is_refused() {
    let redis = RedisServer::start().await;
    let env = [
        ("PROMPT_MANAGER_DATABASE_URL", postgres::database().await),
        ("PROMPT_MANAGER_REDIS_URL", redis.url()),
        ("PROMPT_MANAGER_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    for args in [&["serve"][..], &["worker"]] {
        check_refusal(args, &env, 1, &["prompt-manager migrate"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_evicts_is_warned_about_by_name() {
    let mut app = App::start(Mode::Distributed).await;
    app.redis.as_ref().unwrap().cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    app.restart_worker(0);
    let worker = &app.workers[0];
    eventually("the worker warns", async || worker.said().contains("maxmemory-policy")).await;
}
