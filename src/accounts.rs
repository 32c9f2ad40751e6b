//! Accounts, their plans and their users.

mod passwords;
mod table;
mod users;

use std::str::FromStr;

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder,
};
use serde::Serialize;
use serde_json::json;
use workers::job::{AccountId, UnixMillis};

use self::passwords::Passwords;
pub use self::{
    passwords::{MIN_PASSWORD_CHARACTERS, WeakPassword, check_password_strength},
    users::{NewUser, Role, User, UserId},
};
use crate::{
    audit::{self, Actor},
    changes::{self, Changes},
    db::{self, StoreError},
    money::Usd,
};

/// What an account pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    Free,
    Pro,
}

impl Plan {
    pub const ALL: [Plan; 2] = [Plan::Free, Plan::Pro];

    pub fn as_str(self) -> &'static str {
        match self {
            Plan::Free => "free",
            Plan::Pro => "pro",
        }
    }
}

impl FromStr for Plan {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Plan::ALL.into_iter().find(|plan| plan.as_str() == text).ok_or(())
    }
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
    /// What may be spent in a calendar month (UTC) before new runs are refused; `None` is no limit.
    pub monthly_budget: Option<Usd>,
}

/// An account to create.
#[derive(Clone, Debug)]
pub struct NewAccount {
    pub name: String,
    pub plan: Plan,
    /// When the subscription ends; `None` is never.
    pub plan_ends: Option<UnixMillis>,
    /// Models that runs may use; empty is every model of the plan.
    pub allowed_models: Vec<String>,
    /// What may be spent in a calendar month (UTC) before new runs are refused; `None` is no limit.
    pub monthly_budget: Option<Usd>,
}

/// What to change of an account's plan. `None` leaves a fact as it is.
#[derive(Clone, Debug, Default)]
pub struct PlanChange {
    pub plan: Option<Plan>,
    /// `Some(None)` is never.
    pub plan_ends: Option<Option<UnixMillis>>,
    /// An empty list is every model of the plan.
    pub allowed_models: Option<Vec<String>>,
    /// `Some(None)` is no limit.
    pub monthly_budget: Option<Option<Usd>>,
}

/// The accounts and their users. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    db: DatabaseConnection,
    changes: Changes,
    passwords: Passwords,
}

impl Accounts {
    pub fn new(db: DatabaseConnection, changes: Changes) -> Self {
        Self { db, changes, passwords: Passwords::new() }
    }

    /// Creates an account. Refused when the name is taken.
    pub async fn create(&self, actor: &Actor, new: NewAccount) -> Result<Account, StoreError> {
        let account = Account {
            id: AccountId::new(),
            name: checked_name("an account", &new.name)?,
            plan: new.plan,
            plan_ends: new.plan_ends,
            allowed_models: new.allowed_models,
            monthly_budget: new.monthly_budget,
        };
        let row = table::ActiveModel {
            id: Set(account.id.0),
            name: Set(account.name.clone()),
            plan: Set(account.plan.as_str().to_owned()),
            plan_ends: Set(account.plan_ends.map(|end| end.0)),
            allowed_models: Set(json!(account.allowed_models).to_string()),
            monthly_budget_nano_usd: Set(account.monthly_budget.map(|budget| budget.0)),
            created_at: Set(UnixMillis::now().0),
        };
        let transaction = changes::begin(&self.db).await?;
        let inserted = table::Entity::insert(row).exec_without_returning(&transaction).await;
        refuse_taken(inserted, || format!("there is already an account named '{}'", account.name))?;
        let detail = plan_facts(&account);
        let entry =
            audit::Entry { account: Some(account.id), actor, action: "account.create", subject: &account.name, detail };
        audit::append(&transaction, entry).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(account)
    }

    /// All accounts, in the order of their names.
    pub async fn list(&self) -> Result<Vec<Account>, StoreError> {
        let rows = table::Entity::find().order_by_asc(table::Column::Name).all(&self.db).await?;
        rows.into_iter().map(table::Model::read).collect()
    }

