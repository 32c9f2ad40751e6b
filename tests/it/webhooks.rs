//! Webhooks: every run that names one is told of, by either mode, whatever dies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape, client, free_port},
    eventually,
    load::new_name,
    provider::{Answer as Scripted, Gate},
    receiver::{NEVER, Receiver},
};

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET_KEY: &str = "[security]\nsecret_key = \"first key of the tests\"\n";
/// Loopback is allowed, and nobody waits long.
const QUICK: &str =
    "[webhooks]\nallow = [\"127.0.0.1/32\"]\ntimeout_ms = 1000\nretry_base_ms = 50\nretry_cap_ms = 200\n";

async fn app_with(mode: Mode, config: &str) -> App {
    let app = App::shaped(Shape { front_doors: 2, config: config.to_owned(), ..Shape::of(mode) }).await;
    app.import_greeting();
    app
}

/// An app whose account has a secret.
async fn app(mode: Mode) -> (App, String) {
    let app = app_with(mode, &format!("{SECRET_KEY}{QUICK}")).await;
    let secret = secret(&app, "create");
    (app, secret)
}

fn secret(app: &App, verb: &str) -> String {
    let made = app.cli(&["webhook", "secret", verb, "--account", "acme", "--json"]);
    assert_eq!(made.code, 0, "{made:?}");
    made.json()["secret"].as_str().unwrap().to_owned()
}

fn greet(url: &str) -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": new_name() }, "webhookUrl": url })
}

async fn post_async(app: &App, front_door: usize, url: &str) -> String {
    let answer = app.post_with(front_door, &greet(url), &[("prefer", "respond-async")]).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.body["runId"].as_str().unwrap().to_owned()
}

async fn get(app: &App, key: &str, path: &str) -> Answer {
    Answer::of(client().get(format!("{}{path}", app.url())).header("x-api-key", key).send().await.unwrap()).await
}

async fn redeliver(app: &App, key: &str, id: &str) -> Answer {
    let url = format!("{}/api/v1/deliveries/{id}/redeliver", app.url());
    Answer::of(client().post(url).header("x-api-key", key).send().await.unwrap()).await
}

/// The only delivery of a run; it is there once the run has ended.
async fn delivery(app: &App, run: &str) -> Value {
    let path = format!("/api/v1/runs/{run}/deliveries");
    let look = async || get(app, &app.key(), &path).await;
    eventually("a delivery", async || look().await.body["deliveries"] != json!([])).await;
    let answer = look().await;
    assert_eq!((answer.status, answer.body["deliveries"].as_array().unwrap().len()), (200, 1), "{answer:?}");
    answer.body["deliveries"][0].clone()
}

async fn delivery_in(app: &App, run: &str, state: &str) -> Value {
    eventually(&format!("a delivery that is {state}"), async || delivery(app, run).await["state"] == state).await;
    delivery(app, run).await
}

fn attempts(delivery: &Value) -> Vec<Value> {
    delivery["attempts"].as_array().unwrap().clone()
}

async fn every_ending_is_told_once_and_signed(mode: Mode) {
    let (app, secret) = app(mode).await;
    let receiver = Receiver::start().await;
    let url = receiver.url();
    let last = app.urls().len() - 1;

    let waited = app.post(&greet(&url)).await;
    assert_eq!(waited.status, 200, "{waited:?}");
    let later = post_async(&app, last, &url).await;
    let mut streamed = greet(&url);
    streamed["stream"] = json!(true);
    let request = client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(&streamed);
    let streamed = request.send().await.unwrap();
    let streamed_id = streamed.headers()["x-run-id"].to_str().unwrap().to_owned();
    assert!(streamed.text().await.unwrap().contains("run.completed"));
    receiver.wait_for(3).await;
    app.provider().push(Scripted::error(400, "no such thing"));
    let failed = app.post(&greet(&url)).await;
    assert_eq!(failed.status, 500, "{failed:?}");
    app.provider().push(Scripted::hang());
    let before = app.provider().requests().len();
    let cancelled = post_async(&app, 0, &url).await;
    app.provider().wait_for_requests(before + 1).await;
    let cancel = client().post(format!("{}/api/v1/runs/{cancelled}/cancel", app.url())).header("x-api-key", app.key());
    assert!(cancel.send().await.unwrap().status().is_success());

    let expected = [
        (waited.body["runId"].as_str().unwrap(), "run.completed"),
        (&later, "run.completed"),
        (&streamed_id, "run.completed"),
        (failed.body["runId"].as_str().unwrap(), "run.failed"),
        (&cancelled, "run.cancelled"),
    ];
    let calls = receiver.wait_for(expected.len()).await;
    for (run, event) in expected {
        let told = delivery_in(&app, run, "delivered").await;
        assert_eq!((&told["event"], &told["url"], attempts(&told).len()), (&json!(event), &json!(url), 1), "{told}");
        assert_eq!(told["attempts"][0]["status"], 200, "{told}");
        let calls: Vec<_> = calls.iter().filter(|call| told["id"] == call.id()).collect();
        let [call] = calls.as_slice() else { panic!("{run} was told of {} times", calls.len()) };
        assert!(call.is_signed_by(&secret), "{call:?}");
        assert_eq!(call.header("content-type"), "application/json");
        let age = chrono::Utc::now().timestamp() - call.header("webhook-timestamp").parse::<i64>().unwrap();
        assert!((0..=300).contains(&age), "{call:?}");
        let body = call.json();
        assert_eq!(body["type"], event);
        assert_eq!(body["timestamp"], body["data"]["finishedAt"]);
        assert_eq!(body["data"], app.run(0, run).await.body, "the status of the run");
    }
    assert_eq!(receiver.calls().len(), expected.len());
    // A run that names no webhook is told to nobody.
    let silent = app.post_async(0).await;
    app.ended(0, &silent, PATIENCE).await;
    let told = get(&app, &app.key(), &format!("/api/v1/runs/{silent}/deliveries")).await;
    assert_eq!((told.status, &told.body["deliveries"]), (200, &json!([])));
}

