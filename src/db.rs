//! Opens the database, and knows whether its schema is the one that this version needs.

use std::sync::Arc;

use sea_orm::DatabaseConnection;
use workers::ledger::LedgerError;

/// Why a store did not do what it was asked: shaped by what the caller does next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// One sentence for whoever asked: a name is taken, an account does not exist.
    #[error("{0}")]
    Refused(String),
    /// The database does not answer, or refused a write; the sentence says which.
    #[error("{sentence}")]
    Unavailable {
        sentence: String,
        #[source]
        source: Arc<sea_orm::DbErr>,
    },
}

impl From<LedgerError> for StoreError {
    fn from(_error: LedgerError) -> Self {
        todo!()
    }
}

/// Connects. One sentence says what is wrong when that fails.
pub async fn connect(_config: &crate::config::DatabaseConfig) -> Result<DatabaseConnection, StoreError> {
    todo!()
}
