//! Runs that would be the same call share one: the result that is there, or the call that is under way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    events::{names, text},
    eventually, invariants,
    provider::{Answer as Scripted, Gate},
};

const PATIENCE: Duration = Duration::from_secs(60);
const CACHED: &str = "name = \"Cached\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\ncache_ttl_ms = 600000\n";

async fn app(mode: Mode) -> App {
    let app = App::shaped(Shape { front_doors: 2, workers: 2, ..Shape::of(mode) }).await;
    app.import_greeting();
    app.import_prompt(CACHED);
    app
}

/// A run of a prompt that shares its results.
fn greet(name: &str) -> Value {
    json!({ "promptName": "Cached", "variables": { "name": name } })
}

fn with(body: &Value, field: &str, value: impl Into<Value>) -> Value {
    let mut body = body.clone();
    body[field] = value.into();
    body
}

/// The other front door, where there is one.
fn other(app: &App) -> usize {
    app.urls().len() - 1
}

fn calls(app: &App) -> usize {
    app.provider().requests().len()
}

/// Where the result came from, by its header.
fn cache(answer: &Answer) -> Option<&str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let cache = answer.header("x-cache");
    assert_eq!(answer.body["cached"], json!(matches!(cache, Some("hit" | "joined"))), "{answer:?}");
    cache
}

/// Whether the result was there, or on its way.
fn is_shared(answer: &Answer) -> bool {
    matches!(cache(answer), Some("hit" | "joined"))
}

/// Asks until the result of an earlier run is in the ledger.
async fn until_hit(app: &App, body: &Value) -> Answer {
    for _ in 0..1_000 {
        let answer = app.post_with(other(app), body, &[]).await;
        if cache(&answer) == Some("hit") {
            return answer;
        }
        assert_eq!(cache(&answer), Some("joined"), "{answer:?}");
    }
    panic!("it never is a hit");
}

/// Accepts runs of one body for later, and returns their ids.
async fn accept(app: &App, runs: usize, body: &Value) -> Vec<String> {
    let mut ids = Vec::new();
    for run in 0..runs {
        let accepted = app.post_with(run % app.urls().len(), body, &[("prefer", "respond-async")]).await;
        assert_eq!(accepted.status, 202, "{accepted:?}");
        ids.push(accepted.body["runId"].as_str().unwrap().to_owned());
    }
    ids
}

async fn ended(app: &App, ids: &[String]) -> Vec<Value> {
    let mut runs = Vec::new();
    for id in ids {
        runs.push(app.ended(other(app), id, PATIENCE).await);
    }
    runs
}

async fn a_result_stands_for_the_next_runs(mode: Mode) {
    let app = app(mode).await;
    app.provider().set_default(Scripted::text("Hello Ada").usage(7, 3));
    let first = app.post(&greet("Ada")).await;
    assert_eq!((cache(&first), &first.body["usage"]["inputTokens"]), (Some("miss"), &json!(7)), "{first:?}");
    // It stands from the moment in which the run's row is complete.
    let second = until_hit(&app, &greet("Ada")).await;
    assert_eq!(second.body["output"], "Hello Ada");
    assert_ne!(second.body["runId"], first.body["runId"]);
    assert_eq!(second.body["usage"], json!({ "inputTokens": 0, "outputTokens": 0, "costUsd": 0 }), "{second:?}");
    assert_eq!((&second.body["model"], &second.body["finishReason"]), (&json!("gpt-4"), &json!("stop")));
    assert_eq!(second.header("x-run-id"), second.body["runId"].as_str());

    // It is a run like any other.
    let id = second.body["runId"].as_str().unwrap();
    let shown = app.run(0, id).await.body;
    assert_eq!((&shown["state"], &shown["cached"]), (&json!("succeeded"), &json!(true)), "{shown}");
    assert_eq!((&shown["attempts"], &shown["output"]), (&json!([]), &json!("Hello Ada")), "{shown}");
    assert_eq!(shown["usage"], second.body["usage"]);
    let listed = client().get(format!("{}/api/v1/runs?limit=1", app.url())).header("x-api-key", app.key());
    let listed = Answer::of(listed.send().await.unwrap()).await.body;
    assert_eq!((&listed["runs"][0]["runId"], &listed["runs"][0]["cached"]), (&json!(id), &json!(true)), "{listed}");

    // What does not wait, and what streams, is told the same.
    let later = app.post_with(0, &greet("Ada"), &[("prefer", "respond-async")]).await;
    assert_eq!((later.status, later.header("x-cache")), (202, Some("hit")), "{later:?}");
    assert_eq!((&later.body["state"], &later.body["output"]), (&json!("succeeded"), &json!("Hello Ada")));
    let mut stream = app.stream(0, &with(&greet("Ada"), "stream", true)).await;
    assert_eq!(stream.headers["x-cache"], "hit");
    let told = stream.rest().await;
    assert_eq!(names(&told), ["run.queued", "run.output_text.delta", "run.completed", "[DONE]"]);
    assert_eq!((text(&told), &told[2].data["cached"]), ("Hello Ada".to_owned(), &json!(true)));
    let mut again = app.follow(other(&app), &stream.run(), 0).await;
    assert_eq!(again.until("run.completed").await.last().unwrap().data["output"], "Hello Ada");
    assert_eq!(calls(&app), 1);
    invariants::hold(&app, &[]).await;
}

