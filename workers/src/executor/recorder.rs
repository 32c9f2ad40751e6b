//! The recorder: takes endings to the ledger in batches, then lets the queue forget them.
//!
//! An ending comes here stashed, so nothing is lost when this process dies: whoever takes the lease over finds it. While the
//! ledger is away, endings wait here under their leases, up to the backlog's bound.

use std::{mem, sync::Arc, sync::atomic::Ordering, time::Duration};

use actix::prelude::*;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    executor::{
        BACKLOG_PER_SLOT, Shared,
        health::OnDuty,
        pool::{Finished, Pool},
        stop::Stop,
    },
    fail,
    job::{Ending, Job},
    ledger::LedgerError,
};

/// The pause before a failed batch is tried again; it doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Endings in one transaction, at most.
const BATCH: usize = 256;
/// The least time from the beginning of one batch to that of the next. Each costs a transaction and a step of the queue, however little is in it, and
/// takes the processor from runs that somebody waits for. Hardly anybody waits for this: an ending that is stashed is told, and shown.
const LINGER: Duration = Duration::from_millis(25);

pub struct Recorder {
    shared: Arc<Shared>,
    pool: Addr<Pool>,
    pending: Vec<Record>,
    flushing: bool,
    /// When the next batch may begin.
    not_before: Instant,
    /// It is waited for.
    lingering: bool,
    /// A result among those that are pending is shared.
    is_shared: bool,
    idle: Vec<tokio::sync::oneshot::Sender<()>>,
    _on_duty: OnDuty,
}

impl Recorder {
    pub fn new(shared: Arc<Shared>, pool: Addr<Pool>) -> Self {
        let on_duty = shared.health.on_duty("the recorder");
        Self {
            shared,
            pool,
            pending: Vec::new(),
            flushing: false,
            not_before: Instant::now(),
            lingering: false,
            is_shared: false,
            idle: Vec::new(),
            _on_duty: on_duty,
        }
    }

    /// Whether somebody waits after all: for the last ending, for a result that is shared, or soon for a place in the backlog.
    fn is_due(&self) -> bool {
        let enough = BATCH.min(self.shared.slots.saturating_mul(BACKLOG_PER_SLOT) / 2);
        self.is_shared || !self.idle.is_empty() || self.pending.len() >= enough
    }

    /// At once when idle; what comes while a batch is written, or just after, makes the next one.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        if self.flushing {
            return;
        }
        if self.pending.is_empty() {
            for told in self.idle.drain(..) {
                // Whoever stopped waiting needs no answer.
                let _ = told.send(());
            }
            return;
        }
        let now = Instant::now();
        let linger = self.not_before.saturating_duration_since(now);
        if !linger.is_zero() && !self.is_due() {
            if !mem::replace(&mut self.lingering, true) {
                ctx.run_later(linger, |act, ctx| {
                    act.lingering = false;
                    act.flush(ctx);
                });
            }
            return;
        }
        self.not_before = now + LINGER;
        self.flushing = true;
        let rest = self.pending.split_off(self.pending.len().min(BATCH));
        let batch = mem::replace(&mut self.pending, rest);
        self.is_shared = self.pending.iter().any(Record::is_shared);
        // All states of a statement are large: they are moved once.
        let write = tokio::spawn(Box::pin(write(self.shared.clone(), self.pool.clone(), batch)));
        ctx.spawn(write.into_actor(self).map(|written, act, ctx| {
            if let Err(error) = written {
                tracing::error!(%error, "writing endings panicked; their leases run out, and whoever takes them over tries again");
            }
            act.flushing = false;
            act.flush(ctx);
        }));
    }
}

impl Actor for Recorder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.stops(ctx);
        // The backlog's permits bound what is on its way here.
        ctx.set_mailbox_capacity(self.shared.slots.max(16));
    }
}

/// An ending for the ledger, with its place in the backlog.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Record {
    job: Arc<Job>,
    ending: Arc<Ending>,
    _place: OwnedSemaphorePermit,
    /// Keeps the run's lease alive, if this worker has one.
    _in_hand: Option<Arc<Stop>>,
}

impl Record {
    /// Whether other runs may wait for this result.
    fn is_shared(&self) -> bool {
        self.job.caching.is_some()
    }
}

impl Handler<Record> for Recorder {
    type Result = ();

    fn handle(&mut self, record: Record, ctx: &mut Self::Context) {
        self.is_shared |= record.is_shared();
        self.pending.push(record);
        self.flush(ctx);
    }
}

/// Answers when nothing is left to write.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle;

impl Handler<Settle> for Recorder {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Settle, ctx: &mut Self::Context) -> Self::Result {
        let (told, idle) = tokio::sync::oneshot::channel();
        self.idle.push(told);
        self.flush(ctx);
        Box::pin(async move {
            let _ = idle.await;
        })
    }
}

/// Gives an ending to the recorder; waits for a place in the backlog.
pub async fn hand_over(
    shared: &Shared,
    recorder: &Addr<Recorder>,
    (job, ending): (Arc<Job>, Box<Ending>),
    in_hand: Option<Arc<Stop>>,
) {
    // The semaphore is never closed.
    let Ok(place) = shared.backlog.clone().acquire_owned().await else { return };
    let record = Record { job, ending: Arc::from(ending), _place: place, _in_hand: in_hand };
    fail::point("hand_over").await;
    if recorder.send(record).await.is_err() {
        tracing::error!("an ending is left to the next worker: the recorder has stopped");
    }
}

async fn write(shared: Arc<Shared>, pool: Addr<Pool>, batch: Vec<Record>) {
    let endings: Vec<_> = batch.iter().map(|record| (record.job.clone(), record.ending.clone())).collect();
    let mut pause = PAUSE;
    let recorded = loop {
        let error = match fail::around("record", shared.ledger.finish(&endings)).await {
            Ok(_) => break true,
            Err(LedgerError::Refused(source)) => {
                tracing::error!(%source, "the database refuses an ending");
                break false;
            }
            Err(error) => error,
        };
        shared.health.ledger_failing.store(true, Ordering::Relaxed);
        tracing::warn!(%error, endings = endings.len(), "endings wait for the ledger");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    };
    shared.health.ledger_failing.store(false, Ordering::Relaxed);
    let runs: Vec<_> = batch.iter().map(|record| (record.ending.run, record.ending.fence)).collect();
    // After a refusal nobody knows which endings were accepted: all leases are left to run out, and whoever takes them over tries again.
    if recorded && let Err(error) = fail::around("finish", shared.queue.finish(&runs)).await {
        // The leases run out, and whoever takes them over finds that the ledger has the endings.
        tracing::warn!(%error, "the queue did not hear that runs are recorded");
    }
    if batch.iter().any(|record| record.job.caching.is_some()) {
        shared.answerable.notify_one();
    }
    // A pool that is gone keeps no leases.
    let _ = pool.send(Finished { runs }).await;
}
