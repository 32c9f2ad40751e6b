//! An executor: one run at a time.

use std::sync::Arc;

use actix::prelude::*;

use crate::{
    executor::{
        Shared,
        call::{self, Done},
        dispatcher::{Dispatcher, Free, Gone},
        health::OnDuty,
        recorder::{self, Recorder},
        stop::Stop,
    },
    job::{Ending, Job},
    queue::Claim,
};

pub struct Executor {
    shared: Arc<Shared>,
    dispatcher: Addr<Dispatcher>,
    recorder: Addr<Recorder>,
    /// An actor whose address nobody holds stops, even with a message in its mailbox. The dispatcher lets go of an executor's address
    /// when it has sent it a run, which may be before the executor has looked.
    own: Option<Addr<Self>>,
    _on_duty: OnDuty,
}

impl Executor {
    pub fn new(shared: Arc<Shared>, dispatcher: Addr<Dispatcher>, recorder: Addr<Recorder>) -> Self {
        let on_duty = shared.health.on_duty("an executor");
        Self { shared, dispatcher, recorder, own: None, _on_duty: on_duty }
    }

    /// Tells the dispatcher that this executor can take a run, and whether its last one needs no lease any more.
    fn free(&self, ctx: &mut Context<Self>, gone: Option<Gone>) {
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
        self.shared.stops(ctx);
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
        let gone = Gone { run: message.claim.job.id, fence: message.claim.fence, stop: message.stop.clone() };
        let execution = async move {
            let recorded = execute(&shared, message).await;
            if let Some(record) = recorded {
                // Waits while the backlog is full: then the ledger is away, and this executor takes no more runs.
                recorder::hand_over(&shared, &recorder, record, Some(gone.stop)).await;
                None
            } else {
                Some(gone)
            }
        };
        ctx.spawn(execution.into_actor(self).map(|gone, act, ctx| act.free(ctx, gone)));
    }
}

/// Runs the claim in a task of its own, on the threads that its connections are driven by; a panic in one run ends that run and not its
/// executor.
async fn execute(shared: &Arc<Shared>, message: Execute) -> Option<(Arc<Job>, Box<Ending>)> {
    let Execute { claim, stop } = message;
    let claim = Arc::new(claim);
    let task = {
        let (shared, claim) = (shared.clone(), claim.clone());
        // A call in all its states is large. It is moved here, and not each time that a task is.
        tokio::spawn(Box::pin(async move { call::execute(&shared, &claim, &stop).await }))
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
