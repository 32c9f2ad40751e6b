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

/// Lines that are looked at in one transaction.
const WINDOW: i32 = 1_000;
/// What the bodies of lines take that are handed out in one go, unless one alone is larger: they are in memory.
const MAX_BYTES: i64 = 4 << 20;

impl Store {
    /// Chooses the runs of up to `limit` lines that wait: of no line when none waits. `None` when the claim is lost.
    pub(in crate::batches) async fn assign(
        &self,
        id: BatchId,
        limit: usize,
        now: UnixMillis,
    ) -> Result<Option<Vec<FedLine>>, StoreError> {
        loop {
            let transaction = db::begin(&self.db).await?;
            let Some(batch) = self.ours(&transaction, id, now).await? else { return Ok(None) };
            let window = batch.next_index..batch.next_index.saturating_add(WINDOW).min(batch.total);
            if batch.work()?.state != BatchState::Running || window.is_empty() {
                return Ok(Some(Vec::new()));
            }
            let range = next(&transaction, id, &window, limit).await?;
            let assigned = self.assign_all(&transaction, id, &range, now).await?;
            batches::Entity::update_many()
                .col_expr(batches::Column::NextIndex, Expr::value(range.end))
                .filter(batches::Column::Id.eq(id.0))
                .exec(&transaction)
                .await?;
            transaction.commit().await?;
            // A window of lines that were refused is passed for good.
            if !assigned.is_empty() {
                return Ok(Some(assigned));
            }
        }
    }

    async fn assign_all(
        &self,
        transaction: &DatabaseTransaction,
        id: BatchId,
        range: &Range<i32>,
        now: UnixMillis,
    ) -> Result<Vec<FedLine>, StoreError> {
        let line = |row: lines::Model| {
            let (index, number) = (row.line_index, row.line_number);
            FedLine { index, number, run: RunId::at(now), body: row.body.unwrap_or_default() }
        };
        let assigned: Vec<FedLine> = waiting(id, range).all(transaction).await?.into_iter().map(line).collect();
        if assigned.is_empty() {
            return Ok(assigned);
        }
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
        Ok(assigned)
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

/// The part of a window that has its first lines that wait, up to `limit`, and as far as there is memory for their bodies.
async fn next(
    transaction: &DatabaseTransaction,
    id: BatchId,
    window: &Range<i32>,
    limit: usize,
) -> Result<Range<i32>, DbErr> {
    // One more than may be taken: it is where the next ones begin.
    let sizes = waiting(id, window)
        .select_only()
        .column(lines::Column::LineIndex)
        .expr(Expr::cust("COALESCE(octet_length(body), 0)"))
        .limit(limit as u64 + 1)
        .into_tuple::<(i32, i32)>()
        .all(transaction)
        .await?;
    let mut bytes = 0;
    for (taken, (index, size)) in sizes.iter().enumerate() {
        bytes += i64::from(*size);
        if taken == limit || (taken > 0 && bytes > MAX_BYTES) {
            return Ok(window.start..*index);
        }
    }
    Ok(window.clone())
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

    async fn assigned(store: &Store, id: BatchId, limit: usize) -> Vec<i32> {
        let lines = store.assign(id, limit, NOW).await.unwrap().unwrap();
        lines.iter().map(|line| line.index).collect()
    }

    #[tokio::test]
    async fn lines_are_assigned_once_and_in_their_order() {
        let (store, id) = batch(&[Some(10), None, Some(10), Some(10), None, None, Some(10), None]).await;
        assert_eq!(assigned(&store, id, 2).await, [0, 2]);
        assert_eq!(assigned(&store, id, 1).await, [3]);
        assert_eq!(assigned(&store, id, 1).await, [6], "those that were refused are passed over");
        assert!(assigned(&store, id, 10).await.is_empty());
    }

    #[tokio::test]
    async fn refused_lines_are_passed_once() {
        let sizes: Vec<Option<usize>> = (0..2 * WINDOW + 500).map(|index| (index % 2_000 == 0).then_some(10)).collect();
        let (store, id) = batch(&sizes).await;
        let next_index = async || batches::Entity::find_by_id(id.0).one(&store.db).await.unwrap().unwrap().next_index;
        assert_eq!(assigned(&store, id, 1).await, [0]);
        assert_eq!(assigned(&store, id, 1).await, [2_000]);
        assert_eq!(next_index().await, 2 * WINDOW + 500, "nothing is left to look at");
        assert!(assigned(&store, id, 1).await.is_empty());
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
