//! The pool: owns the leases of this worker. It renews them, passes cancellations on, gives up what it could not renew
//! before anybody else may take it, and empties itself when the worker drains.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use actix::prelude::*;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    executor::{
        Shared,
        dispatcher::{Dispatcher, StopClaiming},
        health::OnDuty,
        outage::Outage,
        recorder::{Recorder, Settle},
        stop::{Stop, StopReason},
    },
    fail,
    job::{Fence, RunId},
    queue::{Renewal, Unreachable, heartbeat_of, self_abort_of},
};

/// How often leases are looked at for self-abort, at a lease.
const CHECKS: u32 = 15;
/// How long stopped calls and unwritten endings may take after the grace time of a drain.
const LAST_WRITES: Duration = Duration::from_secs(10);

pub struct Pool {
    shared: Arc<Shared>,
    leases: HashMap<RunId, Held>,
    /// Cancellations of runs without a lease here, and when they came. Most are other workers'; one may have overtaken its lease.
    cancelled: HashMap<RunId, Instant>,
    /// How long the queue's leases are.
    lease: Duration,
    heartbeat_under_way: bool,
    last_heartbeat: Instant,
    crew: Option<Meet>,
    empty: Vec<oneshot::Sender<()>>,
    stop: CancellationToken,
    /// Of the heartbeats.
    outage: Outage,
    _on_duty: OnDuty,
}

/// A lease as this worker holds it.
struct Held {
    fence: Fence,
    stop: Arc<Stop>,
    /// When the queue last confirmed it, by this process's clock; the moment of asking, which is the earlier one.
    renewed: Instant,
}

impl Pool {
    pub fn new(shared: Arc<Shared>) -> Self {
        let lease = shared.queue.lease();
        let on_duty = shared.health.on_duty("the pool");
        Self {
            shared,
            leases: HashMap::new(),
            cancelled: HashMap::new(),
            lease,
            heartbeat_under_way: false,
            last_heartbeat: Instant::now(),
            crew: None,
            empty: Vec::new(),
            stop: CancellationToken::new(),
            outage: Outage::default(),
            _on_duty: on_duty,
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.give_up_overdue();
        self.give_up_abandoned();
        // A lease that came later than that has been renewed since, and its renewal has told.
        let heartbeat = heartbeat_of(self.lease);
        self.cancelled.retain(|_, came| came.elapsed() < heartbeat);
        if self.last_heartbeat.elapsed() >= heartbeat && !self.heartbeat_under_way {
            self.heartbeat(ctx);
        }
    }

    /// Beats without leases, too: that is how the pool knows that the queue answers.
    fn heartbeat(&mut self, ctx: &mut Context<Self>) {
        self.heartbeat_under_way = true;
        let asked = Instant::now();
        self.last_heartbeat = asked;
        let held: Vec<_> = self.leases.iter().map(|(run, lease)| (*run, lease.fence)).collect();
        let shared = self.shared.clone();
        let beat = async move {
            let renewals = fail::around("heartbeat", shared.queue.heartbeat(shared.worker, &held)).await;
            (held, renewals)
        };
        ctx.spawn(beat.into_actor(self).map(move |(held, renewals), act, _| {
            act.heartbeat_under_way = false;
            act.renewed(asked, &held, renewals);
        }));
    }

    fn renewed(&mut self, asked: Instant, held: &[(RunId, Fence)], renewals: Result<Vec<Renewal>, Unreachable>) {
        let renewals = match renewals {
            Ok(renewals) => renewals,
            Err(error) => {
                if self.outage.goes_on(Instant::now()) {
                    tracing::warn!(%error, leases = held.len(), "leases cannot be renewed; trying on");
                }
                return;
            }
        };
        if let Some(lasted) = self.outage.is_over(Instant::now()) {
            tracing::info!(?lasted, "leases can be renewed again");
        }
        for ((run, fence), renewal) in held.iter().zip(renewals) {
            let Some(lease) = self.leases.get_mut(run).filter(|lease| lease.fence == *fence) else { continue };
            match renewal {
                Renewal::Held => lease.renewed = asked,
                Renewal::Cancel => {
                    lease.renewed = asked;
                    lease.stop.stop(StopReason::Cancelled);
                }
                Renewal::Lost => {
                    tracing::warn!(%run, "a lease was lost");
                    lease.stop.stop(StopReason::LeaseLost);
                    self.leases.remove(run);
                }
            }
        }
        self.tell_if_empty();
    }

    fn give_up_overdue(&mut self) {
        let (now, self_abort) = (Instant::now(), self_abort_of(self.lease));
        self.leases.retain(|run, lease| {
            let overdue = now.saturating_duration_since(lease.renewed) >= self_abort;
            if overdue {
                tracing::warn!(%run, "a lease could not be renewed in time; the run is given up");
                lease.stop.stop(StopReason::LeaseLost);
            }
            !overdue
        });
        self.tell_if_empty();
    }

    /// An executor or a recorder that died has let go of its runs. Their leases run out, and whoever takes them over goes on.
    fn give_up_abandoned(&mut self) {
        self.leases.retain(|run, lease| {
            let abandoned = Arc::strong_count(&lease.stop) == 1;
            if abandoned {
                tracing::error!(%run, "whoever had the run in hand is dead; the run is given up");
            }
            !abandoned
        });
        self.tell_if_empty();
    }

    fn tell_if_empty(&mut self) {
        if self.leases.is_empty() {
            for told in self.empty.drain(..) {
                // Whoever stopped waiting needs no answer.
                let _ = told.send(());
            }
        }
    }

    /// Hears of cancellations as they happen; heartbeats tell them too, later.
    fn listen(&self, ctx: &mut Context<Self>) {
        let (queue, stop, pool) = (self.shared.queue.clone(), self.stop.clone(), ctx.address());
        let listen = async move {
            let mut outage = Outage::default();
            let mut cancellations = loop {
                match queue.cancellations(stop.clone()).await {
                    Ok(cancellations) => break cancellations,
                    Err(error) if outage.goes_on(Instant::now()) => {
                        tracing::warn!(%error, "cannot listen for cancellations yet; trying on");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            };
            while let Some(run) = cancellations.recv().await {
                if pool.send(Cancel { run }).await.is_err() {
                    break;
                }
            }
        };
        ctx.spawn(listen.into_actor(self));
    }
}

impl Actor for Pool {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.stops(ctx);
        ctx.set_mailbox_capacity(self.shared.slots.max(64));
        ctx.run_interval(self.lease / CHECKS, Self::tick);
        self.listen(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.stop.cancel();
    }
}

/// The actors that the pool stops when it drains.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Meet {
    pub dispatcher: Addr<Dispatcher>,
    pub recorder: Addr<Recorder>,
}

impl Handler<Meet> for Pool {
    type Result = ();

    fn handle(&mut self, crew: Meet, _: &mut Self::Context) {
        self.crew = Some(crew);
    }
}

/// These leases are ours from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leased {
    pub leases: Vec<Lease>,
}

pub struct Lease {
    pub run: RunId,
    pub fence: Fence,
    pub stop: Arc<Stop>,
    /// A moment before the claim was made.
    pub claimed: Instant,
}

impl Handler<Leased> for Pool {
    type Result = ();

