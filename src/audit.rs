//! The audit log: who changed what, and when. Rows are only ever added, in the transaction of the change they speak of.

use std::fmt;

use sea_orm::{ActiveValue::Set, ConnectionTrait, DbErr, entity::prelude::*};
use serde_json::Value;
use workers::job::{AccountId, UnixMillis};

/// Who makes a change: `cli`, or a user's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// Whoever may run the command line on this machine.
    pub fn cli() -> Self {
        Self("cli".to_owned())
    }

    pub fn user(email: &str) -> Self {
        Self(email.to_owned())
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line of the log.
pub(crate) struct Entry<'a> {
    pub account: Option<AccountId>,
    pub actor: &'a Actor,
    /// What was done, as `noun.verb`: `key.revoke`.
    pub action: &'static str,
    /// What it was done to: a name, or an id where there is none.
    pub subject: &'a str,
    /// The new facts, and the old ones where they matter. Never a secret.
    pub detail: Value,
}

/// Adds a line, in the transaction of the change.
pub(crate) async fn append(transaction: &impl ConnectionTrait, entry: Entry<'_>) -> Result<(), DbErr> {
    let row = ActiveModel {
        id: Set(Uuid::now_v7()),
        at: Set(UnixMillis::now().0),
        account: Set(entry.account.map(|account| account.0)),
        actor: Set(entry.actor.to_string()),
        action: Set(entry.action.to_owned()),
        subject: Set(entry.subject.to_owned()),
        detail: Set(entry.detail.to_string()),
    };
    Entity::insert(row).exec_without_returning(transaction).await?;
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_log")]
struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    at: i64,
    account: Option<Uuid>,
    actor: String,
    action: String,
    subject: String,
    detail: String,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