async fn only_the_same_call_is_shared(mode: Mode) {
    let app = app(mode).await;
    let ask = async |body: &Value, expect: Option<&str>| {
        let before = calls(&app);
        let answer = app.post(body).await;
        let shared = expect == Some("hit");
        assert_eq!((is_shared(&answer), calls(&app) - before), (shared, usize::from(!shared)), "{body} {answer:?}");
        assert_eq!(cache(&answer).is_some(), expect.is_some(), "{body} {answer:?}");
    };
    let ada = greet("Ada");
    ask(&ada, Some("miss")).await;
    ask(&ada, Some("hit")).await;
    ask(&greet("Grace"), Some("miss")).await;
    // Variables that the prompt does not use, and what is not part of the call, make no difference.
    ask(&with(&ada, "variables", json!({ "name": "Ada", "unused": 1 })), Some("hit")).await;
    ask(&with(&with(&ada, "metadata", json!({ "a": "b" })), "priority", "batch"), Some("hit")).await;
    // The caller decides for its own run, and only for that.
    ask(&with(&ada, "cache", false), None).await;
    ask(&with(&ada, "cache", true), Some("hit")).await;
    let plain = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
    ask(&plain, None).await;
    ask(&with(&plain, "cache", true), Some("miss")).await;
    ask(&with(&plain, "cache", true), Some("hit")).await;
    ask(&plain, None).await;
    // Another version is another call, even with the same words.
    app.import_prompt(&CACHED.replace("600000", "600001"));
    eventually("the new version is known", async || {
        app.post(&with(&ada, "cache", false)).await.header("x-prompt-version") == Some("2")
    })
    .await;
    ask(&ada, Some("miss")).await;
    ask(&with(&ada, "version", 1), Some("hit")).await;

    // Nothing crosses the border of an account.
    app.account("another", &["--plan", "pro"]);
    app.import_prompt_of("another", CACHED);
    let before = calls(&app);
    let theirs = app.post_as(&app.new_key("another"), &ada).await;
    assert_eq!((cache(&theirs), calls(&app) - before), (Some("miss"), 1));
    let bad = app.post(&with(&ada, "cache", "yes")).await;
    assert_eq!((bad.status, &bad.body["code"]), (400, &json!("invalid_request")), "{bad:?}");
}

