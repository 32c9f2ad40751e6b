//! Whether a run costs more as the ledger and the queue grow: a new ledger, one with many rows, and that with many runs in the queue besides. Each of the
//! last two is measured in turns with a new one, which has the rows of its own measurement only.

use std::time::{Duration, Instant};

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use uuid::Uuid;

use super::{Plan, row};
use crate::{
    caller::Caller,
    engine::{Engine, HELD, Mode, run_of},
    load::{self, Seen},
    report::{Figures, Report},
    servers,
    target::Target,
};

/// What a new ledger begins with.
const FEW: usize = 1_000;
/// The most that waits in the queue: half of what it takes by default.
const MOST_QUEUED: usize = 100_000;
const CALLERS: usize = 16;
/// How many runs are looked up, one after the other.
const LOOKED_UP: u32 = 500;

/// An engine and its ledger.
struct Grown {
    engine: Engine,
    ledger: DatabaseConnection,
}

pub async fn growth(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for &mode in &plan.modes {
        let old = Grown::start(mode, plan).await?;
        let since = Instant::now();
        insert(&old.ledger, plan.rows).await?;
        eprintln!("{} rows after {:?}", rows(&old.ledger).await?, since.elapsed());
        in_turns(plan, &old, &format!("{} rows", plan.rows), "few rows", report).await?;

        let queued = plan.rows.min(MOST_QUEUED);
        load::all_of(&old.engine.background()?, &run_of(HELD, false), 64, queued).await?.clean()?;
        let case = format!("{} rows, {queued} runs queued", plan.rows);
        in_turns(plan, &old, &case, "few rows, none queued", report).await?;
    }
    Ok(())
}

async fn in_turns(plan: &Plan, old: &Grown, case: &str, new_case: &str, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..plan.rounds {
        let new = Grown::start(old.engine.mode, plan).await?;
        for (grown, case) in [(&new, new_case), (old, case)] {
            let (figures, seen) = grown.measure(plan).await?;
            let row = row("growth", case.to_owned(), grown.engine.mode.as_str(), round, figures, &seen);
            report.add(row, seen.complaint.as_deref());
        }
    }
    Ok(())
}

impl Grown {
    async fn start(mode: Mode, plan: &Plan) -> anyhow::Result<Self> {
        let engine = Engine::start(mode, &plan.setup).await?;
        let ledger = servers::connect(&engine.database_url()).await?;
        load::all_of(&engine.endpoint()?, &run_of("mock", false), CALLERS, FEW).await?.clean()?;
        super::drain::until_all_ended(&ledger).await?;
        Ok(Self { engine, ledger })
    }

    async fn measure(&self, plan: &Plan) -> anyhow::Result<(Figures, Seen)> {
        let target = Target::engine(&self.engine, run_of("mock", false))?;
        target.warm_up(CALLERS, plan.length).await?;
        let (mut figures, seen) = target.measure(CALLERS, plan.length, None).await?;
        let paths = any_runs(&self.ledger).await?.into_iter().map(|id| format!("/api/v1/runs/{id}"));
        latency(&self.engine, paths, ["look_up_p50_ms", "look_up_p99_ms"], &mut figures).await?;
        let paths = (0..50).map(|_| "/api/v1/runs?limit=100".to_owned());
        latency(&self.engine, paths, ["list_p50_ms", "list_p99_ms"], &mut figures).await?;
        figures.set("ledger_rows", rows(&self.ledger).await? as f64);
        figures.set("ledger_bytes", bytes_a_run(&self.ledger).await?);
        Ok((figures, seen))
    }
}

async fn rows(ledger: &DatabaseConnection) -> anyhow::Result<usize> {
    let query = Statement::from_string(ledger.get_database_backend(), "SELECT count(*) AS rows FROM runs");
    let rows: i64 = ledger.query_one_raw(query).await?.context("one row")?.try_get("", "rows")?;
    Ok(usize::try_from(rows)?)
}

/// Asks for each path once, one after the other.
async fn latency(
    engine: &Engine,
    paths: impl Iterator<Item = String>,
    names: [&'static str; 2],
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut caller = Caller::connect(engine.endpoint()?).await?;
    let mut seen = Seen::default();
    for path in paths {
        let start = Instant::now();
        let (status, answer) = caller.get(&path).await?;
        anyhow::ensure!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&answer));
        seen.took(start.elapsed());
    }
    figures.set_half_and_most(&seen, names);
    Ok(())
}

