//! What a pool says of itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Signs of life, for `/healthz`: a worker that is alive but does not consume is unhealthy.
#[derive(Debug)]
pub struct Health {
    born: Instant,
    /// When the queue was last asked for runs with success, or all executors were busy; milliseconds since `born`.
    polled_ms: AtomicU64,
    pub(super) ledger_failing: AtomicBool,
    pub(super) draining: AtomicBool,
    pub(super) busy: AtomicUsize,
    /// Actors that ended before their time.
    dead: AtomicUsize,
}

impl Health {
    /// A worker that could not ask for work for this long is unhealthy.
    pub const STALE: Duration = Duration::from_secs(20);

    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            polled_ms: AtomicU64::new(0),
            ledger_failing: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            dead: AtomicUsize::new(0),
        }
    }

    /// How long ago the worker last consumed, or was too busy to.
    pub fn since_poll(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.polled_ms.load(Ordering::Relaxed)))
    }

    pub fn is_consuming(&self) -> bool {
        self.since_poll() < Self::STALE
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether the last write to the ledger failed.
    pub fn is_ledger_failing(&self) -> bool {
        self.ledger_failing.load(Ordering::Relaxed)
    }

    /// Whether every actor lives. One that panicked does not come back: the process has to be started again.
    pub fn is_whole(&self) -> bool {
        self.dead.load(Ordering::Relaxed) == 0
    }

    /// Notes the end of an actor, unless the pool drains. The actor owns what this returns.
    pub(super) fn on_duty(self: &Arc<Self>, who: &'static str) -> OnDuty {
        OnDuty { who, health: self.clone() }
    }

    /// Runs in execution.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    pub(super) fn polled(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.polled_ms.store(now, Ordering::Relaxed);
    }
}

/// An actor that lives.
pub(super) struct OnDuty {
    who: &'static str,
    health: Arc<Health>,
}

impl Drop for OnDuty {
    fn drop(&mut self) {
        if !self.health.is_draining() {
            tracing::error!(who = self.who, "a part of the executors is dead; this process has to be started again");
            self.health.dead.fetch_add(1, Ordering::Relaxed);
        }
    }
}
