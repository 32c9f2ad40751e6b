//! The reads of the ledger.

use std::{collections::HashMap, ops::Range, sync::Arc};

use sea_orm::{
    EntityTrait, FromQueryResult, JoinType, QueryFilter, QueryOrder, QuerySelect, Select, entity::prelude::*,
};

use super::{LedgerError, RunRecord, attempts, runs, store::Store, unreadable};
use crate::{
    job::{AccountId, Attempt, AttemptOutcome, Ending, Fence, Job, RunId, RunState, UnixMillis},
    queue::Restored,
};

/// Ids of one query, at most.
const MAX_IDS: usize = 500;

pub(super) async fn find(store: &Store, account: AccountId, run: RunId) -> Result<Option<RunRecord>, LedgerError> {
    let select = runs::Entity::find_by_id(run.0).filter(runs::Column::Account.eq(account.0));
    let row = store.answered(|| select.clone().into_partial_model::<runs::Row>().one(store.db())).await?;
    let Some(row) = row else { return Ok(None) };
    let attempts = attempts(store, run).await?;
    row.into_record(attempts).map(Some)
}

/// In no order, and without their attempts.
pub(super) async fn records(store: &Store, account: AccountId, runs: &[RunId]) -> Result<Vec<RunRecord>, LedgerError> {
    let mut records = Vec::with_capacity(runs.len());
    for ids in runs.chunks(MAX_IDS) {
        let select = runs::Entity::find()
            .filter(runs::Column::Id.is_in(ids.iter().map(|run| run.0)))
            .filter(runs::Column::Account.eq(account.0));
        let rows = store.answered(|| select.clone().into_partial_model::<runs::Row>().all(store.db())).await?;
        for row in rows {
            records.push(row.into_record(Vec::new())?);
        }
    }
    Ok(records)
}

pub(super) async fn states(store: &Store, runs: &[RunId]) -> Result<Vec<(RunId, RunState)>, LedgerError> {
    let mut states = Vec::with_capacity(runs.len());
    for ids in runs.chunks(MAX_IDS) {
        let select = runs::Entity::find()
            .select_only()
            .columns([runs::Column::Id, runs::Column::State])
            .filter(runs::Column::Id.is_in(ids.iter().map(|run| run.0)));
        let rows = store.answered(|| select.clone().into_tuple::<(Uuid, String)>().all(store.db())).await?;
        for (id, state) in rows {
            states.push((RunId(id), state.parse().map_err(|()| unreadable(id, "state"))?));
        }
    }
    Ok(states)
}

pub(super) async fn attempts(store: &Store, run: RunId) -> Result<Vec<Attempt>, LedgerError> {
    Ok(attempts_of(store, &[run.0]).await?.remove(&run.0).unwrap_or_default())
}

pub(super) async fn unfinished_ids(store: &Store, after: Option<RunId>, limit: u64) -> Result<Vec<RunId>, LedgerError> {
    let mut select = select_unfinished_ids().order_by_asc(runs::Column::Id).limit(limit);
    if let Some(after) = after {
        select = select.filter(runs::Column::Id.gt(after.0));
    }
    let ids: Vec<Uuid> = store.answered(|| select.clone().into_tuple().all(store.db())).await?;
    Ok(ids.into_iter().map(RunId).collect())
}

pub(super) async fn last_unfinished(store: &Store) -> Result<Option<RunId>, LedgerError> {
    let select = select_unfinished_ids().order_by_desc(runs::Column::Id).limit(1);
    let last: Option<Uuid> = store.answered(|| select.clone().into_tuple().one(store.db())).await?;
    Ok(last.map(RunId))
}

/// From the index alone: no row is looked at for more than whether it is seen.
fn select_unfinished_ids() -> Select<runs::Entity> {
    runs::Entity::find().select_only().column(runs::Column::Id).filter(runs::Column::FinishedAt.is_null())
}

pub(super) async fn unfinished(store: &Store, runs: &[RunId]) -> Result<Vec<Restored>, LedgerError> {
    let mut found = Vec::with_capacity(runs.len());
    for ids in runs.chunks(MAX_IDS) {
        let select = select_unfinished()
            .filter(runs::Column::Id.is_in(ids.iter().map(|run| run.0)))
            .order_by_asc(runs::Column::Id);
        for row in store.answered(|| select.clone().into_model::<Unfinished>().all(store.db())).await? {
            match row.job.as_deref().map(Job::from_text) {
                Some(Ok(job)) => found.push(row.restored(job)),
                Some(Err(error)) => tracing::warn!(run = %row.id, %error, "left an unfinished run alone"),
                None => tracing::warn!(run = %row.id, "left an unfinished run without a job alone"),
            }
        }
    }
    Ok(found)
}

#[derive(FromQueryResult)]
struct Unfinished {
    id: Uuid,
    job: Option<String>,
    attempts: Option<i32>,
    limited: i64,
    fence: i64,
    last_fence: Option<i64>,
}

