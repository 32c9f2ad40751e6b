//! `queue`: what operators ask of the queue, and do to it.
//!
//! What concerns every process goes through the database: closing the intake, and dead runs. Pausing and the figures of the lanes
//! are the queue's own, and the queue of a single process answers nobody outside it.

mod dead;
mod drain;

use clap::Subcommand;
use sea_orm::{DatabaseConnection, TransactionTrait};
use serde_json::json;
use workers::{
    job::Lane,
    ledger::{Ledger, LedgerError},
    queue::{Queue, QueueStats, Unreachable},
};

use self::{dead::DeadCommand, drain::DrainArgs};
use super::{
    error::CliError,
    migrate::close_database,
    output::{Output, table},
};
use crate::{
    audit::{self, Actor},
    changes::Changes,
    config::Config,
    db::StoreError,
    intake::Intake,
    node::{self, open_database},
};

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Show how many runs wait, are delayed and are in execution, how long the oldest has waited, and how many are dead
    Stats,
    /// Hand out no more runs, to any worker; running ones go on
    Pause,
    /// Hand out runs again, and take new ones again
    Resume,
    /// Refuse new runs at every front door, and wait until the accepted ones have ended; `resume` undoes it
    Drain(DrainArgs),
    /// Look after runs that were lost by too many workers
    #[command(subcommand)]
    Dead(DeadCommand),
}

pub async fn run(command: QueueCommand, config: &Config, output: Output) -> Result<(), CliError> {
    if let QueueCommand::Pause = command {
        let queue = node::open_redis(config, "`prompt-manager queue pause`").await?;
        let db = open_database(config).await?;
        let paused = set_paused(&db, &queue, true).await;
        close_database(db).await;
        paused?;
        return output.emit(&json!({ "paused": true }), || "paused\n".to_owned());
    }
    if let QueueCommand::Stats = command {
        let queue = node::open_redis(config, "`prompt-manager queue stats`").await?;
        let stats = queue.stats().await?;
        let beside = match open_database(config).await {
            Ok(db) => {
                let beside = Beside::read(&db).await;
                close_database(db).await;
                beside.ok()
            }
            Err(_) => None,
        };
        return output.emit(&to_json(&stats, beside), || to_text(&stats, beside));
    }
    let db = open_database(config).await?;
    let result = on_database(command, &db, config, output).await;
    close_database(db).await;
    result
}

async fn on_database(
    command: QueueCommand,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    match command {
        QueueCommand::Drain(args) => drain::run(args, db, config, output).await,
        QueueCommand::Dead(command) => dead::run(command, db, config, output).await,
        // Answered before.
        QueueCommand::Stats | QueueCommand::Pause => Ok(()),
        QueueCommand::Resume => {
            if config.redis.is_some() {
                let queue = node::open_redis(config, "`prompt-manager queue resume`").await?;
                set_paused(db, &queue, false).await?;
            }
            intake(db).set_open(&Actor::cli(), true).await?;
            output.emit(&json!({ "paused": false, "draining": false }), || "resumed\n".to_owned())
        }
    }
}

/// Pauses the queue or lets it go on, and writes down who did. The line is committed last: one that cannot be written is an error, and
/// nothing is written of what was not done.
async fn set_paused(db: &DatabaseConnection, queue: &impl Queue, paused: bool) -> Result<(), CliError> {
    let changes = queue.stats().await?.paused != paused;
    let transaction = db.begin().await.map_err(StoreError::from)?;
    if changes {
        let action = if paused { "queue.pause" } else { "queue.resume" };
        let entry = audit::Entry { account: None, actor: &Actor::cli(), action, subject: "queue", detail: json!({}) };
        audit::append(&transaction, entry).await.map_err(StoreError::from)?;
    }
    queue.set_paused(paused).await?;
    Ok(transaction.commit().await.map_err(StoreError::from)?)
}

fn intake(db: &DatabaseConnection) -> Intake {
    Intake::new(db.clone(), Changes::unwatched())
}

/// What the database knows beside the queue's figures.
#[derive(Clone, Copy)]
struct Beside {
    draining: bool,
    dead: u64,
}

impl Beside {
    async fn read(db: &DatabaseConnection) -> Result<Self, CliError> {
        Ok(Self { draining: !intake(db).is_open().await?, dead: Ledger::new(db.clone()).count_dead().await? })
    }
}

impl From<Unreachable> for CliError {
    fn from(error: Unreachable) -> Self {
        CliError::Unavailable(error.to_string())
    }
}

impl From<LedgerError> for CliError {
    fn from(error: LedgerError) -> Self {
        tracing::debug!(?error, "the ledger failed");
        CliError::Unavailable(error.to_string())
    }
}

/// `draining` and `dead` are null when the database does not answer.
fn to_json(stats: &QueueStats, beside: Option<Beside>) -> serde_json::Value {
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
        "draining": beside.map(|beside| beside.draining),
        "dead": beside.map(|beside| beside.dead),
    })
}

fn to_text(stats: &QueueStats, beside: Option<Beside>) -> String {
    let lanes = Lane::ALL.iter().zip(&stats.lanes).map(|(lane, stats)| {
        [lane.as_str().to_owned(), stats.ready.to_string(), format!("{:.1} s", seconds(stats.oldest_ms))]
    });
    let state = if stats.paused { "paused" } else { "running" };
    let beside = match beside {
        Some(Beside { draining, dead }) => {
            format!("dead {dead} · {}", if draining { "new runs are refused (draining)" } else { "new runs are taken" })
        }
        None => "the database does not answer".to_owned(),
    };
    format!(
        "{}\ndelayed {} · in execution {} · {} bytes waiting · {state}\n{beside}\n",
        table(["LANE", "READY", "OLDEST"], lanes),
        stats.delayed,
        stats.leased,
        stats.bytes
    )
}

fn seconds(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}
