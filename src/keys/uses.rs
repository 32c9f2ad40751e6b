//! When keys were last used: collected in memory, written every few seconds in one transaction.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{Condition, DatabaseConnection, DbErr, entity::prelude::*};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use workers::job::{KeyId, UnixMillis};

use super::table::{Column, Entity};
use crate::db;

/// How often they are written.
const PERIOD: Duration = Duration::from_secs(3);

/// Uses that are not written yet: the last one of each key.
#[derive(Default)]
pub(super) struct Uses {
    /// Sorted, so that processes that write the same rows at once take them in the same order, and never each wait for the other.
    pending: Mutex<BTreeMap<KeyId, UnixMillis>>,
}

impl Uses {
    pub(super) fn note(&self, key: KeyId, at: UnixMillis) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let last = pending.entry(key).or_insert(at);
        *last = at.max(*last);
    }

    /// Writes until `stop`, and a last time then.
    pub(super) async fn record(self: Arc<Self>, db: DatabaseConnection, stop: CancellationToken) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            match (self.flush(&db).await, failing) {
                (Err((error, keys)), false) => {
                    tracing::warn!(%error, keys, "the last uses of keys cannot be written; they are kept until they can");
                    failing = true;
                }
                // One line tells of an outage, however long it is.
                (Err(_), true) => {}
                (Ok(()), _) => failing = false,
            }
            if stopped {
                return;
            }
        }
    }

    /// Fails with the number of keys whose last use is kept for the next time.
    async fn flush(&self, db: &DatabaseConnection) -> Result<(), (DbErr, usize)> {
        let batch = mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if batch.is_empty() {
            return Ok(());
        }
        write(db, &batch).await.map_err(|error| {
            let keys = batch.len();
            for (key, at) in batch {
                self.note(key, at);
            }
            (error, keys)
        })
    }
}

async fn write(db: &DatabaseConnection, batch: &BTreeMap<KeyId, UnixMillis>) -> Result<(), DbErr> {
    let transaction = db::begin(db).await?;
    for (key, at) in batch {
        // Another process may have seen a later use.
        let earlier = Condition::any().add(Column::LastUsedAt.is_null()).add(Column::LastUsedAt.lt(at.0));
        Entity::update_many()
            .col_expr(Column::LastUsedAt, Expr::value(at.0))
            .filter(Column::Id.eq(key.0))
            .filter(earlier)
            .exec(&transaction)
            .await?;
    }
    transaction.commit().await
}