/// Runs from all over the ledger.
async fn any_runs(ledger: &DatabaseConnection) -> anyhow::Result<Vec<Uuid>> {
    ids(ledger, &format!("SELECT id FROM runs ORDER BY random() LIMIT {LOOKED_UP}")).await
}

async fn ids(ledger: &DatabaseConnection, query: &str) -> anyhow::Result<Vec<Uuid>> {
    let rows = ledger.query_all_raw(Statement::from_string(ledger.get_database_backend(), query)).await?;
    Ok(rows.iter().map(|row| row.try_get("", "id")).collect::<Result<_, _>>()?)
}

/// What a run takes on disk: its row, that of its attempt, and their part of the indexes.
async fn bytes_a_run(ledger: &DatabaseConnection) -> anyhow::Result<f64> {
    let backend = ledger.get_database_backend();
    let text = match backend {
        DbBackend::Postgres => {
            "SELECT (pg_total_relation_size('runs') + pg_total_relation_size('attempts'))::float8 / count(*) AS each FROM runs"
        }
        _ => {
            "SELECT CAST((SELECT page_count FROM pragma_page_count()) * (SELECT page_size FROM pragma_page_size()) AS REAL) \
             / count(*) AS each FROM runs"
        }
    };
    let row = ledger.query_one_raw(Statement::from_string(backend, text)).await?.context("one row")?;
    Ok(row.try_get("", "each")?)
}

/// Fills the ledger up to so many runs with copies of its first one and of its attempt, under ids of the time before it: older runs are what
/// a ledger is full of.
async fn insert(ledger: &DatabaseConnection, wanted: usize) -> anyhow::Result<()> {
    let backend = ledger.get_database_backend();
    let first =
        ids(ledger, "SELECT id FROM runs ORDER BY id LIMIT 1").await?.first().copied().context("a run to copy")?;
    let more = wanted.saturating_sub(rows(ledger).await?);
    // A UUID of version 7 begins with its milliseconds (RFC 9562, section 5.7).
    let (id, numbers, literal) = match backend {
        DbBackend::Postgres => (
            "(lpad(to_hex({now} - n), 12, '0') || '7' || left(md5(n::text), 3) || '8' || right(md5(n::text), 15))::uuid",
            format!("generate_series(1, {more}) AS numbers(n)"),
            format!("'{first}'"),
        ),
        _ => (
            "unhex(printf('%012x7%03x8%015x', {now} - n, n & 4095, n))",
            format!(
                "(WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {more}) SELECT n FROM counted) AS numbers"
            ),
            format!("x'{}'", first.simple()),
        ),
    };
    let millis = first.as_u128() >> 80;
    let id = id.replace("{now}", &millis.to_string());
    for (table, key) in [("runs", "id"), ("attempts", "run")] {
        let columns = columns(ledger, table).await?;
        let values: Vec<String> =
            columns.iter().map(|column| if column == key { id.clone() } else { format!("copied.{column}") }).collect();
        let statement = format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {table} AS copied, {numbers} WHERE copied.{key} = {literal}",
            columns.join(", "),
            values.join(", "),
        );
        ledger.execute_unprepared(&statement).await.with_context(|| format!("copying rows of {table}"))?;
        ledger.execute_unprepared(&format!("ANALYZE {table}")).await?;
    }
    // What the copies left to do in the background is not a run's.
    let flush = if backend == DbBackend::Postgres { "CHECKPOINT" } else { "PRAGMA wal_checkpoint(TRUNCATE)" };
    ledger.execute_unprepared(flush).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

async fn columns(ledger: &DatabaseConnection, table: &str) -> anyhow::Result<Vec<String>> {
    let backend = ledger.get_database_backend();
    let text = match backend {
        DbBackend::Postgres => {
            format!("SELECT column_name::text AS name FROM information_schema.columns WHERE table_name = '{table}'")
        }
        _ => format!("SELECT name FROM pragma_table_info('{table}')"),
    };
    let rows = ledger.query_all_raw(Statement::from_string(backend, text)).await?;
    Ok(rows.iter().map(|row| row.try_get("", "name")).collect::<Result<_, _>>()?)
}
