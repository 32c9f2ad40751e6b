//! What the engine adds to a call: callers that wait for a whole answer or read a stream, each calling again at once.

use std::time::Duration;

use super::{Plan, row};
use crate::{
    engine::{Engine, run_of},
    report::Report,
    target::Target,
};

/// Long enough for connections, caches and prepared statements to be there.
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn sync(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    closed("sync", "mock", false, &callers(plan, &[1, 16, 64, 256]), plan, report).await
}

pub async fn slow(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    closed("slow", "mock-delay-50", false, &[64], plan, report).await
}

pub async fn stream(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    closed("stream", "mock-chunks-20", true, &callers(plan, &[16, 64]), plan, report).await
}

fn callers(plan: &Plan, usual: &[usize]) -> Vec<usize> {
    if plan.callers.is_empty() { usual.to_vec() } else { plan.callers.clone() }
}

async fn closed(
    scenario: &'static str,
    model: &str,
    stream: bool,
    callers: &[usize],
    plan: &Plan,
    report: &mut Report,
) -> anyhow::Result<()> {
    let engines = plan.engines().await?;
    let targets = targets(plan, &engines, model, stream)?;
    for target in &targets {
        target.measure(16, WARM_UP.min(plan.length), None).await?;
    }
    for round in 0..plan.rounds {
        for &count in callers {
            let mut direct = None;
            for target in &targets {
                let (figures, seen) = target.measure(count, plan.length, direct.as_ref()).await?;
                let case = format!("{count} caller{}", if count == 1 { "" } else { "s" });
                report
                    .add(row(scenario, case, target.name(), round, figures.clone(), &seen), seen.complaint.as_deref());
                // The first target is the provider.
                direct.get_or_insert(figures);
            }
        }
    }
    Ok(())
}

fn targets<'a>(plan: &'a Plan, engines: &'a [Engine], model: &str, stream: bool) -> anyhow::Result<Vec<Target<'a>>> {
    let mut targets = vec![Target::provider(plan.provider(), model, stream)?];
    for engine in engines {
        targets.push(Target::engine(engine, run_of(model, stream))?);
    }
    for extra in &plan.extras {
        targets.push(Target::extra(extra)?);
    }
    Ok(targets)
}
