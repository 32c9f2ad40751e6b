//! Adding, promoting, listing and reading versions.
//!
//! Every mutation takes its turn in [`changes::begin`], so that reading the newest number and writing the next one is safe.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use serde::Serialize;
use serde_json::json;
use workers::job::{AccountId, PromptId, UnixMillis};

use super::{
    Content, Prompts, Variable, detect_variables,
    table::{self, prompts},
};
use crate::{
    accounts::{checked_name, unreadable},
    audit::{self, Actor},
    changes,
    db::StoreError,
};

/// What a version is, which follows from the prompt's pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Never was PRODUCTION.
    Draft,
    /// What callers get who ask for no version.
    Production,
    /// Was PRODUCTION once; promoting it again is a rollback.
    Archived,
}

/// A prompt in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PromptRecord {
    pub id: PromptId,
    pub name: String,
    /// `None`: no version was promoted yet.
    pub production_version: Option<i32>,
    pub newest_version: i32,
    pub created_at: UnixMillis,
}

/// A version with what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct VersionRecord {
    pub version: i32,
    pub status: Status,
    pub content: Content,
    pub variables: Vec<Variable>,
    pub created_at: UnixMillis,
}

/// Which version of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionWanted {
    Production,
    Newest,
    Number(i32),
}

/// What became of one prompt of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    pub name: String,
    pub version: i32,
    /// False: the newest version says the same already.
    pub created: bool,
    /// Whether this import made it PRODUCTION.
    pub promoted: bool,
}

/// What a promotion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// The version is PRODUCTION; before, this one was.
    Promoted { before: Option<i32> },
    /// It was already.
    Unchanged,
    /// Somebody else moved the pointer away from where it was expected.
    Moved { now: Option<i32> },
}

impl Prompts {
    /// Adds a version to each prompt whose newest one says something else, and creates prompts that do not exist; with `promote` they
    /// become PRODUCTION. All or nothing. Refused when a name or a text is not acceptable.
    pub async fn import(
        &self,
        actor: &Actor,
        account: AccountId,
        contents: Vec<(String, Content)>,
        promote: bool,
    ) -> Result<Vec<Imported>, StoreError> {
        let mut checked = Vec::with_capacity(contents.len());
        for (name, content) in contents {
            let name = checked_name("a prompt", &name)?;
            let variables = detect_variables(content.system.as_deref(), &content.template)
                .map_err(|error| StoreError::Refused(format!("prompt '{name}': {error}")))?;
            checked.push((name, content, variables));
        }
        let transaction = changes::begin(&self.db).await?;
        let mut imported = Vec::with_capacity(checked.len());
        for (name, content, variables) in checked {
            imported.push(import_one(&transaction, actor, account, name, content, &variables, promote).await?);
        }
        if imported.iter().any(|one| one.created || one.promoted) {
            transaction.commit().await?;
            self.changes.forget();
        }
        Ok(imported)
    }

    /// Moves the PRODUCTION pointer, forth or back; every process follows within a second. With `expected`, only if it still stands there.
    /// Refused when there is no such prompt or version.
    pub async fn promote(
        &self,
        actor: &Actor,
        account: AccountId,
        name: &str,
        version: i32,
        expected: Option<Option<i32>>,
    ) -> Result<Promotion, StoreError> {
        let transaction = changes::begin(&self.db).await?;
        let prompt = find(&transaction, account, name).await?.ok_or_else(|| no_prompt(name))?;
        let before = prompt.production_version;
        if expected.is_some_and(|expected| expected != before) {
            return Ok(Promotion::Moved { now: before });
        }
        if !point_to(&transaction, actor, &prompt, version).await? {
            return Ok(Promotion::Unchanged);
        }
        transaction.commit().await?;
        self.changes.forget();
        Ok(Promotion::Promoted { before })
    }

    /// The prompts of an account, in the order of their names.
    pub async fn list(&self, account: AccountId) -> Result<Vec<PromptRecord>, StoreError> {
        let rows = prompts::Entity::find()
            .filter(prompts::Column::Account.eq(account.0))
            .order_by_asc(prompts::Column::Name)
            .all(&self.db)
            .await?;
        let newest: BTreeMap<_, i32> = table::Entity::find()
            .select_only()
            .column(table::Column::Prompt)
            .column_as(table::Column::Version.max(), "newest")
            .filter(
                table::Column::Prompt.in_subquery(
                    sea_orm::sea_query::Query::select()
                        .column(prompts::Column::Id)
                        .from(prompts::Entity)
                        .and_where(prompts::Column::Account.eq(account.0))
                        .to_owned(),
                ),
            )
            .group_by(table::Column::Prompt)
            .into_tuple::<(sea_orm::prelude::Uuid, i32)>()
            .all(&self.db)
            .await?
            .into_iter()
            .collect();
        Ok(rows
            .into_iter()
            .map(|row| PromptRecord {
                id: PromptId(row.id),
                production_version: row.production_version,
                newest_version: newest.get(&row.id).copied().unwrap_or(0),
                name: row.name,
                created_at: UnixMillis(row.created_at),
            })
            .collect())
    }

