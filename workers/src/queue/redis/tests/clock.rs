//! The clock that the processes share.

use super::*;
use crate::queue::redis::clock::{Sample, Shown};

impl Server {
    async fn shows(&self) -> UnixMillis {
        let (seconds, micros): (i64, i64) = self.command(&["TIME"]).await;
        UnixMillis(seconds * 1_000 + micros / 1_000)
    }

    /// Whether the queue's clock shows what the server's does.
    async fn agrees_with(&self, queue: &RedisQueue) -> bool {
        let (before, now, after) = (self.shows().await, queue.now(), self.shows().await);
        before.0 - 50 <= now.0 && now.0 <= after.0 + 50
    }
}

/// As if the server had been on another machine up to now, whose clock was wrong.
fn mislead(queue: &RedisQueue) {
    let now = Instant::now();
    queue.clock.learn(Sample { asked: now, shown: Shown(0), answered: now });
}

#[tokio::test]
async fn the_queue_shows_the_time_of_its_server() {
    let server = Server::start().await;
    let queue = server.queue().await;
    assert!(server.agrees_with(&queue).await);
}

#[tokio::test]
async fn whoever_waits_for_endings_hears_that_the_clock_was_set() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let _replies = queue.replies(FrontDoorId::new(), CancellationToken::new()).await.unwrap();
    mislead(&queue);
    assert!(!server.agrees_with(&queue).await);
    eventually(async || server.agrees_with(&queue).await.then_some(())).await;
}

#[tokio::test]
async fn a_new_connection_asks_for_the_time() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let mut replies = queue.replies(FrontDoorId::new(), CancellationToken::new()).await.unwrap();
    mislead(&queue);
    server.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)));
    assert!(server.agrees_with(&queue).await);
}
