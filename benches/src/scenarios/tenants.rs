//! Whether one account's flood slows the others down: seven accounts of two callers each, alone and beside one of 256 callers. The
//! provider takes 50 ms, so that 64 slots are all busy.

use futures::future::{join, try_join_all};

use super::{Plan, row};
use crate::{
    engine::{Engine, run_of},
    load::{self, Seen},
    report::Report,
    target::Target,
};

const LIGHT: usize = 7;
const LIGHT_CALLERS: usize = 2;
const HEAVY_CALLERS: usize = 256;

pub async fn tenants(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let engines = plan.engines().await?;
    let mut keys = Vec::new();
    for engine in &engines {
        keys.push(
            (0..LIGHT).map(|number| engine.tenant(&format!("light-{number}"))).collect::<anyhow::Result<Vec<_>>>()?,
        );
    }
    for round in 0..plan.rounds {
        for (engine, keys) in engines.iter().zip(&keys) {
            measure(plan, engine, keys, false, round, report).await?;
            measure(plan, engine, keys, true, round, report).await?;
        }
    }
    Ok(())
}

async fn measure(
    plan: &Plan,
    engine: &Engine,
    keys: &[String],
    flooded: bool,
    round: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let target = Target::engine(engine, run_of("mock-delay-50", false))?;
    let (mut heavy, mut counts) = (Seen::default(), Vec::new());
    let work = async || {
        let mut endpoints = Vec::new();
        for key in keys {
            endpoints.push(engine.endpoint()?.with("x-api-key", key)?);
        }
        let light =
            endpoints.iter().map(|endpoint| load::closed_loop(endpoint, &target.body, LIGHT_CALLERS, plan.length));
        let flood = async {
            if !flooded {
                return Ok(Seen::default());
            }
            load::closed_loop(&target.endpoint, &target.body, HEAVY_CALLERS, plan.length).await
        };
        let (light, flood) = join(try_join_all(light), flood).await;
        heavy = flood?;
        let mut seen = Seen::default();
        for tenant in light? {
            counts.push(tenant.count());
            seen.lasted(tenant.elapsed());
            seen.add(tenant);
        }
        Ok(seen)
    };
    let (mut figures, seen) = target.measured(work, None).await?;
    let (least, most) = (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
    figures.set("fairness", least as f64 / (most as f64).max(1.0));
    if flooded {
        // What was used was used for both.
        figures.keep_latency();
    }
    let case = if flooded { "light, beside the heavy one" } else { "light, alone" };
    report.add(row("tenants", case.to_owned(), engine.mode.as_str(), round, figures, &seen), seen.complaint.as_deref());
    if flooded {
        let mut figures = crate::report::Figures::default();
        figures.set("per_second", heavy.per_second());
        figures.set_latency(&heavy, None);
        let row = row("tenants", "heavy".to_owned(), engine.mode.as_str(), round, figures, &heavy);
        report.add(row, heavy.complaint.as_deref());
    }
    Ok(())
}
