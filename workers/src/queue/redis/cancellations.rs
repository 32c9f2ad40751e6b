//! Cancellations: of runs that wait, which end at once, and of leased ones, which are published to all workers.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    RedisQueue,
    connect::Connections,
    millis, scripts,
    subscription::{self, Subscription},
    wire,
};
use crate::{
    job::{Fence, Job, Outcome, RunId, RunState, UnixMillis},
    queue::{Cancelled, Queue, Unreachable, ending_in_queue},
};

/// A cancellation meets a run that is claimed and handed back all the time this often, at most.
const CANCEL_TRIES: usize = 100;
/// Messages that the worker has not taken yet. More are dropped: its heartbeats tell it too.
const CHANNEL: usize = 1024;

impl RedisQueue {
    /// Ends a run that waits; whoever has it otherwise is told.
    pub(super) async fn end_from_outside(&self, run: RunId, outcome: Outcome) -> Result<Cancelled, Unreachable> {
        let how = if outcome.state() == RunState::Expired { "expired" } else { "cancelled" };
        let mut mark_only = false;
        for _ in 0..CANCEL_TRIES {
            let step = self.step(scripts::CANCEL).arg(run.to_string()).arg(how).arg(u8::from(mark_only));
            let found: Vec<Vec<u8>> = self.run(step).await?;
            let mut found = found.into_iter();
            match found.next().as_deref() {
                Some(b"unknown") => return Ok(Cancelled::Unknown),
                Some(b"finished") => return Ok(Cancelled::Finished),
                Some(b"signalled") => return Ok(Cancelled::Signalled),
                _ => {}
            }
            let [seen, fence, job, started, target]: [Vec<u8>; 5] =
                found.collect::<Vec<_>>().try_into().map_err(|_| wire::garbled("a waiting run without its fields"))?;
            let Ok(job) = Job::decode(&job) else {
                mark_only = true;
                continue;
            };
            let fence = Fence(wire::parse(&fence)?);
            let started_at = if started.is_empty() { None } else { Some(UnixMillis(wire::parse(&started)?)) };
            let mut ending = ending_in_queue(&job, fence, outcome.clone(), self.now(), started_at);
            if let Some(target) = job.targets.get(wire::parse::<usize>(&target)?) {
                ending.model.clone_from(&target.model);
            }
            let step = self
                .step(scripts::END_WAITING)
                .arg(run.to_string())
                .arg(seen)
                .arg(fence.0)
                .arg(millis(self.lease))
                .arg(ending.encode());
            if self.run::<bool>(step).await? {
                return Ok(Cancelled::Ended { job: Arc::new(job), ending: Box::new(ending) });
            }
            // A worker took it between the two steps: look again.
        }
        Err(wire::garbled("a run that changes hands all the time"))
    }
}

/// Subscribes, and starts to listen. The listener ends with the token, or when nobody listens any more.
pub(super) async fn listen(
    connections: Connections,
    channel: String,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<RunId>, Unreachable> {
    let subscription = Subscription::open(connections, channel, "cancellations").await?;
    let (send, receive) = mpsc::channel(CHANNEL);
    subscription::spawn(relay(subscription, send.clone()), send, stop);
    Ok(receive)
}

async fn relay(mut subscription: Subscription, send: mpsc::Sender<RunId>) {
    loop {
        let Some(message) = subscription.hear().await else {
            subscription.renew().await;
            continue;
        };
        if let Ok(run) = wire::parse(message.get_payload_bytes())
            && send.try_send(run).is_err()
        {
            tracing::debug!(%run, "a cancellation is left to the heartbeat");
        }
    }
}
