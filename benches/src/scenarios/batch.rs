//! The runs of `drain`, or as many as fit, as the lines of one batch: from the first byte of its upload until its last line has ended.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;

use super::{
    Plan,
    drain::{until_found, warm},
    row,
};
use crate::{
    caller::Caller,
    engine::{NO_OP, run_of},
    load::Seen,
    report::Report,
    target::Target,
};

/// What one batch may have.
const MAX_LINES: usize = 100_000;
/// How many lines of the batch succeeded, once all have ended.
const ENDED: &str = "SELECT succeeded FROM batches WHERE finished_at IS NOT NULL";

pub async fn batch(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let lines = plan.runs.min(MAX_LINES);
    let body = Bytes::from([&run_of(NO_OP, false)[..], b"\n"].concat().repeat(lines));
    for round in 0..plan.rounds {
        for &mode in &plan.modes {
            let (engine, ledger) = warm(mode, plan).await?;
            let target = Target::engine(&engine, run_of(NO_OP, false))?;
            let mut upload = engine.endpoint()?.with("content-type", "application/x-ndjson")?;
            upload.path = "/api/v1/batches".to_owned();
            let mut caller = Caller::connect(upload).await?;
            let mut accepting = Duration::ZERO;
            let work = async || {
                let start = Instant::now();
                let (status, answer) = caller.post(&body).await?;
                accepting = start.elapsed();
                ensure!(status.is_success(), "{status} {}", String::from_utf8_lossy(&answer));
                let ended = until_found(&ledger, ENDED).await?;
                let succeeded = usize::try_from(ended.try_get::<i32>("", "succeeded")?)?;
                ensure!(succeeded == lines, "{succeeded} of {lines} lines succeeded");
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
            report.add(row("batch", format!("{lines} lines"), mode.as_str(), round, figures, &seen), None);
        }
    }
    Ok(())
}
