//! A deployment under steady load in which one process is armed with fail points, and what must hold afterwards.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    eventually,
    process::Process,
    provider,
};

/// Long enough for several leases, and for the sweep that finds rows which nobody enqueued (30 s).
const PATIENCE: Duration = Duration::from_secs(60);
/// Short leases, so that a lost run goes on soon; as many attempts as faults may cost.
const CONFIG: &str = "[workers]\nslots = 4\nlease_ms = 3000\n[retry]\nmax_attempts = 100\nbase_ms = 20\ncap_ms = 200\n\
                      [server]\ndrain_timeout_ms = 2000\n";

/// Which process has the fail points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A worker, with one slot, so that it has one run in its hands.
    Worker,
    FrontDoor,
}

pub struct Scene {
    pub app: App,
    database: DatabaseConnection,
    posted: Arc<AtomicUsize>,
    /// Calls that were lost and failed so far, of which earlier checks know.
    lost_before: usize,
}

/// A run that was promised to its caller.
#[derive(Clone, Debug)]
pub struct Promised {
    pub id: String,
    /// The text that is unique to its calls.
    pub text: String,
}

impl Scene {
    pub async fn start(mode: Mode) -> Self {
        let shape = Shape { front_doors: 2, workers: 2, config: CONFIG.into(), ..Shape::of(mode) };
        let app = App::shaped(shape).await;
        app.import_greeting();
        app.provider().set_default(provider::Answer::echo().delay(Duration::from_millis(40)));
        let (_, url) = app.env().iter().find(|(name, _)| name == "PROMPT_MANAGER_DATABASE_URL").unwrap();
        let database = Database::connect(url).await.unwrap();
        Self { app, database, posted: Arc::default(), lost_before: 0 }
    }

    /// Arms one process; it is started for that.
    pub fn arm(&mut self, who: Who, points: &str) {
        let points = ("FAIL_POINTS", points);
        match (self.app.mode, who) {
            (Mode::Embedded, _) | (_, Who::FrontDoor) => self.app.restart_front_door_with(0, &[points]),
            (_, Who::Worker) => self.app.restart_worker_with(0, &[points, ("PROMPT_MANAGER_WORKERS__SLOTS", "1")]),
        }
    }

    pub fn armed(&mut self, who: Who) -> &mut Process {
        match (self.app.mode, who) {
            (Mode::Embedded, _) | (_, Who::FrontDoor) => &mut self.app.front_doors[0],
            (_, Who::Worker) => &mut self.app.workers[0],
        }
    }

    pub async fn disarm(&mut self, who: Who) {
        match (self.app.mode, who) {
            (Mode::Embedded, _) | (_, Who::FrontDoor) => self.app.restart_front_door(0).await,
            (_, Who::Worker) => self.app.restart_worker(0),
        }
    }

    /// Callers that wait and callers that leave, at all front doors, until the load is ended.
    pub fn load(&self) -> Load {
        let stop = CancellationToken::new();
        let promised = Arc::new(Mutex::new(Vec::new()));
        let mut callers = JoinSet::new();
        for caller in 0..6 {
            let caller = Caller {
                client: client(),
                urls: self.app.urls().iter().map(|url| format!("{url}/api/v1/run")).collect(),
                key: self.app.key(),
                leaves: caller % 3 == 0,
                first: caller,
                posted: self.posted.clone(),
                promised: promised.clone(),
            };
            callers.spawn(caller.call(stop.clone()));
        }
        Load { stop, callers, promised }
    }

