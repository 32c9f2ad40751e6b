//! The dispatcher: claims as many runs as there are free executors, and hands them out.

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
        actor::{Execute, Executor},
        health::OnDuty,
        outage::Outage,
        pool::{Finished, Lease, Leased, Pool},
        shaper::Shaper,
        stop::Stop,
    },
    fail,
    job::{Fence, RunId},
    queue::{Claim, Claimed, ScopeLimits, Unreachable, Work},
};

/// The longest wait on an idle queue before it is asked again: a queue that lost its memory has forgotten whom to wake.
const WAIT: Duration = Duration::from_secs(1);
/// The pause after the queue could not be reached.
const PAUSE: Duration = Duration::from_millis(500);

pub struct Dispatcher {
    shared: Arc<Shared>,
    pool: Addr<Pool>,
    free: Vec<Addr<Executor>>,
    /// By scope; one without a limit has none.
    shapers: HashMap<String, Shaper>,
    /// A claim, a wait or a hand-out is under way.
    at_work: bool,
    /// When a claim is due, whatever is offered meanwhile.
    claim_by: Instant,
    /// Set when nothing more is to be claimed; told once nothing is being claimed.
    stopping: Option<Option<oneshot::Sender<()>>>,
    /// Ends what waits.
    stop: CancellationToken,
    /// Of the claims.
    outage: Outage,
    _on_duty: OnDuty,
}

/// What is done when runs have been handed out.
enum Then {
    Claim,
    Wait,
}

impl Dispatcher {
    pub fn new(shared: Arc<Shared>, pool: Addr<Pool>) -> Self {
        let shaper = |limits: &ScopeLimits| Some((limits.scope.clone(), Shaper::new(limits.requests_per_minute?)));
        let shapers = shared.scopes.iter().filter_map(shaper).collect();
        let on_duty = shared.health.on_duty("the dispatcher");
        Self {
            shared,
            pool,
            free: Vec::new(),
            shapers,
            at_work: false,
            claim_by: Instant::now(),
            stopping: None,
            stop: CancellationToken::new(),
            outage: Outage::default(),
            _on_duty: on_duty,
        }
    }

    /// The scopes with what may leave in each of them now.
    fn scopes(&mut self) -> Vec<ScopeLimits> {
        let mut scopes = self.shared.scopes.clone();
        for limits in &mut scopes {
            limits.at_once = self.shapers.get_mut(&limits.scope).map(|shaper| shaper.at_once(self.free.len()));
        }
        scopes
    }

    fn claim(&mut self, ctx: &mut Context<Self>) {
        if self.free.is_empty() {
            // Every executor is busy: that is consuming, too.
            self.shared.health.polled();
        }
        if self.at_work || self.stopping.is_some() || self.free.is_empty() {
            return;
        }
        self.at_work = true;
        let (shared, free, scopes) = (self.shared.clone(), self.free.len(), self.scopes());
        let claim = async move {
            fail::fallible("claim.before").await?;
            let claimed = shared.queue.claim(shared.worker, free, &scopes).await?;
            if !claimed.claims.is_empty() {
                fail::fallible("claim.after").await?;
            }
            Ok(claimed)
        };
        let (asked, free) = (Instant::now(), self.free.len());
        ctx.spawn(claim.into_actor(self).map(move |claimed, act, ctx| act.answered(asked, free, claimed, ctx)));
    }

