//! Users: people who sign in. The table `users`.

use std::{fmt, str::FromStr};

use sea_orm::{ActiveValue::Set, QueryOrder, entity::prelude::*};
use serde::Serialize;
use serde_json::json;
use workers::{
    job::{AccountId, UnixMillis},
    providers::Secret,
};

use super::{Accounts, check_password_strength, refuse_taken, unreadable};
use crate::{
    audit::{self, Actor},
    changes,
    db::StoreError,
};

/// What a user may do. An operator may act on every account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Owner,
    Member,
    Viewer,
    Operator,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Owner, Role::Member, Role::Viewer, Role::Operator];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Owner => "owner",
            Role::Member => "member",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

/// A user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct UserId(pub Uuid);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    /// In lower case.
    pub email: String,
    pub account: AccountId,
    pub role: Role,
    pub created_at: UnixMillis,
}

/// A user to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    pub email: String,
    pub account: AccountId,
    pub role: Role,
    pub password: Secret,
}

impl Accounts {
    /// Creates a user. Refused when the address has a user, in whatever account, or the password is weak.
    pub async fn create_user(&self, actor: &Actor, new: NewUser) -> Result<User, StoreError> {
        let email = checked_email(&new.email)?;
        check_password_strength(&new.password).map_err(|weak| StoreError::Refused(weak.to_string()))?;
        if self.find(new.account).await?.is_none() {
            return Err(StoreError::Refused("there is no such account".to_owned()));
        }
        let password_hash = self.passwords.hash(new.password).await?;
        let user = User {
            id: UserId(Uuid::now_v7()),
            email,
            account: new.account,
            role: new.role,
            created_at: UnixMillis::now(),
        };
        let row = ActiveModel {
            id: Set(user.id.0),
            email: Set(user.email.clone()),
            account: Set(user.account.0),
            role: Set(user.role.as_str().to_owned()),
            password_hash: Set(password_hash),
            created_at: Set(user.created_at.0),
        };
        let transaction = changes::begin(&self.db).await?;
        let inserted = Entity::insert(row).exec_without_returning(&transaction).await;
        refuse_taken(inserted, || format!("there is already a user with the address {}", user.email))?;
        let entry = audit::Entry {
            account: Some(user.account),
            actor,
            action: "user.create",
            subject: &user.email,
            detail: json!({ "role": user.role }),
        };
        audit::append(&transaction, entry).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(user)
    }

    /// The users of an account, in the order of their addresses.
    pub async fn users(&self, account: AccountId) -> Result<Vec<User>, StoreError> {
        let rows =
            Entity::find().filter(Column::Account.eq(account.0)).order_by_asc(Column::Email).all(&self.db).await?;
        rows.into_iter().map(Model::read).collect()
    }

    /// The user whose address and password these are. A wrong one takes as long as an unknown one.
    pub async fn sign_in(&self, email: &str, password: Secret) -> Result<Option<User>, StoreError> {
        let row = Entity::find().filter(Column::Email.eq(email.trim().to_lowercase())).one(&self.db).await?;
        let known = row.as_ref().map(|row| row.password_hash.clone());
        if self.passwords.verify(password, known).await? { row.map(Model::read).transpose() } else { Ok(None) }
    }
}

/// An address in lower case. Only a message can tell whether it exists; what cannot be one at all is refused.
fn checked_email(text: &str) -> Result<String, StoreError> {
    /// RFC 5321, section 4.5.3.1.3, without the angle brackets.
    const MAX_BYTES: usize = 254;
    let email = text.trim().to_lowercase();
    let parts = email.split_once('@');
    let plausible = email.len() <= MAX_BYTES
        && !email.chars().any(|c| c.is_whitespace() || c.is_control())
        && parts.is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'));
    if plausible { Ok(email) } else { Err(StoreError::Refused(format!("'{}' is not an e-mail address", text.trim()))) }
}

#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    email: String,
    account: Uuid,
    role: String,
    password_hash: String,
    created_at: i64,
}

/// A hash is for nobody's log either.
impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("users::Model").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    fn read(self) -> Result<User, StoreError> {
        let role = self.role.parse().map_err(|()| unreadable(format_args!("user role {:?}", self.role)))?;
        Ok(User {
            id: UserId(self.id),
            email: self.email,
            account: AccountId(self.account),
            role,
            created_at: UnixMillis(self.created_at),
        })
    }
}
