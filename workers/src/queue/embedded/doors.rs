//! Where endings and cancellations go: the channels of front doors and of workers in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    job::{FrontDoorId, RunId},
    queue::Reply,
};

/// Cancellations that may be under way to one listener. More are dropped: heartbeats tell them too.
const CANCELLATIONS: usize = 1_024;

#[derive(Default)]
pub(super) struct Doors {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    replies: HashMap<FrontDoorId, mpsc::Sender<Reply>>,
    cancellations: Vec<mpsc::Sender<RunId>>,
}

impl Doors {
    /// Opens a front door's channel, in the place of an earlier one.
    pub(super) fn open(self: &Arc<Self>, front_door: FrontDoorId, stop: CancellationToken) -> mpsc::Receiver<Reply> {
        // No ending may be dropped, and stashing one must never wait. There are no more of them under way than runs in flight.
        let (sender, receiver) = mpsc::channel(Semaphore::MAX_PERMITS);
        self.lock().replies.insert(front_door, sender.clone());
        self.close_later(sender, stop, move |open, gone| {
            if open.replies.get(&front_door).is_some_and(|sender| sender.same_channel(gone)) {
                open.replies.remove(&front_door);
            }
        });
        receiver
    }

    /// Opens a channel for all cancellations of leased runs.
    pub(super) fn listen(self: &Arc<Self>, stop: CancellationToken) -> mpsc::Receiver<RunId> {
        let (sender, receiver) = mpsc::channel(CANCELLATIONS);
        self.lock().cancellations.push(sender.clone());
        self.close_later(sender, stop, |open, gone| open.cancellations.retain(|sender| !sender.same_channel(gone)));
        receiver
    }

    /// Sends a message to a front door, if it is (still) there.
    pub(super) fn send(&self, front_door: FrontDoorId, message: impl FnOnce() -> Reply) {
        let sender = self.lock().replies.get(&front_door).cloned();
        if let Some(sender) = sender {
            // A closed channel is a front door that has gone; whoever waited there has gone with it.
            let _ = sender.try_send(message());
        }
    }

    /// Tells everybody that somebody wants a run to end.
    pub(super) fn signal(&self, run: RunId) {
        for sender in &self.lock().cancellations {
            let _ = sender.try_send(run);
        }
    }

    /// Forgets a channel when it is told to stop, or when its receiver has gone.
    fn close_later<T: Send + 'static>(
        self: &Arc<Self>,
        sender: mpsc::Sender<T>,
        stop: CancellationToken,
        forget: impl FnOnce(&mut Open, &mpsc::Sender<T>) + Send + 'static,
    ) {
        let doors = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
            }
            if let Some(doors) = doors.upgrade() {
                forget(&mut doors.lock(), &sender);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn channels_end_with_their_token_or_their_receiver() {
        let doors = Arc::new(Doors::default());
        let stop = CancellationToken::new();
        let (front_door, gone) = (FrontDoorId::new(), FrontDoorId::new());
        let mut replies = doors.open(front_door, stop.clone());
        drop(doors.open(gone, CancellationToken::new()));
        let mut cancellations = doors.listen(stop.clone());
        doors.send(front_door, || Reply::Resumed);
        stop.cancel();
        assert!(matches!(replies.recv().await, Some(Reply::Resumed)));
        assert!(replies.recv().await.is_none());
        assert!(cancellations.recv().await.is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(doors.lock().replies.is_empty() && doors.lock().cancellations.is_empty());
    }

    #[tokio::test]
    async fn a_later_channel_of_a_front_door_outlives_an_earlier_one() {
        let doors = Arc::new(Doors::default());
        let front_door = FrontDoorId::new();
        let earlier = doors.open(front_door, CancellationToken::new());
        let mut later = doors.open(front_door, CancellationToken::new());
        drop(earlier);
        tokio::task::yield_now().await;
        doors.send(front_door, || Reply::Resumed);
        assert!(later.recv().await.is_some());
    }
}
