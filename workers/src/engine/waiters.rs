//! Who waits for which ending in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fail,
    job::{Ending, RunId},
    ledger::Ledger,
    queue::Reply,
};

/// How often the ledger is asked for endings whose message may have been lost.
const SWEEP: Duration = Duration::from_secs(2);
/// Runs that the ledger is asked about at a time.
const PAGE: usize = 500;

#[derive(Default)]
pub(super) struct Waiters {
    waiting: Mutex<HashMap<RunId, Waiting>>,
    /// Told when messages may have been lost.
    missed: tokio::sync::Notify,
}

struct Waiting {
    ending: oneshot::Sender<Ending>,
    since: Instant,
}

/// The ending to come. Dropping it stops waiting, and changes nothing about the run.
pub struct Waiter {
    run: RunId,
    ending: oneshot::Receiver<Ending>,
    waiters: Arc<Waiters>,
}

impl Waiter {
    /// The ending of the run. Pending for as long as the run is; bound it with the run's deadline. To be awaited until it answers,
    /// once; a call that was dropped before that may be repeated.
    pub async fn ending(&mut self) -> Ending {
        match (&mut self.ending).await {
            Ok(ending) => ending,
            // The sender goes only with the whole engine: there is nothing left to wait for.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.lock().remove(&self.run);
    }
}

impl Waiters {
    pub fn register(self: &Arc<Self>, run: RunId) -> Waiter {
        let (sender, ending) = oneshot::channel();
        self.lock().insert(run, Waiting { ending: sender, since: Instant::now() });
        Waiter { run, ending, waiters: self.clone() }
    }

    pub fn end(&self, ending: Ending) {
        let waiting = self.lock().remove(&ending.run);
        if let Some(waiting) = waiting {
            // A waiter that left in this moment needs no ending.
            let _ = waiting.ending.send(ending);
        }
    }

    /// Runs that were waited for since before `moment`.
    fn since_before(&self, moment: Instant) -> Vec<RunId> {
        self.lock().iter().filter(|(_, waiting)| waiting.since < moment).map(|(run, _)| *run).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Waiting>> {
        // Nothing panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands endings to their waiters as they are sent.
pub(super) async fn listen(waiters: Arc<Waiters>, mut replies: mpsc::Receiver<Reply>) {
    while let Some(reply) = replies.recv().await {
        match reply {
            Reply::Ended(ending) => {
                fail::point("reply.before").await;
                waiters.end(*ending);
                fail::point("reply.after").await;
            }
            Reply::Resumed => waiters.missed.notify_one(),
        }
    }
}

/// Finds endings whose message was lost, in the ledger: at once after a broken connection, and now and then in any case.
pub(super) async fn sweep(waiters: Arc<Waiters>, ledger: Ledger, stop: CancellationToken) {
    loop {
        let overdue = tokio::select! {
            () = stop.cancelled() => return,
            () = waiters.missed.notified() => Instant::now(),
            () = tokio::time::sleep(SWEEP) => Instant::now() - SWEEP,
        };
        for runs in waiters.since_before(overdue).chunks(PAGE) {
            match ledger.endings(runs).await {
                Ok(endings) => endings.into_iter().for_each(|ending| waiters.end(ending)),
                Err(error) => tracing::debug!(%error, "outstanding runs cannot be looked up"),
            }
        }
    }
}
