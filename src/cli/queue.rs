//! `queue`: what operators ask of the queue of a distributed deployment.

use clap::Subcommand;
use serde_json::json;
use workers::{
    job::Lane,
    queue::{Queue, QueueStats, Unreachable},
};

use super::{
    error::CliError,
    output::{Output, table},
};
use crate::{config::Config, node};

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Show how many runs wait, are delayed and are in execution, and how long the oldest has waited
    Stats,
    /// Hand out no more runs, to any worker; running ones go on
    Pause,
    /// Hand out runs again
    Resume,
}

pub async fn run(command: QueueCommand, config: &Config, output: Output) -> Result<(), CliError> {
    let queue = node::open_redis(config, "`prompt-manager queue`").await?;
    match command {
        QueueCommand::Stats => {}
        QueueCommand::Pause => queue.set_paused(true).await.map_err(unreachable)?,
        QueueCommand::Resume => queue.set_paused(false).await.map_err(unreachable)?,
    }
    let stats = queue.stats().await.map_err(unreachable)?;
    output.emit(&to_json(&stats), || to_text(&stats))
}

fn unreachable(error: Unreachable) -> CliError {
    CliError::Unavailable(error.to_string())
}

fn to_json(stats: &QueueStats) -> serde_json::Value {
    let lanes: serde_json::Map<_, _> = Lane::ALL
        .iter()
        .zip(&stats.lanes)
        .map(|(lane, stats)| (lane.as_str().to_owned(), json!({ "ready": stats.ready, "oldestMs": stats.oldest_ms })))
        .collect();
    json!({
        "lanes": lanes,
        "delayed": stats.delayed,
        "running": stats.leased,
        "bytes": stats.bytes,
        "paused": stats.paused,
    })
}

fn to_text(stats: &QueueStats) -> String {
    let lanes = Lane::ALL.iter().zip(&stats.lanes).map(|(lane, stats)| {
        [lane.as_str().to_owned(), stats.ready.to_string(), format!("{:.1} s", seconds(stats.oldest_ms))]
    });
    let state = if stats.paused { "paused" } else { "running" };
    format!(
        "{}\ndelayed {} · in execution {} · {} bytes waiting · {state}\n",
        table(["LANE", "READY", "OLDEST"], lanes),
        stats.delayed,
        stats.leased,
        stats.bytes
    )
}

fn seconds(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}
