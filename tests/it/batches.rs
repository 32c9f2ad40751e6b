//! Batches: every line a run, once, in order, whatever dies meanwhile, and never in anybody's way.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::StreamExt;
use reqwest::{Body, RequestBuilder};
use sea_orm::{ConnectionTrait, Database, Statement, TryGetable, prelude::Uuid};
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    eventually, invariants,
    provider::{Answer as Scripted, Gate},
};

async fn app(mode: Mode) -> App {
    configured(mode, "").await
}

async fn configured(mode: Mode, config: &str) -> App {
    let config = config.to_owned();
    let app = App::shaped(Shape { front_doors: 2, config, ..Shape::of(mode) }).await;
    app.import_greeting();
    app
}

fn line(name: &str) -> String {
    json!({ "promptName": "Greeting", "variables": { "name": name } }).to_string()
}

fn lines(prefix: &str, count: usize) -> String {
    (0..count).map(|number| line(&format!("{prefix}-{number}")) + "\n").collect()
}

fn request(app: &App, front_door: usize) -> RequestBuilder {
    client()
        .post(format!("{}/api/v1/batches", app.urls()[front_door]))
        .header("x-api-key", app.key())
        .header("content-type", "application/x-ndjson")
}

async fn post(app: &App, front_door: usize, body: impl Into<Body>) -> Answer {
    Answer::of(request(app, front_door).body(body).send().await.unwrap()).await
}

/// Posts a batch that is accepted; answers with its id.
async fn accepted(app: &App, body: impl Into<Body>) -> String {
    let answer = post(app, 0, body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.body["batchId"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), Some(format!("/api/v1/batches/{id}").as_str()));
    id
}

/// The last front door: in embedded mode the only one.
fn last(app: &App) -> usize {
    app.urls().len() - 1
}

async fn get(app: &App, front_door: usize, path: &str) -> reqwest::Response {
    let url = format!("{}/api/v1/batches/{path}", app.urls()[front_door]);
    client().get(url).header("x-api-key", app.key()).send().await.unwrap()
}

async fn progress(app: &App, front_door: usize, id: &str) -> Value {
    let answer = Answer::of(get(app, front_door, id).await).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let count = |name: &str| answer.body[name].as_u64().unwrap();
    let parts = ["queued", "running", "succeeded", "failed", "cancelled"];
    assert_eq!(parts.into_iter().map(count).sum::<u64>(), count("total"), "{answer:?}");
    answer.body
}

/// Waits for the end of a batch.
async fn finished(app: &App, front_door: usize, id: &str) -> Value {
    eventually("the batch has finished", async || progress(app, front_door, id).await["finishedAt"].is_string()).await;
    progress(app, front_door, id).await
}

async fn results(app: &App, front_door: usize, path: &str) -> Vec<Value> {
    let response = get(app, front_door, path).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    response.text().await.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn all_results(app: &App, front_door: usize, id: &str) -> Vec<Value> {
    results(app, front_door, &format!("{id}/results")).await
}

async fn cancel(app: &App, front_door: usize, id: &str) -> Answer {
    let url = format!("{}/api/v1/batches/{id}/cancel", app.urls()[front_door]);
    Answer::of(client().post(url).header("x-api-key", app.key()).send().await.unwrap()).await
}

/// How many times each text was sent to the provider.
fn calls(app: &App) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for request in app.provider().requests() {
        *calls.entry(request.user_text().to_owned()).or_default() += 1;
    }
    calls
}

async fn count(app: &App, table: &str) -> i64 {
    value(app, &format!("SELECT COUNT(*) AS value FROM {table}")).await
}

/// What is in the database, by a select of one `value`.
async fn value<T: TryGetable>(app: &App, select: &str) -> T {
    let db = Database::connect(&app.database).await.unwrap();
    let select = Statement::from_string(db.get_database_backend(), select);
    let value = db.query_one_raw(select).await.unwrap().unwrap().try_get("", "value").unwrap();
    db.close().await.unwrap();
    value
}

