//! `queue drain`, `queue resume` and `queue dead`, beside running servers.

use std::{sync::Arc, time::Duration};

use prompt_manager::{config::DatabaseConfig, db};
use sea_orm::{ConnectionTrait, Database, Statement};
use serde_json::{Value, json};
use workers::{
    job::{Ending, Failure, Fence, Job, Outcome, UnixMillis, WIRE_VERSION},
    ledger::Ledger,
    providers::Secret,
};

use crate::{
    conformance::bench::{Spec, run},
    support::{
        app::{App, Mode, Shape},
        eventually,
        process::Process,
        provider::{Answer, Gate},
    },
};

const PATIENCE: Duration = Duration::from_secs(60);

fn greeting() -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": "Ada" } })
}

async fn assert_draining(app: &App, front_door: usize) {
    let answer = app.post_with(front_door, &greeting(), &[]).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("draining")), "{answer:?}");
    assert_eq!(answer.body["retryable"], true);
    assert!(answer.header("retry-after").is_some());
}

/// Every front door refuses, or takes, new runs within a second (and what a busy machine needs). It is asked for a prompt that is not
/// there, so that nothing is accepted: whether new runs are taken is looked at first.
async fn all_answer(app: &App, status: u16) {
    let nobody = json!({ "promptName": "Nobody" });
    tokio::time::timeout(Duration::from_secs(4), async {
        for front_door in 0..app.urls().len() {
            while app.post_with(front_door, &nobody, &[]).await.status != status {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    })
    .await
    .expect("the front doors hear of it");
}

async fn a_drain_refuses_new_runs_and_waits_for_the_accepted_ones(mode: Mode) {
    let mut app = App::shaped(Shape { front_doors: 2, ..Shape::of(mode) }).await;
    app.import_greeting();
    let gate = Gate::new();
    app.provider().set_default(Answer::echo().held(&gate));
    let ids = app.accept(4).await;

    let said = app.cli(&["queue", "drain", "--no-wait", "--json"]).json();
    assert_eq!(said, json!({ "draining": true, "left": 4 }));
    all_answer(&app, 503).await;
    for front_door in 0..app.urls().len() {
        assert_draining(&app, front_door).await;
        assert_eq!(app.run(front_door, &ids[0]).await.status, 200, "accepted runs can be looked at");
    }
    // The switch outlives the process: the first answer of its successor is a refusal.
    app.front_doors[0].kill();
    app.restart_front_door(0).await;
    assert_draining(&app, 0).await;

    let said = app.cli(&["queue", "drain", "--timeout", "0"]);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{said:?}");
    assert!(said.stderr.contains("4 runs are left"), "{said:?}");

    let mut drain = Process::start(app.folder.path(), "drain", &["queue", "drain", "--json"], app.env());
    eventually("it waits", async || drain.said().contains("waiting for 4 runs")).await;
    assert!(drain.is_running());
    gate.open();
    assert!(drain.exited(PATIENCE).success(), "{}", drain.said());
    assert!(drain.said().contains(r#"{"draining":true,"left":0}"#), "{}", drain.said());
    for id in &ids {
        assert_eq!(app.ended(0, id, Duration::ZERO).await["state"], "succeeded", "it has ended when the drain has");
    }
    assert_draining(&app, 0).await;

    assert_eq!(app.cli(&["queue", "resume"]).code, 0);
    all_answer(&app, 404).await;
    assert_eq!(app.post(&greeting()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_is_not_waited_for() {
    let app = App::shaped(Shape { workers: 0, ..Shape::of(Mode::Distributed) }).await;
    let state = || {
        let stats = app.cli(&["queue", "stats", "--json"]).json();
        (stats["paused"].clone(), stats["draining"].clone(), stats["dead"].clone())
    };
    assert_eq!(app.cli(&["queue", "pause"]).code, 0);
    assert_eq!(state(), (json!(true), json!(false), json!(0)));
    let said = app.cli(&["queue", "drain"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("resume it first"), "{said:?}");
    assert_eq!(app.cli(&["queue", "drain", "--no-wait"]).code, 0);
    assert_eq!(state(), (json!(true), json!(true), json!(0)));
    assert_eq!(app.cli(&["queue", "resume"]).code, 0);
    assert_eq!(state(), (json!(false), json!(false), json!(0)));
    let said = app.cli(&["queue", "stats"]).stdout;
    assert!(said.contains("dead 0 · new runs are taken"), "{said}");
    // Once more changes nothing, and is no line.
    assert_eq!(app.cli(&["queue", "resume"]).code, 0);
    let lines = ["queue.pause queue", "queue.drain intake", "queue.resume queue", "queue.resume intake"];
    assert_eq!(audited(&app).await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_runs_are_listed_requeued_and_discarded() {
    let mut app = App::start(Mode::Distributed).await;
    app.import_greeting();
    app.provider().set_default(Answer::hang());
    let ids = app.accept(2).await;
    app.provider().wait_for_requests(2).await;
    // Lost three times before, and now once more.
    let redis = app.redis.as_ref().unwrap();
    for id in &ids {
        // The record of a run that somebody follows is a table.
        app.follow(0, id, 0).await;
        let lose = "local run = cmsgpack.unpack(redis.call('GET', KEYS[1]))
            run.losses = '3'
            return redis.call('SET', KEYS[1], cmsgpack.pack(run))";
        assert_eq!(redis.cli(&["EVAL", lose, "1", &format!("{{q:default}}:run:{id}")]).trim(), "OK");
    }
    app.workers[0].kill();
    for id in &ids {
        redis.cli(&["ZADD", "{q:default}:lease", "XX", "0", id]);
    }
    app.provider().set_default(Answer::echo());
    app.restart_worker(0);
    for id in &ids {
        let run = app.ended(0, id, PATIENCE).await;
        assert_eq!((&run["state"], &run["code"]), (&json!("failed"), &json!("poison")), "{run}");
    }
    let dead = app.cli(&["queue", "dead", "list", "--json"]).json();
    let listed: Vec<_> = dead.as_array().unwrap().iter().map(|run| run["runId"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| listed.contains(&id.as_str())) && listed.len() == 2, "{dead}");
    assert_eq!((&dead[0]["account"], &dead[0]["promptName"]), (&json!("acme"), &json!("Greeting")), "{dead}");
    assert_eq!(app.cli(&["queue", "stats", "--json"]).json()["dead"], 2);
    assert!(app.cli(&["queue", "dead", "list"]).stdout.contains("Greeting v1"));

    let said = app.cli(&["queue", "dead", "requeue", &ids[0], "--json"]).json();
    assert_eq!(said["requeuedFrom"], ids[0].as_str());
    let new = said["runId"].as_str().unwrap();
    let run = app.ended(0, new, PATIENCE).await;
    assert_eq!((&run["state"], &run["output"]), (&json!("succeeded"), &json!("Greet Ada.")), "{run}");
    assert_eq!(run["requeuedFrom"], ids[0].as_str(), "{run}");
    // Its history stays as it was, and it is looked after once.
    assert_eq!(app.run(0, &ids[0]).await.body["code"], "poison");
    let again = app.cli(&["queue", "dead", "requeue", &ids[0]]);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("is not dead, or was looked after before"), "{again:?}");

    assert_eq!(app.cli(&["queue", "dead", "discard", &ids[1], "--json"]).json(), json!({ "discarded": ids[1] }));
    assert_eq!(app.cli(&["queue", "dead", "list", "--json"]).json(), json!([]));
    for verb in ["requeue", "discard"] {
        assert_eq!(app.cli(&["queue", "dead", verb, &ids[1]]).code, 1);
        assert_eq!(app.cli(&["queue", "dead", verb, new]).code, 1, "a run that is alive is not touched");
        assert_eq!(app.cli(&["queue", "dead", verb, "x"]).code, 2);
    }
    assert_eq!(app.run(0, &ids[1]).await.body["state"], "failed");
    let lines = [format!("queue.dead.requeue {}", ids[0]), format!("queue.dead.discard {}", ids[1])];
    assert_eq!(audited(&app).await, lines);
}

/// What operators did to the queue, and to what, in this order.
async fn audited(app: &App) -> Vec<String> {
    let database = Database::connect(&app.database).await.unwrap();
    let sql = "SELECT action || ' ' || subject AS line FROM audit_log WHERE action LIKE 'queue.%' ORDER BY at, id";
    let lines = database.query_all_raw(Statement::from_string(database.get_database_backend(), sql)).await.unwrap();
    database.close().await.unwrap();
    lines.iter().map(|line| line.try_get("", "line").unwrap()).collect()
}

/// The server finds the new run when it compares its queue with the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_run_is_requeued_beside_an_embedded_server() {
    let app = App::start(Mode::Embedded).await;
    let accounts = app.cli(&["account", "list", "--json"]).json();
    let acme = accounts.as_array().unwrap().iter().find(|account| account["name"] == "acme").unwrap();
    let account = acme["id"].as_str().unwrap().parse().unwrap();
    let job = Spec { account, scopes: vec!["demo"], ..run() }.job();
    let url = &app.env().iter().find(|(name, _)| name == "PROMPT_MANAGER_DATABASE_URL").unwrap().1;
    let config =
        DatabaseConfig { url: Secret::new(url.clone()), max_connections: 2, connect_timeout: Duration::from_secs(5) };
    let database = db::connect(&config).await.unwrap();
    Ledger::new(database.clone()).finish(&[(job.clone(), Arc::new(poisoned(&job)))]).await.unwrap();
    database.close().await.unwrap();

    let said = app.cli(&["queue", "dead", "requeue", &job.id.to_string(), "--json"]).json();
    let run = app.ended(0, said["runId"].as_str().unwrap(), PATIENCE).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(app.run(0, &job.id.to_string()).await.body["code"], "poison");
}

fn poisoned(job: &Job) -> Ending {
    let failure = Failure { code: "poison".into(), message: "It was lost too often".into(), retryable: false };
    Ending {
        v: WIRE_VERSION,
        run: job.id,
        fence: Fence(1),
        outcome: Outcome::Failed(failure),
        model: "demo".into(),
        started_at: None,
        finished_at: UnixMillis::now(),
        queue_ms: 0,
        attempt: None,
        cache: None,
    }
}

crate::support::in_both_modes! {
    a_drain_refuses_new_runs_and_waits_for_the_accepted_ones
}
