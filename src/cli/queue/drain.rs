//! `queue drain`: closes the intake and waits until nothing is left to do.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use indicatif::ProgressBar;
use sea_orm::DatabaseConnection;
use serde_json::json;
use tokio::time::{Instant, sleep};
use workers::{
    ledger::Ledger,
    queue::{Queue, redis::RedisQueue},
};

use super::intake;
use crate::{
    audit::Actor,
    cli::{error::CliError, output::Output},
    config::Config,
    node,
};

/// How often the runs that are left are counted.
const LOOK: Duration = Duration::from_millis(250);
/// How long there must be none: a front door may hear of the drain a second late, and then still write what it took before.
const QUIET: Duration = Duration::from_millis(1_500);

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Refuse new runs, and do not wait for the accepted ones
    #[arg(long)]
    no_wait: bool,
    /// Wait for so many seconds at most; exit code 1 when runs are left then
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait")]
    timeout: Option<u64>,
}

pub(super) async fn run(
    args: DrainArgs,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let queue = match &config.redis {
        Some(_) => Some(node::open_redis(config, "`prompt-manager queue drain`").await?),
        None => None,
    };
    // A queue that hands nothing out never becomes empty.
    if let Some(queue) = &queue
        && !args.no_wait
        && queue.stats().await?.paused
    {
        return Err(CliError::Refused("the queue is paused, so that it would never be empty: resume it first".into()));
    }
    intake(db).set_open(&Actor::cli(), false).await?;
    let left = Left { ledger: Ledger::new(db.clone()), queue };
    let mut runs = left.count().await?;
    if !args.no_wait {
        if !io::stderr().is_terminal() {
            // Whether anybody reads it changes nothing.
            let _ = writeln!(io::stderr(), "new runs are refused; waiting for {runs} runs to end");
        }
        runs = left.wait(args.timeout.map(Duration::from_secs)).await?;
    }
    if runs > 0 && !args.no_wait {
        return Err(CliError::Refused(format!(
            "{runs} runs are left; new ones are still refused: drain again to wait on, or resume"
        )));
    }
    output.emit(&json!({ "draining": true, "left": runs }), || {
        let left = if runs == 0 { "no run is left".to_owned() } else { format!("{runs} runs are left") };
        format!("new runs are refused; {left}\n")
    })
}

struct Left {
    ledger: Ledger,
    queue: Option<RedisQueue>,
}

impl Left {
    /// Runs that have not ended. The row of a run whose caller waits may come after its place in the queue.
    async fn count(&self) -> Result<u64, CliError> {
        let rows = self.ledger.count_unfinished().await?;
        let Some(queue) = &self.queue else { return Ok(rows) };
        let stats = queue.stats().await?;
        let ready: u64 = stats.lanes.iter().map(|lane| lane.ready).sum();
        Ok(rows.max(ready + stats.delayed + stats.leased))
    }

    /// How many are left in the end.
    async fn wait(&self, at_most: Option<Duration>) -> Result<u64, CliError> {
        let started = Instant::now();
        // Draws on stderr, and only on a terminal.
        let progress = ProgressBar::new_spinner();
        progress.enable_steady_tick(LOOK);
        let mut quiet_since = None;
        loop {
            let runs = self.count().await?;
            if runs > 0 {
                quiet_since = None;
            } else if quiet_since.get_or_insert_with(Instant::now).elapsed() >= QUIET {
                progress.finish_and_clear();
                return Ok(0);
            }
            if at_most.is_some_and(|at_most| started.elapsed() >= at_most) && runs > 0 {
                progress.finish_and_clear();
                return Ok(runs);
            }
            progress.set_message(format!("draining: {runs} runs are left"));
            sleep(LOOK).await;
        }
    }
}
