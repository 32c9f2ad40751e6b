//! API keys: minting, hashing, verifying, revoking.

mod table;
mod text;
mod uses;

use std::{future::pending, sync::Arc, time::Duration};

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder,
};
use serde_json::json;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use workers::{
    job::{AccountId, KeyId, UnixMillis},
    providers::Secret,
};

pub use self::text::{Digest, KeyText};
use self::uses::Uses;
use crate::{
    accounts::{Account, Accounts, checked_name, unreadable},
    audit::{self, Actor},
    changes::{self, Changes, Lookups, each_counts_one},
    db::StoreError,
};

/// Keys that a process remembers, and wrong keys.
const MAX_REMEMBERED: u64 = 100_000;

/// How long a key that expires is trusted to the clock that was read: clocks are set.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// The pause before a database that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Principal {
    pub account: Account,
    pub key: KeyId,
}

/// Why a key opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Malformed, unknown, revoked or expired: callers are not told which.
    #[error("the API key is missing or invalid")]
    Invalid,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key to create.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub account: AccountId,
    pub name: String,
    /// Where it is used, for people: `production`, `dev`. May be empty.
    pub environment: String,
    /// `None` is never.
    pub expires_at: Option<UnixMillis>,
}

/// A key as its owner sees it, ever after it was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    pub id: KeyId,
    pub account: AccountId,
    pub name: String,
    pub environment: String,
    /// `sk_***` and the last six characters.
    pub mask: String,
    pub created_at: UnixMillis,
    /// Known a few seconds after the use.
    pub last_used_at: Option<UnixMillis>,
    pub expires_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
}

/// A key that was just made. Its text is shown once and stored nowhere.
#[derive(Debug)]
pub struct MintedKey {
    pub record: KeyRecord,
    pub text: KeyText,
}

/// What a revocation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    Revoked,
    /// It was revoked before, at this moment.
    RevokedBefore(UnixMillis),
    /// There is no such key, or not in this account.
    NotFound,
}

/// The keys of all accounts, with a cache that every change empties within a second. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    db: DatabaseConnection,
    changes: Changes,
    accounts: Accounts,
    /// Keys the hashes of keys minted from now on; keys that were minted without it stay good.
    secret: Option<Secret>,
    /// What keyed the hashes of keys that were minted before.
    old_secrets: Vec<Secret>,
    /// By the unkeyed hash of the text.
    known: Lookups<Digest, Known>,
    uses: Arc<Uses>,
}

/// A key that is neither revoked nor was expired when it was read. Whether it is now depends on the clock.
#[derive(Clone)]
struct Known {
    principal: Arc<Principal>,
    expires_at: Option<UnixMillis>,
}

impl Keys {
    pub fn new(db: DatabaseConnection, secret: Option<Secret>, changes: Changes) -> Self {
        Self {
            accounts: Accounts::new(db.clone(), changes.clone()),
            known: Lookups::new(changes.clone(), MAX_REMEMBERED, each_counts_one, MAX_REMEMBERED),
            uses: Arc::default(),
            db,
            changes,
            secret,
            old_secrets: Vec::new(),
        }
    }

    /// Keys that were minted with one of these secrets stay good too.
    pub fn with_old_secrets(self, old_secrets: Vec<Secret>) -> Self {
        Self { old_secrets, ..self }
    }

    /// Starts to write down when keys were last used, every few seconds until `stop` and a last time then. Whoever calls owns the task,
    /// and joins it after `stop`.
    pub fn record_uses(&self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(self.uses.clone().record(self.db.clone(), stop))
    }

    /// Checks a key's text: characters first, then the cache, then the table.
    pub async fn authenticate(&self, text: &str) -> Result<Arc<Principal>, KeyError> {
        let text = KeyText::parse(text).ok_or(KeyError::Invalid)?;
        let known = self.known.get(text.digest(), async || self.load(&text).await).await?.ok_or(KeyError::Invalid)?;
        let now = UnixMillis::now();
        if known.expires_at.is_some_and(|end| end <= now) {
            return Err(KeyError::Invalid);
        }
        self.uses.note(known.principal.key, now);
        Ok(known.principal)
    }

    /// Ends when a key opens nothing any more: within a second of its revocation, or when it expires. For what holds on to a key for
    /// long. Dropped before its end, it did nothing.
    pub async fn lost(&self, text: &str) {
        let Some(text) = KeyText::parse(text) else { return };
        let mut changed = self.changes.subscribe();
        loop {
            let known = self.known.get(text.digest(), async || self.load(&text).await).await;
            let pause = match known {
                Ok(Some(Known { expires_at: None, .. })) => None,
                Ok(Some(Known { expires_at: Some(end), .. })) => {
                    let left = end.since(UnixMillis::now());
                    if left == 0 {
                        return;
                    }
                    Some(Duration::from_millis(left).min(LOOK_AGAIN))
                }
                Ok(None) => return,
                // What cannot be read is not known to be lost.
                Err(_) => Some(ASK_AGAIN),
            };
            tokio::select! {
                // The sender lives as long as `self`.
                _ = changed.changed() => {}
                () = async { match pause { Some(pause) => sleep(pause).await, None => pending().await } } => {}
            }
        }
    }

