//! The reconciler: puts runs back into a queue that does not know them.
//!
//! It tests existence, never age: a run that the ledger calls unfinished and the queue does not know is restored, however
//! young it is. It looks at start, whenever the queue has lost its memory, and now and then for a front door that
//! died between the row and the queue.
//!
//! The first two are in a hurry. The last one is a routine: one worker of a pool makes it, a moment in each second, so that a long queue costs the runs
//! beside it little. It ends with the run that was the last one when it began, and is followed by another one that begins with the first.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use tokio::time::Instant;

use crate::{
    executor::{Shared, health::OnDuty},
    fail,
    job::RunId,
    queue::Epoch,
};

/// How often the queue is asked whether it lost its memory.
const WATCH: Duration = Duration::from_secs(1);
/// How long after a comparison the next one begins all the same.
pub(super) const SWEEP: Duration = Duration::from_secs(30);
/// How much of each [`WATCH`] a routine comparison may take: a little more, by as much as a page takes.
const BURST: Duration = Duration::from_millis(50);
/// Runs that are compared at a time. The queue in Redis does nothing else meanwhile, some microseconds for each.
pub(super) const PAGE: u64 = 250;

pub struct Reconciler {
    shared: Arc<Shared>,
    sweep: Sweep,
    /// The queue said that it lost its memory, and waits to hear that it was restored.
    owed: Option<Epoch>,
    _on_duty: OnDuty,
}

/// A comparison of all unfinished rows with the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    /// One is to be made now, and as fast as can be.
    Owed,
    /// A routine one has come as far as this run, and ends with that one.
    UnderWay { after: Option<RunId>, last: RunId },
    /// The last one has ended, or is somebody else's.
    Ended(Instant),
}

impl Reconciler {
    pub fn new(shared: Arc<Shared>) -> Self {
        let on_duty = shared.health.on_duty("the reconciler");
        Self { shared, sweep: Sweep::Owed, owed: None, _on_duty: on_duty }
    }

    fn watch(&mut self, ctx: &mut Context<Self>) {
        let (shared, sweep, owed) = (self.shared.clone(), self.sweep, self.owed);
        let round = async move { look(&shared, sweep, owed).await };
        ctx.spawn(round.into_actor(self).map(|(sweep, owed), act, ctx| {
            (act.sweep, act.owed) = (sweep, owed);
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

/// One look at the queue, and what there is to do about it. Answers with what is left to do.
pub(super) async fn look(shared: &Shared, sweep: Sweep, owed: Option<Epoch>) -> (Sweep, Option<Epoch>) {
    let Ok(told) = shared.queue.was_reset().await else { return (Sweep::Owed, owed) };
    let owed = told.or(owed);
    if owed.is_none() && sweep != Sweep::Owed {
        return (go_on(shared, sweep).await, None);
    }
    if compare(shared, None, None).await != Compared::All {
        return (Sweep::Owed, owed);
    }
    if let Some(epoch) = owed
        && let Err(error) = fail::around("restored", shared.queue.restored(epoch)).await
    {
        // Another worker is told, and finds nothing left to restore.
        tracing::debug!(%error, "the queue did not hear that it is restored");
    }
    (Sweep::Ended(Instant::now()), None)
}

/// The routine.
async fn go_on(shared: &Shared, sweep: Sweep) -> Sweep {
    if let Sweep::Ended(at) = sweep
        && at.elapsed() < SWEEP
    {
        return sweep;
    }
    match shared.queue.claim_sweep(shared.worker, SWEEP).await {
        Ok(true) => {}
        Ok(false) => return Sweep::Ended(Instant::now()),
        Err(error) => {
            tracing::debug!(%error, "the comparison of ledger and queue is put off");
            return sweep;
        }
    }
    let (after, last) = match sweep {
        Sweep::UnderWay { after, last } => (after, last),
        Sweep::Owed | Sweep::Ended(_) => match shared.ledger.last_unfinished().await {
            Ok(Some(last)) => (None, last),
            Ok(None) => return Sweep::Ended(Instant::now()),
            Err(error) => {
                tracing::warn!(%error, "cannot compare ledger and queue");
                return given_up();
            }
        },
    };
    match compare(shared, after, Some(Bounds { last, until: Instant::now() + BURST })).await {
        Compared::All => Sweep::Ended(Instant::now()),
        Compared::Until(after) => Sweep::UnderWay { after, last },
        Compared::Failed => given_up(),
    }
}

/// A store did not answer this worker. Others can make the comparison once its claim has ended, before it asks again.
fn given_up() -> Sweep {
    Sweep::Ended(Instant::now() + SWEEP)
}

/// Where a comparison ends, within a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// With this run.
    pub last: RunId,
    /// At this moment, after one page at least.
    pub until: Instant,
}

/// How far a comparison came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    All,
    /// There was time to come as far as this run.
    Until(Option<RunId>),
    /// A store did not answer.
    Failed,
}

/// Compares unfinished rows with the queue, those after a run, all of them or within bounds.
pub(super) async fn compare(shared: &Shared, mut after: Option<RunId>, bounds: Option<Bounds>) -> Compared {
    let mut restored = 0;
    let compared = loop {
        match compare_page(shared, after).await {
            Ok(page) => {
                restored += page.restored;
                let Some(last) = page.last else { break Compared::All };
                after = Some(last);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot compare ledger and queue");
                break Compared::Failed;
            }
        }
        if let Some(Bounds { last, until }) = bounds {
            if after >= Some(last) {
                break Compared::All;
            }
            if Instant::now() >= until {
                break Compared::Until(after);
            }
        }
    };
    if restored > 0 {
        tracing::info!(restored, "runs were put back into the queue from the ledger");
    }
    compared
}

struct Page {
    /// None when it is the last one.
    last: Option<RunId>,
    restored: usize,
}

async fn compare_page(shared: &Shared, after: Option<RunId>) -> Result<Page, Box<dyn std::error::Error + Send + Sync>> {
    let ids = shared.ledger.unfinished_ids(after, PAGE).await?;
    let is_full = u64::try_from(ids.len()).is_ok_and(|found| found >= PAGE);
    let last = ids.last().copied().filter(|_| is_full);
    if ids.is_empty() {
        return Ok(Page { last, restored: 0 });
    }
    let missing = fail::around("missing", shared.queue.missing(&ids)).await?;
    // Few are, as a rule: only these are read.
    let lost = shared.ledger.unfinished(&missing).await?;
    if !lost.is_empty() {
        fail::around("restore", shared.queue.restore(&lost)).await?;
    }
    Ok(Page { last, restored: lost.len() })
}