async fn many_runs_are_told_of_once_each(mode: Mode) {
    let (app, _) = app(mode).await;
    let receiver = Receiver::start().await;
    let url = receiver.url();
    let posts = (0..60).map(|run| post_async(&app, run % app.urls().len(), &url));
    let runs: Vec<String> = futures::future::join_all(posts).await;
    for run in &runs {
        let told = delivery_in(&app, run, "delivered").await;
        assert_eq!(attempts(&told).len(), 1, "{told}");
    }
    let calls = receiver.calls();
    let ids: std::collections::BTreeSet<_> = calls.iter().map(|call| call.id().to_owned()).collect();
    assert_eq!((calls.len(), ids.len()), (runs.len(), runs.len()));
}

async fn what_fails_is_sent_again(mode: Mode) {
    let (app, secret) = app(mode).await;
    let receiver = Receiver::start().await;
    receiver.will_answer(&[500, 302, 404]);
    let run = post_async(&app, 0, &receiver.url()).await;
    let told = delivery_in(&app, &run, "delivered").await;
    let calls = receiver.calls();
    let statuses: Vec<_> = attempts(&told).iter().map(|attempt| attempt["status"].clone()).collect();
    assert_eq!((calls.len(), statuses), (4, vec![json!(500), json!(302), json!(404), json!(200)]));
    assert_eq!(told["attempts"][1]["error"], "redirects are not followed");
    for call in &calls {
        assert_eq!((call.path.as_str(), call.id(), &call.body), ("/hook", calls[0].id(), &calls[0].body));
        assert!(call.is_signed_by(&secret));
    }

    // Nobody listens there yet.
    let port = free_port();
    let run = post_async(&app, 0, &format!("http://127.0.0.1:{port}/hook")).await;
    eventually("two refused connections", async || attempts(&delivery(&app, &run).await).len() >= 2).await;
    let waiting = delivery(&app, &run).await;
    assert_eq!((&waiting["state"], &waiting["attempts"][0]["status"]), (&json!("pending"), &Value::Null), "{waiting}");
    assert!(waiting["attempts"][0]["error"].as_str().unwrap().starts_with("no connection: "), "{waiting}");
    assert!(waiting["nextAttemptAt"].is_string());
    let receiver = Receiver::at(([127, 0, 0, 1], port).into()).await;
    delivery_in(&app, &run, "delivered").await;
    assert_eq!(receiver.calls().len(), 1);
}

