//! API keys: minting, hashing, verifying, revoking.

use std::sync::Arc;

use workers::job::KeyId;

use crate::{accounts::Account, db::StoreError};

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

/// The keys of all accounts, with a cache that every change empties within a second.
#[derive(Clone)]
pub struct Keys {}

impl Keys {
    /// Checks a key's text: characters first, then the cache, then the table.
    pub async fn authenticate(&self, _text: &str) -> Result<Arc<Principal>, KeyError> {
        todo!()
    }
}