    pub async fn find(&self, id: AccountId) -> Result<Option<Account>, StoreError> {
        table::Entity::find_by_id(id.0).one(&self.db).await?.map(table::Model::read).transpose()
    }

    /// The account of that name. Refused when there is none.
    pub async fn named(&self, name: &str) -> Result<Account, StoreError> {
        table::Entity::find()
            .filter(table::Column::Name.eq(name.trim()))
            .one(&self.db)
            .await?
            .ok_or_else(|| StoreError::Refused(format!("there is no account named '{}'", name.trim())))?
            .read()
    }

    /// Changes the plan. Every process acts on it within a second.
    pub async fn set_plan(&self, actor: &Actor, account: AccountId, change: PlanChange) -> Result<Account, StoreError> {
        let transaction = changes::begin(&self.db).await?;
        let row = table::Entity::find_by_id(account.0).one(&transaction).await?;
        let before = row.ok_or_else(|| StoreError::Refused("there is no such account".to_owned()))?.read()?;
        let after = Account {
            plan: change.plan.unwrap_or(before.plan),
            plan_ends: change.plan_ends.unwrap_or(before.plan_ends),
            allowed_models: change.allowed_models.unwrap_or_else(|| before.allowed_models.clone()),
            monthly_budget: change.monthly_budget.unwrap_or(before.monthly_budget),
            ..before.clone()
        };
        if after == before {
            return Ok(after);
        }
        let row = table::ActiveModel {
            id: Set(account.0),
            plan: Set(after.plan.as_str().to_owned()),
            plan_ends: Set(after.plan_ends.map(|end| end.0)),
            allowed_models: Set(json!(after.allowed_models).to_string()),
            monthly_budget_nano_usd: Set(after.monthly_budget.map(|budget| budget.0)),
            ..Default::default()
        };
        row.update(&transaction).await?;
        let detail = json!({ "before": plan_facts(&before), "after": plan_facts(&after) });
        let entry =
            audit::Entry { account: Some(account), actor, action: "account.set_plan", subject: &after.name, detail };
        audit::append(&transaction, entry).await?;
        transaction.commit().await?;
        self.changes.forget();
        Ok(after)
    }
}

fn plan_facts(account: &Account) -> serde_json::Value {
    json!({
        "plan": account.plan,
        "planEnds": account.plan_ends,
        "allowedModels": account.allowed_models,
        "monthlyBudgetUsd": account.monthly_budget,
    })
}

/// A name for people, without the white space around it. `whose` says what is named, for the refusal: `an account`.
pub(crate) fn checked_name(whose: &str, name: &str) -> Result<String, StoreError> {
    /// Enough for a title; little enough for a table on a screen, and for a cache's keys.
    const MAX_CHARACTERS: usize = 200;
    let name = name.trim();
    if name.is_empty() {
        Err(StoreError::Refused(format!("the name of {whose} must not be empty")))
    } else if name.chars().count() > MAX_CHARACTERS {
        Err(StoreError::Refused(format!("the name of {whose} must not be longer than {MAX_CHARACTERS} characters")))
    } else if name.chars().any(char::is_control) {
        Err(StoreError::Refused(format!("the name of {whose} must not hold control characters")))
    } else {
        Ok(name.to_owned())
    }
}

/// Says in one sentence that an insert met a row that is there already.
pub(crate) fn refuse_taken<T>(inserted: Result<T, DbErr>, sentence: impl FnOnce() -> String) -> Result<T, StoreError> {
    inserted.map_err(|error| {
        if db::is_unique_violation(&error) { StoreError::Refused(sentence()) } else { StoreError::from(error) }
    })
}

/// A row that a newer version wrote, or a hand.
pub(crate) fn unreadable(what: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable {
        sentence: "the database holds a row that this version cannot read".to_owned(),
        source: std::sync::Arc::new(DbErr::Custom(what.to_string())),
    }
}
