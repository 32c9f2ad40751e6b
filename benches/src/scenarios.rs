//! What is measured. Each scenario is a file and says there what it asks.

mod batch;
mod closed;
mod drain;
mod growth;
mod idle;
mod sockets;
mod tenants;

use std::{net::SocketAddr, time::Duration};

use clap::ValueEnum;

pub use self::sockets::FIRST as FEWEST_SOCKETS;
use crate::{
    engine::{Engine, Mode, Setup},
    load::Seen,
    report::{Figures, Report, Row},
    target::Extra,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Callers that wait, and a provider that answers at once
    Sync,
    /// 64 callers that wait, and a provider that answers after 50 ms
    Slow,
    /// Callers that read a stream of 20 pieces
    Stream,
    /// Submit many runs that do nothing, then let them drain
    Drain,
    /// The same runs as the lines of one batch
    Batch,
    /// One request at a time, with pauses: what an idle engine adds
    Idle,
    /// Small accounts beside one that floods
    Tenants,
    /// Idle WebSockets: memory, and a run among them
    Sockets,
    /// Runs, look-ups and lists with much in the ledger and in the queue
    Growth,
}

impl Scenario {
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }
}

/// How much of everything.
pub struct Plan {
    pub setup: Setup,
    pub modes: Vec<Mode>,
    pub rounds: usize,
    pub length: Duration,
    /// Empty: each scenario's own.
    pub callers: Vec<usize>,
    pub runs: usize,
    pub sockets: usize,
    pub rows: usize,
    pub extras: Vec<Extra>,
}

impl Plan {
    pub fn provider(&self) -> SocketAddr {
        self.setup.provider.address()
    }

    /// An engine in each mode.
    pub async fn engines(&self) -> anyhow::Result<Vec<Engine>> {
        let mut engines = Vec::new();
        for mode in &self.modes {
            engines.push(Engine::start(*mode, &self.setup).await?);
        }
        Ok(engines)
    }
}

pub async fn measure(scenario: Scenario, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    match scenario {
        Scenario::Sync => closed::sync(plan, report).await,
        Scenario::Slow => closed::slow(plan, report).await,
        Scenario::Stream => closed::stream(plan, report).await,
        Scenario::Drain => drain::drain(plan, report).await,
        Scenario::Batch => batch::batch(plan, report).await,
        Scenario::Idle => idle::idle(plan, report).await,
        Scenario::Tenants => tenants::tenants(plan, report).await,
        Scenario::Sockets => sockets::sockets(plan, report).await,
        Scenario::Growth => growth::growth(plan, report).await,
    }
}

/// A row of what callers saw.
fn row(scenario: &'static str, case: String, target: &str, round: usize, figures: Figures, seen: &Seen) -> Row {
    Row { scenario, case, target: target.to_owned(), round, runs: seen.count(), errors: seen.errors, figures }
}
