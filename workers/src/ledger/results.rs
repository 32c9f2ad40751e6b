//! The table `results`: which ended run of an account has the result of a call that other runs would make as well.
//!
//! A row points at its run and is written in the transaction that ends that run, so that whoever finds it finds the output, too. The newest
//! result of a call replaces the one before.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult, JoinType, QueryFilter,
    QuerySelect, QueryTrait, RuntimeErr, entity::prelude::*, sea_query::OnConflict,
};
use tokio::time::timeout;

use super::{LedgerError, prune, runs, store::Store};
use crate::job::{AccountId, CacheUse, Ending, Job, Outcome, RunState, UnixMillis};

/// The result of an earlier run.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct CachedResult {
    pub output: String,
    pub finish_reason: Option<String>,
    /// The model that answered.
    pub model: String,
}

impl CachedResult {
    /// How a run ends that takes this result over.
    pub fn outcome(self) -> Outcome {
        Outcome::Succeeded { output: self.output, finish_reason: self.finish_reason }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "results")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub account: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub digest: String,
    pub run: Uuid,
    pub expires_at: i64,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// Whoever looks for a result can go on without one: a database that is silent is not waited for as long as for a write.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The result that stands for a call at `now`.
pub(super) async fn find(
    store: &Store,
    account: AccountId,
    digest: &str,
    now: UnixMillis,
) -> Result<Option<CachedResult>, LedgerError> {
    let run = Entity::belongs_to(runs::Entity).from(Column::Run).to(runs::Column::Id);
    let select = Entity::find_by_id((account.0, digest.to_owned()))
        .select_only()
        .columns([runs::Column::Output, runs::Column::FinishReason, runs::Column::Model])
        .join(JoinType::InnerJoin, run.into())
        .filter(Column::ExpiresAt.gt(now.0))
        .filter(runs::Column::Account.eq(account.0))
        .filter(runs::Column::State.eq(RunState::Succeeded.as_str()))
        .filter(runs::Column::Output.is_not_null());
    let found = store.answered(|| select.clone().into_model::<CachedResult>().one(store.db()));
    let late = |_| Err(DbErr::Conn(RuntimeErr::Internal("no result within a second".to_owned())));
    Ok(timeout(ANSWER_WITHIN, found).await.unwrap_or_else(late)?)
}

/// Keeps the results of those of these runs, which this transaction ends, that made a call whose result others may have.
pub(super) async fn keep(
    transaction: &DatabaseTransaction,
    ended: impl Iterator<Item = (&Job, &Ending)>,
) -> Result<(), DbErr> {
    // In the order of the keys, so that two processes that write the same ones wait for each other instead of blocking each other for good.
    let mut results = BTreeMap::new();
    for (job, ending) in ended {
        if let (Some(caching), Some(CacheUse::Miss)) = (&job.caching, ending.cache) {
            let expires_at = ending.finished_at.plus(caching.ttl_ms);
            results.insert((job.account, caching.digest.as_str()), (job.id, expires_at));
        }
    }
    if results.is_empty() {
        return Ok(());
    }
    let rows = results.into_iter().map(|((account, digest), (run, expires_at))| ActiveModel {
        account: Set(account.0),
        digest: Set(digest.to_owned()),
        run: Set(run.0),
        expires_at: Set(expires_at.0),
    });
    let on_conflict = OnConflict::columns([Column::Account, Column::Digest])
        .update_columns([Column::Run, Column::ExpiresAt])
        .to_owned();
    let upsert = Entity::insert_many(rows).on_conflict(on_conflict);
    transaction.execute_raw(upsert.build(transaction.get_database_backend())).await?;
    Ok(())
}

/// Drops results that stand no more; returns how many.
pub(super) async fn drop_old(store: &Store, now: UnixMillis) -> Result<u64, LedgerError> {
    prune::<Entity>(store, [Column::Account, Column::Digest], Column::ExpiresAt.lte(now.0)).await
}
