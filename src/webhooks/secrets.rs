//! The secrets that sign: made, replaced, and sealed again.

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
};
use serde_json::json;
use uuid::Uuid;
use workers::job::{AccountId, UnixMillis};

use super::{
    Webhooks,
    signature::SigningSecret,
    table::{self, ActiveModel, Column, Entity},
};
use crate::{
    audit::{self, Actor},
    changes,
    db::StoreError,
    sealing::SealError,
};

/// A secret as its owner sees it, ever after it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRecord {
    pub id: Uuid,
    /// Which of the operator's keys sealed it.
    pub key_id: String,
    pub created_at: UnixMillis,
    /// Until when it signs beside its successor; `None` while it has none.
    pub valid_until: Option<UnixMillis>,
}

/// Whether a secret signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretState {
    Active,
    Overlapping,
    Expired,
}

impl SecretRecord {
    pub fn state(&self, now: UnixMillis) -> SecretState {
        match self.valid_until {
            None => SecretState::Active,
            Some(end) if end > now => SecretState::Overlapping,
            Some(_) => SecretState::Expired,
        }
    }
}

/// What sealing everything again did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    pub resealed: u64,
    /// Those that the first key had sealed already.
    pub current: u64,
    /// Those that no configured key opens; they were left as they are.
    pub unopened: u64,
}

impl From<SealError> for StoreError {
    fn from(error: SealError) -> Self {
        StoreError::Refused(error.to_string())
    }
}

impl Webhooks {
    /// Makes an account's first secret. Refused when it has one: that is replaced by [`Webhooks::rotate_secret`].
    pub async fn create_secret(
        &self,
        actor: &Actor,
        account: AccountId,
    ) -> Result<(SecretRecord, SigningSecret), StoreError> {
        let transaction = changes::begin(&self.db).await?;
        if Entity::find().filter(active(account)).one(&transaction).await?.is_some() {
            let sentence = "the account has a webhook secret: `webhook secret rotate` replaces it";
            return Err(StoreError::Refused(sentence.to_owned()));
        }
        let made = self.insert_secret(&transaction, account).await?;
        self.note(&transaction, actor, "webhook.secret.create", account, &made.0).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(made)
    }

    /// Replaces an account's secret. The one before signs beside it for a while, so that receivers can change over.
    pub async fn rotate_secret(
        &self,
        actor: &Actor,
        account: AccountId,
    ) -> Result<(SecretRecord, SigningSecret), StoreError> {
        let now = UnixMillis::now();
        let transaction = changes::begin(&self.db).await?;
        let overlap = u64::try_from(self.settings.secret_overlap.as_millis()).unwrap_or(u64::MAX);
        let ended = ActiveModel { valid_until: Set(Some(now.plus(overlap).0)), ..Default::default() };
        let replaced = Entity::update_many().set(ended).filter(active(account)).exec(&transaction).await?;
        if replaced.rows_affected == 0 {
            let sentence = "the account has no webhook secret: `webhook secret create` makes one";
            return Err(StoreError::Refused(sentence.to_owned()));
        }
        Entity::delete_many()
            .filter(Column::Account.eq(account.0))
            .filter(Column::ValidUntil.lte(now.0))
            .exec(&transaction)
            .await?;
        let made = self.insert_secret(&transaction, account).await?;
        self.note(&transaction, actor, "webhook.secret.rotate", account, &made.0).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(made)
    }

    /// The secrets of an account, oldest first.
    pub async fn secrets(&self, account: AccountId) -> Result<Vec<SecretRecord>, StoreError> {
        Ok(self.rows(account).await?.iter().map(record).collect())
    }

    /// What signs for an account at `now`, the newest first. Refused when one cannot be opened.
    pub(super) async fn signing(&self, account: AccountId, now: UnixMillis) -> Result<Vec<SigningSecret>, StoreError> {
        let rows = self.rows(account).await?;
        let signing = rows.iter().rev().filter(|row| row.valid_until.is_none_or(|end| end > now.0));
        let opened = signing.map(|row| self.ring.open(&row.owner(), &row.sealed()).map(SigningSecret::from_bytes));
        Ok(opened.collect::<Result<_, _>>()?)
    }

    /// Seals everything again that another than the first key has sealed, so that the others can be taken away.
    pub async fn reseal(&self, actor: &Actor) -> Result<Resealed, StoreError> {
        let current = self.ring.current()?.to_owned();
        let mut done = Resealed::default();
        let transaction = changes::begin(&self.db).await?;
        for row in Entity::find().order_by_asc(Column::Id).all(&transaction).await? {
            if row.key_id == current {
                done.current += 1;
                continue;
            }
            let Ok(secret) = self.ring.open(&row.owner(), &row.sealed()) else {
                done.unopened += 1;
                continue;
            };
            let sealed = self.ring.seal(&row.owner(), &secret)?;
            let changed = ActiveModel {
                id: Set(row.id),
                key_id: Set(sealed.key_id),
                sealed: Set(sealed.bytes),
                ..Default::default()
            };
            changed.update(&transaction).await?;
            done.resealed += 1;
        }
        let detail = json!({ "resealed": done.resealed, "unopened": done.unopened });
        let entry = audit::Entry { account: None, actor, action: "secrets.rotate", subject: &current, detail };
        audit::append(&transaction, entry).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(done)
    }

    async fn rows(&self, account: AccountId) -> Result<Vec<table::Model>, StoreError> {
        let select = Entity::find().filter(Column::Account.eq(account.0));
        Ok(select.order_by_asc(Column::CreatedAt).order_by_asc(Column::Id).all(&self.db).await?)
    }

    async fn insert_secret(
        &self,
        transaction: &DatabaseTransaction,
        account: AccountId,
    ) -> Result<(SecretRecord, SigningSecret), StoreError> {
        let (id, secret) = (Uuid::now_v7(), SigningSecret::mint());
        let sealed = self.ring.seal(&table::owner(id, account.0), secret.bytes())?;
        let row = table::Model {
            id,
            account: account.0,
            key_id: sealed.key_id,
            sealed: sealed.bytes,
            created_at: UnixMillis::now().0,
            valid_until: None,
        };
        let made = record(&row);
        let row: ActiveModel = row.into();
        Entity::insert(row.reset_all()).exec_without_returning(transaction).await?;
        Ok((made, secret))
    }

    async fn note(
        &self,
        transaction: &DatabaseTransaction,
        actor: &Actor,
        action: &'static str,
        account: AccountId,
        made: &SecretRecord,
    ) -> Result<(), StoreError> {
        let (subject, detail) = (made.id.to_string(), json!({ "keyId": made.key_id }));
        let entry = audit::Entry { account: Some(account), actor, action, subject: &subject, detail };
        Ok(audit::append(transaction, entry).await?)
    }
}

/// The one that has no successor.
fn active(account: AccountId) -> sea_orm::Condition {
    sea_orm::Condition::all().add(Column::Account.eq(account.0)).add(Column::ValidUntil.is_null())
}

fn record(row: &table::Model) -> SecretRecord {
    SecretRecord {
        id: row.id,
        key_id: row.key_id.clone(),
        created_at: UnixMillis(row.created_at),
        valid_until: row.valid_until.map(UnixMillis),
    }
}
