//! Cancellation in every state that a run can be in.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    eventually,
    provider::{Answer as Scripted, Gate, Recorded},
};

/// The promise is a second; a busy machine gets some more, but less than the heartbeat that would bring it otherwise.
const SOON: Duration = Duration::from_secs(3);
/// One heartbeat, with what a busy machine needs.
const A_HEARTBEAT: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(30);

async fn app(mode: Mode, config: &str) -> App {
    let shape = Shape { config: config.to_owned(), provider: "max_concurrency = 1".into(), ..Shape::of(mode) };
    let app = App::shaped(shape).await;
    app.import_greeting();
    app
}

async fn cancel(app: &App, id: &str) -> Answer {
    let request = client().post(format!("{}/api/v1/runs/{id}/cancel", app.url())).header("x-api-key", app.key());
    Answer::of(request.send().await.unwrap()).await
}

/// A waiting run is cancelled when the answer comes, and stays so.
async fn cancels_at_once(app: &App, id: &str) {
    let answer = cancel(app, id).await;
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelled")), "{answer:?}");
    assert_eq!(app.run(0, id).await.body["state"], "cancelled");
    assert_eq!(cancel(app, id).await.status, 200, "it may be said twice");
}

/// A run in a call ends within a time, and its connection to the provider is closed.
async fn cancels_a_call(app: &App, id: &str, within: Duration) {
    let asked = Instant::now();
    let answer = cancel(app, id).await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    let run = app.ended(0, id, PATIENCE).await;
    let took = asked.elapsed();
    assert_eq!(run["state"], "cancelled", "{run}");
    assert!(took < within, "it took {took:?}");
    app.provider().wait_until("a hang-up", |requests| requests.last().is_some_and(Recorded::hung_up)).await;
    assert_eq!(cancel(app, id).await.status, 200);
}

async fn calls(app: &App, id: &str, count: usize) {
    app.provider().wait_for_requests(count).await;
    eventually("the run is shown as running", async || app.run(0, id).await.body["state"] == "running").await;
}

async fn a_run_is_cancelled_in_every_state(mode: Mode) {
    let app = app(mode, "[retry]\nbase_ms = 60000\ncap_ms = 60000\n").await;
    // Before the provider has said anything; the other one waits for its slot.
    app.provider().push(Scripted::hang());
    let first = app.post_async(0).await;
    calls(&app, &first, 1).await;
    let queued = app.post_async(0).await;
    cancels_at_once(&app, &queued).await;
    cancels_a_call(&app, &first, SOON).await;
    // In the middle of the answer.
    app.provider().push(Scripted::hang_mid_body());
    let middle = app.post_async(0).await;
    calls(&app, &middle, 2).await;
    cancels_a_call(&app, &middle, SOON).await;
    // Between two attempts.
    app.provider().push(Scripted::error(500, "ill"));
    let delayed = app.post_async(0).await;
    eventually("it waits for its next attempt", async || {
        let run = app.run(0, &delayed).await.body;
        run["state"] == "queued" && run["attempts"].as_array().unwrap().len() == 1
    })
    .await;
    cancels_at_once(&app, &delayed).await;
    assert_eq!(app.provider().requests().len(), 3, "what was cancelled is not called");
    // And nothing of all that is in the way of the next one.
    let answer = app.post(&json!({ "promptName": "Greeting", "variables": { "name": "Ada" } })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pub_sub_a_cancellation_comes_with_the_heartbeat() {
    let app = app(Mode::Distributed, "").await;
    app.provider().push(Scripted::hang());
    let id = app.post_async(0).await;
    calls(&app, &id, 1).await;
    let redis = app.redis.as_ref().unwrap();
    // The worker cannot subscribe again.
    redis.cli(&["ACL", "SETUSER", "default", "-subscribe"]);
    assert_ne!(redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).trim(), "0");
    cancels_a_call(&app, &id, A_HEARTBEAT).await;
    // Once it can, it hears at once again.
    redis.cli(&["ACL", "SETUSER", "default", "+subscribe"]);
    eventually("it subscribes", async || redis.cli(&["PUBSUB", "NUMSUB", "{q:default}:cancel"]).contains('1')).await;
    app.provider().push(Scripted::hang());
    let id = app.post_async(0).await;
    calls(&app, &id, 2).await;
    cancels_a_call(&app, &id, SOON).await;
}

/// The answer is there and cannot be written yet: it is too late to cancel, and everybody says the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_its_answer_is_not_cancelled() {
    let app = app(Mode::Distributed, "").await;
    let gate = Gate::new();
    app.provider().push(Scripted::echo().held(&gate));
    let id = app.post_async(0).await;
    calls(&app, &id, 1).await;
    let url = &app.env().iter().find(|(name, _)| name == "PROMPT_MANAGER_DATABASE_URL").unwrap().1;
    let database = Database::connect(url).await.unwrap();
    let lock = database.begin().await.unwrap();
    lock.execute_unprepared("LOCK TABLE runs IN EXCLUSIVE MODE").await.unwrap();
    gate.open();
    eventually("it has succeeded", async || app.run(0, &id).await.body["state"] == "succeeded").await;
    let row = "SELECT 1 FROM runs WHERE finished_at IS NOT NULL";
    let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, row);
    assert!(lock.query_one_raw(statement.clone()).await.unwrap().is_none(), "its row does not say so yet");
    let answer = cancel(&app, &id).await;
    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("run_already_ended")), "{answer:?}");
    lock.rollback().await.unwrap();
    eventually("the row says so", async || database.query_one_raw(statement.clone()).await.unwrap().is_some()).await;
    assert_eq!(app.run(0, &id).await.body["state"], "succeeded");
    assert_eq!(cancel(&app, &id).await.status, 409);
}

