//! The executors: actors that take runs from the queue and call models.
//!
//! ```text
//! Dispatcher ──Execute──▶ Executor × slots ──Record──▶ Recorder ──▶ ledger, then queue.finish
//!     │  ▲                    │                            │
//!     │  └──────Free──────────┘                            │
//!     └─Leased─▶ Pool ◀───────────────Finished─────────────┘
//! ```
//!
//! Each actor owns one piece of state and nobody else touches it: the **dispatcher** the free executors, the
//! pace of each provider and the conversation with the queue's claim, an **executor** its run, the **recorder** the endings that the ledger has not yet taken, the
//! **pool** the leases (heartbeat, cancellation, self-abort, drain), the **reaper** and the **reconciler** their schedules.
//!
//! The actors live in one actix `System` on one thread, so that no message between them wakes another; what they do that takes long (a run, a
//! batch of endings) is a task of the process's tokio runtime, which drives the connections, too. When that runtime has one thread, it is the same
//! one. A mailbox is never filled with `do_send`, which ignores its bound.

mod actor;
mod call;
mod dispatcher;
mod health;
mod outage;
mod pool;
mod reaper;
mod reconciler;
mod recorder;
mod settling;
mod shaper;
mod sharing;
mod stop;
mod streaming;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::{Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, System, fut};
use tokio::{
    runtime::Runtime,
    sync::{Notify, Semaphore},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::health::Health;
use crate::{
    executor::{
        actor::Executor, dispatcher::Dispatcher, pool::Pool, reaper::Reaper, reconciler::Reconciler, recorder::Recorder,
    },
    job::WorkerId,
    ledger::Ledger,
    providers::{BuildError, Provider, ProviderSettings},
    queue::{Queue, ScopeLimits},
    retry::RetryPolicy,
};

/// Endings that may wait for the ledger, a slot; beyond them executors wait, so that a dead database stops the intake
/// and not the process.
const BACKLOG_PER_SLOT: usize = 16;

/// What a pool of executors is made of.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Runs that are executed at a time.
    pub slots: usize,
    pub retry: RetryPolicy,
    pub providers: Vec<ProviderSettings>,
}

/// Why a pool did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Provider(#[from] BuildError),
    #[error("executors were started outside of an actix system")]
    NoSystem,
}

/// A running pool of executors. When it is dropped, its actors stop, whatever they are at.
pub struct ExecutorPool {
    pool: Addr<Pool>,
    health: Arc<Health>,
    _stop: DropGuard,
}

impl ExecutorPool {
    /// Starts the actors on this thread, within [`run_system`]; runs are claimed from now on.
    pub fn start(ledger: Ledger, queue: Arc<dyn Queue>, settings: PoolSettings) -> Result<Self, StartError> {
        Self::start_with(Shared::new(ledger, queue, &settings)?)
    }

    fn start_with(shared: Shared) -> Result<Self, StartError> {
        if System::try_current().is_none() {
            return Err(StartError::NoSystem);
        }
        let shared = Arc::new(shared);
        let (health, stop) = (shared.health.clone(), shared.stop.clone().drop_guard());
        Ok(Self { pool: start_actors(&shared), health, _stop: stop })
    }

    /// What the pool says of itself, for health checks.
    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Stops claiming, gives running calls `grace` to end, hands the rest back uncounted, and writes what has ended to the
    /// ledger. Returns how many runs were handed back.
    pub async fn drain(self, grace: Duration) -> usize {
        self.pool.send(pool::Drain { grace }).await.unwrap_or(0)
    }
}

/// Runs a process on a runtime, as the actix system that executors need.
pub fn run_system<T>(runtime: Runtime, process: impl Future<Output = T>) -> T {
    System::with_tokio_rt(|| runtime).block_on(process)
}

/// The actors, from the back of the pipeline to its front, so that each knows the next.
fn start_actors(shared: &Arc<Shared>) -> Addr<Pool> {
    let pool = Pool::new(shared.clone()).start();
    let recorder = Recorder::new(shared.clone(), pool.clone()).start();
    Reaper::new(shared.clone(), recorder.clone()).start();
    Reconciler::new(shared.clone()).start();
    let dispatcher = Dispatcher::new(shared.clone(), pool.clone()).start();
    for _ in 0..shared.slots {
        Executor::new(shared.clone(), dispatcher.clone(), recorder.clone()).start();
    }
    pool.try_send(pool::Meet { dispatcher, recorder }).unwrap_or_else(|error| {
        tracing::error!(%error, "the pool did not start");
    });
    pool
}

/// What every actor may use and none changes.
struct Shared {
    worker: WorkerId,
    ledger: Ledger,
    queue: Arc<dyn Queue>,
    retry: RetryPolicy,
    slots: usize,
    providers: HashMap<String, Arc<dyn Provider>>,
    scopes: Vec<ScopeLimits>,
    /// One permit for each ending that the ledger has not yet taken.
    backlog: Arc<Semaphore>,
    health: Arc<Health>,
    /// Told when runs that waited for the result of another one can be ended with it.
    answerable: Notify,
    /// Ends all actors.
    stop: CancellationToken,
}

impl Shared {
    /// Ends an actor together with all others.
    fn stops<A: Actor<Context = Context<A>>>(&self, ctx: &mut Context<A>) {
        let stop = self.stop.clone();
        ctx.spawn(
            fut::wrap_future(async move { stop.cancelled().await }).map(|(), _, ctx: &mut Context<A>| ctx.stop()),
        );
    }

    fn new(ledger: Ledger, queue: Arc<dyn Queue>, settings: &PoolSettings) -> Result<Self, BuildError> {
        let mut providers = HashMap::new();
        let mut scopes = Vec::new();
        for provider in &settings.providers {
            providers.insert(provider.name.clone(), crate::providers::build(provider)?);
            scopes.push(ScopeLimits {
                scope: provider.name.clone(),
                max_concurrency: provider.max_concurrency,
                requests_per_minute: provider.requests_per_minute,
                tokens_per_minute: provider.tokens_per_minute,
                at_once: None,
            });
        }
        Ok(Self {
            worker: WorkerId::new(),
            ledger,
            queue,
            retry: settings.retry,
            slots: settings.slots,
            providers,
            scopes,
            backlog: Arc::new(Semaphore::new(settings.slots.saturating_mul(BACKLOG_PER_SLOT))),
            health: Arc::new(Health::new()),
            answerable: Notify::new(),
            stop: CancellationToken::new(),
        })
    }
}
