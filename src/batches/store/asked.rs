//! What callers ask, and the one thing that they change.

use sea_orm::{EntityTrait, QueryFilter, QueryOrder, QuerySelect, entity::prelude::*};
use workers::job::{AccountId, RunId};

use super::Store;
use crate::{
    batches::{
        BatchId,
        table::{BatchState, LineState, batches, lines},
    },
    db::StoreError,
};

impl Store {
    pub(in crate::batches) async fn find(
        &self,
        account: AccountId,
        id: BatchId,
    ) -> Result<Option<batches::Model>, StoreError> {
        let select = batches::Entity::find_by_id(id.0)
            .filter(batches::Column::Account.eq(account.0))
            .filter(batches::Column::State.ne(BatchState::Receiving.as_str()));
        Ok(select.one(&self.db).await?)
    }

    /// Whether it was running until now.
    pub(in crate::batches) async fn cancel(&self, account: AccountId, id: BatchId) -> Result<bool, StoreError> {
        let cancelled = batches::Entity::update_many()
            .col_expr(batches::Column::State, Expr::value(BatchState::Cancelled.as_str()))
            .filter(batches::Column::Id.eq(id.0))
            .filter(batches::Column::Account.eq(account.0))
            .filter(batches::Column::State.eq(BatchState::Running.as_str()))
            .exec(&self.db)
            .await?;
        Ok(cancelled.rows_affected > 0)
    }

    /// Lines that have ended, in their order, after `after`.
    pub(in crate::batches) async fn ended(
        &self,
        id: BatchId,
        after: Option<i32>,
        limit: u64,
    ) -> Result<Vec<lines::Model>, StoreError> {
        let open = [LineState::Waiting.as_str(), LineState::Fed.as_str()];
        let mut select = lines::Entity::find()
            .filter(lines::Column::Batch.eq(id.0))
            .filter(lines::Column::State.is_not_in(open))
            .order_by_asc(lines::Column::LineIndex)
            .limit(limit);
        if let Some(after) = after {
            select = select.filter(lines::Column::LineIndex.gt(after));
        }
        Ok(select.all(&self.db).await?)
    }

    /// The lines whose runs are on their way, with those runs.
    pub(in crate::batches) async fn fed(&self, id: BatchId) -> Result<Vec<(i32, RunId)>, StoreError> {
        let select = lines::Entity::find()
            .select_only()
            .columns([lines::Column::LineIndex, lines::Column::Run])
            .filter(lines::Column::Batch.eq(id.0))
            // In words, not as a parameter: only so is the partial index of these lines used.
            .filter(Expr::cust("state = 'fed'"))
            .order_by_asc(lines::Column::LineIndex);
        let rows = select.into_tuple::<(i32, Option<Uuid>)>().all(&self.db).await?;
        Ok(rows.into_iter().filter_map(|(index, run)| Some((index, RunId(run?)))).collect())
    }
}