async fn runs_under_way_share_a_call(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::text("Hello Ada").held(&gate));
    let body = greet("Ada");
    let leader = accept(&app, 1, &body).await;
    app.provider().wait_for_requests(1).await;
    let mut ids = accept(&app, 30, &body).await;
    // One that would be the same but wants a call of its own.
    let own = accept(&app, 1, &with(&body, "cache", false)).await;
    assert_eq!(ended(&app, &own).await[0]["cached"], false);

    let waiting = async {
        let mut stream = app.stream(0, &with(&body, "stream", true)).await;
        (stream.headers["x-cache"].clone(), stream.rest().await)
    };
    let open = async {
        // The caller that waits, and the stream, are runs 33 and 34.
        eventually("all have been accepted", async || {
            let url = format!("{}/api/v1/runs?limit=100", app.url());
            let list = client().get(url).header("x-api-key", app.key()).send().await.unwrap();
            Answer::of(list).await.body["runs"].as_array().unwrap().len() == 34
        })
        .await;
        gate.open();
    };
    let (answer, (head, told), ()) = tokio::join!(app.post_with(other(&app), &body, &[]), waiting, open);
    assert_eq!((cache(&answer), &answer.body["output"]), (Some("joined"), &json!("Hello Ada")), "{answer:?}");
    assert_eq!((head.to_str().unwrap(), text(&told)), ("miss", "Hello Ada".to_owned()));
    assert_eq!(told[told.len() - 2].data["cached"], true, "{told:?}");
    assert_eq!(ended(&app, &leader).await[0]["cached"], false);
    for run in ended(&app, &ids).await {
        assert_eq!((&run["state"], &run["cached"]), (&json!("succeeded"), &json!(true)), "{run}");
        assert_eq!((&run["output"], &run["attempts"]), (&json!("Hello Ada"), &json!([])), "{run}");
    }
    assert_eq!(calls(&app), 2, "one for all, and one of its own");
    ids.extend(leader);
    invariants::hold(&app, &ids).await;
}

async fn a_failed_call_is_not_shared(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::error(400, "no such thing").held(&gate));
    let leader = accept(&app, 1, &greet("Ada")).await;
    app.provider().wait_for_requests(1).await;
    let followers = accept(&app, 5, &greet("Ada")).await;
    gate.open();
    assert_eq!(ended(&app, &leader).await[0]["state"], "failed");
    let runs = ended(&app, &followers).await;
    assert!(runs.iter().all(|run| run["state"] == "succeeded"), "{runs:?}");
    // Each has a try of its own, unless the result of another one is there before it.
    let own = runs.iter().filter(|run| run["cached"] == false).count();
    assert_eq!((own >= 1, calls(&app)), (true, 1 + own), "{runs:?}");
    invariants::hold(&app, &[leader, followers].concat()).await;
}

async fn a_run_that_leaves_is_followed_by_another(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Scripted::hang());
    app.provider().set_default(Scripted::text("Hello Ada").held(&gate));
    let leader = accept(&app, 1, &greet("Ada")).await;
    app.provider().wait_for_requests(1).await;
    let followers = accept(&app, 8, &greet("Ada")).await;
    // One that waits behind another one can leave, too.
    for id in [&followers[1], &leader[0]] {
        let url = format!("{}/api/v1/runs/{id}/cancel", app.url());
        let cancelled = client().post(url).header("x-api-key", app.key()).send().await.unwrap();
        assert!(cancelled.status().is_success(), "{cancelled:?}");
        assert_eq!(app.ended(0, id, PATIENCE).await["state"], "cancelled");
    }
    app.provider().wait_for_requests(2).await;
    gate.open();
    let runs = ended(&app, &followers).await;
    let of =
        |state: &str, cached: bool| runs.iter().filter(|run| run["state"] == state && run["cached"] == cached).count();
    assert_eq!((of("succeeded", false), of("succeeded", true), of("cancelled", false)), (1, 6, 1), "{runs:?}");
    assert_eq!(calls(&app), 2);
    invariants::hold(&app, &[leader, followers].concat()).await;
}

