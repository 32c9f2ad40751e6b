//! Rows of runs whose callers wait. Most of these runs end soon, and whoever ends one writes the whole row: so a row is held back for a
//! moment, and written beside the run only if that goes on.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    fail,
    job::{Job, RunId},
    ledger::Ledger,
};

/// How long a row is held back.
const HELD_BACK: Duration = Duration::from_millis(100);
/// How much longer, so that those of many runs are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(super) struct Rows {
    held: Mutex<Held>,
    /// Told when there is a first one.
    first: Notify,
}

#[derive(Default)]
struct Held {
    jobs: HashMap<RunId, Arc<Job>>,
    /// Since when, in that order; of runs that have ended since, too.
    since: VecDeque<(Instant, RunId)>,
}

impl Rows {
    /// Has the row written unless the run ends before.
    pub fn hold(&self, job: Arc<Job>) {
        let mut held = self.lock();
        held.since.push_back((Instant::now(), job.id));
        held.jobs.insert(job.id, job);
        if held.since.len() == 1 {
            self.first.notify_one();
        }
    }

    /// The run has ended: whoever ended it writes its row.
    pub fn let_go(&self, run: RunId) {
        self.lock().jobs.remove(&run);
    }

    /// Takes out what was held back since before a moment.
    fn due(&self, moment: Instant) -> Vec<Arc<Job>> {
        let mut held = self.lock();
        let mut due = Vec::new();
        while let Some((_, run)) = held.since.pop_front_if(|(since, _)| *since <= moment) {
            due.extend(held.jobs.remove(&run));
        }
        due
    }

    /// When the first one is due; `None` when none is held back.
    fn first_due(&self) -> Option<Instant> {
        self.lock().since.front().map(|(since, _)| *since + HELD_BACK)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics while it holds the lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes rows when their time has come, and all of them in the end.
pub(super) async fn write(rows: Arc<Rows>, ledger: Ledger, tasks: TaskTracker, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let due = async {
            match rows.first_due() {
                Some(due) => sleep_until(due + TOGETHER).await,
                None => rows.first.notified().await,
            }
        };
        stop.run_until_cancelled(due).await;
        let moment = if stop.is_cancelled() { Some(Instant::now()) } else { Instant::now().checked_sub(HELD_BACK) };
        for job in moment.map(|moment| rows.due(moment)).unwrap_or_default() {
            tasks.spawn(insert(ledger.clone(), job));
        }
    }
}

/// Whoever ends the run completes the row, or writes all of it, so an insert that fails loses nothing: the caller still waits, and gets its
/// answer or an error.
async fn insert(ledger: Ledger, job: Arc<Job>) {
    let run = job.id;
    if let Err(error) = fail::around("insert_beside", ledger.insert(job)).await {
        tracing::warn!(%run, %error, "a run has no row until it ends");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::job;

    #[tokio::test(start_paused = true)]
    async fn a_row_is_due_after_a_while_unless_its_run_has_ended() {
        let rows = Rows::default();
        let (ended, going_on, later) = (Arc::new(job()), Arc::new(job()), Arc::new(job()));
        rows.hold(ended.clone());
        rows.hold(going_on.clone());
        let then = Instant::now();
        assert_eq!(rows.first_due(), Some(then + HELD_BACK));
        tokio::time::advance(Duration::from_millis(10)).await;
        rows.hold(later.clone());
        rows.let_go(ended.id);
        assert_eq!(rows.due(then), [going_on]);
        assert_eq!(rows.due(Instant::now()), [later]);
        assert_eq!(rows.first_due(), None);
        assert!(rows.lock().jobs.is_empty());
    }
}
