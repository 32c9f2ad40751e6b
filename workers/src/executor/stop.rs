//! How an execution is told to stop.

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

/// Why a running call is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody cancelled the run.
    Cancelled,
    /// The lease is gone: whatever comes of the call belongs to nobody.
    LeaseLost,
    /// The worker shuts down: hand the run back.
    Drain,
}

/// Stops one run, once. Whoever has the run in hand holds it: a lease whose `Stop` nobody else holds is renewed no more.
#[derive(Debug, Default)]
pub struct Stop {
    reason: OnceLock<StopReason>,
    token: CancellationToken,
}

impl Stop {
    /// The first reason counts.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Why it was stopped, if it was.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }

    pub async fn stopped(&self) -> StopReason {
        self.token.cancelled().await;
        // The reason is set before the token is cancelled.
        self.reason.get().copied().unwrap_or(StopReason::LeaseLost)
    }
}
