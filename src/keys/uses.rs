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
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            self.flush(&db).await;
            if stopped {
                return;
            }
        }
    }

    async fn flush(&self, db: &DatabaseConnection) {
        let batch = mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if batch.is_empty() {
            return;
        }
        if let Err(error) = write(db, &batch).await {
            tracing::warn!(%error, "the last uses of {} keys are not written yet", batch.len());
            for (key, at) in batch {
                self.note(key, at);
            }
        }
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