impl Unfinished {
    fn restored(&self, job: Job) -> Restored {
        Restored {
            job: Arc::new(job),
            attempts: self.attempts.unwrap_or_default(),
            limited: i32::try_from(self.limited).unwrap_or(i32::MAX),
            fence: Fence(self.last_fence.unwrap_or_default().max(self.fence)),
        }
    }
}

pub(super) async fn unfinished_one(store: &Store, run: RunId) -> Result<Option<Restored>, LedgerError> {
    let select = select_unfinished().filter(runs::Column::Id.eq(run.0));
    let row = store.answered(|| select.clone().into_model::<Unfinished>().one(store.db())).await?;
    let Some(row) = row else { return Ok(None) };
    match row.job.as_deref().map(Job::from_text) {
        Some(Ok(job)) => Ok(Some(row.restored(job))),
        _ => Err(unreadable(row.id, "job")),
    }
}

fn select_unfinished() -> Select<runs::Entity> {
    // Not `attempt_count`: the attempt of a run may have been recorded before the run's row.
    let attempts = Expr::cust("(SELECT MAX(attempts.number) FROM attempts WHERE attempts.run = runs.id)");
    let last_fence = Expr::cust("(SELECT MAX(attempts.fence) FROM attempts WHERE attempts.run = runs.id)");
    let limited = Expr::cust(format!(
        "(SELECT COUNT(*) FROM attempts WHERE attempts.run = runs.id AND attempts.outcome = '{}')",
        AttemptOutcome::RateLimited.as_str()
    ));
    runs::Entity::find()
        .select_only()
        .columns([runs::Column::Id, runs::Column::Job, runs::Column::Fence])
        .expr_as(attempts, "attempts")
        .expr_as(last_fence, "last_fence")
        .expr_as(limited, "limited")
        .filter(runs::Column::FinishedAt.is_null())
}

pub(super) async fn endings(store: &Store, runs: &[RunId]) -> Result<Vec<Ending>, LedgerError> {
    let mut endings = Vec::with_capacity(runs.len());
    for ids in runs.chunks(MAX_IDS) {
        let select = runs::Entity::find()
            .filter(runs::Column::Id.is_in(ids.iter().map(|run| run.0)))
            .filter(runs::Column::FinishedAt.is_not_null());
        let rows = store.answered(|| select.clone().into_partial_model::<runs::Row>().all(store.db())).await?;
        let ended: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let mut attempts = attempts_of(store, &ended).await?;
        for row in rows {
            let last = attempts.remove(&row.id).and_then(|mut attempts| attempts.pop());
            endings.push(row.into_ending(last)?);
        }
    }
    Ok(endings)
}

pub(super) async fn spent(store: &Store, account: AccountId, accepted: Range<UnixMillis>) -> Result<i64, LedgerError> {
    let attempts = runs::Entity::belongs_to(attempts::Entity).from(runs::Column::Id).to(attempts::Column::Run);
    // PostgreSQL sums up integers in another type.
    let sum = Expr::cust("CAST(COALESCE(SUM(attempts.cost_nano_usd), 0) AS BIGINT)");
    let select = runs::Entity::find()
        .select_only()
        .expr_as(sum, "spent")
        .join(JoinType::InnerJoin, attempts.into())
        .filter(runs::Column::Account.eq(account.0))
        .filter(runs::Column::Id.gte(RunId::first_at(accepted.start).0))
        .filter(runs::Column::Id.lt(RunId::first_at(accepted.end).0));
    let spent: Option<i64> = store.answered(|| select.clone().into_tuple().one(store.db())).await?;
    Ok(spent.unwrap_or_default())
}

pub(super) async fn count_unfinished(store: &Store) -> Result<u64, LedgerError> {
    let select = runs::Entity::find().filter(runs::Column::FinishedAt.is_null());
    Ok(store.answered(|| select.clone().count(store.db())).await?)
}

/// The attempts of each run, numbered in the order of their fences. The number that a worker gave may be another one's too: whoever took
/// the run over did not always know of the call before.
pub(super) async fn attempts_of(store: &Store, runs: &[Uuid]) -> Result<HashMap<Uuid, Vec<Attempt>>, LedgerError> {
    if runs.is_empty() {
        return Ok(HashMap::new());
    }
    let select = attempts::Entity::find()
        .filter(attempts::Column::Run.is_in(runs.iter().copied()))
        .order_by_asc(attempts::Column::Fence);
    let rows = store.answered(|| select.clone().all(store.db())).await?;
    let mut attempts: HashMap<Uuid, Vec<Attempt>> = HashMap::new();
    for row in rows {
        let of_run = attempts.entry(row.run).or_default();
        let number = i32::try_from(of_run.len()).unwrap_or(i32::MAX).saturating_add(1);
        of_run.push(Attempt { number, ..row.into_attempt()? });
    }
    Ok(attempts)
}
