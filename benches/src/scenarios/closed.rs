//! What the engine adds to a call: callers that wait for a whole answer or read a stream, each calling again at once.

use super::{Plan, row};
use crate::{
    engine::{BURST, PACED, run_of},
    report::Report,
    target::Target,
};

pub async fn sync(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    closed("sync", &[("", "mock")], false, &callers(plan, &[1, 16, 64, 256]), plan, report).await
}

pub async fn slow(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    closed("slow", &[("", "mock-delay-50")], false, &[64], plan, report).await
}

pub async fn stream(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    closed("stream", &[("", BURST), (", a piece every 5 ms", PACED)], true, &callers(plan, &[16, 64]), plan, report)
        .await
}

fn callers(plan: &Plan, usual: &[usize]) -> Vec<usize> {
    if plan.callers.is_empty() { usual.to_vec() } else { plan.callers.clone() }
}

/// Measures all targets with each of the models, whose cases differ by what stands before each model here.
async fn closed(
    scenario: &'static str,
    models: &[(&str, &str)],
    stream: bool,
    callers: &[usize],
    plan: &Plan,
    report: &mut Report,
) -> anyhow::Result<()> {
    let engines = plan.engines().await?;
    let mut cases = Vec::new();
    for &(what, model) in models {
        // What others are sent is in their file, and said once.
        let extras = if cases.is_empty() { plan.extras.as_slice() } else { &[] };
        let mut targets = vec![Target::provider(plan.provider(), model, stream)?];
        for engine in &engines {
            targets.push(Target::engine(engine, run_of(model, stream))?);
        }
        for extra in extras {
            targets.extend(Target::extra(extra, scenario)?);
        }
        for target in &targets {
            target.warm_up(16, plan.length).await?;
        }
        cases.push((what, targets));
    }
    for round in 0..plan.rounds {
        for ((what, targets), &count) in cases.iter().flat_map(|case| callers.iter().map(move |count| (case, count))) {
            let mut direct = None;
            for target in targets {
                let (figures, seen) = target.measure(count, plan.length, direct.as_ref()).await?;
                let case = format!("{count} caller{}{what}", if count == 1 { "" } else { "s" });
                let row = row(scenario, case, target.name(), round, figures.clone(), &seen);
                report.add(row, seen.complaint.as_deref());
                // The first target is the provider.
                direct.get_or_insert(figures);
            }
        }
    }
    Ok(())
}
