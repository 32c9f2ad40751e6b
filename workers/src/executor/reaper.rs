//! The reaper: takes over what a lost worker left behind, and what waited past its deadline.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use actix::prelude::*;

use crate::{
    executor::{
        Shared,
        call::{self, Done},
        health::OnDuty,
        recorder::{self, Recorder},
    },
    fail,
};

/// How often the queue is asked, on average; each worker jitters by half of it.
const PERIOD: Duration = Duration::from_millis(500);
/// Runs that are taken over at a time.
const BATCH: usize = 64;

/// How often idempotency keys are dropped whose time is over.
const PRUNE: Duration = Duration::from_secs(300);

pub struct Reaper {
    shared: Arc<Shared>,
    recorder: Addr<Recorder>,
    _on_duty: OnDuty,
}

impl Reaper {
    pub fn new(shared: Arc<Shared>, recorder: Addr<Recorder>) -> Self {
        let on_duty = shared.health.on_duty("the reaper");
        Self { shared, recorder, _on_duty: on_duty }
    }

    fn schedule(ctx: &mut Context<Self>) {
        let jitter = rand::random_range(0.5..1.5);
        ctx.run_later(PERIOD.mul_f64(jitter), |act, ctx| {
            let reap = reap(act.shared.clone(), act.recorder.clone());
            ctx.spawn(reap.into_actor(act).map(|(), _, ctx| Self::schedule(ctx)));
        });
    }
}

impl Actor for Reaper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        Self::schedule(ctx);
        ctx.run_interval(PRUNE, |act, ctx| {
            ctx.spawn(prune(act.shared.clone()).into_actor(act));
        });
    }
}

/// Drops old idempotency keys, some at a time.
async fn prune(shared: Arc<Shared>) {
    loop {
        match shared.ledger.prune_keys(shared.queue.now()).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return tracing::debug!(%error, "old idempotency keys stay for now"),
        }
    }
}

async fn reap(shared: Arc<Shared>, recorder: Addr<Recorder>) {
    loop {
        // A worker that drains takes nothing over, and one whose ledger is away could record nothing of it.
        if shared.health.is_draining() || shared.health.ledger_failing.load(Ordering::Relaxed) {
            return;
        }
        let claims = match shared.queue.reap(shared.worker, BATCH).await {
            Ok(claims) => claims,
            Err(error) => {
                tracing::debug!(%error, "cannot reap");
                return;
            }
        };
        if claims.is_empty() {
            return;
        }
        fail::point("reap.after").await;
        for claim in claims {
            tracing::info!(run = %claim.job.id, work = claim.work.name(), "a run was taken over");
            if let Done::Record(ending) = call::settle(&shared, &claim).await {
                recorder::hand_over(&shared, &recorder, (claim.job, ending), None).await;
            }
        }
    }
}
