//! What holds after every fault, seen from outside: the API, the ledger, the queue's keys and what the provider wrote down.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis::AsyncCommands;
use sea_orm::{Database, DatabaseConnection, FromQueryResult, Statement};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    app::{Answer, App},
    load::new_name,
    provider::{End, Recorded},
};

/// How long the system may take to repair what a fault left behind: leases run out (15 s), then runs are called again.
const PATIENCE: Duration = Duration::from_secs(90);
/// How soon a new run is answered by a system that has nothing else to do.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How much the way of a request to the provider may vary.
const WAY: Duration = Duration::from_secs(1);

/// Waits until the system is idle, then checks that every promise about the accepted runs was kept, and that the system is as good
/// as new. The prompt `Greeting` must be there, and the provider must answer it.
pub async fn hold(app: &App, accepted: &[String]) {
    check(app, accepted, Deaths::None).await;
}

/// As [`hold`], after workers were killed: one may have died with an answer that it had read and could not stash any more.
pub async fn hold_after_kills(app: &App, accepted: &[String]) {
    check(app, accepted, Deaths::Workers).await;
}

/// What died in the meantime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deaths {
    None,
    Workers,
}

async fn check(app: &App, accepted: &[String], deaths: Deaths) {
    let db = Database::connect(&app.database).await.unwrap();
    until_idle(app, &db).await;
    let ended = statuses(app, accepted).await;
    for (id, run) in accepted.iter().zip(&ended) {
        let state = run["state"].as_str().unwrap();
        assert!(["succeeded", "failed", "cancelled", "expired"].contains(&state), "{id}: {run}");
        let attempts = run["attempts"].as_array().unwrap();
        let are_numbered = attempts.iter().zip(1..).all(|(attempt, number)| attempt["number"] == number);
        assert!(are_numbered, "attempts are not numbered: {run}");
    }
    let books = Books::open(&db).await;
    books.check(&app.provider().requests(), deaths);
    check_limits(app);
    for front_door in 0..app.urls().len() {
        takes_the_next_run(app, front_door).await;
    }
    assert_eq!(statuses(app, accepted).await, ended, "a run changed after its end");
    db.close().await.unwrap();
}

/// Waits until every run has ended, in the ledger too: a status may come from the queue, a moment before.
pub async fn all_end(app: &App) {
    let db = Database::connect(&app.database).await.unwrap();
    until_idle(app, &db).await;
    db.close().await.unwrap();
}

async fn until_idle(app: &App, db: &DatabaseConnection) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = left_over(app, db).await;
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "not idle within {PATIENCE:?}: {left:#?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn statuses(app: &App, ids: &[String]) -> Vec<Value> {
    let mut bodies = Vec::with_capacity(ids.len());
    for (number, id) in ids.iter().enumerate() {
        let answer = app.run(number % app.urls().len(), id).await;
        assert_eq!(answer.status, 200, "an accepted run is not known: {id} {answer:?}");
        bodies.push(answer.body);
    }
    bodies
}

async fn takes_the_next_run(app: &App, front_door: usize) {
    let asked = Instant::now();
    let body = json!({ "promptName": "Greeting", "variables": { "name": new_name() } });
    let answer: Answer = app.post_with(front_door, &body, &[]).await;
    assert_eq!(answer.status, 200, "the next run: {answer:?}");
    assert!(asked.elapsed() < AT_ONCE, "the next run took {:?}", asked.elapsed());
}

/// Everything that is there only while runs are on their way.
async fn left_over(app: &App, db: &DatabaseConnection) -> Vec<String> {
    let mut left = Vec::new();
    for run in Run::all(db, "WHERE finished_at IS NULL").await {
        left.push(format!("the ledger has the run {} as {}", run.id, run.state));
    }
    if app.provider().concurrency() > 0 {
        left.push(format!("the provider is answering {} requests", app.provider().concurrency()));
    }
    if app.redis.is_none() {
        // An embedded queue cannot be looked into: a run whose ending is on its way to the ledger is known by its calls.
        let known: BTreeSet<_> =
            Run::all(db, "WHERE finished_at IS NOT NULL").await.iter().map(Run::user_text).collect();
        let unknown = app.provider().requests().into_iter().filter(|request| !known.contains(request.user_text()));
        left.extend(unknown.map(|request| format!("the ledger does not have the run of {:?}", request.user_text())));
    }
    if let Some(redis) = &app.redis {
        let client = redis::Client::open(redis.url()).unwrap();
        let mut redis = client.get_multiplexed_async_connection().await.unwrap();
        let keys: Vec<String> = redis.keys("*").await.unwrap();
        for key in keys {
            if let Some(what) = left_in_redis(&mut redis, &key).await {
                left.push(format!("Redis has {key}: {what}"));
            }
        }
    }
    left
}

