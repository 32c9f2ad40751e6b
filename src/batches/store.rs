//! The changes that feed a batch, each one transaction that begins with the batch's own row. How lines get their runs is in [`assign`], what uploads
//! write in [`upload`], what callers ask in [`asked`].
//!
//! Whoever changes lines holds the lock on the batch's row, so that the counts move with the lines, and a front door that lost its claim
//! changes nothing.

mod asked;
mod assign;
mod upload;

use std::time::Duration;

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    entity::prelude::*,
};
use workers::job::UnixMillis;

use super::{
    BatchId,
    table::{BatchState, LineState, Work, batches, lines},
};
use crate::db::{self, StoreError};

/// How long a front door has the right to feed a batch without renewing it.
pub(super) const CLAIM: Duration = Duration::from_secs(15);
/// Rows of one statement, at most.
const MAX_ROWS: usize = 500;

/// The tables, on behalf of one front door.
#[derive(Clone)]
pub(super) struct Store {
    db: DatabaseConnection,
    /// This boot of a front door.
    me: Uuid,
}

/// A line that ends without a run.
pub(super) struct Refused {
    pub index: i32,
    pub code: String,
    pub sentence: String,
}

/// Whether a step was done: not when another front door has the batch, or nobody is to have it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    Ours,
    Lost,
}

impl Store {
    pub(super) fn new(db: DatabaseConnection) -> Self {
        Self { db, me: Uuid::now_v7() }
    }

    /// Batches with something left to do that nobody feeds, oldest first.
    pub(super) async fn unclaimed(&self, now: UnixMillis, limit: u64) -> Result<Vec<BatchId>, StoreError> {
        let select = batches::Entity::find()
            .select_only()
            .column(batches::Column::Id)
            .filter(batches::Column::FinishedAt.is_null())
            .filter(batches::Column::State.ne(BatchState::Receiving.as_str()))
            .filter(batches::Column::ClaimedUntil.lt(now.0).or(batches::Column::ClaimedBy.eq(self.me)))
            .order_by_asc(batches::Column::Id)
            .limit(limit);
        Ok(select.into_tuple::<Uuid>().all(&self.db).await?.into_iter().map(BatchId).collect())
    }

