//! What an upload writes: lines of a batch that nobody knows yet.

use sea_orm::{
    ActiveValue::{NotSet, Set},
    EntityTrait, ExprTrait, QueryFilter, QuerySelect,
    entity::prelude::*,
};
use workers::job::{AccountId, KeyId, UnixMillis};

use super::{Claimed, MAX_ROWS, Store, finish};
use crate::{
    batches::{
        BatchId,
        table::{BatchState, batches, lines},
    },
    db::{self, StoreError},
};

impl Store {
    pub(in crate::batches) async fn open(
        &self,
        id: BatchId,
        account: AccountId,
        key: KeyId,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let row = batches::ActiveModel {
            id: Set(id.0),
            account: Set(account.0),
            api_key: Set(key.0),
            state: Set(BatchState::Receiving.as_str().to_owned()),
            total: Set(0),
            succeeded: Set(0),
            failed: Set(0),
            cancelled: Set(0),
            next_index: Set(0),
            created_at: Set(now.0),
            touched_at: Set(now.0),
            finished_at: NotSet,
            claimed_by: NotSet,
            claimed_until: Set(0),
        };
        batches::Entity::insert(row).exec_without_returning(&self.db).await?;
        Ok(())
    }

    /// Adds lines to a batch that is being received; those that are refused already are `failed`. Lost when it was given up in the meantime.
    pub(in crate::batches) async fn add(
        &self,
        id: BatchId,
        rows: Vec<lines::Model>,
        failed: i32,
        now: UnixMillis,
    ) -> Result<Claimed, StoreError> {
        let transaction = db::begin(&self.db).await?;
        let total = i32::try_from(rows.len()).unwrap_or(i32::MAX);
        let grown = batches::Entity::update_many()
            .col_expr(batches::Column::Total, Expr::col(batches::Column::Total).add(total))
            .col_expr(batches::Column::Failed, Expr::col(batches::Column::Failed).add(failed))
            .col_expr(batches::Column::TouchedAt, Expr::value(now.0))
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::State.eq(BatchState::Receiving.as_str()))
            .exec(&transaction)
            .await?;
        if grown.rows_affected == 0 {
            return Ok(Claimed::Lost);
        }
        let mut rows = rows.into_iter().map(lines::ActiveModel::from).peekable();
        while rows.peek().is_some() {
            let some = rows.by_ref().take(MAX_ROWS);
            lines::Entity::insert_many(some).exec_without_returning(&transaction).await?;
        }
        transaction.commit().await?;
        Ok(Claimed::Ours)
    }

    /// The whole body is there: from here on the batch runs.
    pub(in crate::batches) async fn run(&self, id: BatchId, now: UnixMillis) -> Result<Claimed, StoreError> {
        let transaction = db::begin(&self.db).await?;
        let started = batches::Entity::update_many()
            .col_expr(batches::Column::State, Expr::value(BatchState::Running.as_str()))
            .col_expr(batches::Column::TouchedAt, Expr::value(now.0))
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::State.eq(BatchState::Receiving.as_str()))
            .exec(&transaction)
            .await?;
        if started.rows_affected == 0 {
            return Ok(Claimed::Lost);
        }
        finish(&transaction, id, now).await?;
        transaction.commit().await?;
        Ok(Claimed::Ours)
    }

    /// Drops a batch that never ran.
    pub(in crate::batches) async fn discard(&self, id: BatchId) -> Result<(), StoreError> {
        let transaction = db::begin(&self.db).await?;
        let dropped = batches::Entity::delete_many()
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::State.eq(BatchState::Receiving.as_str()))
            .exec(&transaction)
            .await?;
        if dropped.rows_affected > 0 {
            lines::Entity::delete_many().filter(lines::Column::Batch.eq(id.0)).exec(&transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Uploads that did not grow since then: their front doors are gone.
    pub(in crate::batches) async fn stale(&self, since: UnixMillis) -> Result<Vec<BatchId>, StoreError> {
        let select = batches::Entity::find()
            .select_only()
            .column(batches::Column::Id)
            .filter(batches::Column::FinishedAt.is_null())
            .filter(batches::Column::State.eq(BatchState::Receiving.as_str()))
            .filter(batches::Column::TouchedAt.lt(since.0));
        Ok(select.into_tuple::<Uuid>().all(&self.db).await?.into_iter().map(BatchId).collect())
    }
}
