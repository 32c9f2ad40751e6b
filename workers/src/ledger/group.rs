//! Group commit: concurrent inserts share a transaction, because its price is the wait for the disk and not the row.
//!
//! One task takes whatever waits, commits it, tells everybody, and takes what has come meanwhile. So an insert into an idle ledger goes
//! at once, and a busy one fills its transactions by itself.

use tokio::sync::{mpsc, oneshot};

use super::{Accepted, Entered, Fault, LedgerError, store::Store};

/// Rows of one transaction, at most.
const MAX_BATCH: usize = 256;
/// Inserts that wait for the task, at most; beyond them callers wait to get in.
const MAX_WAITING: usize = 1024;

/// A row to insert, and who waits for it.
pub(super) struct Insert {
    pub row: Accepted,
    pub done: oneshot::Sender<Result<Entered, LedgerError>>,
}

/// Starts the task. It belongs to whoever holds the senders: it writes what they sent and ends with the last of them.
pub(super) fn start(store: Store) -> mpsc::Sender<Insert> {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    tokio::spawn(run(store, receiver));
    sender
}

async fn run(store: Store, mut waiting: mpsc::Receiver<Insert>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        if let Some(down) = commit(&store, &mut batch).await {
            // Whoever came meanwhile is not made to wait for the same silence, batch after batch.
            while let Ok(insert) = waiting.try_recv() {
                let _ = insert.done.send(Err(down.clone()));
            }
        }
    }
}

/// Answers the error that nothing can be written for.
async fn commit(store: &Store, batch: &mut Vec<Insert>) -> Option<LedgerError> {
    let rows: Vec<Accepted> = batch.iter().map(|insert| insert.row.clone()).collect();
    match store.insert(&rows).await {
        Err(error) if Fault::of(&error) == Fault::Data => commit_apart(store, batch).await,
        // Whoever has gone does not want to know.
        Ok(entered) => {
            for (insert, entered) in batch.drain(..).zip(entered) {
                let _ = insert.done.send(Ok(entered));
            }
            None
        }
        Err(error) => {
            let error = LedgerError::from(error);
            for insert in batch.drain(..) {
                let _ = insert.done.send(Err(error.clone()));
            }
            is_down(&error).then_some(error)
        }
    }
}

/// Whether the same is to be expected of every other row.
fn is_down(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Unreachable(_) | LedgerError::Full(_))
}

/// Finds the row that the database refuses, so that it fails alone.
async fn commit_apart(store: &Store, batch: &mut Vec<Insert>) -> Option<LedgerError> {
    let mut down = None;
    for insert in batch.drain(..) {
        let result = match &down {
            Some(error) => Err(LedgerError::clone(error)),
            None => match store.insert(std::slice::from_ref(&insert.row)).await {
                Ok(entered) => Ok(entered.into_iter().next().unwrap_or(Entered::New)),
                Err(error) => Err(LedgerError::from(error)),
            },
        };
        match &result {
            // Nothing is gained by waiting for the same silence once for every row.
            Err(error) if is_down(error) => down = Some(error.clone()),
            Err(error) => tracing::error!(run = %insert.row.job.id, %error, "the database refused the row of a run"),
            Ok(_) => {}
        }
        let _ = insert.done.send(result);
    }
    down
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::join_all;
    use tokio::time::Instant;

    use super::*;
    use crate::tests::{MemoryLedger, job};

    #[tokio::test]
    async fn nobody_waits_for_a_silent_database_batch_after_batch() {
        let memory = MemoryLedger::open().await;
        let _silence = memory.keep_waiting().await;
        tokio::time::pause();
        let insert = || memory.ledger.insert(Arc::new(job()));
        let begin = Instant::now();
        assert!(matches!(insert().await, Err(LedgerError::Unreachable(_))));
        let (alone, begin) = (begin.elapsed(), Instant::now());
        let all = join_all((0..3 * MAX_BATCH).map(|_| insert())).await;
        assert!(all.iter().all(|inserted| matches!(inserted, Err(LedgerError::Unreachable(_)))));
        assert!(begin.elapsed() < 2 * alone, "{:?} instead of {alone:?}", begin.elapsed());
    }
}
