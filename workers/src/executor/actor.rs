//! An executor: one run at a time.

use std::sync::Arc;

use actix::prelude::*;

use crate::{
    executor::{
        Shared,
        call::{self, Done},
        dispatcher::{Dispatcher, Free},
        recorder::{self, Recorder},
        stop::Stop,
    },
    job::{Ending, Fence, Job, RunId},
    queue::Claim,
};

pub struct Executor {
    shared: Arc<Shared>,
    dispatcher: Addr<Dispatcher>,
    recorder: Addr<Recorder>,
    /// An actor whose address nobody holds stops, even with a message in its mailbox. The dispatcher lets go of an executor's address
    /// when it has sent it a run, which may be before the executor has looked.
    own: Option<Addr<Self>>,
}

impl Executor {
    pub fn new(shared: Arc<Shared>, dispatcher: Addr<Dispatcher>, recorder: Addr<Recorder>) -> Self {
        Self { shared, dispatcher, recorder, own: None }
    }

    /// Tells the dispatcher that this executor can take a run, and whether its last one needs no lease any more.
    fn free(&self, ctx: &mut Context<Self>, gone: Option<(RunId, Fence)>) {
        let free = Free { executor: ctx.address(), gone };
        let told = self.dispatcher.send(free).into_actor(self).map(|result, _, ctx| {
            if result.is_err() {
                ctx.stop();
            }
        });
        ctx.spawn(told);
    }
}

impl Actor for Executor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.own = Some(ctx.address());
        self.free(ctx, None);
    }
}

/// Execute one claim; the executor is free again when [`Free`] is sent.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Execute {
    pub claim: Claim,
    pub stop: Arc<Stop>,
}

impl Handler<Execute> for Executor {
    type Result = ();

    fn handle(&mut self, message: Execute, ctx: &mut Self::Context) {
        let (shared, recorder) = (self.shared.clone(), self.recorder.clone());
        let lease = (message.claim.job.id, message.claim.fence);
        let execution = async move {
            let recorded = execute(&shared, message).await;
            if let Some(record) = recorded {
                // Waits while the backlog is full: then the ledger is away, and this executor takes no more runs.
                recorder::hand_over(&shared, &recorder, record).await;
                None
            } else {
                Some(lease)
            }
        };
        ctx.spawn(execution.into_actor(self).map(|gone, act, ctx| act.free(ctx, gone)));
    }
}

/// Runs the claim in a task of its own, so that a panic in one run ends that run and not its executor.
async fn execute(shared: &Arc<Shared>, message: Execute) -> Option<(Arc<Job>, Box<Ending>)> {
    let Execute { claim, stop } = message;
    let claim = Arc::new(claim);
    let task = {
        let (shared, claim) = (shared.clone(), claim.clone());
        actix::spawn(async move { call::execute(&shared, &claim, &stop).await })
    };
    let done = match task.await {
        Ok(done) => done,
        Err(error) => {
            tracing::error!(run = %claim.job.id, %error, "the execution of a run panicked");
            call::end_panicked(shared, &claim).await
        }
    };
    match done {
        Done::Record(ending) => Some((claim.job.clone(), ending)),
        Done::Gone => None,
    }
}