/// `None` when the key may be there although no run is.
async fn left_in_redis(redis: &mut redis::aio::MultiplexedConnection, key: &str) -> Option<String> {
    let name = key.strip_prefix("{q:default}:").unwrap_or_else(|| panic!("a key outside of the pool: {key}"));
    let ttl: i64 = redis.pttl(key).await.unwrap();
    let expires = |what: &str| (ttl == -1).then(|| format!("{what} without a time to live"));
    match name.split(':').next().unwrap() {
        "run" => {
            let record: Option<Vec<u8>> = redis.get(key).await.unwrap();
            record.map(|record| String::from_utf8_lossy(&record).into_owned())
        }
        "done" => expires("a tombstone"),
        "meta" => {
            let bytes: i64 = redis.hget::<_, _, Option<i64>>(key, "bytes").await.unwrap().unwrap_or_default();
            (bytes != 0).then(|| format!("{bytes} bytes are counted as waiting"))
        }
        "requests" | "calls" | "tokens" | "amounts" => expires("a minute's window"),
        "events" => expires("the log of a run that has ended"),
        "idle" | "wake" => expires("a worker's key"),
        "paused" | "forgot" => expires("a pause"),
        "room" | "room_until" | "virtual" | "scopes" | "epoch" => None,
        "swept" => expires("a comparison with the ledger"),
        _ if ttl == -2 => None,
        _ => Some("a part of a run that has ended".to_owned()),
    }
}

fn check_limits(app: &App) {
    let limit = |name: &str| {
        let limit = app.provider_limits.get(name).and_then(toml::Value::as_integer);
        limit.map(|limit| usize::try_from(limit).unwrap())
    };
    if let Some(limit) = limit("max_concurrency") {
        let most = app.provider().max_concurrency();
        assert!(most <= limit, "{most} calls at a time, and {limit} are allowed");
    }
    if let Some(limit) = limit("requests_per_minute") {
        let mut moments: Vec<_> = app.provider().requests().iter().map(|request| request.at).collect();
        moments.sort_unstable();
        for window in moments.windows(limit + 1) {
            let took = window[limit] - window[0];
            assert!(took + WAY >= Duration::from_secs(60), "{} requests within {took:?}", limit + 1);
        }
    }
}

#[derive(Debug, FromQueryResult)]
struct Run {
    id: String,
    state: String,
    input: Option<String>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cost_nano_usd: Option<i64>,
    /// Where its output came from, if it shares.
    cache: Option<String>,
}

impl Run {
    async fn all(db: &DatabaseConnection, filter: &str) -> Vec<Run> {
        let sql = format!(
            "SELECT {} AS id, state, input, input_tokens, output_tokens, cost_nano_usd, cache \
             FROM runs {filter} ORDER BY 1",
            text(db, "id")
        );
        Run::find_by_statement(Statement::from_string(db.get_database_backend(), sql)).all(db).await.unwrap()
    }

    /// Whether its output is another run's.
    fn is_cached(&self) -> bool {
        matches!(self.cache.as_deref(), Some("hit" | "joined"))
    }

    /// What the provider was asked.
    fn user_text(&self) -> String {
        let input = self.input.as_deref().unwrap_or_else(|| panic!("no input is kept: {self:?}"));
        serde_json::from_str::<Value>(input).unwrap()["user"].as_str().unwrap().to_owned()
    }
}

#[derive(Debug, FromQueryResult)]
struct Attempt {
    run: String,
    provider: String,
    model: String,
    outcome: String,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cost_nano_usd: Option<i64>,
}

impl Attempt {
    async fn all(db: &DatabaseConnection) -> Vec<Attempt> {
        let sql = format!(
            "SELECT {} AS run, provider, model, outcome, input_tokens, output_tokens, cost_nano_usd \
             FROM attempts ORDER BY 1, fence",
            text(db, "run")
        );
        Attempt::find_by_statement(Statement::from_string(db.get_database_backend(), sql)).all(db).await.unwrap()
    }

    fn usage(&self) -> Option<(u64, u64)> {
        let count = |tokens: Option<i64>| tokens.map(|tokens| u64::try_from(tokens).unwrap());
        Some((count(self.input_tokens)?, count(self.output_tokens)?))
    }
}

/// An id as a text, in either database.
fn text(db: &DatabaseConnection, column: &str) -> String {
    match db.get_database_backend() {
        sea_orm::DbBackend::Sqlite => format!("hex({column})"),
        _ => format!("CAST({column} AS TEXT)"),
    }
}

/// The ledger's runs with their attempts, in the order of their fences.
struct Books(Vec<(Run, Vec<Attempt>)>);

