//! The table `accounts`.

use sea_orm::entity::prelude::*;
use workers::job::{AccountId, UnixMillis};

use super::{Account, unreadable};
use crate::{db::StoreError, money::Usd};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "accounts")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub name: String,
    pub plan: String,
    pub plan_ends: Option<i64>,
    /// A JSON array of names.
    pub allowed_models: String,
    /// In 10⁻⁹ US dollars for a calendar month; null is no limit.
    pub monthly_budget_nano_usd: Option<i64>,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    pub(super) fn read(self) -> Result<Account, StoreError> {
        let plan = self.plan.parse().map_err(|()| unreadable(format_args!("account plan {:?}", self.plan)))?;
        let allowed_models = serde_json::from_str(&self.allowed_models).map_err(unreadable)?;
        Ok(Account {
            id: AccountId(self.id),
            name: self.name,
            plan,
            plan_ends: self.plan_ends.map(UnixMillis),
            allowed_models,
            monthly_budget: self.monthly_budget_nano_usd.map(Usd),
        })
    }
}
