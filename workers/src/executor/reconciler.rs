//! The reconciler: puts runs back into a queue that does not know them.
//!
//! It tests existence, never age: a run that the ledger calls unfinished and the queue does not know is restored, however
//! young it is. It looks at start, whenever the queue has lost its memory, and now and then for a front door that
//! died between the row and the queue.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use tokio::time::Instant;

use crate::{
    executor::{Shared, health::OnDuty},
    fail,
    queue::Epoch,
};

/// How often the queue is asked whether it lost its memory.
const WATCH: Duration = Duration::from_secs(1);
/// How often everything is compared all the same.
const SWEEP: Duration = Duration::from_secs(30);
/// Rows that are compared at a time.
const PAGE: u64 = 1_000;

pub struct Reconciler {
    shared: Arc<Shared>,
    /// When the last complete comparison ended; `None` asks for one now.
    swept: Option<Instant>,
    /// The queue said that it lost its memory, and waits to hear that it was restored.
    owed: Option<Epoch>,
    _on_duty: OnDuty,
}

impl Reconciler {
    pub fn new(shared: Arc<Shared>) -> Self {
        let on_duty = shared.health.on_duty("the reconciler");
        Self { shared, swept: None, owed: None, _on_duty: on_duty }
    }

    fn watch(&mut self, ctx: &mut Context<Self>) {
        let shared = self.shared.clone();
        let due = self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP);
        let owed = self.owed;
        let round = async move {
            let told = match shared.queue.was_reset().await {
                Ok(told) => told,
                Err(_) => return (owed, Some(false)),
            };
            let owed = told.or(owed);
            if owed.is_none() && !due {
                return (None, None);
            }
            if !sweep(&shared).await {
                return (owed, Some(false));
            }
            if let Some(epoch) = owed
                && let Err(error) = fail::around("restored", shared.queue.restored(epoch)).await
            {
                // Another worker is told, and finds nothing left to restore.
                tracing::debug!(%error, "the queue did not hear that it is restored");
            }
            (None, Some(true))
        };
        ctx.spawn(round.into_actor(self).map(|(owed, complete), act, ctx| {
            act.owed = owed;
            match complete {
                Some(true) => act.swept = Some(Instant::now()),
                // The sweep is owed.
                Some(false) => act.swept = None,
                None => {}
            }
            ctx.run_later(WATCH, Self::watch);
        }));
    }
}

impl Actor for Reconciler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.stops(ctx);
        self.watch(ctx);
    }
}

/// Compares every unfinished row with the queue. Returns whether it got to the end.
async fn sweep(shared: &Shared) -> bool {
    let mut after = None;
    let mut restored = 0;
    loop {
        let page = match shared.ledger.unfinished(after, PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, "cannot compare ledger and queue");
                return false;
            }
        };
        let Some(last) = page.last().map(|row| row.job.id) else { break };
        after = Some(last);
        let ids: Vec<_> = page.iter().map(|row| row.job.id).collect();
        let outcome = async {
            let missing = fail::around("missing", shared.queue.missing(&ids)).await?;
            let lost: Vec<_> = page.into_iter().filter(|row| missing.contains(&row.job.id)).collect();
            if !lost.is_empty() {
                fail::around("restore", shared.queue.restore(&lost)).await?;
            }
            Ok::<_, crate::queue::Unreachable>(lost.len())
        };
        match outcome.await {
            Ok(count) => restored += count,
            Err(error) => {
                tracing::warn!(%error, "cannot compare ledger and queue");
                return false;
            }
        }
    }
    if restored > 0 {
        tracing::info!(restored, "runs were put back into the queue from the ledger");
    }
    true
}