    /// Mints a key. Refused when the account does not exist.
    pub async fn create(&self, actor: &Actor, new: NewKey) -> Result<MintedKey, StoreError> {
        let text = KeyText::mint(&mut rand::rng());
        let record = KeyRecord {
            id: KeyId::new(),
            account: new.account,
            name: checked_name("a key", &new.name)?,
            environment: match new.environment.trim() {
                "" => String::new(),
                environment => checked_name("an environment", environment)?,
            },
            mask: text.mask(),
            created_at: UnixMillis::now(),
            last_used_at: None,
            expires_at: new.expires_at,
            revoked_at: None,
        };
        if record.expires_at.is_some_and(|end| end <= record.created_at) {
            return Err(StoreError::Refused("the key would be expired from the start".to_owned()));
        }
        if self.accounts.find(record.account).await?.is_none() {
            return Err(StoreError::Refused("there is no such account".to_owned()));
        }
        let transaction = changes::begin(&self.db).await?;
        let row = table::ActiveModel::of(&record, text.hash(self.secret.as_ref()));
        table::Entity::insert(row).exec_without_returning(&transaction).await?;
        let id = record.id.to_string();
        let entry = audit::Entry {
            account: Some(record.account),
            actor,
            action: "key.create",
            subject: &id,
            detail: json!({ "name": record.name, "environment": record.environment, "mask": record.mask, "expiresAt": record.expires_at }),
        };
        audit::append(&transaction, entry).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(MintedKey { record, text })
    }

    /// The keys of an account, revoked and expired ones too, oldest first.
    pub async fn list(&self, account: AccountId) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = table::Entity::find()
            .filter(table::Column::Account.eq(account.0))
            .order_by_asc(table::Column::CreatedAt)
            .order_by_asc(table::Column::Id)
            .all(&self.db)
            .await?;
        Ok(rows.into_iter().map(table::Model::read).collect())
    }

    /// Revokes a key for ever; every process refuses it within a second. `account` is the one that must own it; `None` is for operators.
    pub async fn revoke(
        &self,
        actor: &Actor,
        account: Option<AccountId>,
        key: KeyId,
    ) -> Result<Revocation, StoreError> {
        let transaction = changes::begin(&self.db).await?;
        let row = table::Entity::find_by_id(key.0).one(&transaction).await?.map(table::Model::read);
        let Some(record) = row.filter(|record| account.is_none_or(|account| account == record.account)) else {
            return Ok(Revocation::NotFound);
        };
        if let Some(at) = record.revoked_at {
            return Ok(Revocation::RevokedBefore(at));
        }
        let row =
            table::ActiveModel { id: Set(key.0), revoked_at: Set(Some(UnixMillis::now().0)), ..Default::default() };
        row.update(&transaction).await?;
        let id = key.to_string();
        let entry = audit::Entry {
            account: Some(record.account),
            actor,
            action: "key.revoke",
            subject: &id,
            detail: json!({ "name": record.name, "mask": record.mask }),
        };
        audit::append(&transaction, entry).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(Revocation::Revoked)
    }

    /// Who makes requests with a key, asked by its id; `None` when it is revoked or has expired.
    pub async fn holder(&self, key: KeyId) -> Result<Option<Principal>, StoreError> {
        let row = table::Entity::find_by_id(key.0).one(&self.db).await?.map(table::Model::read);
        let now = UnixMillis::now();
        let good = row.filter(|key| key.revoked_at.is_none() && key.expires_at.is_none_or(|end| end > now));
        let Some(record) = good else { return Ok(None) };
        let account = self.accounts.find(record.account).await?;
        let account = account.ok_or_else(|| unreadable(format_args!("key {} of no account", record.id)))?;
        Ok(Some(Principal { account, key }))
    }

    async fn load(&self, text: &KeyText) -> Result<Option<Known>, StoreError> {
        let keyed = self.secret.iter().chain(&self.old_secrets).map(|secret| text.hash(Some(secret)));
        let hashes = std::iter::once(text.hash(None)).chain(keyed);
        let row = table::Entity::find()
            .filter(table::Column::Hash.is_in(hashes))
            .filter(table::Column::RevokedAt.is_null())
            .one(&self.db)
            .await?;
        let Some(record) = row.map(table::Model::read) else {
            return Ok(None);
        };
        let account = self.accounts.find(record.account).await?;
        let account = account.ok_or_else(|| unreadable(format_args!("key {} of no account", record.id)))?;
        Ok(Some(Known { principal: Arc::new(Principal { account, key: record.id }), expires_at: record.expires_at }))
    }
}
