//! Limits as users meet them: a provider's across all workers, an account's and a key's across all front doors.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape},
    eventually,
    provider::{Answer as Scripted, Gate},
};

/// Two front doors and two workers where there can be two, with limits on the scripted provider.
async fn app(mode: Mode, config: &str, provider: &str) -> App {
    let shape = Shape {
        front_doors: 2,
        workers: 2,
        config: config.to_owned(),
        provider: provider.to_owned(),
        ..Shape::of(mode)
    };
    let app = App::shaped(shape).await;
    app.import_greeting();
    app
}

fn greeting() -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": "Ada" } })
}

async fn all_succeed(app: &App, ids: &[String]) {
    for id in ids {
        let run = app.ended(0, id, Duration::from_secs(60)).await;
        assert_eq!(run["state"], "succeeded", "{run}");
    }
}

/// How many of these runs are in each state, by now.
async fn count(app: &App, ids: &[String], state: &str) -> usize {
    let looks = ids.iter().map(|id| app.run(0, id));
    futures::future::join_all(looks).await.iter().filter(|answer| answer.body["state"] == state).count()
}

async fn concurrency_is_never_exceeded(mode: Mode) {
    let app = app(mode, "", "max_concurrency = 3").await;
    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let ids = app.accept(12).await;
    app.provider().wait_for_requests(3).await;
    eventually("three run and nine wait", async || {
        count(&app, &ids, "running").await == 3 && count(&app, &ids, "queued").await == 9
    })
    .await;
    gate.open();
    all_succeed(&app, &ids).await;
    assert_eq!(app.provider().max_concurrency(), 3);
    assert_eq!(app.provider().requests().len(), 12);
}

async fn requests_a_minute_are_never_exceeded(mode: Mode) {
    let app = app(mode, "", "requests_per_minute = 10").await;
    let ids = app.accept(15).await;
    eventually("ten have been called", async || count(&app, &ids, "succeeded").await == 10).await;
    // The others wait, without an error and without a slot; another provider's runs pass them.
    assert_eq!(count(&app, &ids, "queued").await, 5);
    app.import_prompt("name = \"Other\"\nmodel = \"demo\"\ntemplate = \"Hello\"\n");
    assert_eq!(app.post(&json!({ "promptName": "Other" })).await.status, 200);
    assert_eq!(app.provider().requests().len(), 10);
}

async fn tokens_a_minute_are_never_exceeded(mode: Mode) {
    // A greeting reserves 4 tokens of input and 96 of output, and turns out to use 15.
    let app = app(mode, "", "tokens_per_minute = 300").await;
    app.import_prompt(
        "name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\n[parameters]\nmax_tokens = 96\n",
    );
    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let ids = app.accept(6).await;
    eventually("as many run as have their tokens", async || {
        count(&app, &ids, "running").await == 3 && count(&app, &ids, "queued").await == 3
    })
    .await;
    gate.open();
    // What was reserved and not used is there for the others.
    all_succeed(&app, &ids).await;
}

async fn a_provider_that_says_429_is_left_alone_for_as_long_as_it_says(mode: Mode) {
    let app = app(mode, "", "").await;
    app.provider().push(Scripted::limited(2));
    let first = app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    eventually("the attempt is recorded", async || {
        !app.run(0, &first).await.body["attempts"].as_array().unwrap().is_empty()
    })
    .await;
    let second = app.post_async(0).await;
    all_succeed(&app, &[first.clone(), second]).await;
    let requests = app.provider().requests();
    assert_eq!(requests.len(), 3);
    // 2 s from the provider's answer on, which came a little later than the request.
    for later in &requests[1..] {
        assert!(later.at - requests[0].at >= Duration::from_millis(1_900), "{requests:?}");
    }
    let run = app.run(0, &first).await.body;
    assert_eq!(run["attempts"][0]["outcome"], "rate_limited", "{run}");
    assert_eq!(run["attempts"][1]["outcome"], "succeeded", "{run}");
}

fn assert_limited(answer: &Answer, rule: &str, per_minute: u32) {
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.body["code"], "rate_limited");
    assert_eq!(answer.body["retryable"], true);
    let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    assert_eq!(answer.header("ratelimit-policy").unwrap(), format!("\"{rule}\";q={per_minute};w=60"));
    assert!(answer.header("ratelimit").unwrap().starts_with(&format!("\"{rule}\";r=0;t=")), "{answer:?}");
}

async fn an_account_has_one_limit_at_all_front_doors(mode: Mode) {
    let app = app(mode, "[limits]\naccount_requests_per_minute = 5\n", "").await;
    let front_doors = app.urls().len();
    for request in 0..5 {
        let answer = app.post_with(request % front_doors, &greeting(), &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let left = format!("\"account\";r={};t=", 4 - request);
        assert!(answer.header("ratelimit").unwrap().starts_with(&left), "{answer:?}");
    }
    for front_door in 0..front_doors {
        assert_limited(&app.post_with(front_door, &greeting(), &[]).await, "account", 5);
    }
    assert_eq!(app.provider().requests().len(), 5, "a refused run is not executed");
    // Another key of the account has the same limit, another account has its own.
    let same = app.new_key("acme");
    assert_limited(&app.post_as(&same, &greeting()).await, "account", 5);
    let other = app.account("other", &["--plan", "pro"]);
    app.import_prompt_of("other", "name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\n");
    assert_eq!(app.post_as(&other, &greeting()).await.status, 200);
}

async fn a_key_has_a_limit_of_its_own(mode: Mode) {
    let app = app(mode, "[limits]\nkey_requests_per_minute = 2\n", "").await;
    for _ in 0..2 {
        assert_eq!(app.post(&greeting()).await.status, 200);
    }
    assert_limited(&app.post(&greeting()).await, "key", 2);
    let other = app.new_key("acme");
    assert_eq!(app.post_as(&other, &greeting()).await.status, 200);
}

async fn a_full_queue_refuses_and_recovers(mode: Mode) {
    let app = app(mode, "[queue]\nmax_depth = 3\n", "max_concurrency = 1").await;
    let gate = Gate::new();
    app.provider().set_default(Scripted::echo().held(&gate));
    let first = app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    let mut ids = app.accept(3).await;
    ids.push(first);
    let refused = app.post_with(0, &greeting(), &[("prefer", "respond-async")]).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.body["code"], "queue_full");
    assert!(refused.header("retry-after").is_some());
    gate.open();
    all_succeed(&app, &ids).await;
    assert_eq!(app.post(&greeting()).await.status, 200);
    assert_eq!(app.provider().requests().len(), 5, "the refused run was not executed");
}

crate::support::in_both_modes! {
    concurrency_is_never_exceeded
    requests_a_minute_are_never_exceeded
    tokens_a_minute_are_never_exceeded
    a_provider_that_says_429_is_left_alone_for_as_long_as_it_says
    an_account_has_one_limit_at_all_front_doors
    a_key_has_a_limit_of_its_own
    a_full_queue_refuses_and_recovers
}
