//! What a run costs the stores, counted: a command more in every run shows on any machine.
//!
//! One caller sends runs one after the other, so that little is shared between them: under load, batches make a run cheaper. Endings linger for each other all
//! the same, and on a fast machine more of them meet: the bounds hold where none do. What the processes do anyway is
//! counted over as long a stretch without runs, and taken off.

use std::time::Instant;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape, client},
    eventually,
    postgres::PostgresServer,
    provider::Answer as Scripted,
};

const RUNS: usize = 200;

/// What the stores counted, for one run or since they started.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Scripts that Redis was sent.
    scripts: f64,
    /// Commands that Redis carried out, those inside scripts too.
    commands: f64,
    /// Bytes that Redis was sent, and that it answered with.
    bytes: f64,
    /// Statements that PostgreSQL was sent, `BEGIN` and `COMMIT` too.
    statements: f64,
    /// Transactions that wrote something.
    transactions: f64,
}

impl Counts {
    fn fields(self) -> [(&'static str, f64); 5] {
        [
            ("scripts", self.scripts),
            ("commands", self.commands),
            ("bytes", self.bytes),
            ("statements", self.statements),
            ("transactions", self.transactions),
        ]
    }

    fn minus(self, other: Self) -> Self {
        Self {
            scripts: self.scripts - other.scripts,
            commands: self.commands - other.commands,
            bytes: self.bytes - other.bytes,
            statements: self.statements - other.statements,
            transactions: self.transactions - other.transactions,
        }
    }

    fn by(self, runs: usize) -> Self {
        let runs = runs as f64;
        Self {
            scripts: self.scripts / runs,
            commands: self.commands / runs,
            bytes: self.bytes / runs,
            statements: self.statements / runs,
            transactions: self.transactions / runs,
        }
    }
}

struct Scene {
    app: App,
    /// Of the whole server: another database than the engine's.
    statistics: DatabaseConnection,
    // Last: it goes when nobody is connected to it any more.
    _postgres: PostgresServer,
}

impl Scene {
    async fn start() -> Self {
        let postgres = PostgresServer::start();
        let database = Some(postgres.database().await);
        let app = App::shaped(Shape { database, ..Shape::of(Mode::Distributed) }).await;
        app.import_greeting();
        app.provider().set_default(Scripted::text("one two three four five "));
        let statistics = Database::connect(postgres.url("postgres")).await.unwrap();
        statistics.execute_unprepared("CREATE EXTENSION pg_stat_statements").await.unwrap();
        Self { app, statistics, _postgres: postgres }
    }

    async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let redis = self.app.redis.as_ref().unwrap();
        for line in redis.cli(&["INFO", "commandstats"]).lines() {
            let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls=")) else {
                continue;
            };
            let calls: f64 = rest.split(',').next().unwrap().parse().unwrap();
            // That is us.
            if name != "info" {
                counts.commands += calls;
                counts.scripts += if name.starts_with("eval") || name.starts_with("fcall") { calls } else { 0.0 };
            }
        }
        for line in redis.cli(&["INFO", "stats"]).lines() {
            if let Some(("total_net_input_bytes" | "total_net_output_bytes", bytes)) = line.trim_end().split_once(':') {
                counts.bytes += bytes.parse::<f64>().unwrap();
            }
        }
        let text = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float8 AS transactions, \
            (SELECT sum(calls)::float8 FROM pg_stat_statements JOIN pg_database ON pg_database.oid = dbid \
             WHERE datname <> current_database()) AS statements";
        let row =
            self.statistics.query_one_raw(Statement::from_string(DbBackend::Postgres, text)).await.unwrap().unwrap();
        counts.transactions = row.try_get("", "transactions").unwrap();
        counts.statements = row.try_get("", "statements").unwrap();
        counts
    }

    /// Waits until nothing of any run is left to do: neither in the ledger nor in the queue.
    async fn settled(&self) {
        eventually("everything is written and forgotten", async || {
            let stats = self.app.cli(&["queue", "stats", "--json"]).json();
            stats["running"] == 0 && stats["lanes"]["interactive"]["ready"] == 0
        })
        .await;
    }

    /// What one run costs, of those that `send` begins and waits for.
    async fn cost(&self, send: impl AsyncFn(&App)) -> Counts {
        for _ in 0..10 {
            send(&self.app).await;
        }
        self.settled().await;
        let (begin, since) = (self.counts().await, Instant::now());
        for _ in 0..RUNS {
            send(&self.app).await;
        }
        self.settled().await;
        let (end, lasted) = (self.counts().await, since.elapsed());
        let idle_begin = self.counts().await;
        tokio::time::sleep(lasted).await;
        // With as many looks at the queue as before, which cost commands themselves.
        self.settled().await;
        let idle = self.counts().await.minus(idle_begin);
        end.minus(begin).minus(idle).by(RUNS)
    }

    /// No count of a run is above its bound.
    async fn check(&self, what: &str, bounds: Counts, send: impl AsyncFn(&App)) {
        let cost = self.cost(send).await;
        println!("{what}: {cost:?}");
        for ((name, count), (_, bound)) in cost.fields().into_iter().zip(bounds.fields()) {
            assert!(count > 0.0, "{what}: {name} are not counted: {cost:?}");
            assert!(count <= bound, "{what}: {count:.2} {name} a run, and at most {bound} are allowed: {cost:?}");
        }
    }
}

fn greeting(more: Value) -> Value {
    let mut body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The bounds are what was measured on a machine on which no endings meet, and a little more. Whoever makes a run cheaper lowers them; whoever must raise them says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_costs_the_stores_no_more_than_it_did() {
    let scene = Scene::start().await;

    let bounds = Counts { scripts: 3.2, commands: 21.8, bytes: 2_050.0, statements: 1.3, transactions: 1.3 };
    scene
        .check("a caller that waits", bounds, async |app| {
            let answer = app.post(&greeting(json!({}))).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        })
        .await;

    let bounds = Counts { scripts: 4.3, commands: 26.4, bytes: 2_200.0, statements: 2.3, transactions: 2.3 };
    scene
        .check("a caller that may leave", bounds, async |app| {
            let answer = app.post_with(0, &greeting(json!({})), &[("prefer", "respond-async, wait=30")]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        })
        .await;

    let bounds = Counts { scripts: 4.3, commands: 34.6, bytes: 2_780.0, statements: 1.3, transactions: 1.3 };
    scene
        .check("a caller that reads a stream", bounds, async |app| {
            let request = client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key());
            let answer = request.json(&greeting(json!({ "stream": true }))).send().await.unwrap();
            let text = answer.text().await.unwrap();
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        })
        .await;
}