    /// Takes a batch, or renews the claim on it.
    pub(super) async fn claim(&self, id: BatchId, now: UnixMillis) -> Result<Claimed, StoreError> {
        let claimed = batches::Entity::update_many()
            .col_expr(batches::Column::ClaimedBy, Expr::value(self.me))
            .col_expr(batches::Column::ClaimedUntil, Expr::value(now.plus(millis(CLAIM)).0))
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::FinishedAt.is_null())
            .filter(batches::Column::ClaimedUntil.lt(now.0).or(batches::Column::ClaimedBy.eq(self.me)))
            .exec(&self.db)
            .await?;
        Ok(if claimed.rows_affected > 0 { Claimed::Ours } else { Claimed::Lost })
    }

    /// Leaves a batch to whoever comes first.
    pub(super) async fn release(&self, id: BatchId) -> Result<(), StoreError> {
        batches::Entity::update_many()
            .col_expr(batches::Column::ClaimedUntil, Expr::value(0_i64))
            .col_expr(batches::Column::ClaimedBy, Expr::value(Option::<Uuid>::None))
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::ClaimedBy.eq(self.me))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    pub(super) async fn work(&self, id: BatchId) -> Result<Option<Work>, StoreError> {
        let row = batches::Entity::find_by_id(id.0).one(&self.db).await?;
        Ok(row.map(|row| row.work()).transpose()?)
    }

    /// Ends lines whose runs have ended.
    pub(super) async fn settle(
        &self,
        id: BatchId,
        ended: &[(i32, LineState)],
        now: UnixMillis,
    ) -> Result<Claimed, StoreError> {
        let transaction = db::begin(&self.db).await?;
        if self.ours(&transaction, id, now).await?.is_none() {
            return Ok(Claimed::Lost);
        }
        for state in [LineState::Succeeded, LineState::Failed, LineState::Cancelled] {
            let indexes: Vec<i32> =
                ended.iter().filter(|(_, other)| *other == state).map(|(index, _)| *index).collect();
            for some in indexes.chunks(MAX_ROWS) {
                end(&transaction, id, state, some).await?;
            }
        }
        finish(&transaction, id, now).await?;
        transaction.commit().await?;
        Ok(Claimed::Ours)
    }

    /// Ends lines that become no runs.
    pub(super) async fn refuse(
        &self,
        id: BatchId,
        refused: &[Refused],
        now: UnixMillis,
    ) -> Result<Claimed, StoreError> {
        let transaction = db::begin(&self.db).await?;
        if self.ours(&transaction, id, now).await?.is_none() {
            return Ok(Claimed::Lost);
        }
        let mut count = 0;
        for line in refused {
            let failed = lines::Entity::update_many()
                .col_expr(lines::Column::State, Expr::value(LineState::Failed.as_str()))
                .col_expr(lines::Column::ErrorCode, Expr::value(line.code.as_str()))
                .col_expr(lines::Column::ErrorMessage, Expr::value(storable(&line.sentence)))
                .col_expr(lines::Column::Body, Expr::value(Option::<String>::None))
                .col_expr(lines::Column::Run, Expr::value(Option::<Uuid>::None))
                .filter(lines::Column::Batch.eq(id.0))
                .filter(lines::Column::LineIndex.eq(line.index))
                .filter(lines::Column::State.eq(LineState::Fed.as_str()))
                .exec(&transaction)
                .await?;
            count += failed.rows_affected;
        }
        add(&transaction, id, LineState::Failed, count).await?;
        finish(&transaction, id, now).await?;
        transaction.commit().await?;
        Ok(Claimed::Ours)
    }

    /// Ends up to `limit` lines that wait, of a cancelled batch. Whether there may be more; `None` when the claim is lost.
    pub(super) async fn cancel_waiting(
        &self,
        id: BatchId,
        limit: i32,
        now: UnixMillis,
    ) -> Result<Option<bool>, StoreError> {
        let transaction = db::begin(&self.db).await?;
        let Some(batch) = self.ours(&transaction, id, now).await? else { return Ok(None) };
        let until = Ord::min(batch.next_index.saturating_add(limit), batch.total);
        if batch.next_index >= batch.total {
            return Ok(Some(false));
        }
        let cancelled = lines::Entity::update_many()
            .col_expr(lines::Column::State, Expr::value(LineState::Cancelled.as_str()))
            .col_expr(lines::Column::Body, Expr::value(Option::<String>::None))
            .filter(lines::Column::Batch.eq(id.0))
            .filter(lines::Column::LineIndex.gte(batch.next_index))
            .filter(lines::Column::LineIndex.lt(until))
            .filter(lines::Column::State.eq(LineState::Waiting.as_str()))
            .exec(&transaction)
            .await?;
        add(&transaction, id, LineState::Cancelled, cancelled.rows_affected).await?;
        batches::Entity::update_many()
            .col_expr(batches::Column::NextIndex, Expr::value(until))
            .filter(batches::Column::Id.eq(id.0))
            .exec(&transaction)
            .await?;
        finish(&transaction, id, now).await?;
        transaction.commit().await?;
        Ok(Some(until < batch.total))
    }

    /// The batch, locked for this transaction, if this front door has it.
    async fn ours(
        &self,
        transaction: &DatabaseTransaction,
        id: BatchId,
        now: UnixMillis,
    ) -> Result<Option<batches::Model>, DbErr> {
        let renewed = batches::Entity::update_many()
            .col_expr(batches::Column::ClaimedUntil, Expr::value(now.plus(millis(CLAIM)).0))
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::ClaimedBy.eq(self.me))
            .filter(batches::Column::FinishedAt.is_null())
            .exec(transaction)
            .await?;
        if renewed.rows_affected == 0 {
            return Ok(None);
        }
        batches::Entity::find_by_id(id.0).one(transaction).await
    }
}

/// Ends those of these lines that have not ended, and counts them.
async fn end(transaction: &DatabaseTransaction, id: BatchId, state: LineState, indexes: &[i32]) -> Result<(), DbErr> {
    let ended = lines::Entity::update_many()
        .col_expr(lines::Column::State, Expr::value(state.as_str()))
        .col_expr(lines::Column::Body, Expr::value(Option::<String>::None))
        .filter(lines::Column::Batch.eq(id.0))
        .filter(lines::Column::LineIndex.is_in(indexes.iter().copied()))
        .filter(lines::Column::State.eq(LineState::Fed.as_str()))
        .exec(transaction)
        .await?;
    add(transaction, id, state, ended.rows_affected).await
}

async fn add(transaction: &DatabaseTransaction, id: BatchId, state: LineState, count: u64) -> Result<(), DbErr> {
    let column = match state {
        LineState::Succeeded => batches::Column::Succeeded,
        LineState::Cancelled => batches::Column::Cancelled,
        _ => batches::Column::Failed,
    };
    batches::Entity::update_many()
        .col_expr(column, Expr::col(column).add(i32::try_from(count).unwrap_or(i32::MAX)))
        .filter(batches::Column::Id.eq(id.0))
        .exec(transaction)
        .await?;
    Ok(())
}

/// Finishes the batch if all its lines have ended. Under the lock on its row, so that this is seen once.
async fn finish(transaction: &DatabaseTransaction, id: BatchId, now: UnixMillis) -> Result<(), DbErr> {
    let state = "CASE WHEN state = 'running' THEN 'completed' ELSE state END";
    batches::Entity::update_many()
        .col_expr(batches::Column::State, Expr::cust(state))
        .col_expr(batches::Column::FinishedAt, Expr::value(now.0))
        .filter(batches::Column::Id.eq(id.0))
        .filter(batches::Column::FinishedAt.is_null())
        .filter(Expr::cust("succeeded + failed + cancelled = total"))
        .exec(transaction)
        .await?;
    Ok(())
}

/// A text that both databases can store: PostgreSQL has none with a NUL.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
