//! Dead runs: those that ended as poison, with the job that they keep until an operator has looked after them.

use std::sync::Arc;

use sea_orm::{
    Condition, DbErr, EntityTrait, FromQueryResult, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
    entity::prelude::*, sea_query::SimpleExpr,
};

use super::{
    LedgerError,
    runs::{self, Column, Entity},
    store::Store,
    unreadable,
};
use crate::job::{AccountId, Failure, Job, RunId, UnixMillis};

/// A run that was lost by too many workers, and waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadRun {
    pub id: RunId,
    pub account: AccountId,
    pub prompt_name: String,
    pub prompt_version: i32,
    pub model: String,
    pub created_at: UnixMillis,
    pub finished_at: UnixMillis,
    pub attempts: i32,
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    account: Uuid,
    prompt_name: String,
    prompt_version: i32,
    model: String,
    created_at: i64,
    finished_at: i64,
    attempt_count: i32,
}

pub(super) async fn list(store: &Store, limit: u64) -> Result<Vec<DeadRun>, LedgerError> {
    let columns = [
        Column::Id,
        Column::Account,
        Column::PromptName,
        Column::PromptVersion,
        Column::Model,
        Column::CreatedAt,
        Column::FinishedAt,
        Column::AttemptCount,
    ];
    let select = Entity::find().select_only().columns(columns).filter(is_dead()).order_by_desc(Column::Id).limit(limit);
    let rows = store.answered(|| select.clone().into_model::<Row>().all(store.db())).await?;
    let dead = rows.into_iter().map(|row| DeadRun {
        id: RunId(row.id),
        account: AccountId(row.account),
        prompt_name: row.prompt_name,
        prompt_version: row.prompt_version,
        model: row.model,
        created_at: UnixMillis(row.created_at),
        finished_at: UnixMillis(row.finished_at),
        attempts: row.attempt_count,
    });
    Ok(dead.collect())
}

pub(super) async fn count(store: &Store) -> Result<u64, LedgerError> {
    let select = Entity::find().filter(is_dead());
    Ok(store.answered(|| select.clone().count(store.db())).await?)
}

pub(super) async fn requeue(store: &Store, dead: RunId, now: UnixMillis) -> Result<Option<Arc<Job>>, LedgerError> {
    let select = Entity::find_by_id(dead.0).filter(is_dead()).select_only().column(Column::Job);
    let job: Option<Option<String>> = store.answered(|| select.clone().into_tuple().one(store.db())).await?;
    let Some(Some(job)) = job else { return Ok(None) };
    let old = Job::from_text(&job).map_err(|_| unreadable(dead.0, "job"))?;
    let deadline = now.plus(old.deadline.since(old.created_at));
    let job = Arc::new(Job { id: RunId::at(now), created_at: now, deadline, ..old });
    Ok(store.answered(|| requeue_once(store, dead, &job)).await?.then_some(job))
}

/// Whether the run was still dead, and is now followed by the new one.
async fn requeue_once(store: &Store, dead: RunId, job: &Job) -> Result<bool, DbErr> {
    let _turn = store.turn().await;
    let transaction = store.begin().await?;
    let taken = Entity::update_many().col_expr(Column::Job, null()).filter(Column::Id.eq(dead.0)).filter(is_dead());
    if taken.exec(&transaction).await?.rows_affected == 0 {
        // It was looked after before; perhaps by this very step, whose answer was lost.
        return Ok(Entity::find_by_id(job.id.0).count(&transaction).await? > 0);
    }
    let row = runs::Model { requeued_from: Some(dead.0), ..runs::queued(job) };
    Entity::insert(row.into_active_model()).exec_without_returning(&transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

pub(super) async fn discard(store: &Store, dead: RunId) -> Result<bool, LedgerError> {
    let discard = async || {
        let _turn = store.turn().await;
        let dropped = Entity::update_many()
            .col_expr(Column::Job, null())
            .col_expr(Column::Input, null())
            .filter(Column::Id.eq(dead.0))
            .filter(is_dead());
        Ok(dropped.exec(store.db()).await?.rows_affected > 0)
    };
    Ok(store.answered(discard).await?)
}

/// What the index `runs_dead` holds.
fn is_dead() -> Condition {
    Condition::all().add(Column::ErrorCode.eq(Failure::POISON)).add(Column::Job.is_not_null())
}

fn null() -> SimpleExpr {
    Expr::value(None::<String>)
}
