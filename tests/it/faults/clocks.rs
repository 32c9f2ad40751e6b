//! Machines whose wall clocks are wrong, or are set while they work. No run ends early or late for it, no call is lost, and what callers
//! see is in order.
//!
//! The processes' clocks are set by a file ([`Wall`]); the tests, Redis and the database have the true time.

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    app::{App, Mode, Shape},
    eventually, invariants,
    load::new_name,
    provider::{Answer, Gate},
};

const HOUR: i64 = 3_600_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// By how much two clocks may differ that agree.
const WAY: i64 = 500;
/// Short leases are renewed often.
const CONFIG: &str = "[workers]\nslots = 8\nlease_ms = 3000\n[retry]\nbase_ms = 10\ncap_ms = 50\n";
const VARIABLE: &str = "CLOCK_SKEW_FILE";

/// The wall clock of some processes.
struct Wall(PathBuf);

impl Wall {
    /// One that is ahead by so many milliseconds, or behind.
    fn new(app: &App, name: &str, ahead: i64) -> Self {
        let wall = Self(app.folder.path().join(name));
        wall.set(ahead);
        wall
    }

    fn set(&self, ahead: i64) {
        // No process may read half of it.
        let new = self.0.with_extension("new");
        std::fs::write(&new, ahead.to_string()).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

/// A front door and a worker with clocks of their own, and one call at a time.
async fn deployment(front_door: i64, worker: i64) -> (App, Wall, Wall) {
    let shape = Shape {
        config: CONFIG.into(),
        provider: "max_concurrency = 1\n".into(),
        workers: 0,
        ..Shape::of(Mode::Distributed)
    };
    let mut app = App::shaped(shape).await;
    app.import_greeting();
    let (front, back) = (Wall::new(&app, "front.clock", front_door), Wall::new(&app, "back.clock", worker));
    app.restart_front_door_with(0, &[(VARIABLE, front.path())]);
    app.until_ready(0).await;
    app.add_worker();
    app.restart_worker_with(0, &[(VARIABLE, back.path())]);
    (app, front, back)
}

async fn embedded(ahead: i64) -> (App, Wall) {
    let shape = Shape { config: CONFIG.into(), provider: "max_concurrency = 1\n".into(), ..Shape::of(Mode::Embedded) };
    let mut app = App::shaped(shape).await;
    app.import_greeting();
    let wall = Wall::new(&app, "wall.clock", ahead);
    app.restart_front_door_with(0, &[(VARIABLE, wall.path())]);
    app.until_ready(0).await;
    (app, wall)
}

fn greeting(timeout_ms: u64) -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": new_name() }, "timeoutMs": timeout_ms })
}

async fn post_async(app: &App, timeout_ms: u64) -> String {
    let answer = app.post_with(0, &greeting(timeout_ms), &[("prefer", "respond-async")]).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.body["runId"].as_str().unwrap().to_owned()
}

fn moment(of: &Value) -> Option<i64> {
    of.as_str().map(|text| DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis())
}

/// The run has ended in this state, its moments are in order, and they are those of a clock that is ahead of the true one by so much.
fn assert_ended(run: &Value, state: &str, since: DateTime<Utc>, ahead: i64) {
    assert_eq!(run["state"], state, "{run}");
    let (created, finished) = (moment(&run["createdAt"]).unwrap(), moment(&run["finishedAt"]).unwrap());
    let mut moments = vec![since.timestamp_millis() + ahead - WAY, created];
    moments.extend(moment(&run["startedAt"]));
    moments.extend(run["attempts"].as_array().unwrap().iter().map(|attempt| moment(&attempt["startedAt"]).unwrap()));
    moments.extend([finished, Utc::now().timestamp_millis() + ahead + WAY]);
    assert!(moments.is_sorted(), "{moments:?}: {run}");
    let passed = (Utc::now() - since).num_milliseconds() + 2 * WAY;
    for duration in [&run["queueMs"], &run["durationMs"]] {
        assert!(duration.as_i64().is_some_and(|ms| ms <= passed), "{passed} ms have passed: {run}");
    }
}

/// Two runs with a timeout, of which the provider answers neither: one is in a call, the other waits for it. Both expire, and in time.
async fn two_expire(app: &App, ahead: i64) -> Vec<String> {
    const TIMEOUT: u64 = 2_000;
    let gate = Gate::new();
    app.provider().set_default(Answer::echo().held(&gate));
    let (asked, since) = (Instant::now(), Utc::now());
    let before = app.provider().requests().len();
    let called = post_async(app, TIMEOUT).await;
    app.provider().wait_for_requests(before + 1).await;
    // It outlasts the first one, which blocks it, only in its own time.
    let waits = post_async(app, TIMEOUT / 2).await;
    let waited = app.ended(0, &waits, PATIENCE).await;
    assert!(asked.elapsed() >= Duration::from_millis(TIMEOUT / 2), "{waited}");
    assert_ended(&waited, "expired", since, ahead);
    assert_eq!(waited["attempts"], json!([]), "{waited}");
    let ended = app.ended(0, &called, PATIENCE).await;
    assert!(asked.elapsed() >= Duration::from_millis(TIMEOUT), "{ended}");
    assert_ended(&ended, "expired", since, ahead);
    assert_eq!(ended["attempts"].as_array().unwrap().len(), 1, "{ended}");
    answer_again(app, &gate).await;
    vec![called, waits]
}

/// Opens the gate once the expired call has been given up: what is answered to nobody would be in no account.
async fn answer_again(app: &App, gate: &Gate) {
    app.provider().wait_until("the call was given up", |requests| requests.last().unwrap().hung_up()).await;
    gate.open();
    app.provider().set_default(Answer::echo());
}

/// Runs of every kind through processes whose clocks are wrong.
async fn check_wrong(front_door: i64, worker: i64) {
    let (app, _front, _back) = deployment(front_door, worker).await;
    let since = Utc::now();
    // Callers that wait, and one whose run fails first.
    app.provider().push(Answer::error(500, "ill"));
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = app.post_with(0, &greeting(20_000), &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        ids.push(answer.body["runId"].as_str().unwrap().to_owned());
    }
    for _ in 0..10 {
        ids.push(post_async(&app, 60_000).await);
    }
    for id in &ids {
        assert_ended(&app.ended(0, id, PATIENCE).await, "succeeded", since, 0);
    }
    let answer = app.run(0, &ids[0]).await.body;
    assert_eq!(answer["attempts"].as_array().unwrap().len(), 2, "{answer}");
    ids.extend(two_expire(&app, 0).await);
    // A caller that waits is told in time, too.
    let gate = Gate::new();
    app.provider().set_default(Answer::echo().held(&gate));
    let asked = Instant::now();
    let answer = app.post_with(0, &greeting(1_000), &[]).await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(asked.elapsed() >= Duration::from_secs(1));
    let id = answer.body["runId"].as_str().unwrap().to_owned();
    assert_ended(&app.ended(0, &id, PATIENCE).await, "expired", since, 0);
    answer_again(&app, &gate).await;
    ids.push(id);
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_wrong_by_an_hour_change_nothing() {
    tokio::join!(check_wrong(HOUR, -HOUR), check_wrong(-HOUR, HOUR));
}

/// Waits until the lease of the only owned run was renewed once more.
async fn until_renewed(app: &App) {
    let expires = || {
        let lease = app.redis.as_ref().unwrap().cli(&["ZRANGE", "{q:default}:lease", "0", "-1", "WITHSCORES"]);
        lease.lines().nth(1).map(|score| score.parse::<f64>().unwrap())
    };
    let before = expires().expect("a run has an owner");
    eventually("the lease is renewed", async || expires().expect("it keeps its owner") > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_set_while_runs_are_called_change_nothing() {
    let (app, front, back) = deployment(0, 0).await;
    let mut ids = Vec::new();
    for (ahead, behind) in [(HOUR, -HOUR), (-HOUR, HOUR)] {
        let since = Utc::now();
        let gate = Gate::new();
        app.provider().set_default(Answer::echo().held(&gate));
        let before = app.provider().requests().len();
        let called = post_async(&app, 60_000).await;
        app.provider().wait_for_requests(before + 1).await;
        let waits = post_async(&app, 60_000).await;
        front.set(ahead);
        back.set(behind);
        until_renewed(&app).await;
        gate.open();
        for id in [&called, &waits] {
            let run = app.ended(0, id, PATIENCE).await;
            assert_ended(&run, "succeeded", since, 0);
            assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "no call was lost: {run}");
        }
        ids.extend([called, waits]);
        ids.extend(two_expire(&app, 0).await);
    }
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_whose_clock_is_set_changes_nothing() {
    let (app, wall) = embedded(0).await;
    let mut ids = Vec::new();
    for ahead in [HOUR, -HOUR] {
        let since = Utc::now();
        let gate = Gate::new();
        app.provider().set_default(Answer::echo().held(&gate));
        let before = app.provider().requests().len();
        let called = post_async(&app, 60_000).await;
        app.provider().wait_for_requests(before + 1).await;
        let waits = post_async(&app, 60_000).await;
        wall.set(ahead);
        ids.extend([called.clone(), waits.clone()]);
        let late = post_async(&app, 1_000).await;
        assert_ended(&app.ended(0, &late, PATIENCE).await, "expired", since, 0);
        gate.open();
        for id in [&called, &waits] {
            assert_ended(&app.ended(0, id, PATIENCE).await, "succeeded", since, 0);
        }
        ids.push(late);
        ids.extend(two_expire(&app, 0).await);
    }
    invariants::hold(&app, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_while_a_server_was_down_holds_no_run_up() {
    let (mut app, wall) = embedded(0).await;
    let gate = Gate::new();
    // One call is in the ledger, under a fence of the clock as it was.
    app.provider().push(Answer::error(500, "ill"));
    app.provider().set_default(Answer::echo().held(&gate));
    let id = post_async(&app, 60_000).await;
    app.provider().wait_for_requests(2).await;
    app.front_doors[0].kill();
    wall.set(-HOUR);
    let path = wall.path().to_owned();
    app.restart_front_door_with(0, &[(VARIABLE, &path)]);
    app.until_ready(0).await;
    gate.open();
    invariants::all_end(&app).await;
    let run = app.run(0, &id).await.body;
    assert_eq!(run["state"], "succeeded", "{run}");
    let outcomes: Vec<_> = run["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["outcome"]).collect();
    assert_eq!(outcomes, ["provider_error", "succeeded"], "in the order in which they were made: {run}");
    let (created, finished) = (moment(&run["createdAt"]), moment(&run["finishedAt"]));
    assert!(created <= moment(&run["startedAt"]) && created <= finished, "{run}");
    app.provider().set_default(Answer::echo());
    // It goes by the clock that it began with.
    let since = Utc::now();
    let next = post_async(&app, 60_000).await;
    assert_ended(&app.ended(0, &next, PATIENCE).await, "succeeded", since, -HOUR);
}