async fn leaves_nothing(app: &App) {
    eventually("nothing of the upload is left", async || {
        count(app, "batches").await == 0 && count(app, "batch_lines").await == 0
    })
    .await;
    assert_eq!(count(app, "runs").await, 0);
}

async fn good_and_bad_lines_each_end_in_their_own_way(mode: Mode) {
    let app = app(mode).await;
    let bad: BTreeMap<usize, (&str, &str)> = BTreeMap::from([
        (3, ("{\"promptName\": ", "invalid_json")),
        (4, ("[]", "invalid_request")),
        (50, (r#"{"promptName":"Greeting","variables":{}}"#, "missing_variables")),
        (51, (r#"{"promptName":"Nobody"}"#, "prompt_not_found")),
        (52, (r#"{"promptName":"Greeting","version":9,"variables":{"name":"a"}}"#, "version_not_found")),
        (53, (r#"{"promptName":"Greeting","nonsense":1}"#, "invalid_request")),
        (54, (r#"{"promptName":"Greeting","variables":{"name":"a"},"stream":true}"#, "invalid_request")),
        (55, (r#"{"promptName":"Greeting","variables":{"name":"a"},"timeoutMs":99999999}"#, "invalid_request")),
        (299, ("nonsense", "invalid_json")),
    ]);
    let mut body = String::from("\n");
    for number in 0..300 {
        let good = json!({
            "promptName": "Greeting", "variables": { "name": format!("n-{number}") }, "priority": "interactive",
            "onDisconnect": "cancel", "metadata": { "number": number.to_string() },
        });
        body += &bad.get(&number).map_or_else(|| good.to_string(), |(line, _)| (*line).to_owned());
        body += if number % 2 == 0 { "\n" } else { "\r\n" };
    }
    let id = accepted(&app, body.trim_end().to_owned()).await;
    let end = finished(&app, last(&app), &id).await;
    let counts = (&end["state"], &end["total"], &end["succeeded"], &end["failed"], &end["cancelled"]);
    assert_eq!(counts, (&json!("completed"), &json!(300), &json!(291), &json!(9), &json!(0)), "{end}");
    let results = all_results(&app, last(&app), &id).await;
    assert_eq!(results.len(), 300);
    for (index, result) in results.iter().enumerate() {
        assert_eq!((&result["index"], &result["line"]), (&json!(index), &json!(index + 2)), "{result}");
        if let Some((_, code)) = bad.get(&index) {
            assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!(code)), "{result}");
            assert_eq!(result["runId"], Value::Null, "{result}");
            let error = result["error"].as_str().unwrap();
            assert!(!error.is_empty() && result["output"].is_null());
            let is_malformed = ["invalid_json"].contains(code);
            assert!(!is_malformed || error.contains(&format!("Line {}", index + 2)), "{error}");
            continue;
        }
        assert_eq!((&result["success"], &result["state"]), (&json!(true), &json!("succeeded")), "{result}");
        assert_eq!(result["output"], format!("Greet n-{index}."));
        assert_eq!(result["metadata"]["number"], index.to_string());
        let run = app.run(index % app.urls().len(), result["runId"].as_str().unwrap()).await;
        assert_eq!((&run.body["state"], &run.body["priority"]), (&json!("succeeded"), &json!("batch")), "{run:?}");
    }
    assert!(calls(&app).len() == 291 && calls(&app).values().all(|calls| *calls == 1));
    assert_eq!(self::results(&app, 0, &format!("{id}/results?after=297")).await, results[298..]);
    assert_eq!(self::results(&app, 0, &format!("{id}/results?after=299")).await, [] as [Value; 0]);
    let again = cancel(&app, 0, &id).await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("batch_already_completed")));
    invariants::hold(&app, &[]).await;
}

async fn what_has_ended_is_there_while_the_batch_runs(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::text("late").held(&gate));
    let id = accepted(&app, lines("w", 5)).await;
    eventually("four have ended", async || progress(&app, last(&app), &id).await["succeeded"] == 4).await;
    let now = progress(&app, 0, &id).await;
    assert_eq!((&now["state"], &now["running"], &now["queued"]), (&json!("running"), &json!(1), &json!(0)), "{now}");
    assert!(now["finishedAt"].is_null());
    let before = all_results(&app, last(&app), &id).await;
    assert_eq!(before.len(), 4);
    assert!(before.is_sorted_by_key(|result| result["index"].as_u64().unwrap()));
    gate.open();
    finished(&app, 0, &id).await;
    let after = all_results(&app, 0, &id).await;
    let indexes: Vec<u64> = after.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4]);
    assert!(before.iter().all(|result| after.contains(result)));
}

async fn a_cancelled_batch_ends_what_waits_and_what_runs(mode: Mode) {
    let app = configured(mode, "[batches]\nmax_in_flight = 20\n[workers]\nslots = 4\n").await;
    let gate = Gate::new();
    for _ in 0..10 {
        app.provider().push(Scripted::text("first"));
    }
    app.provider().set_default(Scripted::text("late").held(&gate));
    let id = accepted(&app, lines("c", 12_000)).await;
    eventually("some have ended", async || progress(&app, 0, &id).await["succeeded"] == 10).await;
    app.provider().wait_for_requests(14).await;
    let answer = cancel(&app, last(&app), &id).await;
    assert_eq!((answer.status, &answer.body["state"]), (202, &json!("cancelled")), "{answer:?}");
    let again = cancel(&app, 0, &id).await;
    assert!(again.status < 300 && again.body["state"] == "cancelled", "{again:?}");
    let end = finished(&app, 0, &id).await;
    let counts = (&end["state"], &end["succeeded"], &end["failed"], &end["cancelled"]);
    assert_eq!(counts, (&json!("cancelled"), &json!(10), &json!(0), &json!(11_990)), "{end}");
    assert_eq!(cancel(&app, 0, &id).await.status, 200);
    let results = all_results(&app, 0, &id).await;
    assert_eq!(results.len(), 12_000);
    let code = |result: &Value| result["code"].as_str().unwrap_or("none").to_owned();
    assert_eq!(results.iter().filter(|result| code(result) == "run_cancelled").count(), 11_990);
    // A slot that a cancelled call leaves may be taken by another run that is cancelled a moment later; but only by one that was handed out.
    let called = app.provider().requests().len();
    assert!(called <= 30, "{called} calls: lines were handed out after the cancellation");
    gate.open();
    app.provider().set_default(Scripted::echo());
    invariants::hold(&app, &[]).await;
}

async fn refused_bodies_leave_nothing(mode: Mode) {
    let app = configured(mode, "[batches]\nmax_lines = 2500\n[server]\nmax_body_bytes = 5000\n").await;
    let check = async |body: String, status: u16, code: &str| {
        let answer = post(&app, 0, body).await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (status, Some(code)), "{answer:?}");
        leaves_nothing(&app).await;
    };
    check(lines("a", 2501), 413, "batch_too_large").await;
    check(lines("a", 2000) + &line(&"x".repeat(5000)) + "\n" + &lines("b", 10), 413, "body_too_large").await;
    check(String::new(), 400, "invalid_request").await;
    check("\n \n\r\n".to_owned(), 400, "invalid_request").await;
    let typed = async |content_type: &str| {
        let request = client().post(format!("{}/api/v1/batches", app.url())).header("x-api-key", app.key());
        request.header("content-type", content_type).body(lines("t", 1)).send().await.unwrap().status().as_u16()
    };
    assert_eq!((typed("application/json").await, typed("text/plain").await), (415, 415));
    let plan = request(&app, 0).header("x-api-key", "").body(lines("a", 1)).send().await.unwrap();
    assert_eq!(plan.status(), 401);
    leaves_nothing(&app).await;
    assert_eq!(typed("application/jsonl; charset=utf-8").await, 202);
}

async fn an_upload_that_breaks_off_leaves_nothing(mode: Mode) {
    let app = app(mode).await;
    let pieces = (0..6).map(|piece| lines(&format!("p{piece}"), 1000));
    let broken = std::iter::once(Err(std::io::Error::other("gone")));
    let (stored, held) = (Gate::new(), Gate::new());
    let gates = (stored.clone(), held.clone());
    let body = futures::stream::iter(pieces.map(Ok).chain(broken)).enumerate().then(move |(number, piece)| {
        let (stored, held) = gates.clone();
        async move {
            if number == 6 {
                held.open();
                stored.opened().await;
            }
            piece
        }
    });
    let upload = tokio::spawn(request(&app, 0).body(Body::wrap_stream(body)).send());
    held.opened().await;
    eventually("half of it is stored", async || count(&app, "batch_lines").await >= 5_000).await;
    assert_eq!(count(&app, "runs").await, 0, "nothing runs before the end");
    stored.open();
    assert!(upload.await.unwrap().is_err());
    leaves_nothing(&app).await;
}

async fn batches_belong_to_their_account(mode: Mode) {
    let app = app(mode).await;
    let id = accepted(&app, lines("a", 3)).await;
    finished(&app, 0, &id).await;
    let other = app.account("other", &["--plan", "pro"]);
    let url = format!("{}/api/v1/batches", app.url());
    for path in [id.clone(), format!("{id}/results"), "nonsense".to_owned()] {
        let answer = client().get(format!("{url}/{path}")).header("x-api-key", &other).send().await.unwrap();
        let answer = Answer::of(answer).await;
        assert_eq!((answer.status, &answer.body["code"]), (404, &json!("batch_not_found")));
    }
    let answer = client().post(format!("{url}/{id}/cancel")).header("x-api-key", &other).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    let free = client().post(&url).header("x-api-key", app.free_key()).header("content-type", "application/jsonl");
    assert_eq!(free.body(lines("f", 1)).send().await.unwrap().status(), 403);
}

async fn an_interactive_run_does_not_wait_for_a_batch(mode: Mode) {
    let app = configured(mode, "[workers]\nslots = 8\n").await;
    app.provider().set_default(Scripted::echo().delay(Duration::from_millis(20)));
    let id = accepted(&app, lines("b", 5_000)).await;
    eventually("the batch is on its way", async || progress(&app, 0, &id).await["succeeded"].as_u64().unwrap() > 50)
        .await;
    for number in 0..5 {
        let asked = Instant::now();
        let body = json!({ "promptName": "Greeting", "variables": { "name": format!("me-{number}") } });
        assert_eq!(app.post_with(last(&app), &body, &[]).await.status, 200);
        assert!(asked.elapsed() < Duration::from_secs(3), "an interactive run waited {:?}", asked.elapsed());
    }
    let now = progress(&app, 0, &id).await;
    assert!(now["succeeded"].as_u64().unwrap() < 4_000, "the batch was too short to be in the way: {now}");
    cancel(&app, 0, &id).await;
    finished(&app, 0, &id).await;
}

async fn lines_wait_for_the_rate_limit_and_leave_half_of_it(mode: Mode) {
    let app = configured(mode, "[limits]\naccount_requests_per_minute = 10\n").await;
    let id = accepted(&app, lines("r", 12)).await;
    eventually("half of the limit is used", async || progress(&app, 0, &id).await["succeeded"] == 5).await;
    for number in 0..5 {
        let body = json!({ "promptName": "Greeting", "variables": { "name": format!("me-{number}") } });
        assert_eq!(app.post(&body).await.status, 200, "the other half is left to others");
    }
    let now = progress(&app, 0, &id).await;
    assert_eq!((&now["failed"], &now["queued"]), (&json!(0), &json!(7)), "{now}");
    let revoked = app.cli(&["key", "list", "--account", "acme", "--json"]).json();
    let keys = revoked.as_array().unwrap_or_else(|| revoked["keys"].as_array().unwrap());
    assert_eq!(app.cli(&["key", "revoke", keys[0]["id"].as_str().unwrap()]).code, 0);
    let key = app.new_key("acme");
    eventually("the rest goes with its key", async || {
        let url = format!("{}/api/v1/batches/{id}", app.url());
        let answer = client().get(url).header("x-api-key", &key).send().await.unwrap();
        Answer::of(answer).await.body["failed"] == 7
    })
    .await;
}

crate::support::in_both_modes! {
    good_and_bad_lines_each_end_in_their_own_way
    what_has_ended_is_there_while_the_batch_runs
    a_cancelled_batch_ends_what_waits_and_what_runs
    who_feeds_keeps_the_batch_while_its_last_runs_go_on
    refused_bodies_leave_nothing
    an_upload_that_breaks_off_leaves_nothing
    batches_belong_to_their_account
    an_interactive_run_does_not_wait_for_a_batch
    lines_wait_for_the_rate_limit_and_leave_half_of_it
}

/// Nobody else takes up a batch while its runs take their time.
async fn who_feeds_keeps_the_batch_while_its_last_runs_go_on(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let id = accepted(&app, lines("h", 2)).await;
    app.provider().wait_for_requests(2).await;
    let claim = async || -> (i64, Uuid) {
        let until = value(&app, "SELECT claimed_until AS value FROM batches").await;
        (until, value(&app, "SELECT claimed_by AS value FROM batches").await)
    };
    let (until, owner) = claim().await;
    eventually("the claim is renewed", async || claim().await.0 > until).await;
    assert_eq!(claim().await.1, owner);
    gate.open();
    each_ran_once(&app, 0, &id, 2).await;
}

/// All lines of a batch have run, each once.
async fn each_ran_once(app: &App, front_door: usize, id: &str, total: usize) {
    let end = finished(app, front_door, id).await;
    assert_eq!((&end["state"], &end["succeeded"]), (&json!("completed"), &json!(total)), "{end}");
    let results = all_results(app, front_door, id).await;
    assert!(results.len() == total && results.iter().enumerate().all(|(index, result)| result["index"] == index));
    let calls = calls(app);
    assert!(calls.len() == total && calls.values().all(|calls| *calls == 1), "each line is called for once");
    assert_eq!(count(app, "runs").await, i64::try_from(total).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_front_door_goes_on_when_the_one_that_feeds_is_killed() {
    let mut app = configured(Mode::Distributed, "[batches]\nmax_in_flight = 40\n").await;
    app.provider().set_default(Scripted::echo().delay(Duration::from_millis(50)));
    let id = accepted(&app, lines("k", 2_000)).await;
    for killed in 0..2 {
        let seen = progress(&app, 0, &id).await["succeeded"].as_u64().unwrap();
        eventually("the batch moves", async || {
            progress(&app, 0, &id).await["succeeded"].as_u64().unwrap() > seen + 100
        })
        .await;
        // Nobody knows from outside who feeds it, so each is killed once.
        app.front_doors[killed].kill();
        let other = 1 - killed;
        let seen = progress(&app, other, &id).await["succeeded"].as_u64().unwrap();
        eventually("the other one goes on", async || {
            progress(&app, other, &id).await["succeeded"].as_u64().unwrap() > seen + 100
        })
        .await;
        app.restart_front_door(killed).await;
    }
    each_ran_once(&app, 0, &id, 2_000).await;
    let accepted: Vec<String> = Vec::new();
    invariants::hold(&app, &accepted).await;
}

/// The front door that feeds dies between any two steps of a line; what it began is repeated under the same ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_feeder_may_die_at_every_step_of_a_line() {
    for step in ["insert.before", "insert.after", "enqueue.after"] {
        let mut app = app(Mode::Distributed).await;
        app.front_doors[1].kill();
        app.restart_front_door_with(0, &[("FAIL_POINTS", &format!("{step}=abort@100"))]);
        app.until_ready(0).await;
        let id = accepted(&app, lines("d", 300)).await;
        app.front_doors[0].exited(Duration::from_secs(30));
        app.restart_front_door(1).await;
        each_ran_once(&app, 1, &id, 300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_may_forget_everything_in_the_middle() {
    let app = configured(Mode::Distributed, "[batches]\nmax_in_flight = 100\n").await;
    app.provider().set_default(Scripted::echo().delay(Duration::from_millis(20)));
    let id = accepted(&app, lines("f", 1_500)).await;
    eventually("the batch is on its way", async || progress(&app, 0, &id).await["succeeded"].as_u64().unwrap() > 100)
        .await;
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    let end = finished(&app, 1, &id).await;
    assert_eq!((&end["state"], &end["succeeded"]), (&json!("completed"), &json!(1_500)), "{end}");
    assert_eq!(calls(&app).len(), 1_500);
    assert_eq!(count(&app, "runs").await, 1_500);
    invariants::hold(&app, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_goes_on_after_a_restart() {
    let mut app = configured(Mode::Embedded, "[batches]\nmax_in_flight = 50\n").await;
    app.provider().set_default(Scripted::echo().delay(Duration::from_millis(20)));
    let id = accepted(&app, lines("e", 2_000)).await;
    for more in [200, 400] {
        eventually("the batch moves", async || progress(&app, 0, &id).await["succeeded"].as_u64().unwrap() > more)
            .await;
        app.restart_front_door(0).await;
    }
    let end = finished(&app, 0, &id).await;
    assert_eq!((&end["state"], &end["succeeded"]), (&json!("completed"), &json!(2_000)), "{end}");
    let results = all_results(&app, 0, &id).await;
    assert!(results.iter().enumerate().all(|(index, result)| result["output"] == format!("Greet e-{index}.")));
    assert_eq!(count(&app, "runs").await, 2_000, "no line became two runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_takes_little_memory() {
    let app = app(Mode::Embedded).await;
    app.provider().set_default(Scripted::hang());
    let piece = |number: usize| -> String {
        let text = "x".repeat(240);
        (0..1_000).map(|line| self::line(&format!("{text}-{number}-{line}")) + "\n").collect()
    };
    let bytes = piece(0).len() * 100;
    assert!(bytes > 28_000_000, "{bytes}");
    // Warm: what the first requests allocate is not the upload's.
    let small = accepted(&app, lines("s", 10)).await;
    cancel(&app, 0, &small).await;
    let before = app.front_doors[0].resident() / 1024;
    let too_many = futures::stream::iter(
        (0..101)
            .map(move |number| Ok::<_, std::io::Error>(if number < 100 { piece(number) } else { line("one more") })),
    );
    let answer = post(&app, 0, Body::wrap_stream(too_many)).await;
    assert_eq!((answer.status, &answer.body["details"]), (413, &json!({ "maxLines": 100_000 })), "{answer:?}");
    let piece = |number: usize| -> String {
        let text = "x".repeat(240);
        (0..1_000).map(|line| self::line(&format!("{text}-{number}-{line}")) + "\n").collect()
    };
    let body = Body::wrap_stream(futures::stream::iter((0..100).map(move |n| Ok::<_, std::io::Error>(piece(n)))));
    let id = accepted(&app, body).await;
    let grown = (app.front_doors[0].resident() / 1024).saturating_sub(before) / 1024;
    // SQLite's page caches and the thousand runs that are handed out are in it, too.
    assert!(grown < 120, "200,001 lines took {grown} MiB");
    eventually("a thousand are handed out", async || count(&app, "runs").await >= 1_000).await;
    assert!(count(&app, "runs").await <= 1_100, "the queue is not flooded");
    let state = progress(&app, 0, &id).await;
    assert_eq!((&state["total"], &state["state"]), (&json!(100_000), &json!("running")), "{state}");
    let cancelled = Instant::now();
    cancel(&app, 0, &id).await;
    finished(&app, 0, &id).await;
    assert!(cancelled.elapsed() < Duration::from_secs(60));
    assert_eq!(all_results(&app, 0, &id).await.len(), 100_000);
}
