//! The runs of `drain` as the lines of one batch: from the first byte of its upload until its last line has ended.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tokio::time::sleep;

use super::{Plan, drain::until_all_ended, row};
use crate::{
    caller::Caller,
    engine::{Engine, NO_OP, run_of},
    load::{self, Seen},
    report::Report,
    servers,
    target::Target,
};

/// What one batch may have.
const MAX_LINES: usize = 100_000;

pub async fn batch(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    ensure!(plan.runs <= MAX_LINES, "a batch has {MAX_LINES} lines at most: ask for fewer --runs");
    let body = Bytes::from([&run_of(NO_OP, false)[..], b"\n"].concat().repeat(plan.runs));
    for round in 0..plan.rounds {
        for &mode in &plan.modes {
            let engine = Engine::start(mode, &plan.setup).await?;
            let ledger = servers::connect(&engine.database_url()).await?;
            let target = Target::engine(&engine, run_of(NO_OP, false))?;
            load::all_of(&engine.background()?, &target.body, 16, 200).await?.clean()?;
            until_all_ended(&ledger).await?;
            let mut upload = engine.endpoint()?.with("content-type", "application/x-ndjson")?;
            upload.path = "/api/v1/batches".to_owned();
            let mut caller = Caller::connect(upload).await?;
            let mut accepting = Duration::ZERO;
            let work = async || {
                let start = Instant::now();
                let (status, answer) = caller.post(&body).await?;
                accepting = start.elapsed();
                ensure!(status.is_success(), "{status} {}", String::from_utf8_lossy(&answer));
                let succeeded = until_ended(&ledger).await?;
                ensure!(succeeded == plan.runs, "{succeeded} of {} lines succeeded", plan.runs);
                let (mut seen, lasted) = (Seen::default(), start.elapsed());
                (0..succeeded).for_each(|_| seen.took(lasted));
                seen.lasted(lasted);
                Ok(seen)
            };
            let (mut figures, seen) = target.measured(work, None).await?;
            // There is one request, and none of its lines is waited for.
            for name in ["p50_ms", "p95_ms", "p99_ms"] {
                figures.remove(name);
            }
            figures.set("accepted_per_second", seen.count() as f64 / accepting.as_secs_f64());
            report.add(row("batch", format!("{} lines", plan.runs), mode.as_str(), round, figures, &seen), None);
        }
    }
    Ok(())
}

/// Waits until the batch has ended, and says how many of its lines succeeded. Who asks the engine would be part of what is measured.
async fn until_ended(ledger: &DatabaseConnection) -> anyhow::Result<usize> {
    let give_up = Instant::now() + Duration::from_secs(1800);
    let text = "SELECT succeeded FROM batches WHERE finished_at IS NOT NULL";
    while Instant::now() < give_up {
        let query = Statement::from_string(ledger.get_database_backend(), text);
        if let Some(batch) = ledger.query_one_raw(query).await? {
            let succeeded: i32 = batch.try_get("", "succeeded")?;
            return usize::try_from(succeeded).context("a count");
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("half an hour later the batch has not ended")
}