    fn handle(&mut self, message: Leased, _: &mut Self::Context) {
        for Lease { run, fence, stop, claimed } in message.leases {
            if self.cancelled.remove(&run).is_some() {
                stop.stop(StopReason::Cancelled);
            }
            if let Some(before) = self.leases.insert(run, Held { fence, stop, renewed: claimed }) {
                // The queue has given the run away since: what goes on under the old lease belongs to nobody.
                before.stop.stop(StopReason::LeaseLost);
            }
        }
        // A claim may be answered so late (the process was stopped) that somebody else has the run by now: it must not begin.
        self.give_up_overdue();
    }
}

/// These leases are needed no more, under these fences.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finished {
    pub runs: Vec<(RunId, Fence)>,
}

impl Handler<Finished> for Pool {
    type Result = ();

    fn handle(&mut self, message: Finished, _: &mut Self::Context) {
        for (run, fence) in message.runs {
            // A run that came back in the meantime has another lease under the same id.
            if self.leases.get(&run).is_some_and(|lease| lease.fence == fence) {
                self.leases.remove(&run);
            }
        }
        self.tell_if_empty();
    }
}

/// Somebody wants this run to end, whoever has it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Cancel {
    pub run: RunId,
}

impl Handler<Cancel> for Pool {
    type Result = ();

    fn handle(&mut self, message: Cancel, _: &mut Self::Context) {
        match self.leases.get(&message.run) {
            Some(lease) => lease.stop.stop(StopReason::Cancelled),
            None => {
                self.cancelled.insert(message.run, Instant::now());
            }
        }
    }
}

/// Stop claiming, end what can be ended in `grace`, hand the rest back. Answers with the number handed back.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Drain {
    pub grace: Duration,
}

impl Handler<Drain> for Pool {
    type Result = ResponseActFuture<Self, usize>;

    fn handle(&mut self, message: Drain, _: &mut Self::Context) -> Self::Result {
        self.shared.health.draining.store(true, Ordering::Relaxed);
        let dispatcher = self.crew.as_ref().map(|crew| crew.dispatcher.clone());
        let recorder = self.crew.as_ref().map(|crew| crew.recorder.clone());
        let stop_claiming = async move {
            if let Some(dispatcher) = dispatcher {
                let _ = dispatcher.send(StopClaiming).await;
            }
            fail::point("drain.before").await;
        };
        let drained = stop_claiming
            .into_actor(self)
            .then(move |(), act, _| act.until_empty(message.grace))
            .then(|(), act, _| {
                let left: Vec<_> = act.leases.values().map(|lease| lease.stop.clone()).collect();
                left.iter().for_each(|stop| stop.stop(StopReason::Drain));
                act.until_empty(LAST_WRITES).map(move |(), _, _| left.len())
            })
            .then(move |handed_back, act, _| {
                let settle = async move {
                    if let Some(recorder) = recorder {
                        let _ = tokio::time::timeout(LAST_WRITES, recorder.send(Settle)).await;
                    }
                    fail::point("drain.after").await;
                    handed_back
                };
                settle.into_actor(act)
            });
        Box::pin(drained)
    }
}

impl Pool {
    /// Ends when no lease is left, or after `at_most`.
    fn until_empty(&mut self, at_most: Duration) -> impl ActorFuture<Self, Output = ()> + use<> {
        let (told, empty) = oneshot::channel();
        self.empty.push(told);
        self.tell_if_empty();
        let wait = async move {
            let _ = tokio::time::timeout(at_most, empty).await;
        };
        wait.into_actor(self)
    }
}
