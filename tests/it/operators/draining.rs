//! Processes that are stopped and started again while callers use them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape, client},
    eventually,
    provider::{Answer, Gate},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A caller with the addresses of all front doors, who tries again only what may be tried again.
#[derive(Clone)]
struct Caller {
    urls: Vec<String>,
    key: String,
    client: reqwest::Client,
    numbers: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    retried: Arc<AtomicUsize>,
}

impl Caller {
    fn of(app: &App) -> Self {
        Self {
            urls: app.urls().to_vec(),
            key: app.key(),
            client: client(),
            numbers: Arc::default(),
            stop: Arc::default(),
            retried: Arc::default(),
        }
    }

    /// Sends greetings, one after the other, until it is told to stop. Answers with what was answered to each name.
    async fn work(self, first_door: usize, headers: &[(&str, &str)]) -> BTreeMap<String, Value> {
        let mut answers = BTreeMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            let name = format!("n{:04}", self.numbers.fetch_add(1, Ordering::Relaxed));
            let body = json!({ "promptName": "Greeting", "variables": { "name": name } });
            let answer = self.send(first_door, &body, headers).await;
            answers.insert(name, answer);
        }
        answers
    }

    async fn send(&self, first_door: usize, body: &Value, headers: &[(&str, &str)]) -> Value {
        let mut door = first_door;
        loop {
            let url = format!("{}/api/v1/run", self.urls[door % self.urls.len()]);
            let mut request = self.client.post(url).header("x-api-key", &self.key).json(body);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            match request.send().await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let body: Value = answer.json().await.expect("an answer is whole");
                    if status == 200 || status == 202 {
                        return body;
                    }
                    assert_eq!(body["retryable"], true, "{status} {body}");
                }
                // Nobody listens there at the moment: nothing was sent.
                Err(error) if error.is_connect() => {}
                Err(error) => panic!("a caller's connection was cut: {error:?}"),
            }
            door += 1;
            self.retried.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_is_noticed_by_nobody() {
    let mut app = App::shaped(Shape { front_doors: 2, workers: 2, ..Shape::of(Mode::Distributed) }).await;
    app.import_greeting();
    app.provider().set_default(Answer::echo().delay(Duration::from_millis(150)));
    let caller = Caller::of(&app);
    let load: Vec<_> = (0..6)
        .map(|number| {
            let caller = caller.clone();
            let waits: &[(&str, &str)] = if number < 4 { &[] } else { &[("prefer", "respond-async")] };
            tokio::spawn(async move { caller.work(number % 2, waits).await })
        })
        .collect();
    for process in 0..4 {
        // Each is stopped in the middle of work.
        let before = app.provider().requests().len();
        app.provider().wait_for_requests(before + 12).await;
        if process < 2 {
            app.front_doors[process].signal("TERM");
            assert!(app.front_doors[process].exited(PATIENCE).success());
            app.restart_front_door(process).await;
        } else {
            app.workers[process - 2].signal("TERM");
            assert!(app.workers[process - 2].exited(PATIENCE).success());
            app.restart_worker(process - 2);
        }
    }
    caller.stop.store(true, Ordering::Relaxed);
    let mut names = 0;
    for answers in futures::future::join_all(load).await {
        for (name, answer) in answers.unwrap() {
            names += 1;
            let output = if answer["output"].is_null() {
                app.ended(0, answer["runId"].as_str().unwrap(), PATIENCE).await["output"].clone()
            } else {
                answer["output"].clone()
            };
            assert_eq!(output, format!("Greet {name}."), "{answer}");
        }
    }
    assert!(caller.retried.load(Ordering::Relaxed) > 0, "a front door was away for a while");
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for request in app.provider().requests() {
        *calls.entry(request.user_text().to_owned()).or_default() += 1;
    }
    let repeated: Vec<_> = calls.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "a drained process finishes what it has: {repeated:?}");
    assert_eq!(calls.len(), names, "every run was called");
}

/// A caller whose run outlasts the drain of its front door is told so, before its connection is cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_cannot_be_waited_for_is_told() {
    let config = "[server]\ndrain_timeout_ms = 1500\n".to_owned();
    let mut app = App::shaped(Shape { front_doors: 2, config, ..Shape::of(Mode::Distributed) }).await;
    app.import_greeting();
    let gate = Gate::new();
    app.provider().set_default(Answer::echo().held(&gate));
    let post = |name: &str, continues: bool, prefer: Option<&str>| {
        let mut body = json!({ "promptName": "Greeting", "variables": { "name": name } });
        if continues {
            body["onDisconnect"] = json!("continue");
        }
        let request = client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(&body);
        let request = prefer.into_iter().fold(request, |request, prefer| request.header("prefer", prefer));
        tokio::spawn(async move { crate::support::app::Answer::of(request.send().await.unwrap()).await })
    };
    let callers = [post("Ada", false, None), post("Bob", true, None), post("Cyd", false, Some("wait=50"))];
    app.provider().wait_for_requests(3).await;
    app.front_doors[0].signal("TERM");
    let [ada, bob, cyd] = callers;
    let (ada, bob, cyd) = (ada.await.unwrap(), bob.await.unwrap(), cyd.await.unwrap());
    for answer in [&ada, &bob] {
        assert_eq!((answer.status, &answer.body["code"]), (503, &json!("draining")), "{answer:?}");
        assert_eq!(answer.body["retryable"], true);
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(cyd.status, 202, "{cyd:?}");
    assert!(cyd.header("location").is_some());
    assert!(app.front_doors[0].exited(PATIENCE).success());
    // The first caller tries again: its run must not go on beside the new one.
    let id = |answer: &crate::support::app::Answer| answer.body["runId"].as_str().unwrap().to_owned();
    assert_eq!(app.ended(1, &id(&ada), PATIENCE).await["state"], "cancelled");
    let provider = app.provider();
    eventually("its call is closed", async || {
        provider.requests().iter().any(|request| request.user_text() == "Greet Ada." && request.hung_up())
    })
    .await;
    gate.open();
    for answer in [&bob, &cyd] {
        assert_eq!(app.ended(1, &id(answer), PATIENCE).await["state"], "succeeded");
    }
}
