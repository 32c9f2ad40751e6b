//! Whether a run costs more as the ledger and the queue grow: 1,000 runs in the ledger, then many, then many in the queue besides.

use std::time::{Duration, Instant};

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use uuid::Uuid;

use super::{Plan, row};
use crate::{
    caller::Caller,
    engine::{Engine, HELD, run_of},
    load::{self, Seen},
    report::{Figures, Report},
    servers,
    target::Target,
};

const FEW: usize = 1_000;
/// The most that waits in the queue: half of what it takes by default.
const MOST_QUEUED: usize = 100_000;
const CALLERS: usize = 16;
/// How many of the oldest runs are looked up in turn.
const LOOKED_UP: u32 = 500;

pub async fn growth(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for &mode in &plan.modes {
        let engine = Engine::start(mode, &plan.setup).await?;
        let ledger = servers::connect(&engine.database_url()).await?;
        let target = Target::engine(&engine, run_of("mock", false))?;
        load::all_of(&target.endpoint, &target.body, CALLERS, FEW).await?;
        super::drain::until_all_ended(&ledger).await?;
        measure(plan, &engine, &ledger, format!("{FEW} rows"), report).await?;

        let since = Instant::now();
        let rows = insert(&ledger, plan.rows).await?;
        eprintln!("{rows} rows after {:?}", since.elapsed());
        measure(plan, &engine, &ledger, format!("{rows} rows"), report).await?;

        let queued = plan.rows.min(MOST_QUEUED);
        load::all_of(&engine.background()?, &run_of(HELD, false), 64, queued).await?;
        measure(plan, &engine, &ledger, format!("{rows} rows, {queued} runs queued"), report).await?;
    }
    Ok(())
}

async fn measure(
    plan: &Plan,
    engine: &Engine,
    ledger: &DatabaseConnection,
    case: String,
    report: &mut Report,
) -> anyhow::Result<()> {
    let ids = oldest(ledger).await?;
    let target = Target::engine(engine, run_of("mock", false))?;
    for round in 0..plan.rounds {
        let (mut figures, seen) = target.measure(CALLERS, plan.length, None).await?;
        let paths = ids.iter().map(|id| format!("/api/v1/runs/{id}"));
        latency(engine, paths, ["look_up_p50_ms", "look_up_p99_ms"], &mut figures).await?;
        let paths = (0..50).map(|_| "/api/v1/runs?limit=100".to_owned());
        latency(engine, paths, ["list_p50_ms", "list_p99_ms"], &mut figures).await?;
        figures.set("ledger_bytes", bytes_a_run(ledger).await?);
        let row = row("growth", case.clone(), engine.mode.as_str(), round, figures, &seen);
        report.add(row, seen.complaint.as_deref());
    }
    Ok(())
}

/// Asks for each path once, one after the other.
async fn latency(
    engine: &Engine,
    paths: impl Iterator<Item = String>,
    [p50, p99]: [&'static str; 2],
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
    let [half, most] = seen.percentiles([500, 990]);
    figures.set(p50, half);
    figures.set(p99, most);
    Ok(())
}

async fn oldest(ledger: &DatabaseConnection) -> anyhow::Result<Vec<Uuid>> {
    let text = format!("SELECT id FROM runs ORDER BY id LIMIT {LOOKED_UP}");
    let rows = ledger.query_all_raw(Statement::from_string(ledger.get_database_backend(), text)).await?;
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
/// a ledger is full of. How many there are then.
async fn insert(ledger: &DatabaseConnection, rows: usize) -> anyhow::Result<usize> {
    let backend = ledger.get_database_backend();
    let first = oldest(ledger).await?.first().copied().context("a run to copy")?;
    let more = rows.saturating_sub(FEW);
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
    Ok(FEW + more)
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
