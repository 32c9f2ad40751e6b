//! Cancellations of leased runs, as they are published to all workers.

use std::time::Duration;

use futures::StreamExt;
use redis::RedisError;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    connect::{Connections, unreachable},
    replies::Backoff,
};
use crate::{job::RunId, queue::Unreachable};

/// Messages that the worker has not taken yet. More are dropped: its heartbeats tell it too.
const CHANNEL: usize = 1024;
/// A channel that is silent for this long is asked whether it is alive.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it has to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Subscribes, and starts to listen. The listener ends with the token, or when nobody listens any more.
pub(super) async fn listen(
    connections: Connections,
    channel: String,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<RunId>, Unreachable> {
    let first = subscribe(&connections, &channel).await.map_err(unreachable)?;
    let (send, receive) = mpsc::channel(CHANNEL);
    tokio::spawn(async move {
        let gone = send.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = gone.closed() => {}
            () = relay(&connections, &channel, first, send) => {}
        }
    });
    Ok(receive)
}

type Subscription = (redis::aio::PubSubSink, redis::aio::PubSubStream);

async fn subscribe(connections: &Connections, channel: &str) -> Result<Subscription, RedisError> {
    let mut pubsub = connections.pubsub().await?;
    timeout(ANSWER_WITHIN, pubsub.subscribe(channel)).await.map_err(|_| timed_out())??;
    Ok(pubsub.split())
}

async fn relay(connections: &Connections, channel: &str, first: Subscription, send: mpsc::Sender<RunId>) {
    let mut subscription = Some(first);
    let mut backoff = Backoff::default();
    loop {
        let Some(open) = &mut subscription else {
            backoff.pause().await;
            subscription = subscribe(connections, channel).await.ok();
            continue;
        };
        backoff = Backoff::default();
        if let Err(error) = hear(open, &send).await {
            tracing::warn!(%error, "lost the connection that brings cancellations; connecting again");
            subscription = None;
        }
    }
}

/// Passes one message on, or finds that the channel is only silent.
async fn hear((sink, stream): &mut Subscription, send: &mpsc::Sender<RunId>) -> Result<(), RedisError> {
    match timeout(SILENCE, stream.next()).await {
        Ok(Some(message)) => {
            let run = message.get_payload::<String>()?.parse::<RunId>();
            if let Ok(run) = run
                && send.try_send(run).is_err()
            {
                tracing::debug!(%run, "a cancellation is left to the heartbeat");
            }
            Ok(())
        }
        Ok(None) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        Err(_silent) => timeout(ANSWER_WITHIN, sink.ping()).await.map_err(|_| timed_out())?,
    }
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
