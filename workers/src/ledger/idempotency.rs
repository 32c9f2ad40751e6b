//! The table `idempotency_keys`: which run of an account a key stands for.
//!
//! A key is taken in the transaction that inserts its run, so that of two requests with one key, wherever they arrive, one makes the run
//! and the other finds it. It is free again a day later.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::{
    ActiveValue::Set,
    ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, QueryTrait,
    entity::prelude::*,
    sea_query::{OnConflict, Query},
};

use super::{LedgerError, prune, store::Store};
use crate::job::{AccountId, Job, RunId, UnixMillis};

/// How long a key stands for its run.
pub const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A caller's name for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub key: String,
    /// SHA-256 of the request that it was sent with.
    pub digest: [u8; 32],
}

/// The run that a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRun {
    pub run: RunId,
    /// Whether it was made by the same request.
    pub same_request: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub account: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    pub digest: Vec<u8>,
    pub run: Uuid,
    pub created_at: i64,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// The run that a key stands for at `now`.
pub(super) async fn find(
    store: &Store,
    account: AccountId,
    key: &IdempotencyKey,
    now: UnixMillis,
) -> Result<Option<KnownRun>, LedgerError> {
    let select = Entity::find_by_id((account.0, key.key.clone())).filter(Column::CreatedAt.gt(oldest(now)));
    let row = store.answered(|| select.clone().one(store.db())).await?;
    Ok(row.map(|row| known(&row, key)))
}

/// Takes the keys of new runs. Returns, by index, the runs that stand in the place of those whose key was taken before.
pub(super) async fn take(
    transaction: &DatabaseTransaction,
    keyed: impl Iterator<Item = (usize, &Job, &IdempotencyKey)>,
) -> Result<BTreeMap<usize, KnownRun>, DbErr> {
    // In the order of the keys, so that two processes that take the same ones wait for each other instead of blocking each other for good.
    let ordered: BTreeMap<_, _> =
        keyed.map(|(index, job, key)| ((job.account, key.key.as_str(), index), (job, key))).collect();
    let mut taken = BTreeMap::new();
    for ((account, name, index), (job, key)) in ordered {
        let row = ActiveModel {
            account: Set(account.0),
            key: Set(name.to_owned()),
            digest: Set(key.digest.to_vec()),
            run: Set(job.id.0),
            created_at: Set(job.created_at.0),
        };
        let on_conflict = OnConflict::columns([Column::Account, Column::Key])
            .update_columns([Column::Digest, Column::Run, Column::CreatedAt])
            .action_and_where(Expr::cust(format!(
                "idempotency_keys.created_at <= {} OR idempotency_keys.run = excluded.run",
                oldest(job.created_at)
            )))
            .to_owned();
        let mut upsert = Entity::insert(row).on_conflict(on_conflict);
        QueryTrait::query(&mut upsert).returning(Query::returning().column(Column::Run));
        let ours = transaction.query_one_raw(upsert.build(transaction.get_database_backend())).await?;
        if ours.is_none()
            && let Some(row) = Entity::find_by_id((account.0, name.to_owned())).one(transaction).await?
        {
            taken.insert(index, known(&row, key));
        }
    }
    Ok(taken)
}

/// Drops keys that stand for nothing any more; returns how many.
pub(super) async fn drop_old(store: &Store, now: UnixMillis) -> Result<u64, LedgerError> {
    prune::<Entity>(store, [Column::Account, Column::Key], Column::CreatedAt.lte(oldest(now))).await
}

fn known(row: &Model, key: &IdempotencyKey) -> KnownRun {
    KnownRun { run: RunId(row.run), same_request: row.digest == key.digest }
}

/// A key that was taken then, or before, is free.
fn oldest(now: UnixMillis) -> i64 {
    now.0.saturating_sub(i64::try_from(KEY_LIFE.as_millis()).unwrap_or(i64::MAX))
}
