//! Mixed load under mixed faults, for as long as `scripts/soak` says.
//!
//! Callers send runs and wait, leave and look later, follow a stream, or send a request again under its key until it is answered; meanwhile
//! something is killed, stopped, restarted, emptied or frozen every few seconds. In the end everything is whole for a while, and the books
//! must balance: every accepted run has one terminal state and at most one result, every output is that of its own prompt, a key made one run,
//! nothing is left in the queue, no limit was passed.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape, client},
    postgres::PostgresServer,
    provider::Answer,
};

const CONCURRENCY: usize = 24;
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Default)]
struct Book {
    /// Ids that were answered with 202, with the names in their prompts.
    accepted: Mutex<Vec<(String, String)>>,
    numbers: AtomicUsize,
    answered: AtomicUsize,
    cancelled: AtomicUsize,
    streamed: AtomicUsize,
    keyed: AtomicUsize,
    cut: AtomicUsize,
    refused: Mutex<BTreeMap<String, usize>>,
    stop: AtomicBool,
}

impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests: {} answered, {} of them by stream and {} under a key; {} accepted for later ({} of them cancelled), {} connections cut or \
             refused, errors {:?}",
            self.numbers.load(Ordering::Relaxed),
            self.answered.load(Ordering::Relaxed),
            self.streamed.load(Ordering::Relaxed),
            self.keyed.load(Ordering::Relaxed),
            self.accepted.lock().unwrap().len(),
            self.cancelled.load(Ordering::Relaxed),
            self.cut.load(Ordering::Relaxed),
            self.refused.lock().unwrap(),
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillWorker,
    KillFrontDoor,
    DrainWorker,
    DrainFrontDoor,
    FreezeWorker,
    EmptyRedis,
    RestartRedis,
    FreezeRedis,
    FreezeDatabase,
    CrashDatabase,
}

impl Fault {
    const ALL: [Fault; 10] = [
        Fault::KillWorker,
        Fault::DrainFrontDoor,
        Fault::EmptyRedis,
        Fault::FreezeWorker,
        Fault::FreezeDatabase,
        Fault::DrainWorker,
        Fault::KillFrontDoor,
        Fault::CrashDatabase,
        Fault::FreezeRedis,
        Fault::RestartRedis,
    ];

    async fn strike(self, app: &mut App, postgres: &PostgresServer, which: usize) {
        match self {
            Fault::KillWorker => {
                app.workers[which].kill();
                app.restart_worker(which);
            }
            Fault::KillFrontDoor => {
                app.front_doors[which].kill();
                app.restart_front_door(which).await;
            }
            Fault::DrainWorker => {
                app.workers[which].signal("TERM");
                assert!(app.workers[which].exited(PATIENCE).success(), "a drained worker exits with 0");
                app.restart_worker(which);
            }
            Fault::DrainFrontDoor => {
                app.front_doors[which].signal("TERM");
                assert!(app.front_doors[which].exited(PATIENCE).success(), "a drained front door exits with 0");
                app.restart_front_door(which).await;
            }
            Fault::FreezeWorker => {
                // For longer than a lease.
                app.workers[which].signal("STOP");
                tokio::time::sleep(Duration::from_secs(18)).await;
                app.workers[which].signal("CONT");
            }
            Fault::EmptyRedis => {
                app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
            }
            Fault::FreezeDatabase => {
                postgres.pause();
                tokio::time::sleep(Duration::from_secs(4)).await;
                postgres.resume();
            }
            Fault::CrashDatabase => {
                postgres.crash();
                tokio::time::sleep(Duration::from_secs(2)).await;
                postgres.restart();
            }
            Fault::RestartRedis => app.redis.as_mut().unwrap().restart().await,
            Fault::FreezeRedis => {
                app.redis.as_ref().unwrap().pause();
                tokio::time::sleep(Duration::from_secs(4)).await;
                app.redis.as_ref().unwrap().resume();
            }
        }
    }
}

/// How a caller wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It waits.
    Wait,
    /// It leaves, and looks later; sometimes it changes its mind.
    Leave,
    Stream,
    /// It waits, and sends the same request again until it is answered.
    Keyed,
}

