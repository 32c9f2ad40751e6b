//! Accounts, their plans and their users.

use serde::Serialize;
use workers::job::{AccountId, UnixMillis};

/// What an account pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    Free,
    Pro,
}

/// An account as the run path needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub plan: Plan,
    /// When the subscription ends; `None` is never.
    pub plan_ends: Option<UnixMillis>,
    /// Models that runs may use; empty is every model of the plan.
    pub allowed_models: Vec<String>,
}
