//! The tables `prompts` and `prompt_versions`.

use sea_orm::{ActiveValue::Set, entity::prelude::*};
use serde_json::json;
use workers::job::UnixMillis;

use super::{Content, Variable};
use crate::{accounts::unreadable, db::StoreError};

pub(super) mod prompts {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "prompts")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub account: Uuid,
        pub name: String,
        /// The one truth about which version is PRODUCTION.
        pub production_version: Option<i32>,
        pub created_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "prompt_versions")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub prompt: Uuid,
    /// From 1, without gaps.
    pub version: i32,
    pub system: Option<String>,
    pub template: String,
    /// What the texts name: a JSON array of `{name, required}`.
    pub variables: String,
    pub model: String,
    /// A JSON array of models.
    pub fallbacks: String,
    /// A JSON object.
    pub parameters: String,
    /// A JSON Schema.
    pub output_schema: Option<String>,
    pub repeat_streamed: bool,
    pub cache_ttl_ms: Option<i64>,
    pub note: String,
    pub created_at: i64,
    /// When it first became PRODUCTION.
    pub promoted_at: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// The row of a version that was never PRODUCTION.
    pub(super) fn new(prompt: Uuid, version: i32, content: Content, variables: &[Variable], now: UnixMillis) -> Self {
        Self {
            id: Uuid::now_v7(),
            prompt,
            version,
            system: content.system,
            template: content.template,
            variables: json!(variables).to_string(),
            model: content.model,
            fallbacks: json!(content.fallbacks).to_string(),
            parameters: json!(content.parameters).to_string(),
            output_schema: content.output_schema.map(|schema| schema.to_string()),
            repeat_streamed: content.repeat_streamed,
            cache_ttl_ms: content.cache_ttl_ms.map(|ttl| i64::try_from(ttl).unwrap_or(i64::MAX)),
            note: content.note,
            created_at: now.0,
            promoted_at: None,
        }
    }

    /// Whether another row says the same. Compared as it is stored, so that nothing is lost between a number and its text.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let said = |row: &Self| Self {
            id: Uuid::nil(),
            prompt: Uuid::nil(),
            version: 0,
            // Found in the texts; a newer program may find more.
            variables: String::new(),
            created_at: 0,
            promoted_at: None,
            ..row.clone()
        };
        said(self) == said(other)
    }

    pub(super) fn content(self) -> Result<Content, StoreError> {
        Ok(Content {
            system: self.system,
            template: self.template,
            model: self.model,
            fallbacks: serde_json::from_str(&self.fallbacks).map_err(unreadable)?,
            parameters: serde_json::from_str(&self.parameters).map_err(unreadable)?,
            output_schema: self
                .output_schema
                .map(|schema| serde_json::from_str(&schema))
                .transpose()
                .map_err(unreadable)?,
            repeat_streamed: self.repeat_streamed,
            cache_ttl_ms: self.cache_ttl_ms.and_then(|ttl| u64::try_from(ttl).ok()),
            note: self.note,
        })
    }

    /// The row as it is inserted.
    pub(super) fn insertion(self) -> ActiveModel {
        ActiveModel {
            id: Set(self.id),
            prompt: Set(self.prompt),
            version: Set(self.version),
            system: Set(self.system),
            template: Set(self.template),
            variables: Set(self.variables),
            model: Set(self.model),
            fallbacks: Set(self.fallbacks),
            parameters: Set(self.parameters),
            output_schema: Set(self.output_schema),
            repeat_streamed: Set(self.repeat_streamed),
            cache_ttl_ms: Set(self.cache_ttl_ms),
            note: Set(self.note),
            created_at: Set(self.created_at),
            promoted_at: Set(self.promoted_at),
        }
    }
}
