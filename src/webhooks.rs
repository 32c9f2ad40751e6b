//! Webhooks: ended runs are told to the URLs that their callers named, as Standard Webhooks has it (<https://www.standardwebhooks.com>).
//!
//! What is to be told is in the ledger's outbox ([`workers::ledger::Outbox`]), written by the transaction that ended the run. Every front door looks
//! there twice a second, takes what is due by a lease, sends it and records how that went ([`deliver`]). Whatever dies on the way is
//! followed by a repetition under the same `webhook-id`.
//!
//! The body is the run's status at the time of sending, which for an ended run is always the same. So it is stored once, in the ledger, and nowhere
//! when the account's content is not kept.

mod deliver;
mod guard;
mod schedule;
mod secrets;
mod send;
mod signature;
mod table;

use std::sync::Arc;

use sea_orm::DatabaseConnection;
use workers::{
    job::AccountId,
    ledger::{Ledger, Outbox},
};

pub use self::{
    deliver::Deliverer,
    guard::{Guard, UrlProblem},
    secrets::{Resealed, SecretRecord, SecretState},
    signature::SigningSecret,
};
use crate::{
    changes::{Changes, Lookups, each_counts_one},
    config::{Config, WebhookConfig},
    db::StoreError,
    sealing::KeyRing,
};

/// Accounts whose having a secret is remembered.
const MAX_REMEMBERED: u64 = 100_000;

/// The webhooks of all accounts. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks {
    db: DatabaseConnection,
    ledger: Ledger,
    changes: Changes,
    ring: KeyRing,
    guard: Arc<Guard>,
    settings: WebhookConfig,
    /// The accounts that have a secret.
    ready: Lookups<AccountId, ()>,
}

/// Why a run may not name a webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("this account has no webhook secret")]
    NoSecret,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Webhooks {
    pub fn new(db: DatabaseConnection, ledger: Ledger, config: &Config, changes: Changes) -> Self {
        Self {
            ready: Lookups::new(changes.clone(), MAX_REMEMBERED, each_counts_one, MAX_REMEMBERED),
            ring: KeyRing::new(config.secret_key.as_ref(), &config.old_secret_keys),
            guard: Arc::new(Guard::new(config.webhooks.allow.clone())),
            settings: config.webhooks.clone(),
            db,
            ledger,
            changes,
        }
    }

    /// The URL as it will be called, if that is allowed.
    pub fn check(&self, url: &str) -> Result<String, UrlProblem> {
        self.guard.check(url).map(String::from)
    }

    /// Whether what an account is told can be signed.
    pub async fn admit(&self, account: AccountId) -> Result<(), WebhookError> {
        let known = self.ready.get(account, async || {
            let secrets = self.secrets(account).await?;
            Ok(secrets.iter().any(|secret| secret.valid_until.is_none()).then_some(()))
        });
        known.await?.ok_or(WebhookError::NoSecret)
    }

    /// What was told, and what is to be.
    pub fn outbox(&self) -> Outbox {
        self.ledger.outbox()
    }
}
