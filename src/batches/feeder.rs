//! Feeds batches: one task in every front door finds those that nobody feeds, and one for each hands out its lines.
//!
//! A batch belongs to the front door that has the claim on it, for as long as it is renewed. Every change begins with the claim, so a front door
//! that lost it changes nothing. A line gets the id of its run before the run is accepted, and both steps may be repeated: whoever takes over
//! a batch asks the ledger which of the runs are there, and accepts the others under the same ids.

mod batch;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use sea_orm::{DbErr, RuntimeErr};
use tokio::{
    task::{Id, JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use workers::job::UnixMillis;

use self::batch::{Feeder, Left};
use super::{BatchId, Batches, Inner, store::Claimed};
use crate::db::StoreError;

/// How often batches are looked for that nobody feeds.
const LOOK: Duration = Duration::from_millis(500);
/// Batches that one front door feeds at a time.
const MAX_BATCHES: usize = 256;
/// How long one step may take, before the claim runs out.
const STEP: Duration = Duration::from_secs(10);
/// How often uploads are looked for whose front doors have gone, and how long they must have been silent, in milliseconds. A body that pauses
/// for longer than half a minute is broken off by its own front door.
const PRUNE: Duration = Duration::from_secs(60);
const SILENT: u64 = 600_000;

impl Batches {
    /// Starts to feed batches, until `stop`. Whoever calls owns the task, and joins it after `stop`.
    pub fn feed(&self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(feed(self.0.clone(), stop))
    }
}

async fn feed(inner: Arc<Inner>, stop: CancellationToken) {
    let mut feeders: JoinSet<()> = JoinSet::new();
    let mut fed: HashMap<Id, BatchId> = HashMap::new();
    let (mut pruned, mut failing): (Option<Instant>, bool) = (None, false);
    while !stop.is_cancelled() {
        while let Some(ended) = feeders.try_join_next_with_id() {
            let task = match ended {
                Ok((task, ())) => task,
                Err(error) => {
                    tracing::error!(%error, "the feeder of a batch failed");
                    error.id()
                }
            };
            fed.remove(&task);
        }
        let known = fed.values().copied().collect();
        match answered(look(&inner, &known)).await {
            Ok(found) => {
                failing = false;
                for id in found {
                    fed.insert(feeders.spawn(one(inner.clone(), id, stop.clone())).id(), id);
                }
            }
            // Once, and not twice a second until it is back.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "batches wait for the database");
            }
            Err(_) => {}
        }
        if pruned.is_none_or(|at| at.elapsed() > PRUNE) {
            pruned = Some(Instant::now());
            if let Err(error) = answered(prune(&inner)).await {
                tracing::warn!(%error, "uploads that broke off are dropped later");
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = inner.news.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
    while feeders.join_next().await.is_some() {}
}

/// Claims batches that nobody feeds.
async fn look(inner: &Inner, fed: &HashSet<BatchId>) -> Result<Vec<BatchId>, StoreError> {
    let mut claimed = Vec::new();
    let room = u64::try_from(MAX_BATCHES).unwrap_or(u64::MAX);
    for id in inner.store.unclaimed(inner.engine.now(), room).await? {
        let is_new = !fed.contains(&id) && fed.len() + claimed.len() < MAX_BATCHES;
        if is_new && inner.store.claim(id, inner.engine.now()).await? == Claimed::Ours {
            claimed.push(id);
        }
    }
    Ok(claimed)
}

/// Drops uploads whose front doors are gone.
async fn prune(inner: &Inner) -> Result<(), StoreError> {
    let now = inner.engine.now();
    let since = UnixMillis(now.0.saturating_sub_unsigned(SILENT));
    for id in inner.store.stale(since).await? {
        inner.store.discard(id).await?;
        tracing::info!(batch = %id, "an upload whose front door has gone was dropped");
    }
    Ok(())
}

async fn one(inner: Arc<Inner>, id: BatchId, stop: CancellationToken) {
    if let Err(Left::Failed(error)) = Feeder::new(inner.clone(), id).run(&stop).await {
        tracing::warn!(batch = %id, error, "a batch is taken up again in a moment");
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(LOOK) => {}
        }
    }
    // Should this fail, the claim runs out by itself.
    let _ = answered(inner.store.release(id)).await;
}

/// Bounds a step, so that a database that is stopped in the middle does not keep the batch for ever.
async fn answered<T>(step: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(STEP, step).await {
        Ok(result) => result,
        Err(_) => {
            let silent = format!("no answer within {} s", STEP.as_secs());
            Err(DbErr::Conn(RuntimeErr::Internal(silent)).into())
        }
    }
}