async fn a_receiver_that_is_gone_is_left_alone_until_it_is_asked_for(mode: Mode) {
    let (app, _) = app(mode).await;
    let receiver = Receiver::start().await;
    receiver.will_answer(&[410]);
    let run = post_async(&app, 0, &receiver.url()).await;
    let told = delivery_in(&app, &run, "failed").await;
    let id = told["id"].as_str().unwrap().to_owned();
    assert_eq!((attempts(&told).len(), &told["nextAttemptAt"]), (1, &Value::Null), "{told}");

    // Nobody else sees it, or touches it.
    let stranger = app.account("another", &["--plan", "pro"]);
    let looked = get(&app, &stranger, &format!("/api/v1/runs/{run}/deliveries")).await;
    assert_eq!((looked.status, &looked.body["code"]), (404, &json!("run_not_found")));
    for (key, id) in [(&stranger, id.as_str()), (&app.key(), &run), (&app.key(), "nonsense")] {
        let touched = redeliver(&app, key, id).await;
        assert_eq!((touched.status, &touched.body["code"]), (404, &json!("delivery_not_found")), "{touched:?}");
    }
    assert_eq!(delivery(&app, &run).await["state"], "failed");

    let again = redeliver(&app, &app.key(), &id).await;
    assert_eq!((again.status, &again.body["state"]), (202, &json!("pending")), "{again:?}");
    delivery_in(&app, &run, "delivered").await;
    let said = app.cli(&["webhook", "redeliver", &id]);
    assert_eq!(said.code, 0, "{said:?}");
    let calls = receiver.wait_for(3).await;
    assert!(calls.iter().all(|call| call.id() == id), "{calls:?}");
    eventually("all of it is recorded", async || attempts(&delivery(&app, &run).await).len() == 3).await;
    assert_eq!(app.cli(&["webhook", "redeliver", &run]).code, 1);
    let listed = app.cli(&["webhook", "deliveries", "--account", "acme", "--state", "delivered", "--json"]).json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!(id)));
    assert_eq!(listed[0]["attempts"][0]["status"], 410, "{listed}");
    let failed = app.cli(&["webhook", "deliveries", "--account", "acme", "--state", "failed", "--json"]).json();
    assert_eq!(failed, json!([]));
}

async fn secrets_are_replaced_without_a_gap(mode: Mode) {
    let (mut app, first) = app(mode).await;
    let receiver = Receiver::start().await;
    let again = app.cli(&["webhook", "secret", "create", "--account", "acme"]);
    assert_eq!(again.code, 1, "{again:?}");
    let second = secret(&app, "rotate");
    post_async(&app, 0, &receiver.url()).await;
    let call = receiver.wait_for(1).await.remove(0);
    assert!(call.is_signed_by(&first) && call.is_signed_by(&second) && first != second, "{call:?}");
    let listed = app.cli(&["webhook", "secret", "list", "--account", "acme", "--json"]);
    let states: Vec<_> = listed.json().as_array().unwrap().iter().map(|secret| secret["state"].clone()).collect();
    assert_eq!(states, ["overlapping", "active"]);
    assert!(!listed.stdout.contains("whsec_"), "{listed:?}");

    // The operator's key is replaced as well: the new one in front, everything sealed again, the old one away.
    let set = |app: &App, keys: &str| {
        let file = app.folder.path().join("test.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let line = text.lines().find(|line| line.starts_with("secret_key")).unwrap();
        std::fs::write(&file, text.replace(line, &format!("secret_key = \"{keys}\""))).unwrap();
    };
    set(&app, "second key");
    let unopened = app.cli(&["secrets", "rotate", "--json"]);
    let told: Value = serde_json::from_str(&unopened.stdout).unwrap();
    assert_eq!((unopened.code, &told["unopened"]), (1, &json!(2)), "{unopened:?}");
    set(&app, "second key, first key of the tests");
    let rotated = app.cli(&["secrets", "rotate", "--json"]);
    assert_eq!(
        (rotated.code, rotated.json()),
        (0, json!({ "resealed": 2, "current": 0, "unopened": 0 })),
        "{rotated:?}"
    );
    assert_eq!(app.cli(&["secrets", "rotate", "--json"]).json()["current"], 2);
    for front_door in 0..app.urls().len() {
        app.restart_front_door(front_door).await;
    }
    // Keys of the API were made with the old one, which is on the ring.
    post_async(&app, 0, &receiver.url()).await;
    assert!(receiver.wait_for(2).await[1].is_signed_by(&second));
    set(&app, "second key");
    for front_door in 0..app.urls().len() {
        app.restart_front_door(front_door).await;
    }
    let key = app.new_key("acme");
    let later = app.post_as(&key, &greet(&receiver.url())).await;
    assert_eq!(later.status, 200, "{later:?}");
    assert!(receiver.wait_for(3).await[2].is_signed_by(&second));
}

async fn a_front_door_that_dies_before_it_has_recorded_a_call_is_followed(mode: Mode) {
    let (mut app, _) = app(mode).await;
    let receiver = Receiver::start().await;
    // Only the first one lives, so that it is the one that sends.
    for other in 1..app.front_doors.len() {
        app.front_doors[other].kill();
    }
    app.restart_front_door_with(0, &[("FAIL_POINTS", "webhook.record.before=abort@1")]);
    app.until_ready(0).await;
    let run = post_async(&app, 0, &receiver.url()).await;
    receiver.wait_for(1).await;
    for front_door in 0..app.front_doors.len() {
        app.restart_front_door(front_door).await;
    }
    let told = delivery_in(&app, &run, "delivered").await;
    let calls = receiver.calls();
    let ids: Vec<_> = calls.iter().map(|call| json!(call.id())).collect();
    assert_eq!(ids, [told["id"].clone(), told["id"].clone()], "at least once, and under the same id");
    assert_eq!(calls[0].body, calls[1].body);
    assert_eq!(attempts(&told).len(), 1, "nobody could write the first one down");
}

async fn what_cannot_be_called_or_signed_is_refused(mode: Mode) {
    let app = app_with(mode, SECRET_KEY).await;
    let check = async |url: &str, code: &str, sentence: &str| {
        let refused = app.post(&greet(url)).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!(code)), "{refused:?}");
        assert!(refused.body["error"].as_str().unwrap().contains(sentence), "{refused:?}");
        refused.body["details"]["fields"][0]["field"].clone()
    };
    let missing = "has no webhook secret";
    assert_eq!(check("https://example.com/", "webhook_secret_missing", missing).await, Value::Null);
    secret(&app, "create");
    eventually("the front door knows of the secret", async || {
        app.post(&greet("https://localhost:1/")).await.status == 200
    })
    .await;
    let loopback = "must be a URL on the public Internet, not one of a loopback address";
    assert_eq!(check("https://127.0.0.1/", "invalid_request", loopback).await, "webhookUrl");
    assert_eq!(check("https://[::1]/", "invalid_request", loopback).await, "webhookUrl");
    let metadata = "not one of a link-local address";
    assert_eq!(check("https://169.254.169.254/latest/", "invalid_request", metadata).await, "webhookUrl");
    check("http://example.com/", "invalid_request", "'webhookUrl' must be an https URL, not an http one").await;
    check("https://me:pw@example.com/", "invalid_request", "without user name and password").await;

    // A name may have any address; what it has is looked at before anything is connected to.
    let receiver = Receiver::start().await;
    let run = post_async(&app, 0, &format!("https://localhost:{}/", receiver.port())).await;
    eventually("a refused call", async || !attempts(&delivery(&app, &run).await).is_empty()).await;
    let told = delivery(&app, &run).await;
    let error = "no connection: its name has no address on the public Internet";
    assert_eq!((&told["state"], &told["attempts"][0]["error"]), (&json!("pending"), &json!(error)), "{told}");
    assert!(receiver.calls().is_empty());
    // Without a key nothing can be kept.
    std::fs::write(app.folder.path().join("bare.toml"), "").unwrap();
    let bare = app.folder.path().join("bare.toml").display().to_string();
    let keyless = app.cli(&["--config", &bare, "webhook", "secret", "rotate", "--account", "acme"]);
    assert_eq!(keyless.code, 1, "{keyless:?}");
    assert!(keyless.stderr.contains("PROMPT_MANAGER_SECRET_KEY"), "{keyless:?}");
}

