//! The outbox: who is to be told of ended runs, and how telling them went. The tables `webhook_outbox` and `webhook_attempts`.
//!
//! A row is written in the very transaction that ends its run ([`enter`]), so that no ending is told that did not happen, and none
//! that happened is forgotten. From then on it is a queue in the database: a process takes a row by a lease ([`Outbox::claim`]), sends it, and
//! records the outcome under the name of that lease ([`Outbox::record`]). A process that died in between is followed by another when the lease
//! ends, so that a row is sent at least once, always under the same id.

mod table;
mod tries;

use std::{str::FromStr, time::Duration};

use sea_orm::{
    ActiveValue::Set,
    DatabaseTransaction, DbErr, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    entity::prelude::*,
    sea_query::{LockBehavior, LockType, Query, SimpleExpr},
};

use self::table::{Column, Entity};
pub use self::tries::Try;
use super::{LedgerError, store::Store, unreadable};
use crate::{
    fail,
    job::{AccountId, DeliveryId, Ending, Job, Outcome, RunId, UnixMillis},
};

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is to be sent, now or later.
    Pending,
    Delivered,
    /// Nobody tries any more.
    Failed,
}

impl DeliveryState {
    pub const ALL: [DeliveryState; 3] = [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Failed => "failed",
        }
    }
}

impl FromStr for DeliveryState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        DeliveryState::ALL.into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

/// One run that somebody is to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub id: DeliveryId,
    pub account: AccountId,
    pub run: RunId,
    pub url: String,
    /// `run.completed`, `run.failed`, `run.cancelled`.
    pub event: String,
    pub state: DeliveryState,
    pub created_at: UnixMillis,
    /// When this round of tries began; a redelivery begins another one.
    pub queued_at: UnixMillis,
    /// When it is sent next; `None` once nobody tries any more.
    pub due_at: Option<UnixMillis>,
    /// Tries of this round that failed.
    pub tries: u32,
    pub finished_at: Option<UnixMillis>,
}

/// A delivery under a lease.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub delivery: Delivery,
    /// The name of the lease.
    claim: Uuid,
}

/// What follows from a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    Again { due_at: UnixMillis },
    GivenUp,
}

/// What a redelivery did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redelivery {
    /// It is sent as soon as somebody is free to.
    Queued(Box<Delivery>),
    /// There is no such delivery, or not in this account.
    NotFound,
}

/// The outbox of a ledger. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    store: Store,
}

/// Writes what is to be told of runs that this transaction ends.
pub(super) async fn enter(
    transaction: &DatabaseTransaction,
    ended: impl Iterator<Item = (&Job, &Ending)>,
) -> Result<(), DbErr> {
    let rows: Vec<_> = ended.filter_map(|(job, ending)| Some(row(job, ending, job.webhook_url.as_ref()?))).collect();
    if !rows.is_empty() {
        Entity::insert_many(rows).exec_without_returning(transaction).await?;
    }
    Ok(())
}

fn row(job: &Job, ending: &Ending, url: &str) -> table::ActiveModel {
    let event = match ending.outcome {
        Outcome::Succeeded { .. } => "run.completed",
        Outcome::Cancelled => "run.cancelled",
        Outcome::Failed(_) | Outcome::Expired => "run.failed",
    };
    table::ActiveModel {
        id: Set(DeliveryId::at(ending.finished_at).0),
        account: Set(job.account.0),
        run: Set(job.id.0),
        url: Set(super::storable(url)),
        event: Set(event.to_owned()),
        state: Set(DeliveryState::Pending.as_str().to_owned()),
        created_at: Set(ending.finished_at.0),
        queued_at: Set(ending.finished_at.0),
        due_at: Set(0),
        tries: Set(0),
        claimed_until: Set(0),
        claim: Set(None),
        finished_at: Set(None),
    }
}

