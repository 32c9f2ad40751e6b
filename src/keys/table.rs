//! The table `api_keys`.

use sea_orm::{ActiveValue::Set, entity::prelude::*};
use workers::job::{AccountId, KeyId, UnixMillis};

use super::KeyRecord;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub account: Uuid,
    pub name: String,
    pub environment: String,
    /// A JSON array; empty is every scope.
    pub scopes: String,
    /// In hexadecimal; see `KeyText::hash`.
    pub hash: String,
    pub mask: String,
    pub created_at: i64,
    pub last_used_at: Option<i64>,
    pub expires_at: Option<i64>,
    pub revoked_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl ActiveModel {
    pub(super) fn of(record: &KeyRecord, hash: String) -> Self {
        Self {
            id: Set(record.id.0),
            account: Set(record.account.0),
            name: Set(record.name.clone()),
            environment: Set(record.environment.clone()),
            scopes: Set("[]".to_owned()),
            hash: Set(hash),
            mask: Set(record.mask.clone()),
            created_at: Set(record.created_at.0),
            last_used_at: Set(record.last_used_at.map(|at| at.0)),
            expires_at: Set(record.expires_at.map(|at| at.0)),
            revoked_at: Set(record.revoked_at.map(|at| at.0)),
        }
    }
}

impl Model {
    pub(super) fn read(self) -> KeyRecord {
        KeyRecord {
            id: KeyId(self.id),
            account: AccountId(self.account),
            name: self.name,
            environment: self.environment,
            mask: self.mask,
            created_at: UnixMillis(self.created_at),
            last_used_at: self.last_used_at.map(UnixMillis),
            expires_at: self.expires_at.map(UnixMillis),
            revoked_at: self.revoked_at.map(UnixMillis),
        }
    }
}
