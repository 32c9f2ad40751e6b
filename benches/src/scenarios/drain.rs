//! How fast runs go in that nobody waits for, and how fast they come out: no-op runs of the offline model, 64 submitting at a time.
//!
//! Distributed, the queue is paused until all are in, so that the two halves can be told apart. An embedded queue has no such switch: it
//! executes while it accepts, and `drained/s` counts from the first submission.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement};
use tokio::time::sleep;

use super::{Plan, row};
use crate::{
    engine::{Engine, Mode, NO_OP, run_of},
    load,
    report::Report,
    servers,
    target::Target,
};

const SUBMITTERS: usize = 64;

pub async fn drain(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for round in 0..plan.rounds {
        for &mode in &plan.modes {
            let (engine, ledger) = warm(mode, plan).await?;
            let target = Target::engine(&engine, run_of(NO_OP, false))?;
            let (mut accepting, mut draining) = (Duration::ZERO, Duration::ZERO);
            let work = async || {
                if mode == Mode::Distributed {
                    engine.pause(true)?;
                }
                let start = Instant::now();
                let mut seen = load::all_of(&engine.background()?, &target.body, SUBMITTERS, plan.runs).await?;
                accepting = seen.elapsed();
                let mut drain_start = start;
                if mode == Mode::Distributed {
                    // The command takes a moment, in which the worker is at it.
                    drain_start = Instant::now();
                    engine.pause(false)?;
                }
                until_all_ended(&ledger).await?;
                draining = drain_start.elapsed();
                all_succeeded(&ledger).await?;
                seen.lasted(start.elapsed());
                Ok(seen)
            };
            let (mut figures, seen) = target.measured(work, None).await?;
            for (from, to) in [("p50_ms", "accept_p50_ms"), ("p99_ms", "accept_p99_ms")] {
                figures.rename(from, to);
            }
            figures.remove("p95_ms");
            figures.set("accepted_per_second", seen.count() as f64 / accepting.as_secs_f64());
            figures.set("drained_per_second", seen.count() as f64 / draining.as_secs_f64());
            let case = format!("{} runs", plan.runs);
            report.add(row("drain", case, mode.as_str(), round, figures, &seen), seen.complaint.as_deref());
        }
    }
    Ok(())
}

async fn all_succeeded(ledger: &DatabaseConnection) -> anyhow::Result<()> {
    let text = "SELECT count(*) AS others FROM runs WHERE state <> 'succeeded'";
    let query = Statement::from_string(ledger.get_database_backend(), text);
    let others: i64 = ledger.query_one_raw(query).await?.context("one row")?.try_get("", "others")?;
    anyhow::ensure!(others == 0, "{others} runs ended in another way than by succeeding");
    Ok(())
}

/// A new engine that has executed a few such runs, and its ledger.
pub async fn warm(mode: Mode, plan: &Plan) -> anyhow::Result<(Engine, DatabaseConnection)> {
    let engine = Engine::start(mode, &plan.setup).await?;
    let ledger = servers::connect(&engine.database_url()).await?;
    load::all_of(&engine.background()?, &run_of(NO_OP, false), 16, 200).await?.clean()?;
    until_all_ended(&ledger).await?;
    Ok((engine, ledger))
}

/// Waits until no run of the ledger is unfinished.
pub async fn until_all_ended(ledger: &DatabaseConnection) -> anyhow::Result<()> {
    let text = "SELECT 1 WHERE NOT EXISTS (SELECT id FROM runs WHERE finished_at IS NULL)";
    until_found(ledger, text).await.map(drop)
}

/// Waits until a select finds something. It asks the ledger: who asks the engine would be part of what is measured.
pub async fn until_found(ledger: &DatabaseConnection, text: &str) -> anyhow::Result<QueryResult> {
    let give_up = Instant::now() + Duration::from_secs(1800);
    while Instant::now() < give_up {
        let query = Statement::from_string(ledger.get_database_backend(), text);
        if let Some(found) = ledger.query_one_raw(query).await? {
            return Ok(found);
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("half an hour later this finds nothing still: {text}")
}