impl Books {
    async fn open(db: &DatabaseConnection) -> Self {
        let mut attempts: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
        for attempt in Attempt::all(db).await {
            attempts.entry(attempt.run.clone()).or_default().push(attempt);
        }
        let runs = Run::all(db, "").await;
        let books = runs.into_iter().map(|run| {
            let attempts = attempts.remove(&run.id).unwrap_or_default();
            (run, attempts)
        });
        let books = Self(books.collect());
        assert!(attempts.is_empty(), "attempts of runs that the ledger does not have: {attempts:?}");
        books
    }

    fn check(&self, requests: &[Recorded], deaths: Deaths) {
        let mut by_text: BTreeMap<&str, Vec<&Recorded>> = BTreeMap::new();
        for request in requests {
            by_text.entry(request.user_text()).or_default().push(request);
        }
        // Runs with one text are those that share their calls.
        let mut sharing: BTreeMap<String, Vec<&(Run, Vec<Attempt>)>> = BTreeMap::new();
        for entry in &self.0 {
            check_run(&entry.0, &entry.1);
            sharing.entry(entry.0.user_text()).or_default().push(entry);
        }
        for (text, entries) in &sharing {
            let seen = by_text.remove(text.as_str()).unwrap_or_default();
            let runs: Vec<_> = entries.iter().map(|(run, _)| run).collect();
            let attempts = entries.iter().flat_map(|(_, attempts)| attempts);
            let calls: Vec<_> = attempts.filter(|attempt| attempt.provider == "scripted").collect();
            check_calls(&runs, &calls, &seen, deaths);
        }
        assert!(by_text.is_empty(), "calls of runs that the ledger does not have: {by_text:#?}");
    }
}

/// A run's own account of itself.
fn check_run(run: &Run, attempts: &[Attempt]) {
    let told = || format!("{run:#?}\n{attempts:#?}");
    for attempt in attempts.iter().filter(|attempt| attempt.model == "gpt-4") {
        // Dollars a million are thousands of nano-dollars each.
        let cost =
            attempt.input_tokens.zip(attempt.output_tokens).map(|(input, output)| 2_500 * input + 10_000 * output);
        assert_eq!(attempt.cost_nano_usd, cost, "{}", told());
    }
    if run.is_cached() {
        let used = (run.input_tokens, run.output_tokens, run.cost_nano_usd);
        assert_eq!((run.state.as_str(), used), ("succeeded", (Some(0), Some(0), Some(0))), "{}", told());
        assert!(attempts.iter().all(|attempt| attempt.outcome != "succeeded"), "it had a result: {}", told());
    } else if run.state == "succeeded" {
        let is_the_one = |attempt: &&Attempt| {
            attempt.outcome == "succeeded"
                && attempt.input_tokens == run.input_tokens
                && attempt.output_tokens == run.output_tokens
                && attempt.cost_nano_usd == run.cost_nano_usd
        };
        assert!(attempts.iter().any(|attempt| is_the_one(&attempt)), "no attempt brought the result: {}", told());
    }
}

/// The attempts of a run, or of all that share a text, beside what the provider saw of them.
fn check_calls(runs: &[&Run], attempts: &[&Attempt], seen: &[&Recorded], deaths: Deaths) {
    let told = || format!("{runs:#?}\n{attempts:#?}\n{seen:#?}");
    if runs.iter().any(|run| run.is_cached()) {
        assert!(
            attempts.iter().any(|attempt| attempt.outcome == "succeeded"),
            "a result came from nowhere: {}",
            told()
        );
    }
    assert!(seen.len() <= attempts.len(), "a call is no attempt: {}", told());
    let complete = || seen.iter().filter(|request| request.end == Some(End::Sent));
    let mut answered: Vec<_> = complete().filter_map(|request| request.usage).collect();
    let mut recorded: Vec<_> = attempts.iter().filter_map(|attempt| attempt.usage()).collect();
    answered.sort_unstable();
    recorded.sort_unstable();
    let lost = attempts.iter().filter(|attempt| attempt.outcome == "worker_lost" && attempt.usage().is_none()).count();
    if deaths == Deaths::Workers && lost > 0 {
        let unknown = answered.len().checked_sub(recorded.len());
        assert!(unknown.is_some_and(|unknown| unknown <= lost), "more answers are missing than workers: {}", told());
        assert!(recorded.iter().all(|usage| answered.contains(usage)), "what was recorded was not used: {}", told());
        return;
    }
    assert_eq!(recorded, answered, "what was used is not what was recorded: {}", told());
    if let [run] = runs
        && run.state == "succeeded"
    {
        let first = complete().filter(|request| request.usage.is_some()).filter_map(|request| request.ended_at).min();
        let later = first.and_then(|first| seen.iter().find(|request| request.at > first));
        assert!(later.is_none(), "a result was there, and the model was called again: {}", told());
    }
}