/// Who is first is the same for the caller that waits, for the one that cancels, and for ever after.
async fn a_cancellation_and_an_end_have_one_winner(mode: Mode) {
    let app = app(mode, "").await;
    let mut cancelled = 0;
    for round in 0..60_u64 {
        let gate = Gate::new();
        app.provider().push(Scripted::echo().held(&gate));
        let id = app.post_async(0).await;
        app.provider().wait_for_requests(usize::try_from(round).unwrap() + 1).await;
        // From one of them long before the other to the reverse.
        let lead = Duration::from_micros(round.abs_diff(30) * 400);
        let [end_after, cancel_after] = if round < 30 { [lead, Duration::ZERO] } else { [Duration::ZERO, lead] };
        let answer = async {
            tokio::time::sleep(end_after).await;
            gate.open();
            app.ended(0, &id, PATIENCE).await
        };
        let cancellation = async {
            tokio::time::sleep(cancel_after).await;
            cancel(&app, &id).await
        };
        let (seen, answer) = tokio::join!(answer, cancellation);
        agree(&seen, &answer);
        let last = app.run(0, &id).await.body;
        assert_eq!(last["state"], seen["state"], "an ended run does not change: {seen} {last}");
        assert_eq!(last["attempts"].as_array().unwrap().len(), 1, "{last}");
        cancelled += usize::from(last["state"] == "cancelled");
    }
    assert_eq!(app.provider().requests().len(), 60, "no call is made again");
    assert!((1..60).contains(&cancelled), "each has won: {cancelled} of 60 were cancelled");
}

fn agree(run: &Value, cancellation: &Answer) {
    match run["state"].as_str() {
        // 202: a worker was told, and had the answer already.
        Some("succeeded") => assert!(matches!(cancellation.status, 202 | 409), "{run} {cancellation:?}"),
        Some("cancelled") => assert!(matches!(cancellation.status, 200 | 202), "{run} {cancellation:?}"),
        _ => panic!("{run}"),
    }
    if cancellation.status == 200 {
        assert_eq!(cancellation.body["state"], "cancelled");
    }
}

crate::support::in_both_modes! {
    a_run_is_cancelled_in_every_state
    a_cancellation_and_an_end_have_one_winner
}
