//! Stores and processes that fall silent at the worst moment: nobody pays twice unseen, and whoever is told to stop stops.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape},
    postgres::PostgresServer,
    provider::{Answer, Gate},
};

/// Leases run out after 15 seconds.
const LEASE: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(90);
/// A second of grace, and ten for the last writes of each of the actors, of the engine, and of what is under way.
const STOPPED: Duration = Duration::from_secs(45);
const HASTY: &str = "[server]\ndrain_timeout_ms = 1000\n";

async fn distributed(shape: Shape) -> App {
    let app = App::shaped(shape).await;
    app.import_greeting();
    app
}

/// Holds every answer of the provider back.
fn hold(app: &App) -> Gate {
    let gate = Gate::new();
    app.provider().set_default(Answer::text("Bonjour").held(&gate));
    gate
}

/// A run in which each of the provider's requests is an attempt.
async fn ended_with_an_attempt_a_request(app: &App, id: &str) -> Value {
    let run = app.ended(0, id, PATIENCE).await;
    assert_eq!(run["attempts"].as_array().unwrap().len(), app.provider().requests().len(), "{run}");
    run
}

async fn nothing_is_leased(app: &App) {
    let deadline = Instant::now() + PATIENCE;
    while app.cli(&["queue", "stats", "--json"]).json()["running"] != 0 {
        assert!(Instant::now() < deadline, "a run is still leased");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ending_of_which_redis_never_heard_is_not_paid_for_twice() {
    let app = distributed(Shape::of(Mode::Distributed)).await;
    let gate = hold(&app);
    let id = app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    app.redis.as_ref().unwrap().pause();
    let silent = Instant::now();
    gate.open();
    let run = app.ended(0, &id, PATIENCE).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    // Until the worker's lease has run out in the memory that comes back.
    tokio::time::sleep((LEASE + Duration::from_secs(3)).saturating_sub(silent.elapsed())).await;
    app.redis.as_ref().unwrap().resume();
    nothing_is_leased(&app).await;
    assert_eq!(app.provider().requests().len(), 1, "the run had ended");
    assert_eq!(app.run(0, &id).await.body["attempts"], run["attempts"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_caller_is_answered_while_redis_is_silent() {
    let app = distributed(Shape::of(Mode::Distributed)).await;
    let gate = hold(&app);
    let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
    let (answer, ()) = tokio::join!(app.post(&body), async {
        app.provider().wait_for_requests(1).await;
        app.redis.as_ref().unwrap().pause();
        gate.open();
    });
    app.redis.as_ref().unwrap().resume();
    assert_eq!((answer.status, &answer.body["output"]), (200, &json!("Bonjour")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_redis_forgot_stays_visible() {
    let app = distributed(Shape::of(Mode::Distributed)).await;
    let gate = hold(&app);
    let id = app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    // The run comes back from the ledger and is called again; the first call is given up with the next heartbeat.
    app.provider().wait_for_requests(2).await;
    app.provider().wait_until("the end of the first call", |requests| requests[0].hung_up()).await;
    gate.open();
    let run = ended_with_an_attempt_a_request(&app, &id).await;
    assert_eq!(run["state"], "succeeded", "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_for_longer_than_its_lease_gives_its_run_up() {
    let mut app = distributed(Shape::of(Mode::Distributed)).await;
    let gate = hold(&app);
    let id = app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    app.workers[0].signal("STOP");
    app.add_worker();
    // Longer than a test waits for the provider.
    tokio::time::sleep(LEASE).await;
    app.provider().wait_for_requests(2).await;
    app.workers[0].signal("CONT");
    app.provider().wait_until("the end of the first call", |requests| requests[0].hung_up()).await;
    gate.open();
    let run = ended_with_an_attempt_a_request(&app, &id).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    nothing_is_leased(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_stops_while_redis_is_silent() {
    let mut app = distributed(Shape { config: HASTY.into(), ..Shape::of(Mode::Distributed) }).await;
    hold(&app);
    app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    app.redis.as_ref().unwrap().pause();
    app.workers[0].signal("TERM");
    assert!(app.workers[0].exited(STOPPED).success());
    app.redis.as_ref().unwrap().resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_told_to_stop_stop_while_the_database_is_silent() {
    let postgres = PostgresServer::start();
    let database = Some(postgres.database().await);
    let mut app = distributed(Shape { config: HASTY.into(), database, ..Shape::of(Mode::Distributed) }).await;
    let gate = hold(&app);
    let ids = [app.post_async(0).await, app.post_async(0).await];
    app.provider().wait_for_requests(2).await;
    postgres.pause();
    // One run ends and cannot be recorded, the other is handed back and its attempt cannot be recorded.
    app.provider().set_default(Answer::text("Bonsoir"));
    gate.open();
    app.workers[0].signal("TERM");
    app.front_doors[0].signal("TERM");
    assert!(app.workers[0].exited(STOPPED).success());
    assert!(app.front_doors[0].exited(STOPPED).success());
    postgres.resume();
    app.restart_front_door(0).await;
    app.add_worker();
    for id in &ids {
        assert_eq!(app.ended(0, id, PATIENCE).await["state"], "succeeded");
    }
    nothing_is_leased(&app).await;
    // The endings were stashed.
    assert_eq!(app.provider().requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_execution_is_handed_back_at_once_while_the_database_is_silent() {
    let postgres = PostgresServer::start();
    let database = Some(postgres.database().await);
    let mut app = distributed(Shape { config: HASTY.into(), database, ..Shape::of(Mode::Distributed) }).await;
    hold(&app);
    app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    postgres.pause();
    app.workers[0].signal("TERM");
    let ready = || app.redis.as_ref().unwrap().cli(&["KEYS", "*ready:interactive*"]);
    let deadline = Instant::now() + Duration::from_secs(8);
    while ready().trim().is_empty() {
        assert!(Instant::now() < deadline, "the run is kept from other workers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    postgres.resume();
    assert!(app.workers[0].exited(STOPPED).success());
}
