//! Lines get the ids of their runs, in their order.

use std::ops::Range;

use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait, entity::prelude::*, sea_query::OnConflict,
};
use workers::job::{RunId, UnixMillis};

use super::Store;
use crate::{
    batches::{
        BatchId,
        table::{BatchState, FedLine, LineState, batches, lines},
    },
    db::{self, StoreError},
};

/// What the bodies of lines take that are handed out in one go, unless one alone is larger: they are in memory.
const MAX_BYTES: i64 = 4 << 20;

impl Store {
    /// Chooses the runs of up to `limit` lines that wait.
    pub(in crate::batches) async fn assign(
        &self,
        id: BatchId,
        limit: i32,
        now: UnixMillis,
    ) -> Result<Option<Vec<FedLine>>, StoreError> {
        let transaction = db::begin(&self.db).await?;
        let Some(batch) = self.ours(&transaction, id, now).await? else { return Ok(None) };
        if batch.work()?.state != BatchState::Running {
            return Ok(Some(Vec::new()));
        }
        let Some(next) = next(&transaction, &batch, limit).await? else { return Ok(Some(Vec::new())) };
        let rows = waiting(id, &next).all(&transaction).await?;
        let line = |row: lines::Model| {
            let (index, number) = (row.line_index, row.line_number);
            FedLine { index, number, run: RunId::at(now), body: row.body.unwrap_or_default() }
        };
        let assigned: Vec<FedLine> = rows.into_iter().map(line).collect();
        let updates = assigned.iter().map(|line| lines::ActiveModel {
            batch: Set(id.0),
            line_index: Set(line.index),
            line_number: Set(line.number),
            state: Set(LineState::Fed.as_str().to_owned()),
            run: Set(Some(line.run.0)),
            ..Default::default()
        });
        let on_conflict = OnConflict::columns([lines::Column::Batch, lines::Column::LineIndex])
            .update_columns([lines::Column::State, lines::Column::Run])
            .to_owned();
        let upsert = lines::Entity::insert_many(updates).on_conflict(on_conflict);
        transaction.execute_raw(upsert.build(self.db.get_database_backend())).await?;
        batches::Entity::update_many()
            .col_expr(batches::Column::NextIndex, Expr::value(next.end))
            .filter(batches::Column::Id.eq(id.0))
            .exec(&transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some(assigned))
    }

    /// The bodies of some lines whose runs have ids.
    pub(in crate::batches) async fn bodies(&self, id: BatchId, indexes: &[i32]) -> Result<Vec<FedLine>, StoreError> {
        let select = lines::Entity::find()
            .filter(lines::Column::Batch.eq(id.0))
            .filter(lines::Column::LineIndex.is_in(indexes.iter().copied()))
            .filter(lines::Column::State.eq(LineState::Fed.as_str()));
        let rows = select.all(&self.db).await?;
        let line = |row: lines::Model| {
            let (index, number) = (row.line_index, row.line_number);
            Some(FedLine { index, number, run: RunId(row.run?), body: row.body.unwrap_or_default() })
        };
        Ok(rows.into_iter().filter_map(line).collect())
    }
}

/// The next up to `limit` lines of which any waits, as far as there is memory for their bodies.
async fn next(
    transaction: &DatabaseTransaction,
    batch: &batches::Model,
    limit: i32,
) -> Result<Option<Range<i32>>, DbErr> {
    let mut from = batch.next_index;
    while from < batch.total {
        let range = from..from.saturating_add(limit).min(batch.total);
        let sizes = waiting(BatchId(batch.id), &range)
            .select_only()
            .column(lines::Column::LineIndex)
            .expr(Expr::cust("COALESCE(octet_length(body), 0)"))
            .into_tuple::<(i32, i32)>()
            .all(transaction)
            .await?;
        let mut bytes = 0;
        let is_beyond = |(_, size): &&(i32, i32)| {
            let is_first = bytes == 0;
            bytes += i64::from(*size);
            !is_first && bytes > MAX_BYTES
        };
        if let Some((index, _)) = sizes.iter().find(is_beyond) {
            return Ok(Some(from..*index));
        }
        if !sizes.is_empty() {
            return Ok(Some(range));
        }
        from = range.end;
    }
    Ok(None)
}

/// The lines of a range that wait. By the range alone the database knows that they are few: without it, one that has no statistics yet reads
/// and sorts all that are left of the batch, for each of its steps.
fn waiting(id: BatchId, range: &Range<i32>) -> Select<lines::Entity> {
    lines::Entity::find()
        .filter(lines::Column::Batch.eq(id.0))
        .filter(lines::Column::LineIndex.gte(range.start))
        .filter(lines::Column::LineIndex.lt(range.end))
        .filter(lines::Column::State.eq(LineState::Waiting.as_str()))
        .order_by_asc(lines::Column::LineIndex)
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectOptions, Database};
    use workers::job::{AccountId, KeyId};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000);
    const MIB: usize = 1 << 20;

    /// A batch that this front door feeds. A line without a size was refused when it came.
    async fn batch(sizes: &[Option<usize>]) -> (Store, BatchId) {
        let mut options = ConnectOptions::new("sqlite::memory:");
        // The database is its one connection.
        options.max_connections(1).min_connections(1).sqlx_logging(false);
        let connection = Database::connect(options).await.unwrap();
        db::migrate(&connection).await.unwrap();
        let (store, id) = (Store::new(connection), BatchId(Uuid::now_v7()));
        store.open(id, AccountId::new(), KeyId::new(), NOW).await.unwrap();
        let row = |(index, size): (usize, &Option<usize>)| lines::Model {
            batch: id.0,
            line_index: i32::try_from(index).unwrap(),
            line_number: i32::try_from(index + 1).unwrap(),
            state: if size.is_some() { LineState::Waiting } else { LineState::Failed }.as_str().to_owned(),
            body: size.map(|size| "x".repeat(size)),
            run: None,
            error_code: None,
            error_message: None,
        };
        let rows: Vec<_> = sizes.iter().enumerate().map(row).collect();
        let failed = rows.iter().filter(|row| row.body.is_none()).count();
        store.add(id, rows, i32::try_from(failed).unwrap(), NOW).await.unwrap();
        store.run(id, NOW).await.unwrap();
        store.claim(id, NOW).await.unwrap();
        (store, id)
    }

    async fn assigned(store: &Store, id: BatchId, limit: i32) -> Vec<i32> {
        let lines = store.assign(id, limit, NOW).await.unwrap().unwrap();
        lines.iter().map(|line| line.index).collect()
    }

    #[tokio::test]
    async fn lines_are_assigned_once_and_in_their_order() {
        let (store, id) = batch(&[Some(10), None, Some(10), Some(10), None, None, Some(10), None]).await;
        assert_eq!(assigned(&store, id, 3).await, [0, 2]);
        assert_eq!(assigned(&store, id, 1).await, [3]);
        assert_eq!(assigned(&store, id, 1).await, [6], "those that were refused are passed over");
        assert!(assigned(&store, id, 10).await.is_empty());
    }

    #[tokio::test]
    async fn large_lines_come_a_few_at_a_time() {
        let (store, id) = batch(&[Some(2 * MIB), Some(2 * MIB), Some(10), Some(5 * MIB), Some(10)]).await;
        assert_eq!(assigned(&store, id, 100).await, [0, 1]);
        assert_eq!(assigned(&store, id, 100).await, [2]);
        assert_eq!(assigned(&store, id, 100).await, [3], "one that is larger than all may be goes alone");
        assert_eq!(assigned(&store, id, 100).await, [4]);
    }
}
