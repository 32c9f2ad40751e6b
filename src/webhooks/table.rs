//! The table `webhook_secrets`.

use sea_orm::entity::prelude::*;

use crate::sealing::Sealed;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhook_secrets")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub account: Uuid,
    pub key_id: String,
    pub sealed: Vec<u8>,
    pub created_at: i64,
    pub valid_until: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// What the secret is sealed to: moved to another row, it does not open.
    pub(super) fn owner(&self) -> String {
        owner(self.id, self.account)
    }

    pub(super) fn sealed(&self) -> Sealed {
        Sealed { key_id: self.key_id.clone(), bytes: self.sealed.clone() }
    }
}

pub(super) fn owner(id: Uuid, account: Uuid) -> String {
    format!("webhook secret {id} of {account}")
}
