//! Measures the release binary as its users meet it: over loopback, in both modes, against a provider of its own.
//!
//! Every scenario measures its targets in turns, round after round, so that whatever else the machine does falls on all of them; what is printed are
//! medians over the rounds. `docs/performance.md` says how to read them.

mod caller;
mod counts;
mod engine;
mod load;
mod mock;
mod process;
mod report;
mod scenarios;
mod servers;
mod target;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::json;

use crate::{
    engine::{Mode, Setup},
    report::Report,
    scenarios::{FEWEST_SOCKETS, Plan, Scenario},
    target::Extra,
};

#[derive(Parser)]
#[command(name = "prompt-manager-bench", about = "Measures prompt-manager over loopback, in both modes")]
struct Options {
    /// What to measure [default: everything]
    scenarios: Vec<Scenario>,
    /// The binary to measure [default: the one beside this program]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Which deployments
    #[arg(long, value_delimiter = ',', default_values = ["embedded", "distributed"])]
    modes: Vec<Mode>,
    /// How often everything is measured; the tables show medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each measurement of a closed loop takes
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Callers at a time, for `sync` [default: 1,16,64,256] and `stream` [default: 16,64]
    #[arg(long, value_delimiter = ',')]
    callers: Vec<usize>,
    /// Runs of `drain`, and lines of `batch`, which has 100,000 at most
    #[arg(long, default_value_t = 100_000)]
    runs: usize,
    /// Open WebSockets of `sockets`
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Rows in the ledger, and runs in the queue, of `growth`
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// `workers.slots` of the engines
    #[arg(long, default_value_t = 64)]
    slots: usize,
    /// Tell on stderr which commands of Redis and which statements of SQL a run took
    #[arg(long)]
    detail: bool,
    /// One short round with little of everything: to see that it works
    #[arg(long)]
    quick: bool,
    /// Servers that already run, measured beside ours: [{"name", "url", "headers", "bodies": {"sync", "slow", "stream"}, "pids"}]
    #[arg(long)]
    extra: Option<PathBuf>,
    /// Where to write everything that was measured
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // The load shares the machine with what it measures: one thread for callers, one for the provider.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("prompt-manager"),
    };
    let binary = binary.canonicalize().with_context(|| {
        format!("{} is not there: cargo build --release --locked --bin prompt-manager", binary.display())
    })?;
    if options.rounds == 0 || options.modes.is_empty() || !(0.1..=3600.0).contains(&options.seconds) {
        bail!("at least one round, one mode, and 0.1 to 3600 seconds");
    }
    if options.sockets <= FEWEST_SOCKETS {
        bail!("more than {FEWEST_SOCKETS} sockets: the first bring what is kept once");
    }
    let file_system = file_system(&std::env::temp_dir())?;
    if file_system == "tmpfs" {
        eprintln!("stores would be in memory, and cost no disk: point TMPDIR at a disk");
    }
    let version = process::bare(&binary, &[]).arg("--version").output()?;
    let extras = options.extra.as_deref().map(Extra::read).transpose()?.unwrap_or_default();
    let setup = Setup { binary, provider: mock::start()?, slots: options.slots, detail: options.detail };
    let plan = Plan {
        setup,
        modes: options.modes,
        rounds: if options.quick { 1 } else { options.rounds },
        length: Duration::from_secs_f64(if options.quick { 0.5 } else { options.seconds }),
        callers: options.callers,
        runs: if options.quick { options.runs.min(2_000) } else { options.runs },
        sockets: if options.quick { options.sockets.min(500) } else { options.sockets },
        rows: if options.quick { options.rows.min(5_000) } else { options.rows },
        extras,
    };
    let mut report = Report::default();
    let scenarios = if options.scenarios.is_empty() { Scenario::all() } else { options.scenarios };
    let mut failed = None;
    for scenario in scenarios {
        if let Err(error) = scenarios::measure(scenario, &plan, &mut report).await {
            // What was measured before is worth telling.
            failed = Some(error);
            break;
        }
    }
    println!("{}", report.tables());
    if let Some(file) = options.json {
        let context = json!({
            "binary": plan.setup.binary, "version": String::from_utf8_lossy(&version.stdout).trim(), "file_system": file_system, "rounds": plan.rounds, "seconds": plan.length.as_secs_f64(), "slots": plan.setup.slots,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
        });
        std::fs::write(&file, format!("{:#}\n", report.json(&context))).with_context(|| file.display().to_string())?;
    }
    match failed {
        Some(error) => Err(error),
        None if report.errors() > 0 => {
            bail!("{} requests failed: what is told of the others is worth nothing", report.errors())
        }
        None => Ok(()),
    }
}

/// The kind of file system that a folder is on, as stat(1) names it.
fn file_system(folder: &Path) -> anyhow::Result<String> {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output().context("stat, of coreutils")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