impl Outbox {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Takes what is due, the longest due first, for as long as `lease`; nothing of the accounts in `busy`.
    pub async fn claim(
        &self,
        now: UnixMillis,
        lease: Duration,
        busy: &[AccountId],
        limit: u64,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let claim = Uuid::now_v7();
        let until = now.plus(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        let due = Query::select()
            .column(Column::Id)
            .from(Entity)
            .and_where(pending())
            .and_where(Column::DueAt.lte(now.0))
            .and_where(Column::ClaimedUntil.lte(now.0))
            .and_where(Column::Account.is_not_in(busy.iter().map(|account| account.0)))
            .order_by(Column::DueAt, sea_orm::Order::Asc)
            .order_by(Column::Id, sea_orm::Order::Asc)
            .limit(limit)
            // Two processes that look at once take different rows instead of waiting for each other; SQLite has one writer anyway.
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
            .take();
        let take = async || {
            let _turn = self.store.turn().await;
            Entity::update_many()
                .col_expr(Column::ClaimedUntil, Expr::value(until.0))
                .col_expr(Column::Claim, Expr::value(claim))
                .filter(Column::Id.in_subquery(due.clone()))
                .filter(pending())
                .filter(Column::ClaimedUntil.lte(now.0))
                .exec_with_returning(self.store.db())
                .await
        };
        let rows = self.store.answered(take).await?;
        rows.into_iter().map(|row| Ok(Claimed { delivery: row.read()?, claim })).collect()
    }

    /// Whether anything is due, so that a look at an idle outbox writes nothing.
    pub async fn is_due(&self, now: UnixMillis) -> Result<bool, LedgerError> {
        let select = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(pending())
            .filter(Column::DueAt.lte(now.0))
            .filter(Column::ClaimedUntil.lte(now.0))
            .limit(1);
        let found = self.store.answered(|| select.clone().into_tuple::<Uuid>().one(self.store.db())).await?;
        Ok(found.is_some())
    }

    /// Writes down how a try went, and what follows from it if the lease is still the caller's: `false` when it is not.
    pub async fn record(&self, claimed: &Claimed, made: &Try, verdict: Verdict) -> Result<bool, LedgerError> {
        let record = self.store.answered(|| self.record_once(claimed, made, verdict));
        fail::around("webhook.record", async { Ok::<_, LedgerError>(record.await?) }).await
    }

    async fn record_once(&self, claimed: &Claimed, made: &Try, verdict: Verdict) -> Result<bool, DbErr> {
        let (state, due_at) = match verdict {
            Verdict::Delivered => (DeliveryState::Delivered, 0),
            Verdict::Again { due_at } => (DeliveryState::Pending, due_at.0),
            Verdict::GivenUp => (DeliveryState::Failed, 0),
        };
        let finished_at = (state != DeliveryState::Pending).then_some(made.ended_at().0);
        let failed = i32::from(verdict != Verdict::Delivered);
        let _turn = self.store.turn().await;
        let transaction = self.store.begin().await?;
        tries::insert(&transaction, claimed.delivery.id, made).await?;
        let held = Entity::update_many()
            .col_expr(Column::State, Expr::value(state.as_str()))
            .col_expr(Column::DueAt, Expr::value(due_at))
            .col_expr(Column::Tries, Expr::col(Column::Tries).add(failed))
            .col_expr(Column::FinishedAt, Expr::value(finished_at))
            .col_expr(Column::ClaimedUntil, Expr::value(0_i64))
            .col_expr(Column::Claim, Expr::value(None::<Uuid>))
            .filter(Column::Id.eq(claimed.delivery.id.0))
            .filter(Column::Claim.eq(claimed.claim))
            .exec(&transaction)
            .await?;
        transaction.commit().await?;
        Ok(held.rows_affected > 0)
    }

    /// Gives a lease back without a try.
    pub async fn release(&self, claimed: &Claimed) -> Result<(), LedgerError> {
        let release = async || {
            let _turn = self.store.turn().await;
            let free = Entity::update_many()
                .col_expr(Column::ClaimedUntil, Expr::value(0_i64))
                .col_expr(Column::Claim, Expr::value(None::<Uuid>))
                .filter(Column::Id.eq(claimed.delivery.id.0))
                .filter(Column::Claim.eq(claimed.claim));
            free.exec(self.store.db()).await.map(|_| ())
        };
        Ok(self.store.answered(release).await?)
    }

    /// Begins another round of tries, whatever became of the ones before. `account` is the one that must own it; `None` is for operators.
    pub async fn redeliver(
        &self,
        account: Option<AccountId>,
        id: DeliveryId,
        now: UnixMillis,
    ) -> Result<Redelivery, LedgerError> {
        let begin = async || {
            let _turn = self.store.turn().await;
            let again = Entity::update_many()
                .col_expr(Column::State, Expr::value(DeliveryState::Pending.as_str()))
                .col_expr(Column::DueAt, Expr::value(0_i64))
                .col_expr(Column::QueuedAt, Expr::value(now.0))
                .col_expr(Column::Tries, Expr::value(0_i32))
                .col_expr(Column::FinishedAt, Expr::value(None::<i64>))
                .filter(Column::Id.eq(id.0));
            let again = match account {
                Some(account) => again.filter(Column::Account.eq(account.0)),
                None => again,
            };
            again.exec_with_returning(self.store.db()).await
        };
        match self.store.answered(begin).await?.pop() {
            Some(row) => Ok(Redelivery::Queued(Box::new(row.read()?))),
            None => Ok(Redelivery::NotFound),
        }
    }

    /// The deliveries of an account, newest first: of one run, or of all.
    pub async fn of(
        &self,
        account: AccountId,
        run: Option<RunId>,
        state: Option<DeliveryState>,
        limit: u64,
    ) -> Result<Vec<Delivery>, LedgerError> {
        let mut select = Entity::find().filter(Column::Account.eq(account.0)).order_by_desc(Column::Id).limit(limit);
        if let Some(run) = run {
            select = select.filter(Column::Run.eq(run.0));
        }
        if let Some(state) = state {
            select = select.filter(Column::State.eq(state.as_str()));
        }
        let rows = self.store.answered(|| select.clone().all(self.store.db())).await?;
        rows.into_iter().map(table::Model::read).collect()
    }

    /// Everything that was tried for a delivery, in order.
    pub async fn tries(&self, delivery: DeliveryId) -> Result<Vec<Try>, LedgerError> {
        Ok(self.store.answered(|| tries::of(self.store.db(), delivery)).await?)
    }
}

/// In words that the index `webhook_outbox_due` is found by: a bound value would hide it.
fn pending() -> SimpleExpr {
    Expr::cust("state = 'pending'")
}
