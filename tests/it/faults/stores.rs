//! The stores themselves fail: Redis forgets, fills up or restarts; PostgreSQL stops, crashes, takes no writes or no connections;
//! SQLite's disk is full.

use std::{process::Command, time::Duration};

use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection,
    sqlx::{Connection, PgConnection},
};
use serde_json::json;
use tokio::time::sleep;

use super::network::{PERIOD, deployment, during};
use crate::support::{
    app::{Answer as Told, App, Mode, Shape},
    eventually, invariants,
    load::{Load, Posted, assert_refusal, new_name},
    postgres::PostgresServer,
    provider::{Answer, Gate},
};

async fn post(app: &App, prefer: &str) -> Told {
    let body = json!({ "promptName": "Greeting", "variables": { "name": new_name() } });
    app.post_with(0, &body, &[("prefer", prefer)]).await
}

/// Posts until one is refused with this code; answers with the ids of those that were not.
async fn until_refused(app: &App, code: &str) -> Vec<String> {
    let mut accepted = Vec::new();
    for _ in 0..600 {
        let answer = post(app, "respond-async").await;
        if let Some(id) = answer.body["runId"].as_str() {
            accepted.push(id.to_owned());
        } else {
            assert_refusal(&answer);
            if answer.body["code"] == code {
                return accepted;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was refused with {code}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_everything_under_load_loses_nothing() {
    let mut app = deployment(Shape::of(Mode::Distributed)).await;
    during(&app, async |app| {
        for _ in 0..2 {
            app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
            sleep(Duration::from_secs(2)).await;
        }
    })
    .await;
    let load = Load::start(&app, PERIOD);
    sleep(Duration::from_secs(1)).await;
    app.redis.as_mut().unwrap().restart().await;
    sleep(Duration::from_secs(1)).await;
    let posted = load.stop().await;
    invariants::hold(&app, &posted.accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_a_backlog_exceeds_no_limit_and_hides_no_call() {
    let app = deployment(Shape::of(Mode::Distributed)).await;
    app.provider().set_default(Answer::echo().delay(Duration::from_millis(1_500)));
    let ids = app.accept_named(24).await;
    for calls in [6, 12] {
        app.provider().wait_for_requests(calls).await;
        app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    }
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_from_its_disk_goes_on_where_it_was() {
    let mut app = deployment(Shape::of(Mode::Distributed)).await;
    app.redis.as_ref().unwrap().keep_everything().await;
    let load = Load::start(&app, PERIOD);
    for _ in 0..2 {
        sleep(Duration::from_secs(1)).await;
        app.redis.as_mut().unwrap().restart_from_disk().await;
    }
    sleep(Duration::from_secs(1)).await;
    let posted = load.stop().await;
    invariants::hold(&app, &posted.accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_refuses_new_runs_and_ends_those_it_has() {
    let app = deployment(Shape::of(Mode::Distributed)).await;
    let redis = app.redis.as_ref().unwrap();
    let gate = Gate::new();
    app.provider().set_default(Answer::echo().held(&gate));
    let ids = app.accept_named(20).await;
    app.provider().wait_for_requests(6).await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    // As long as counts what a front door heard of a queue that had room.
    sleep(Duration::from_millis(20)).await;
    for prefer in ["respond-async", "wait=60"] {
        let refused = post(&app, prefer).await;
        assert_refusal(&refused);
        assert_eq!(refused.body["code"], "queue_unreachable", "{refused:?}");
    }
    gate.open();
    for id in &ids {
        assert_eq!(app.ended(0, id, Duration::from_secs(30)).await["state"], "succeeded");
    }
    assert_refusal(&post(&app, "respond-async").await);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    invariants::hold(&app, &ids).await;
}

/// A deployment whose database server belongs to the test, and callers that get 503 while it is away.
async fn while_postgres(fault: impl AsyncFnOnce(&PostgresServer, &App)) -> Posted {
    let postgres = PostgresServer::start();
    let shape = Shape { database: Some(postgres.database().await), ..Shape::of(Mode::Distributed) };
    let app = deployment(shape).await;
    let load = Load::start(&app, PERIOD);
    sleep(Duration::from_secs(1)).await;
    fault(&postgres, &app).await;
    sleep(Duration::from_secs(1)).await;
    let posted = load.stop().await;
    assert!(!posted.accepted.is_empty());
    invariants::hold(&app, &posted.accepted).await;
    posted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_stops_crashes_or_falls_silent_loses_nothing() {
    let posted = while_postgres(async |postgres, app| {
        let mut accepted = Vec::new();
        postgres.stop();
        accepted.extend(until_refused(app, "database_unreachable").await);
        sleep(Duration::from_secs(4)).await;
        postgres.restart();
        heals(app).await;
        postgres.crash();
        accepted.extend(until_refused(app, "database_unreachable").await);
        postgres.restart();
        heals(app).await;
        postgres.pause();
        sleep(Duration::from_secs(5)).await;
        postgres.resume();
        heals(app).await;
        for id in &accepted {
            assert_eq!(app.ended(0, id, Duration::from_secs(60)).await["state"], "succeeded");
        }
    })
    .await;
    assert!(posted.was_refused_with("database_unreachable"), "{:?}", posted.refused);
}

async fn heals(app: &App) {
    eventually("runs are taken again", async || post(app, "respond-async").await.status == 202).await;
}

async fn administrator(postgres: &PostgresServer) -> DatabaseConnection {
    Database::connect(postgres.url("postgres")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_takes_no_writes_or_no_connections_refuses_and_heals() {
    while_postgres(async |postgres, app| {
        let administrator = administrator(postgres).await;
        let run = async |sql: &str| {
            administrator.execute_unprepared(sql).await.unwrap();
        };
        run("ALTER SYSTEM SET default_transaction_read_only = on").await;
        run("SELECT pg_reload_conf()").await;
        let mut accepted = until_refused(app, "database_full").await;
        sleep(Duration::from_secs(2)).await;
        run("SET default_transaction_read_only = off").await;
        run("ALTER SYSTEM RESET default_transaction_read_only").await;
        run("SELECT pg_reload_conf()").await;
        heals(app).await;

        let others = crowd(postgres, &administrator).await;
        accepted.extend(until_refused(app, "database_unreachable").await);
        sleep(Duration::from_secs(2)).await;
        drop(others);
        heals(app).await;
        for id in &accepted {
            assert_eq!(app.ended(0, id, Duration::from_secs(60)).await["state"], "succeeded");
        }
    })
    .await;
}

/// Takes every connection that the server has to give: first the free ones, then those of the deployment.
async fn crowd(postgres: &PostgresServer, administrator: &DatabaseConnection) -> Vec<PgConnection> {
    let mut crowd = Vec::new();
    loop {
        while let Ok(connection) = PgConnection::connect(&postgres.url("postgres")).await {
            crowd.push(connection);
        }
        let throw_out = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test_0'";
        if administrator.execute_unprepared(throw_out).await.unwrap().rows_affected() == 0 {
            return crowd;
        }
    }
}

/// A disk of a few megabytes, in memory; gone with its handle.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this process may not mount one.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs"];
        let mounted =
            Command::new("mount").args(options).arg(folder.path()).output().is_ok_and(|said| said.status.success());
        mounted.then_some(Self(folder))
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.path().join("filler")).unwrap();
        // Byte by byte in the end: not a page is left.
        for size in [1 << 16, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn give_space(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever has a file open there is about to end.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_runs_and_heals() {
    let Some(disk) = SmallDisk::mount() else {
        println!("skipped: this process may not mount a small disk");
        return;
    };
    let database = format!("sqlite://{}?mode=rwc", disk.0.path().join("test.db").display());
    let app = deployment(Shape { database: Some(database), ..Shape::of(Mode::Embedded) }).await;
    let load = Load::start(&app, PERIOD);
    sleep(Duration::from_secs(1)).await;
    disk.fill();
    let mut accepted = until_refused(&app, "database_full").await;
    sleep(Duration::from_secs(1)).await;
    disk.give_space();
    heals(&app).await;
    let posted = load.stop().await;
    assert!(posted.was_refused_with("database_full"), "{:?}", posted.refused);
    accepted.extend(posted.accepted);
    invariants::hold(&app, &accepted).await;
}
