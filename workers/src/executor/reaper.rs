//! The reaper: takes over what a lost worker left behind, and what waited past its deadline.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use actix::prelude::*;
use tokio::time::timeout;

use crate::{
    executor::{
        Shared,
        call::Done,
        health::OnDuty,
        recorder::{self, Recorder},
        settling,
    },
    fail,
    queue::Work,
};

/// How often the queue is asked, on average; each worker jitters by half of it.
const PERIOD: Duration = Duration::from_millis(500);
/// Runs that are taken over at a time.
const BATCH: usize = 64;

/// How often idempotency keys and results are dropped whose time is over.
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

    fn schedule(&self, ctx: &mut Context<Self>) {
        let period = PERIOD.mul_f64(rand::random_range(0.5..1.5));
        let (shared, recorder) = (self.shared.clone(), self.recorder.clone());
        let turn = async move {
            // Runs that wait for the result of another one are not made to wait any longer.
            let _ = timeout(period, shared.answerable.notified()).await;
            reap(shared, recorder).await;
        };
        ctx.spawn(turn.into_actor(self).map(|(), act, ctx| act.schedule(ctx)));
    }
}

impl Actor for Reaper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.stops(ctx);
        self.schedule(ctx);
        ctx.run_interval(PRUNE, |act, ctx| {
            ctx.spawn(prune(act.shared.clone()).into_actor(act));
        });
    }
}

/// Drops old idempotency keys and results, some at a time.
async fn prune(shared: Arc<Shared>) {
    loop {
        match shared.ledger.prune(shared.queue.now()).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return tracing::debug!(%error, "old idempotency keys and results stay for now"),
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
            if claim.work != Work::Answer {
                tracing::info!(run = %claim.job.id, work = claim.work.name(), "a run was taken over");
            }
            if let Done::Record(ending) = settling::settle(&shared, &claim).await {
                recorder::hand_over(&shared, &recorder, (claim.job, ending), None).await;
            }
        }
    }
}
