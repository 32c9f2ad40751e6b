//! Endings and events on their way to a front door: they are published on a channel of its own.
//!
//! Redis keeps no message. Whoever is subscribed hears it once, and what nobody hears is gone. That may be, because nothing is said here that is not
//! written elsewhere: endings are in the ledger, events in their logs. What matters is that a front door knows when it may have missed something. Redis
//! breaks the connection of a reader before it leaves a message out. So [`Reply::Resumed`] follows every new subscription, and every other
//! sign that something was missed: a memory that was lost, a message that cannot be read, a subscription at a server where no step is made any more.
//! A stream that keeps what was sent costs every run a write to the disk, a read after each message and the trimming of what was read.
//!
//! # What bounds a reader
//!
//! Redis keeps for a reader that does not read as much as `client-output-buffer-limit pubsub` says, and then breaks its connection. What was read
//! gathers in this process without a bound of its own. It is taken at once, because whoever takes it waits for nothing (`engine/waiters.rs`); there are no
//! more endings than runs that are waited for, and the events go on to inboxes that have a bound.
//!
//! # Clusters
//!
//! The scripts say `PUBLISH`, which is for every subscriber wherever it is connected: one server tells its replicas, a Redis Cluster tells all of its
//! nodes over its bus. `SPUBLISH` would keep a message at the nodes of its slot, and a subscriber would have to find these; our connections do not
//! speak the cluster protocol.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    clock::{Clock, Sample, Shown},
    connect::Connections,
    message,
    subscription::{self, Subscription},
};
use crate::queue::{Reply, Unreachable};

/// Messages that the front door has not taken yet; beyond them they wait in front of this channel.
const CHANNEL: usize = 1024;
/// How often a front door looks at its server: which time it shows, whether it remembers, and whether it is the one that sends. Clocks that differ
/// by 100 parts in a million drift apart by a fifth of a millisecond meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// When Redis has lost its memory, runs come back from the ledger without the address of who waits for them. So for this long the front door
/// is told with every look to ask the ledger.
const SWEEP_FOR: Duration = Duration::from_secs(60);

/// Subscribes, and starts to listen. The listener ends with the token, or when nobody listens any more.
pub(super) async fn listen(
    connections: Connections,
    clock: Arc<Clock>,
    channel: String,
    epoch: &str,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<Reply>, Unreachable> {
    let mut look = redis::pipe();
    look.cmd("TIME").cmd("GET").arg(epoch).cmd("PUBSUB").arg("NUMSUB").arg(&channel);
    let subscription = Subscription::open(connections.clone(), channel, "endings").await?;
    let (send, receive) = mpsc::channel(CHANNEL);
    let (memory, is_elsewhere) = (Mutex::default(), Notify::new());
    let listener = Listener { connections, clock, look, memory, is_elsewhere, send: send.clone() };
    listener.look().await?;
    let listening = async move {
        tokio::select! {
            () = listener.pass_on(subscription) => {}
            () = listener.look_again_and_again() => {}
        }
    };
    subscription::spawn(listening, send, stop);
    Ok(receive)
}

struct Listener {
    connections: Connections,
    clock: Arc<Clock>,
    /// Asks for the time, the epoch and how many are subscribed.
    look: redis::Pipeline,
    memory: Mutex<Memory>,
    /// Told when nobody is subscribed at the server that makes the steps.
    is_elsewhere: Notify,
    send: mpsc::Sender<Reply>,
}

impl Listener {
    /// Passes on what is heard, for as long as somebody takes it.
    async fn pass_on(&self, mut subscription: Subscription) {
        let mut replies = Vec::new();
        loop {
            let heard = tokio::select! {
                biased;
                heard = subscription.hear() => heard,
                () = self.is_elsewhere.notified() => {
                    tracing::warn!("endings are sent by another server than the one that is listened to; connecting again");
                    None
                }
            };
            if let Some(message) = heard {
                if message::add_replies(message.get_payload_bytes(), &mut replies).is_none() {
                    tracing::warn!(
                        channel = %message.get_channel_name(),
                        "a message was written by another version; who waits for it asks the ledger"
                    );
                    self.memory().sweep(Instant::now());
                }
            } else {
                subscription.renew().await;
                // It may be another server by now, with another clock. If that cannot be asked, the next look does it.
                let _ = self.look().await;
                replies.push(Reply::Resumed);
            }
            for reply in replies.drain(..) {
                if self.send.send(reply).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Looks beside that, so that no message waits for it.
    async fn look_again_and_again(&self) {
        loop {
            sleep(LOOK_EVERY).await;
            match self.look().await {
                Ok(0) => self.is_elsewhere.notify_waiters(),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the server of the queue cannot be looked at"),
            }
            let must_sweep = self.memory().must_sweep(Instant::now());
            if must_sweep && self.send.send(Reply::Resumed).await.is_err() {
                return;
            }
        }
    }

    /// Learns what time it is and whether Redis still knows what it knew; answers how many are subscribed there.
    async fn look(&self) -> Result<u64, Unreachable> {
        let asked = Instant::now();
        let (shown, epoch, (_, subscribed)): (Shown, Option<String>, (String, u64)) =
            self.connections.ask(&self.look).await?;
        let answered = Instant::now();
        self.clock.learn(Sample { asked, shown, answered });
        self.memory().saw(epoch, answered);
        Ok(subscribed)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing panics while it holds the lock.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether Redis still knows what it knew, by its epoch.
#[derive(Debug, Default)]
struct Memory {
    epoch: Option<String>,
    sweep_until: Option<Instant>,
}

impl Memory {
    fn saw(&mut self, epoch: Option<String>, now: Instant) {
        if self.epoch.is_some() && self.epoch != epoch {
            self.sweep(now);
        }
        self.epoch = epoch;
    }

    fn sweep(&mut self, now: Instant) {
        self.sweep_until = Some(now + SWEEP_FOR);
    }

    fn must_sweep(&mut self, now: Instant) -> bool {
        let sweeping = self.sweep_until.is_some();
        self.sweep_until = self.sweep_until.filter(|until| *until > now);
        sweeping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_epoch_is_a_lost_memory_and_a_first_one_is_not() {
        let now = Instant::now();
        let mut memory = Memory::default();
        memory.saw(None, now);
        memory.saw(Some("a".into()), now);
        memory.saw(Some("a".into()), now);
        assert!(!memory.must_sweep(now));
        memory.saw(None, now);
        assert!(memory.must_sweep(now));
        memory.saw(Some("b".into()), now);
        assert!(memory.must_sweep(now + SWEEP_FOR), "the last sweep comes after the time");
        assert!(!memory.must_sweep(now + SWEEP_FOR));
    }
}