async fn keys_and_batches_and_limits_go_with_it(mode: Mode) {
    let limits = "[limits]\nkey_requests_per_minute = 40\n".to_owned();
    let app = App::shaped(Shape { front_doors: 2, config: limits, ..Shape::of(mode) }).await;
    app.import_prompt(CACHED);
    app.post(&greet("Ada")).await;
    let first = until_hit(&app, &greet("Ada")).await;
    // A key stands for its run, wherever its result came from.
    let keyed = async |front_door| app.post_with(front_door, &greet("Ada"), &[("idempotency-key", "k")]).await;
    let (one, two) = (keyed(0).await, keyed(other(&app)).await);
    assert_eq!((cache(&one), cache(&two)), (Some("hit"), Some("hit")));
    assert_eq!((&one.body["runId"], two.header("idempotent-replayed")), (&two.body["runId"], Some("true")));
    // It counts like any other.
    let left = |answer: &Answer| {
        let limit = answer.header("ratelimit").unwrap().to_owned();
        limit.split(";r=").nth(1).unwrap().split(';').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(left(&first) - left(&one), 1);
    let lines: String = (0..10).map(|_| format!("{}\n", greet("Ada"))).collect();
    let batch = client().post(format!("{}/api/v1/batches", app.url())).header("x-api-key", app.key());
    let batch = batch.header("content-type", "application/x-ndjson").body(lines).send().await.unwrap();
    let id = Answer::of(batch).await.body["batchId"].as_str().unwrap().to_owned();
    eventually("the batch is through", async || {
        let shown = client().get(format!("{}/api/v1/batches/{id}", app.url())).header("x-api-key", app.key());
        let shown = Answer::of(shown.send().await.unwrap()).await.body;
        shown["succeeded"] == 10
    })
    .await;
    assert_eq!(calls(&app), 1);
    // Once the limit is used up, a result that is there is refused, too.
    let mut last = app.post(&greet("Ada")).await;
    for _ in 0..40 {
        if last.status == 429 {
            break;
        }
        assert_eq!(cache(&last), Some("hit"));
        last = app.post(&greet("Ada")).await;
    }
    assert_eq!((last.status, calls(&app)), (429, 1), "{last:?}");
}

crate::support::in_both_modes! {
    a_result_stands_for_the_next_runs
    only_the_same_call_is_shared
    runs_under_way_share_a_call
    a_failed_call_is_not_shared
    a_run_that_leaves_is_followed_by_another
    keys_and_batches_and_limits_go_with_it
}

/// Outputs that are not stored cannot stand for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_no_content_shares_nothing() {
    let config = "[retention]\nkeep_content = false\n".to_owned();
    let app = App::shaped(Shape { config, ..Shape::of(Mode::Embedded) }).await;
    app.import_prompt(CACHED);
    for _ in 0..2 {
        let answer = app.post(&greet("Ada")).await;
        assert_eq!(cache(&answer), None);
        app.ended(0, answer.body["runId"].as_str().unwrap(), PATIENCE).await;
    }
    let refused = app.post(&with(&greet("Ada"), "cache", true)).await;
    assert_eq!((refused.status, &refused.body["code"]), (400, &json!("not_supported")), "{refused:?}");
    assert_eq!(calls(&app), 2);
}

/// The worker of a shared call dies, Redis forgets everything, and whoever waits behind the call still ends once.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_behind_a_lost_call_ends() {
    let mut app = App::shaped(Shape { workers: 1, ..Shape::of(Mode::Distributed) }).await;
    app.import_greeting();
    app.import_prompt(CACHED);
    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let lost = accept(&app, 6, &greet("a lost worker")).await;
    app.provider().wait_for_requests(1).await;
    app.workers[0].kill();
    app.restart_worker(0);
    app.provider().wait_for_requests(2).await;
    gate.open();
    let runs = ended(&app, &lost).await;
    assert!(runs.iter().all(|run| run["state"] == "succeeded"), "{runs:?}");
    assert_eq!(runs.iter().filter(|run| run["cached"] == false).count(), 1, "{runs:?}");

    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let forgotten = accept(&app, 6, &greet("a lost memory")).await;
    app.provider().wait_for_requests(3).await;
    app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
    gate.open();
    let runs = ended(&app, &forgotten).await;
    assert!(runs.iter().all(|run| run["state"] == "succeeded"), "{runs:?}");
    invariants::hold_after_kills(&app, &[lost, forgotten].concat()).await;
}

/// The worker dies between the ledger and the queue: the result is there, and those that wait for it are told by whoever finishes the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_before_it_tells_leaves_nobody_waiting() {
    let mut app = App::shaped(Shape { workers: 1, ..Shape::of(Mode::Distributed) }).await;
    app.import_greeting();
    app.import_prompt(CACHED);
    app.restart_worker_with(0, &[("FAIL_POINTS", "finish.before=abort@1")]);
    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let ids = accept(&app, 6, &greet("Ada")).await;
    app.provider().wait_for_requests(1).await;
    gate.open();
    app.workers[0].exited(PATIENCE);
    app.restart_worker(0);
    let runs = ended(&app, &ids).await;
    assert!(runs.iter().all(|run| run["state"] == "succeeded"), "{runs:?}");
    assert_eq!(calls(&app), 1, "{runs:?}");
    invariants::hold(&app, &ids).await;
}
