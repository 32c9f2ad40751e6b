//! `serve` and `worker`: a node that runs until it is told to stop.

use tokio::signal::unix::{SignalKind, signal};
use workers::queue::redis::ConnectError;

use super::error::CliError;
use crate::{
    config::Config,
    node::{Node, NodeError, Roles},
};

/// Runs a node until SIGTERM or SIGINT; a second signal ends it at once.
pub async fn run(config: Config, roles: Roles) -> Result<(), CliError> {
    let mut signals = Signals::install()?;
    let node = tokio::select! {
        node = Node::start(config, roles) => node?,
        () = signals.next() => return Ok(()),
    };
    if let Some(address) = node.address() {
        tracing::info!(%address, front_door = roles.front_door, executors = roles.executors, "ready");
    } else {
        tracing::info!("ready, without a listener: set PROMPT_MANAGER_METRICS_LISTEN for /healthz and /readyz");
    }
    signals.next().await;
    stop(node, &mut signals).await
}

/// Drains a node, unless a second signal says not to.
pub async fn stop(node: Node, signals: &mut Signals) -> Result<(), CliError> {
    tracing::info!("draining; a second signal stops at once");
    tokio::select! {
        () = node.stop() => Ok(()),
        () = signals.next() => Err(CliError::Refused("stopped before everything was handed back".into())),
    }
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn install() -> Result<Self, CliError> {
        let install =
            |kind| signal(kind).map_err(|error| CliError::Software(format!("cannot listen for signals: {error}")));
        Ok(Self { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        let sentence = error.to_string();
        match error {
            NodeError::Store(error) => error.into(),
            NodeError::Behind { .. } | NodeError::Ahead | NodeError::Listen { .. } => CliError::Refused(sentence),
            NodeError::Queue(ConnectError::Malformed) => CliError::Config(sentence),
            NodeError::Queue(ConnectError::TooOld { .. }) => CliError::Refused(sentence),
            NodeError::Queue(ConnectError::Unreachable { source, .. } | ConnectError::Refused { source, .. }) => {
                tracing::debug!(error = %source, "Redis failed");
                CliError::Unavailable(sentence)
            }
            NodeError::QueueGone(_) | NodeError::TakenDatabase => CliError::Unavailable(sentence),
            NodeError::NeedsRedis(_) => CliError::Config(sentence),
            NodeError::Executors(_) | NodeError::Webhooks(_) => CliError::Software(sentence),
        }
    }
}
