//! How an accepted run comes into the queue: its row is committed, so whatever happens to the queue, its caller is told that it will run.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::Engine;
use crate::{
    fail,
    queue::{Queue, Submission, Unreachable},
};

/// How soon a queue that did not take a run is asked again: at first, and at last. The pause doubles.
const SOON: Duration = Duration::from_millis(250);
const AT_LAST: Duration = Duration::from_secs(4);
/// For how long. The routine of the reconciler finds the run then; and a queue remembers for a minute that a run is over, so that a late copy of it does not
/// come back to life.
const INSIST: Duration = Duration::from_secs(45);

impl Engine {
    /// Enqueues an accepted run. What fails is tried again, in the background; it is left to the reconciler in the end, or when this process ends.
    pub(super) async fn hand_over(&self, submission: Submission) {
        let inner = &self.0;
        let Err(error) = enqueue(&*inner.queue, submission.clone()).await else { return };
        tracing::warn!(run = %submission.job.id, %error, "an accepted run waits for the queue to come back");
        let (queue, stop) = (inner.queue.clone(), inner.stop.clone());
        inner.tasks.spawn(async move {
            let run = submission.job.id;
            if let Some(Err(_)) = stop.run_until_cancelled(timeout(INSIST, insist(queue, submission))).await {
                tracing::warn!(%run, "an accepted run is left to the reconciler");
            }
        });
    }
}

async fn insist(queue: Arc<dyn Queue>, submission: Submission) {
    let mut pause = SOON;
    loop {
        sleep(pause).await;
        pause = AT_LAST.min(2 * pause);
        match enqueue(&*queue, submission.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(run = %submission.job.id, %error, "the queue does not take an accepted run"),
        }
    }
}

/// Nobody asks whether it may come: that has been decided.
async fn enqueue(queue: &dyn Queue, submission: Submission) -> Result<(), Unreachable> {
    fail::around("enqueue", queue.enqueue(submission, None)).await.map(drop)
}
