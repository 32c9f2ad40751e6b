//! A channel that is listened to, over a connection of its own, for as long as somebody listens.

use std::time::Duration;

use futures::StreamExt;
use redis::{
    Msg, RedisError,
    aio::{PubSubSink, PubSubStream},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::connect::{Connections, unreachable};
use crate::queue::Unreachable;

/// A channel that is silent for this long is asked whether it is alive.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it has to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

pub(super) struct Subscription {
    connections: Connections,
    channel: String,
    /// What comes on it, for the log.
    brings: &'static str,
    sink: PubSubSink,
    stream: PubSubStream,
    backoff: Backoff,
}

impl Subscription {
    /// Subscribes: what is published from then on is heard.
    pub async fn open(connections: Connections, channel: String, brings: &'static str) -> Result<Self, Unreachable> {
        let (sink, stream) = subscribe(&connections, &channel).await.map_err(unreachable)?;
        Ok(Self { connections, channel, brings, sink, stream, backoff: Backoff::default() })
    }

    /// The next message; `None` when the connection is lost. A call that is dropped loses none.
    pub async fn hear(&mut self) -> Option<Msg> {
        let lost: RedisError = loop {
            match timeout(SILENCE, self.stream.next()).await {
                Ok(Some(message)) => {
                    self.backoff = Backoff::default();
                    return Some(message);
                }
                Ok(None) => break std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
                Err(_silent) => match timeout(ANSWER_WITHIN, self.sink.ping()).await {
                    Ok(Ok(())) => self.backoff = Backoff::default(),
                    Ok(Err(error)) => break error,
                    Err(_late) => break timed_out(),
                },
            }
        };
        tracing::warn!(error = %lost, "lost the connection that brings {}; connecting again", self.brings);
        None
    }

    /// Subscribes again, on a new connection, as often as it takes. What was published meanwhile is missed.
    pub async fn renew(&mut self) {
        loop {
            self.backoff.pause().await;
            if let Ok((sink, stream)) = subscribe(&self.connections, &self.channel).await {
                (self.sink, self.stream) = (sink, stream);
                return;
            }
        }
    }
}

async fn subscribe(connections: &Connections, channel: &str) -> Result<(PubSubSink, PubSubStream), RedisError> {
    let mut pubsub = connections.pubsub().await?;
    timeout(ANSWER_WITHIN, pubsub.subscribe(channel)).await.map_err(|_| timed_out())??;
    Ok(pubsub.split())
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// Has `listening` go on until it is told to stop, or nobody takes any more what it sends.
pub(super) fn spawn<T: Send + 'static>(
    listening: impl Future<Output = ()> + Send + 'static,
    send: mpsc::Sender<T>,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = send.closed() => {}
            () = listening => {}
        }
    });
}

/// Pauses between attempts to connect: from 50 ms up to 2 s.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    async fn pause(&mut self) {
        let doubled = 50_u64.saturating_mul(1 << self.failures.min(6));
        self.failures += 1;
        sleep(Duration::from_millis(doubled.min(2_000))).await;
    }
}