    /// Waits until the process has done what its fail point says: died, or stopped.
    pub async fn until_hit(&mut self, who: Who, what: &str, is_hit: impl Fn(&mut Process) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_hit(self.armed(who)) {
            let process = self.armed(who);
            assert!(tokio::time::Instant::now() < deadline, "{what} was never reached:\n{}", process.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every promised run has succeeded and says what it cost; nothing is left over; the next run works. `lost` is how many
    /// calls may have been lost since the last time that this was asked.
    pub async fn assert_all_ended(&mut self, promised: &[Promised], lost: RangeInclusive<usize>) {
        assert!(!promised.is_empty(), "nothing was promised");
        let mut calls: HashMap<String, usize> = HashMap::new();
        let mut ended = Vec::new();
        for run in promised {
            ended.push(self.app.ended(self.app.urls().len() - 1, &run.id, PATIENCE).await);
        }
        for request in self.app.provider().requests() {
            *calls.entry(request.user_text().to_owned()).or_default() += 1;
        }
        for (run, status) in promised.iter().zip(&ended) {
            assert_eq!(status["state"], "succeeded", "{status}");
            assert_eq!(status["output"], run.text, "{status}");
            let attempts = status["attempts"].as_array().unwrap();
            let last = attempts.last().unwrap();
            assert_eq!(last["outcome"], "succeeded", "{status}");
            assert!(calls.contains_key(&run.text), "{status}");
            if self.app.mode == Mode::Distributed {
                assert!(
                    calls[&run.text] <= attempts.len(),
                    "a call is not shown: {} calls, {status}",
                    calls[&run.text]
                );
            }
        }
        self.assert_nothing_is_left().await;
        if self.app.mode == Mode::Distributed {
            let all_lost = self.count("SELECT count(*) FROM attempts WHERE outcome = 'worker_lost'").await;
            let new = all_lost - self.lost_before;
            self.lost_before = all_lost;
            assert!(lost.contains(&new), "{new} calls were lost, not {lost:?}");
        }
        let body = json!({ "promptName": "Greeting", "variables": { "name": "the next one" } });
        for front_door in 0..self.app.urls().len() {
            let answer = self.app.post_with(front_door, &body, &[]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }

    /// Also of runs whose callers were never answered: their rows end, and no lease or slot stays.
    async fn assert_nothing_is_left(&self) {
        eventually("every row has ended", async || {
            self.count("SELECT count(*) FROM runs WHERE finished_at IS NULL").await == 0
        })
        .await;
        let unwell: Vec<_> = self.endings().await.into_iter().filter(|(_, state, _)| state != "succeeded").collect();
        assert!(unwell.is_empty(), "runs ended otherwise than well: {unwell:?}");
        if let Some(redis) = &self.app.redis {
            eventually("no lease, no slot and nothing waiting is left", async || {
                let sizes = ["lease", "slots:scripted", "delay", "deadlines", "waiting:interactive"];
                sizes.iter().all(|key| redis.cli(&["ZCARD", &format!("{{q:default}}:{key}")]).trim() == "0")
            })
            .await;
        }
    }

    /// What must never change again: the ended runs, and under which fence they ended.
    pub async fn endings(&self) -> Vec<(Uuid, String, i64)> {
        let query = "SELECT id, state, fence FROM runs WHERE finished_at IS NOT NULL";
        let statement = Statement::from_string(self.database.get_database_backend(), query);
        let rows = self.database.query_all_raw(statement).await.unwrap();
        let ending = |row: sea_orm::QueryResult| {
            let id = row.try_get_by_index(0).unwrap();
            (id, row.try_get_by_index(1).unwrap(), row.try_get_by_index(2).unwrap())
        };
        rows.into_iter().map(ending).collect()
    }

    pub async fn count(&self, query: &str) -> usize {
        let statement = Statement::from_string(self.database.get_database_backend(), query);
        let row = self.database.query_one_raw(statement).await.unwrap().unwrap();
        row.try_get_by_index::<i64>(0).unwrap().try_into().unwrap()
    }
}

/// Callers at work.
pub struct Load {
    stop: CancellationToken,
    callers: JoinSet<()>,
    promised: Arc<Mutex<Vec<Promised>>>,
}

impl Load {
    /// Waits until this many more runs were promised.
    pub async fn goes_on(&self, runs: usize) {
        let enough = self.promised.lock().unwrap().len() + runs;
        eventually("runs are accepted", async || self.promised.lock().unwrap().len() >= enough).await;
    }

    /// Waits for every caller's last answer; the runs that were promised.
    pub async fn end(mut self) -> Vec<Promised> {
        self.stop.cancel();
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.promised.lock().unwrap())
    }
}

struct Caller {
    client: reqwest::Client,
    urls: Vec<String>,
    key: String,
    leaves: bool,
    first: usize,
    posted: Arc<AtomicUsize>,
    promised: Arc<Mutex<Vec<Promised>>>,
}

impl Caller {
    async fn call(self, stop: CancellationToken) {
        for url in self.urls.iter().cycle().skip(self.first) {
            if stop.is_cancelled() {
                return;
            }
            let name = format!("guest {}", self.posted.fetch_add(1, Ordering::Relaxed));
            let body = json!({ "promptName": "Greeting", "variables": { "name": name } });
            let mut request = self.client.post(url).header("x-api-key", &self.key).json(&body);
            if self.leaves {
                request = request.header("prefer", "respond-async");
            }
            match request.send().await {
                Ok(response) => self.check(&format!("Greet {name}."), Answer::of(response).await),
                // A process that is gone, or died before it answered: the caller knows to try again.
                Err(error) => assert!(!error.is_timeout(), "a caller waited in vain: {error}"),
            }
            // Who leaves does not wait for the run: slower than one slot, or the queue grows until callers that wait give up.
            tokio::time::sleep(Duration::from_millis(if self.leaves { 200 } else { 40 })).await;
        }
    }

    fn check(&self, text: &str, answer: Answer) {
        match answer.status {
            200 => assert_eq!(answer.body["output"], text, "{answer:?}"),
            202 => {
                let id = answer.body["runId"].as_str().unwrap().to_owned();
                self.promised.lock().unwrap().push(Promised { id, text: text.to_owned() });
            }
            _ => assert_eq!(answer.body["retryable"], Value::Bool(true), "{answer:?}"),
        }
    }
}
