//! The ways to Redis and to PostgreSQL fail: slow, cut, silent in one direction or both. After each fault every accepted run has
//! ended once, and the deployment is as good as new.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    app::{App, Mode, Shape},
    eventually, invariants,
    load::{Load, assert_refusal},
    provider::{Answer, Gate},
    proxy::Direction,
};

/// One greeting every so often, with calls that take a fifth of a second and six at a time: about half of what it can do.
pub const PERIOD: Duration = Duration::from_millis(60);
const CALL: Duration = Duration::from_millis(200);

pub async fn deployment(shape: Shape) -> App {
    let shape = Shape {
        front_doors: 2,
        workers: 2,
        config: "[workers]\nslots = 8\n".into(),
        provider: "max_concurrency = 6\n".into(),
        ..shape
    };
    let app = App::shaped(shape).await;
    app.import_greeting();
    app.provider().set_default(Answer::echo().delay(CALL));
    app
}

async fn behind_redis_proxy() -> App {
    deployment(Shape { redis_proxy: true, ..Shape::of(Mode::Distributed) }).await
}

/// A fault for a while, under load; then it is healed.
pub async fn during(app: &App, fault: impl AsyncFnOnce(&App)) {
    let load = Load::start(app, PERIOD);
    sleep(Duration::from_millis(500)).await;
    fault(app).await;
    app.redis_proxy.iter().chain(&app.database_proxy).for_each(|proxy| proxy.heal());
    sleep(Duration::from_millis(500)).await;
    let posted = load.stop().await;
    assert!(!posted.accepted.is_empty());
    invariants::hold(app, &posted.accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_redis_that_are_slow_or_cut_lose_nothing() {
    let app = behind_redis_proxy().await;
    let proxy = app.redis_proxy.as_ref().unwrap();
    let redis = app.redis.as_ref().unwrap();
    during(&app, async |_| {
        proxy.delay(Duration::from_millis(200));
        sleep(Duration::from_secs(4)).await;
    })
    .await;
    during(&app, async |_| {
        for _ in 0..5 {
            proxy.cut();
            sleep(Duration::from_millis(600)).await;
        }
        proxy.refuse();
        proxy.cut();
        sleep(Duration::from_secs(2)).await;
    })
    .await;
    during(&app, async |_| {
        for _ in 0..3 {
            for kind in ["normal", "pubsub"] {
                redis.cli(&["CLIENT", "KILL", "TYPE", kind]);
                sleep(Duration::from_millis(300)).await;
            }
            redis.cli(&["FUNCTION", "FLUSH"]);
            sleep(Duration::from_millis(300)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_obeys_and_never_answers_loses_nothing() {
    let app = behind_redis_proxy().await;
    let proxy = app.redis_proxy.as_ref().unwrap();
    for direction in [Direction::Answer, Direction::Request] {
        during(&app, async |_| {
            proxy.half_close(direction);
            sleep(Duration::from_secs(5)).await;
        })
        .await;
    }
}

async fn attempts(app: &App, id: &str) -> Vec<Value> {
    app.run(0, id).await.body["attempts"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_shorter_than_a_lease_costs_no_call() {
    let app = behind_redis_proxy().await;
    let proxy = app.redis_proxy.as_ref().unwrap();
    let gate = Gate::new();
    app.provider().set_default(Answer::echo().held(&gate));
    let ids = app.accept_named(6).await;
    app.provider().wait_for_requests(6).await;
    proxy.black_hole();
    let body = json!({ "promptName": "Greeting", "variables": { "name": "nobody" } });
    let refused = app.post_with(0, &body, &[]).await;
    assert_refusal(&refused);
    assert_eq!(refused.body["code"], "queue_unreachable");
    sleep(Duration::from_secs(4)).await;
    proxy.heal();
    sleep(Duration::from_secs(1)).await;
    gate.open();
    for id in &ids {
        let run = app.ended(0, id, Duration::from_secs(30)).await;
        assert_eq!(run["state"], "succeeded", "{run}");
        assert_eq!(attempts(&app, id).await.len(), 1, "{run}");
    }
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_longer_than_a_lease_ends_calls_in_time_and_pays_for_no_result_twice() {
    let app = behind_redis_proxy().await;
    let proxy = app.redis_proxy.as_ref().unwrap();
    let (early, late) = (Gate::new(), Gate::new());
    for number in 0..6 {
        app.provider().push(Answer::echo().held(if number < 3 { &early } else { &late }));
    }
    let ids = app.accept_named(6).await;
    app.provider().wait_for_requests(6).await;
    proxy.black_hole();
    let silent = tokio::time::Instant::now();
    // Three results come while Redis is away: they go to the ledger.
    sleep(Duration::from_secs(2)).await;
    early.open();
    // The other calls are given up before anybody else may take the runs.
    app.provider()
        .wait_until("the calls are given up", |requests| {
            requests.iter().filter(|request| request.hung_up()).count() == 3
        })
        .await;
    assert!(silent.elapsed() < Duration::from_secs(15), "{:?}", silent.elapsed());
    tokio::time::sleep_until(silent + Duration::from_secs(20)).await;
    proxy.heal();
    for id in &ids {
        let run = app.ended(0, id, Duration::from_secs(60)).await;
        assert_eq!(run["state"], "succeeded", "{run}");
    }
    invariants::hold(&app, &ids).await;
    let counts = futures::future::join_all(ids.iter().map(async |id| attempts(&app, id).await.len())).await;
    assert_eq!(counts.iter().filter(|count| **count == 1).count(), 3, "{counts:?}");
    assert_eq!(counts.iter().filter(|count| **count == 2).count(), 3, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_postgres_that_are_slow_or_cut_lose_nothing() {
    let app = deployment(Shape { database_proxy: true, ..Shape::of(Mode::Distributed) }).await;
    let proxy = app.database_proxy.as_ref().unwrap();
    during(&app, async |_| {
        proxy.delay(Duration::from_millis(100));
        sleep(Duration::from_secs(3)).await;
        proxy.heal();
        for _ in 0..5 {
            proxy.cut();
            sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
    during(&app, async |app| {
        proxy.half_close(Direction::Answer);
        let body = json!({ "promptName": "Greeting", "variables": { "name": "nobody" } });
        let prefer = [("prefer", "respond-async")];
        eventually("a run that cannot be written is refused", async || {
            let answer = app.post_with(0, &body, &prefer).await;
            answer.status == 503 && answer.body["code"] == "database_unreachable"
        })
        .await;
    })
    .await;
}