/// Sends one run after the other.
async fn call(book: Arc<Book>, way: Way, urls: Vec<String>, key: String) {
    while !book.stop.load(Ordering::Relaxed) {
        let sent = book.numbers.fetch_add(1, Ordering::Relaxed);
        let name = format!("n{sent:07}");
        let url = &urls[sent % urls.len()];
        let mut body = json!({ "promptName": "Greeting", "variables": { "name": name } });
        body["priority"] = json!(["interactive", "default", "batch"][sent % 3]);
        let mut request = client().post(format!("{url}/api/v1/run")).header("x-api-key", &key);
        if way != Way::Stream {
            request = request.json(&body);
        }
        match way {
            Way::Leave => request = request.header("prefer", "respond-async"),
            Way::Stream => {
                follow(&book, request, body, &name).await;
                continue;
            }
            Way::Keyed => {
                insist(&book, &urls, &key, &body, &name).await;
                continue;
            }
            Way::Wait => {}
        }
        let Ok(answer) = request.send().await else {
            book.cut.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let status = answer.status().as_u16();
        let Ok(body) = answer.json::<Value>().await else {
            book.cut.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        match status {
            200 => {
                assert_eq!(body["output"], format!("Greet {name}."), "somebody else's answer: {body}");
                book.answered.fetch_add(1, Ordering::Relaxed);
            }
            202 => {
                let id = body["runId"].as_str().unwrap().to_owned();
                if sent % 40 == 1 {
                    let cancel = client().post(format!("{url}/api/v1/runs/{id}/cancel")).header("x-api-key", &key);
                    if cancel.send().await.is_ok_and(|answer| answer.status().is_success()) {
                        book.cancelled.fetch_add(1, Ordering::Relaxed);
                    }
                }
                book.accepted.lock().unwrap().push((id, name));
                // Three async callers would outrun the workers.
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            _ => {
                let code = body["code"].as_str().unwrap_or("no code").to_owned();
                assert!(body["retryable"] == true || code == "run_cancelled", "{status} {body}");
                *book.refused.lock().unwrap().entry(format!("{status} {code}")).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Reads a stream to its end. What was told after the last retry is the output.
async fn follow(book: &Book, request: reqwest::RequestBuilder, mut body: Value, name: &str) {
    body["stream"] = json!(true);
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    let text = match request.json(&body).send().await {
        Ok(answer) if answer.status() == 200 => answer.text().await,
        Ok(answer) => {
            let status = answer.status();
            let Ok(body) = answer.json::<Value>().await else { return };
            assert!(body["retryable"] == true, "{status} {body}");
            *book.refused.lock().unwrap().entry(format!("{status} {}", body["code"])).or_default() += 1;
            return pause().await;
        }
        Err(error) => Err(error),
    };
    let Ok(text) = text else {
        book.cut.fetch_add(1, Ordering::Relaxed);
        return pause().await;
    };
    let (mut told, mut seq) = (String::new(), 0);
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]") {
        let event: Value = serde_json::from_str(data).unwrap();
        assert!(event["seq"].as_u64().unwrap() > seq, "events out of order: {text}");
        seq = event["seq"].as_u64().unwrap();
        match event["type"].as_str().unwrap() {
            "run.output_text.delta" => told += event["delta"].as_str().unwrap(),
            "run.retrying" => told.clear(),
            "run.completed" => {
                assert_eq!(event["output"], format!("Greet {name}."), "{text}");
                assert!(
                    told.is_empty() || event["output"] == told.as_str(),
                    "what was told is not what was said: {text}"
                );
                book.answered.fetch_add(1, Ordering::Relaxed);
                book.streamed.fetch_add(1, Ordering::Relaxed);
            }
            "run.failed" => {
                assert!(event["retryable"] == true, "{event}");
                *book.refused.lock().unwrap().entry(format!("stream {}", event["code"])).or_default() += 1;
            }
            _ => {}
        }
    }
}

/// Sends one request until it is answered with its run's end: that is the end of one run.
async fn insist(book: &Book, urls: &[String], key: &str, body: &Value, name: &str) {
    let mut run = None;
    for attempt in 0_usize.. {
        let url = format!("{}/api/v1/run", urls[attempt % urls.len()]);
        let request = client().post(url).header("x-api-key", key).header("idempotency-key", name).json(body);
        let Ok(answer) = request.send().await else {
            book.cut.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let status = answer.status().as_u16();
        let Ok(body) = answer.json::<Value>().await else { continue };
        if let Some(id) = body["runId"].as_str() {
            assert_eq!(run.get_or_insert_with(|| id.to_owned()), id, "the key {name} made two runs");
        }
        if status == 200 {
            assert_eq!(body["output"], format!("Greet {name}."), "{body}");
            book.answered.fetch_add(1, Ordering::Relaxed);
            book.keyed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        assert!(body["retryable"] == true, "{status} {body}");
        *book.refused.lock().unwrap().entry(format!("keyed {status} {}", body["code"])).or_default() += 1;
        if status == 500 || status == 504 {
            // It has ended; the same request is answered so for a day.
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as SOAK_MINUTES says; `scripts/soak` runs it"]
async fn nothing_is_lost_over_time() {
    let minutes: f64 = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let postgres = PostgresServer::start();
    let shape = Shape {
        database: Some(postgres.database().await),
        front_doors: 2,
        workers: 3,
        config: "[workers]\nslots = 16\n[server]\ndrain_timeout_ms = 5000\n".into(),
        provider: format!("max_concurrency = {CONCURRENCY}"),
        ..Shape::of(Mode::Distributed)
    };
    let mut app = App::shaped(shape).await;
    app.import_greeting();
    app.provider().set_default(Answer::echo().delay(Duration::from_millis(200)));
    let book = Arc::new(Book::default());
    let ways = [Way::Wait, Way::Leave, Way::Stream, Way::Keyed, Way::Wait, Way::Leave, Way::Leave];
    let callers: Vec<_> = (0..14)
        .map(|number| tokio::spawn(call(book.clone(), ways[number % ways.len()], app.urls().to_vec(), app.key())))
        .collect();
    let mut faults: BTreeMap<Fault, usize> = BTreeMap::new();
    for round in 0.. {
        tokio::time::sleep(Duration::from_secs(4)).await;
        if Instant::now() >= until || callers.iter().any(tokio::task::JoinHandle::is_finished) {
            break;
        }
        let fault = Fault::ALL[round % Fault::ALL.len()];
        app.provider().push(Answer::error(500, "ill"));
        fault.strike(&mut app, &postgres, (round / Fault::ALL.len()) % 2).await;
        *faults.entry(fault).or_default() += 1;
        if round % 10 == 9 {
            eprintln!("{} faults; {book}", round + 1);
        }
    }
    book.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }

    let accepted = book.accepted.lock().unwrap().clone();
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    let (mut lost_attempts, mut two_results) = (0, Vec::new());
    for (id, name) in &accepted {
        let run = app.ended(0, id, PATIENCE).await;
        let mut state = run["state"].as_str().unwrap().to_owned();
        match state.as_str() {
            "succeeded" => assert_eq!(run["output"], format!("Greet {name}."), "{run}"),
            "cancelled" => {}
            _ => state = format!("{state} {}", run["code"]),
        }
        let attempts = run["attempts"].as_array().unwrap();
        lost_attempts += attempts.iter().filter(|attempt| attempt["outcome"] == "worker_lost").count();
        if attempts.iter().filter(|attempt| attempt["outcome"] == "succeeded").count() > 1 {
            two_results.push(run.clone());
        }
        *states.entry(state).or_default() += 1;
    }
    let empty = Instant::now() + PATIENCE;
    loop {
        let stats = app.cli(&["queue", "stats", "--json"]).json();
        if stats["running"] == 0 && stats["delayed"] == 0 && stats["lanes"]["interactive"]["ready"] == 0 {
            break;
        }
        assert!(Instant::now() < empty, "something is left in the queue: {stats}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for request in app.provider().requests() {
        *calls.entry(request.user_text().to_owned()).or_default() += 1;
    }
    let repeated = calls.values().filter(|times| **times > 1).count();
    println!("faults {faults:?}");
    println!("{book}");
    println!(
        "accepted runs ended as {states:?}, with {lost_attempts} lost attempts; {} had two results",
        two_results.len()
    );
    println!("{} prompts were called, {repeated} of them more than once", calls.len());
    println!("calls at a time: {} at most, {CONCURRENCY} allowed", app.provider().max_concurrency());
    let unexpected: Vec<_> =
        states.keys().filter(|state| !["succeeded", "cancelled"].contains(&state.as_str())).collect();
    assert!(unexpected.is_empty(), "{states:?}");
    assert!(two_results.is_empty(), "{two_results:#?}");
    assert!(app.provider().max_concurrency() <= CONCURRENCY);
}
