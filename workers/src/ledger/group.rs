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
        commit(&store, &mut batch).await;
    }
}

async fn commit(store: &Store, batch: &mut Vec<Insert>) {
    let rows: Vec<Accepted> = batch.iter().map(|insert| insert.row.clone()).collect();
    match store.insert(&rows).await {
        Err(error) if Fault::of(&error) == Fault::Data => commit_apart(store, batch).await,
        // Whoever has gone does not want to know.
        Ok(entered) => {
            for (insert, entered) in batch.drain(..).zip(entered) {
                let _ = insert.done.send(Ok(entered));
            }
        }
        Err(error) => {
            let error = LedgerError::from(error);
            for insert in batch.drain(..) {
                let _ = insert.done.send(Err(error.clone()));
            }
        }
    }
}

/// Finds the row that the database refuses, so that it fails alone.
async fn commit_apart(store: &Store, batch: &mut Vec<Insert>) {
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
            Err(error @ (LedgerError::Unreachable(_) | LedgerError::Full(_))) => down = Some(error.clone()),
            Err(error) => tracing::error!(run = %insert.row.job.id, %error, "the database refused the row of a run"),
            Ok(_) => {}
        }
        let _ = insert.done.send(result);
    }
}
