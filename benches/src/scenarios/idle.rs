//! How quickly an engine that does nothing answers: one request at a time, with a pause before each.

use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::BodyExt;
use hyper::Method;
use tokio::time::sleep;

use super::{Plan, row};
use crate::{
    caller::Caller,
    engine::{PACED, run_of},
    load::{Seen, is_whole},
    report::Report,
    target::{Subject, Target},
};

/// Long enough for every loop of an idle engine to have gone to sleep.
const PAUSE: Duration = Duration::from_millis(25);
/// How text begins on our streams, and on the provider's.
const TEXT: &[u8] = b"event: run.output_text.delta";
const PROVIDER_TEXT: &[u8] = b"{\"content\":";

pub async fn idle(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let engines = plan.engines().await?;
    let mut targets = vec![Target::provider(plan.provider(), "mock", false)?];
    for engine in &engines {
        targets.push(Target::engine(engine, run_of("mock", false))?);
    }
    for target in &targets {
        target.warm_up(4, plan.length).await?;
    }
    for round in 0..plan.rounds {
        let mut direct = None;
        for target in &targets {
            let mut until_provider = Seen::default();
            let work = async || paused_calls(plan, target, &mut until_provider).await;
            let (mut figures, seen) = target.measured(work, direct.as_ref()).await?;
            figures.remove("per_second");
            figures.set_half_and_most(&until_provider, ["until_provider_p50_ms", "until_provider_p99_ms"]);
            report.add(
                row("idle", "whole answer".to_owned(), target.name(), round, figures.clone(), &seen),
                seen.complaint.as_deref(),
            );
            direct.get_or_insert(figures);
        }
        let mut targets = vec![Target::provider(plan.provider(), PACED, true)?];
        for engine in &engines {
            targets.push(Target::engine(engine, run_of(PACED, true))?);
        }
        let mut direct = None;
        for target in &targets {
            let mut first_text = Seen::default();
            let work = async || streamed_calls(plan, target, &mut first_text).await;
            let (mut figures, seen) = target.measured(work, direct.as_ref()).await?;
            figures.remove("per_second");
            figures.set_half_and_most(&first_text, ["first_text_p50_ms", "first_text_p99_ms"]);
            report.add(
                row("idle", "stream, first piece after 5 ms".to_owned(), target.name(), round, figures.clone(), &seen),
                seen.complaint.as_deref(),
            );
            direct.get_or_insert(figures);
        }
    }
    Ok(())
}

/// Whole answers, and when the provider heard of each.
async fn paused_calls(plan: &Plan, target: &Target<'_>, until_provider: &mut Seen) -> anyhow::Result<Seen> {
    let mut caller = Caller::connect(target.endpoint.clone()).await?;
    let (mut seen, begin) = (Seen::default(), Instant::now());
    while begin.elapsed() < plan.length {
        sleep(PAUSE).await;
        let start = Instant::now();
        let (status, answer) = caller.post(&target.body).await?;
        if status.is_success() {
            seen.took(start.elapsed());
            let heard = plan.setup.provider.last_heard().context("the provider was asked")?;
            until_provider.took(heard.saturating_duration_since(start));
        } else {
            seen.complain(format!("{status} {}", String::from_utf8_lossy(&answer)));
        }
    }
    seen.lasted(begin.elapsed());
    Ok(seen)
}

/// Streams, and when the first text of each came.
async fn streamed_calls(plan: &Plan, target: &Target<'_>, first_text: &mut Seen) -> anyhow::Result<Seen> {
    let text = if matches!(target.subject, Subject::Provider) { PROVIDER_TEXT } else { TEXT };
    let mut caller = Caller::connect(target.endpoint.clone()).await?;
    let (mut seen, begin) = (Seen::default(), Instant::now());
    while begin.elapsed() < plan.length {
        sleep(PAUSE).await;
        let start = Instant::now();
        let mut answer = caller.send(Method::POST, target.body.clone()).await?;
        let (mut read, mut first) = (Vec::new(), None);
        while let Some(frame) = answer.frame().await {
            if let Ok(data) = frame?.into_data() {
                read.extend_from_slice(&data);
            }
            if first.is_none() && read.windows(text.len()).any(|window| window == text) {
                first = Some(start.elapsed());
            }
        }
        match first {
            Some(first) if is_whole(&read) => {
                first_text.took(first);
                seen.took(start.elapsed());
            }
            _ => seen.complain(String::from_utf8_lossy(&read).into_owned()),
        }
    }
    seen.lasted(begin.elapsed());
    Ok(seen)
}