    fn answered(
        &mut self,
        asked: Instant,
        free: usize,
        claimed: Result<Claimed, Unreachable>,
        ctx: &mut Context<Self>,
    ) {
        let Claimed { claims, next } = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                if self.outage.goes_on(Instant::now()) {
                    tracing::warn!(%error, "cannot claim runs; trying on");
                }
                return self.pause(ctx);
            }
        };
        if let Some(lasted) = self.outage.is_over(Instant::now()) {
            tracing::info!(?lasted, "runs can be claimed again");
        }
        self.shared.health.polled();
        self.claim_by = Instant::now() + next.map_or(WAIT, |next| next.min(WAIT));
        // Less than was asked for is all that there was. Whatever has come since wakes whoever waits.
        let then = if claims.len() < free && next != Some(Duration::ZERO) { Then::Wait } else { Then::Claim };
        if claims.is_empty() {
            return self.wait(ctx);
        }
        let claims = claims.into_iter().map(|claim| (claim, asked)).collect();
        self.hand_out(claims, then, ctx);
    }

    /// Waits until there may be more to claim, or something is offered.
    fn wait(&mut self, ctx: &mut Context<Self>) {
        if self.stopping.is_some() {
            return self.again(ctx);
        }
        let (shared, free, stop) = (self.shared.clone(), self.free.len(), self.stop.clone());
        let at_most = self.claim_by.saturating_duration_since(Instant::now());
        let wait = async move {
            // Whoever was given a run just now calls first: somebody waits for that.
            tokio::task::yield_now().await;
            let waited = shared.queue.wait(shared.worker, free, at_most, &stop).await;
            if matches!(&waited, Ok(claims) if !claims.is_empty()) {
                fail::fallible("claim.after").await?;
            }
            waited
        };
        ctx.spawn(wait.into_actor(self).map(|waited, act, ctx| match waited {
            Ok(claims) if claims.is_empty() => act.again(ctx),
            Ok(claims) => act.offered(claims, ctx),
            Err(error) => {
                tracing::debug!(%error, "waiting for runs failed");
                act.pause(ctx);
            }
        }));
    }

    /// What was offered is leased since then.
    fn offered(&mut self, claims: Vec<Claim>, ctx: &mut Context<Self>) {
        let (now, queue_now) = (Instant::now(), self.shared.queue.now());
        let claims = claims.into_iter().map(|claim| {
            let age = Duration::from_millis(queue_now.since(claim.started_at));
            (claim, now.checked_sub(age).unwrap_or(now))
        });
        self.hand_out(claims.collect(), Then::Wait, ctx);
    }

    /// Asks again after a while: the queue is away.
    fn pause(&mut self, ctx: &mut Context<Self>) {
        if self.stopping.is_some() {
            return self.again(ctx);
        }
        let stop = self.stop.clone();
        let pause = async move {
            stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        };
        ctx.spawn(pause.into_actor(self).map(|(), act, ctx| act.again(ctx)));
    }

    /// Hands out claims, each with a moment before its lease began. The pool learns of the leases first, so that no run is executed whose lease
    /// nobody renews.
    fn hand_out(&mut self, claims: Vec<(Claim, Instant)>, then: Then, ctx: &mut Context<Self>) {
        let mut leases = Vec::with_capacity(claims.len());
        let mut work = Vec::with_capacity(claims.len());
        for (claim, claimed) in claims {
            // Nothing is claimed or offered for which there was no free executor.
            let Some(executor) = self.free.pop() else {
                tracing::error!(run = %claim.job.id, "the queue handed out more runs than there are executors");
                continue;
            };
            if let (Work::Call, Some(scope)) = (&claim.work, claim.scope())
                && let Some(shaper) = self.shapers.get_mut(scope)
            {
                shaper.used();
            }
            let stop = Arc::new(Stop::default());
            leases.push(Lease { run: claim.job.id, fence: claim.fence, stop: stop.clone(), claimed });
            work.push((executor, Execute { claim, stop }));
        }
        self.count_busy();
        let pool = self.pool.clone();
        let leased = async move {
            let told = pool.send(Leased { leases }).await;
            fail::point("leased").await;
            told
        };
        ctx.spawn(leased.into_actor(self).map(move |_, act, ctx| {
            for (executor, execute) in work {
                // A free executor's mailbox is empty.
                if let Err(error) = executor.try_send(execute) {
                    tracing::error!(%error, "an executor has stopped; its run goes to another worker when the lease ends");
                }
            }
            match then {
                // With nobody free there is nothing to wait for: the first who is has it claimed.
                Then::Wait if !act.free.is_empty() && Instant::now() < act.claim_by => act.wait(ctx),
                _ => act.again(ctx),
            }
        }));
    }

    fn again(&mut self, ctx: &mut Context<Self>) {
        self.at_work = false;
        if let Some(Some(told)) = self.stopping.as_mut().map(Option::take) {
            let _ = told.send(());
        }
        self.claim(ctx);
    }

    fn count_busy(&self) {
        self.shared.health.busy.store(self.shared.slots.saturating_sub(self.free.len()), Ordering::Relaxed);
    }
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.stops(ctx);
        // Each executor has at most one message on its way here.
        ctx.set_mailbox_capacity(self.shared.slots.max(16));
        ctx.run_interval(Duration::from_secs(1), |act, ctx| act.claim(ctx));
    }
}

/// An executor can take a run.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Free {
    pub executor: Addr<Executor>,
    /// The run it had, if nothing of it is left to record: its lease is no longer renewed.
    pub gone: Option<Gone>,
}

/// A run that is no longer this worker's.
pub struct Gone {
    pub run: RunId,
    pub fence: Fence,
    /// Held until the pool knows, which would take the executor for dead otherwise.
    pub stop: Arc<Stop>,
}

impl Handler<Free> for Dispatcher {
    type Result = ();

    fn handle(&mut self, message: Free, ctx: &mut Self::Context) {
        self.free.push(message.executor);
        self.count_busy();
        if let Some(Gone { run, fence, stop }) = message.gone {
            let told = self.pool.send(Finished { runs: vec![(run, fence)] });
            ctx.spawn(told.into_actor(self).map(move |_, _, _| drop(stop)));
        }
        self.claim(ctx);
    }
}

/// Claim nothing more; answered when everything that was claimed is handed out.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StopClaiming;

impl Handler<StopClaiming> for Dispatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopClaiming, ctx: &mut Self::Context) -> Self::Result {
        let (told, stopped) = oneshot::channel();
        self.stopping = Some(Some(told));
        self.stop.cancel();
        if !self.at_work {
            self.again(ctx);
        }
        Box::pin(async move {
            let _ = stopped.await;
        })
    }
}
