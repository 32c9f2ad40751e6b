//! Prompts: immutable versions behind one PRODUCTION pointer.

use std::sync::Arc;

use serde_json::{Map, Value};
use workers::job::{AccountId, Parameters, PromptId};

use crate::db::StoreError;

/// One version of a prompt, ready to render.
#[derive(Debug)]
pub struct ResolvedPrompt {
    pub prompt: PromptId,
    pub name: String,
    pub version: i32,
    /// The model, and the models to try after it.
    pub model: String,
    pub fallbacks: Vec<String>,
    pub parameters: Parameters,
    pub output_schema: Option<Value>,
    pub repeat_streamed: bool,
}

/// Text to send to a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub system: Option<String>,
    pub user: String,
}

/// Why a prompt was not rendered: the caller's variables, or the template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// Every missing name, in the order of the text.
    #[error("missing variables: {}", .0.join(", "))]
    Missing(Vec<String>),
    /// The template failed on these values (a type it cannot use, a step or size limit).
    #[error("{0}")]
    Failed(String),
}

impl ResolvedPrompt {
    pub fn render(&self, _variables: &Map<String, Value>) -> Result<Rendered, RenderError> {
        todo!()
    }
}

/// The prompts of all accounts, with a cache that every change empties within a second.
#[derive(Clone)]
pub struct Prompts {}

impl Prompts {
    /// The PRODUCTION version, or the one asked for.
    pub async fn resolve(
        &self,
        _account: AccountId,
        _name: &str,
        _version: Option<i32>,
    ) -> Result<Option<Arc<ResolvedPrompt>>, StoreError> {
        todo!()
    }
}