    /// All versions of a prompt, newest first. Refused when there is no such prompt.
    pub async fn versions(&self, account: AccountId, name: &str) -> Result<Vec<VersionRecord>, StoreError> {
        let prompt = find(&self.db, account, name).await?.ok_or_else(|| no_prompt(name))?;
        let rows = table::Entity::find()
            .filter(table::Column::Prompt.eq(prompt.id))
            .order_by_desc(table::Column::Version)
            .all(&self.db)
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(VersionRecord {
                    version: row.version,
                    status: status(&prompt, &row),
                    variables: serde_json::from_str(&row.variables).map_err(unreadable)?,
                    created_at: UnixMillis(row.created_at),
                    content: row.content()?,
                })
            })
            .collect()
    }

    /// One version of a prompt; `None` when there is no such prompt or version.
    pub async fn read(
        &self,
        account: AccountId,
        name: &str,
        wanted: VersionWanted,
    ) -> Result<Option<(PromptId, i32, Content)>, StoreError> {
        let Some(prompt) = find(&self.db, account, name).await? else {
            return Ok(None);
        };
        let of_prompt = table::Entity::find().filter(table::Column::Prompt.eq(prompt.id));
        let query = match (wanted, prompt.production_version) {
            (VersionWanted::Production, None) => return Ok(None),
            (VersionWanted::Production, Some(number)) | (VersionWanted::Number(number), _) => {
                of_prompt.filter(table::Column::Version.eq(number))
            }
            (VersionWanted::Newest, _) => of_prompt.order_by_desc(table::Column::Version),
        };
        let Some(row) = query.one(&self.db).await? else {
            return Ok(None);
        };
        Ok(Some((PromptId(prompt.id), row.version, row.content()?)))
    }
}

async fn import_one(
    transaction: &DatabaseTransaction,
    actor: &Actor,
    account: AccountId,
    name: String,
    content: Content,
    variables: &[Variable],
    promote: bool,
) -> Result<Imported, StoreError> {
    let now = UnixMillis::now();
    let prompt = match find(transaction, account, &name).await? {
        Some(prompt) => prompt,
        None => create(transaction, account, &name, now).await?,
    };
    let newest = table::Entity::find()
        .filter(table::Column::Prompt.eq(prompt.id))
        .order_by_desc(table::Column::Version)
        .one(transaction)
        .await?;
    let next = newest.as_ref().map_or(1, |newest| newest.version.saturating_add(1));
    let row = table::Model::new(prompt.id, next, content, variables, now);
    let (version, created) = match newest.filter(|newest| newest.says_the_same(&row)) {
        Some(newest) => (newest.version, false),
        None => {
            table::Entity::insert(row.insertion()).exec_without_returning(transaction).await?;
            let entry = audit::Entry {
                account: Some(account),
                actor,
                action: "prompt.add_version",
                subject: &name,
                detail: json!({ "version": next }),
            };
            audit::append(transaction, entry).await?;
            (next, true)
        }
    };
    let promoted = promote && point_to(transaction, actor, &prompt, version).await?;
    Ok(Imported { name, version, created, promoted })
}

async fn create(
    transaction: &DatabaseTransaction,
    account: AccountId,
    name: &str,
    now: UnixMillis,
) -> Result<prompts::Model, StoreError> {
    let prompt = prompts::Model {
        id: PromptId::new().0,
        account: account.0,
        name: name.to_owned(),
        production_version: None,
        created_at: now.0,
    };
    let row = prompts::ActiveModel {
        id: Set(prompt.id),
        account: Set(prompt.account),
        name: Set(prompt.name.clone()),
        production_version: Set(None),
        created_at: Set(prompt.created_at),
    };
    prompts::Entity::insert(row).exec_without_returning(transaction).await?;
    Ok(prompt)
}

/// Compare-and-set of the pointer. False when it stands there already.
async fn point_to(
    transaction: &DatabaseTransaction,
    actor: &Actor,
    prompt: &prompts::Model,
    version: i32,
) -> Result<bool, StoreError> {
    let row = table::Entity::find()
        .filter(table::Column::Prompt.eq(prompt.id))
        .filter(table::Column::Version.eq(version))
        .one(transaction)
        .await?;
    let Some(row) = row else {
        return Err(StoreError::Refused(format!("prompt '{}' has no version {version}", prompt.name)));
    };
    if prompt.production_version == Some(version) {
        return Ok(false);
    }
    let seen = match prompt.production_version {
        Some(before) => prompts::Column::ProductionVersion.eq(before),
        None => prompts::Column::ProductionVersion.is_null(),
    };
    let moved = prompts::Entity::update_many()
        .col_expr(prompts::Column::ProductionVersion, sea_orm::sea_query::Expr::value(version))
        .filter(prompts::Column::Id.eq(prompt.id))
        .filter(seen)
        .exec(transaction)
        .await?;
    if moved.rows_affected != 1 {
        return Err(StoreError::Refused(format!("prompt '{}' was promoted by somebody else just now", prompt.name)));
    }
    if row.promoted_at.is_none() {
        let mark =
            table::ActiveModel { id: Set(row.id), promoted_at: Set(Some(UnixMillis::now().0)), ..Default::default() };
        mark.update(transaction).await?;
    }
    let entry = audit::Entry {
        account: Some(AccountId(prompt.account)),
        actor,
        action: "prompt.promote",
        subject: &prompt.name,
        detail: json!({ "before": prompt.production_version, "after": version }),
    };
    audit::append(transaction, entry).await?;
    Ok(true)
}

async fn find(
    db: &impl sea_orm::ConnectionTrait,
    account: AccountId,
    name: &str,
) -> Result<Option<prompts::Model>, StoreError> {
    let query =
        prompts::Entity::find().filter(prompts::Column::Account.eq(account.0)).filter(prompts::Column::Name.eq(name));
    Ok(query.one(db).await?)
}

fn status(prompt: &prompts::Model, version: &table::Model) -> Status {
    if prompt.production_version == Some(version.version) {
        Status::Production
    } else if version.promoted_at.is_some() {
        Status::Archived
    } else {
        Status::Draft
    }
}

fn no_prompt(name: &str) -> StoreError {
    StoreError::Refused(format!("there is no prompt named '{name}'"))
}