crate::support::in_both_modes! {
    every_ending_is_told_once_and_signed
    many_runs_are_told_of_once_each
    what_fails_is_sent_again
    a_receiver_that_is_gone_is_left_alone_until_it_is_asked_for
    secrets_are_replaced_without_a_gap
    a_front_door_that_dies_before_it_has_recorded_a_call_is_followed
    what_cannot_be_called_or_signed_is_refused
}

/// The outbox is in the database, and so is who is to be told of a run that the queue forgets.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_survives_the_loss_of_redis_s_memory() {
    let (app, secret) = app(Mode::Distributed).await;
    let receiver = Receiver::start().await;
    let gate = Gate::new();
    app.provider().push(Scripted::text("Hello").held(&gate));
    let run = post_async(&app, 0, &receiver.url()).await;
    app.provider().wait_for_requests(1).await;
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    gate.open();
    assert_eq!(app.ended(0, &run, PATIENCE).await["state"], "succeeded");
    let told = delivery_in(&app, &run, "delivered").await;
    assert_eq!(attempts(&told).len(), 1);
    assert!(receiver.calls()[0].is_signed_by(&secret));
}

/// The lease of what it was sending would last longer than anybody waits here.
#[tokio::test(flavor = "multi_thread")]
async fn a_front_door_that_drains_gives_back_what_it_cannot_end() {
    let slow = QUICK.replace("timeout_ms = 1000", "timeout_ms = 60000");
    let mut app = app_with(Mode::Distributed, &format!("{SECRET_KEY}{slow}")).await;
    app.front_doors[1].kill();
    secret(&app, "create");
    app.restart_front_door(0).await;
    let receiver = Receiver::start().await;
    receiver.will_answer(&[NEVER]);
    let run = post_async(&app, 0, &receiver.url()).await;
    receiver.wait_for(1).await;
    app.front_doors[0].signal("TERM");
    assert!(app.front_doors[0].exited(PATIENCE).success());
    app.restart_front_door(1).await;
    app.restart_front_door(0).await;
    let told = delivery_in(&app, &run, "delivered").await;
    let calls = receiver.calls();
    assert_eq!((calls.len(), calls[0].id()), (2, calls[1].id()));
    assert_eq!(attempts(&told).len(), 1, "{told}");
}
