//! A hundred thousand runs of one account, and everybody else.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use workers::{
    job::{Fence, Lane},
    providers::Secret,
    queue::{
        Restored,
        embedded::{EmbeddedQueue, EmbeddedSettings},
        redis::{RedisQueue, RedisSettings},
    },
};

use crate::{
    conformance::{
        bench::{Bench, LONG, Spec, ids, run},
        fairness::shares,
    },
    support::{
        app::{App, Mode, Shape},
        redis::RedisServer,
    },
};

const FLOOD: usize = 100_000;

/// Puts runs in as the reconciler does: many at a time.
async fn fill(bench: &Bench, spec: &Spec, count: usize) {
    let jobs: Vec<_> =
        (0..count).map(|_| Restored { job: spec.job(), attempts: 0, limited: 0, fence: Fence(0) }).collect();
    for page in jobs.chunks(1_000) {
        bench.queue.restore(page).await.unwrap();
    }
}

/// Commands that Redis has executed, those of scripts included.
fn commands(redis: &RedisServer) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let calls = stats.lines().filter_map(|line| line.split_once("calls=")?.1.split_once(',')?.0.parse::<u64>().ok());
    calls.sum()
}

/// What one claim of one run costs, on average over some.
async fn steps(bench: &Bench, redis: &RedisServer) -> u64 {
    let before = commands(redis);
    for _ in 0..20 {
        let claim = bench.claim(1).await.remove(0);
        bench.end(&claim).await;
    }
    (commands(redis) - before) / 20
}

async fn others_are_served_beside_a_flood(bench: &Bench) {
    let stats = bench.queue.stats().await.unwrap();
    assert!(stats.lanes[0].ready >= u64::try_from(FLOOD).unwrap(), "{stats:?}");
    // One that comes first, and one that comes when the flood has been served for a while.
    for _ in 0..2 {
        let other = bench.flood(&run(), 1).await.remove(0);
        let claims = bench.claim(3).await;
        assert!(ids(&claims).contains(&other.id), "it is among the next three");
        for claim in bench.claim(50).await.iter().chain(&claims) {
            bench.end(claim).await;
        }
    }
    // Other lanes have their shares beside it.
    for lane in [Lane::Default, Lane::Batch] {
        bench.flood(&Spec { lane, ..run() }, 60).await;
    }
    let [interactive, default, batch] = shares(bench, 120).await;
    // 8 to 3 to 1, or 16 to 3 to 1 once the flood has waited for longer than its lane's patience.
    assert!((78..=98).contains(&interactive), "{interactive} of 120");
    assert!((16..=32).contains(&default), "{default} of 120");
    assert!((4..=12).contains(&batch), "{batch} of 120");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_runs_in_redis_delay_nobody_else() {
    let redis = RedisServer::start().await;
    let settings = RedisSettings { url: Secret::new(redis.url()), pool: "flood".into(), max_connections: 4 };
    let queue = RedisQueue::connect(settings).await.unwrap().with_lease(LONG);
    let bench = Bench::new(Arc::new(queue), ());
    let flood = run();
    fill(&bench, &flood, 100).await;
    let few = steps(&bench, &redis).await;
    fill(&bench, &flood, FLOOD).await;
    let many = steps(&bench, &redis).await;
    assert!(many <= few + few / 10, "a claim takes {few} commands with 100 runs and {many} with {FLOOD}");
    others_are_served_beside_a_flood(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_embedded_runs_delay_nobody_else() {
    let bench = Bench::new(Arc::new(EmbeddedQueue::new(EmbeddedSettings { lease: LONG })), ());
    fill(&bench, &run(), FLOOD).await;
    others_are_served_beside_a_flood(&bench).await;
}

/// Whole milliseconds of a moment as the API shows it.
fn moment(run: &Value, field: &str) -> i64 {
    let text = run[field].as_str().unwrap_or_else(|| panic!("{field} of {run}"));
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
}

async fn a_flood_of_one_account_delays_another_by_a_few_executions(mode: Mode) {
    const SLOTS: usize = 2;
    let config =
        format!("[workers]\nslots = {SLOTS}\n[[provider]]\nname = \"demo\"\nkind = \"demo\"\ndemo_delay_ms = 50\n");
    let app = App::shaped(Shape { config, ..Shape::of(mode) }).await;
    let prompt = "name = \"Greeting\"\nmodel = \"demo\"\ntemplate = \"Greet {{ name }}.\"\n";
    app.import_prompt(prompt);
    let other = app.account("other", &["--plan", "pro"]);
    app.import_prompt_of("other", prompt);
    let flood = app.accept(250).await;
    let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
    for _ in 0..3 {
        let answer = app.post_as(&other, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let url = format!("{}/api/v1/runs/{}", app.url(), answer.body["runId"].as_str().unwrap());
        let request = app.client().get(url).header("x-api-key", &other).send().await.unwrap();
        let run: Value = request.json().await.unwrap();
        let (came, began) = (moment(&run, "createdAt"), moment(&run, "startedAt"));
        let mut passed = 0;
        let looks = futures::future::join_all(flood.iter().map(|id| app.run(0, id))).await;
        for seen in looks {
            if seen.body["startedAt"].is_string() {
                passed += usize::from((came..began).contains(&moment(&seen.body, "startedAt")));
            }
        }
        assert!(passed <= 3 * SLOTS, "{passed} runs of the flood went first: {run}");
    }
    let looks = futures::future::join_all(flood.iter().map(|id| app.run(0, id))).await;
    assert!(looks.iter().any(|run| run.body["state"] == "queued"), "the flood was over before");
    let deadline = Duration::from_secs(60);
    for id in &flood {
        assert_eq!(app.ended(0, id, deadline).await["state"], "succeeded");
    }
}

crate::support::in_both_modes! {
    a_flood_of_one_account_delays_another_by_a_few_executions
}
