//! Prompts: immutable versions behind one PRODUCTION pointer.

pub mod file;
mod render;
mod store;
mod table;
mod variables;

use std::{sync::Arc, time::Duration};

use sea_orm::DatabaseConnection;
use serde_json::{Map, Value};
use workers::job::{AccountId, Parameters, PromptId};

use self::render::Templates;
pub use self::{
    render::{MAX_TEMPLATE_BYTES, Part, TemplateError},
    store::{Imported, Promotion, PromptRecord, Status, VersionRecord, VersionWanted},
    variables::Variable,
};
use crate::{
    changes::{Changes, Lookups},
    db::StoreError,
};

/// Bytes of prompts that a process remembers.
const MAX_REMEMBERED_BYTES: u64 = 64 * 1024 * 1024;
/// Names of no prompt that a process remembers.
const MAX_REMEMBERED_ABSENCES: u64 = 10_000;

/// What a version says. It never changes once it has a number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub system: Option<String>,
    pub template: String,
    pub model: String,
    /// Models to try after it, in this order.
    pub fallbacks: Vec<String>,
    pub parameters: Parameters,
    /// A JSON Schema that the output must follow.
    pub output_schema: Option<Value>,
    /// A call that broke after output was streamed may be made, and billed, again.
    pub repeat_streamed: bool,
    /// How long its results stand for runs that would be the same call, in milliseconds; `None`: each run is called for itself.
    pub cache_ttl_ms: Option<u64>,
    /// What changed, for people.
    pub note: String,
}

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
    pub cache_ttl: Option<Duration>,
    templates: Templates,
    /// Of the texts, for the cache.
    bytes: usize,
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
    /// Filled in, the texts have more bytes than are allowed.
    #[error("the rendered prompt is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    /// The template failed on these values (a type it cannot use, too many steps).
    #[error("{0}")]
    Failed(String),
}

impl ResolvedPrompt {
    /// Compiles the texts of a version.
    pub fn new(prompt: PromptId, name: String, version: i32, content: Content) -> Result<Self, TemplateError> {
        let templates = Templates::compile(content.system.as_deref(), &content.template)?;
        Ok(Self {
            prompt,
            name,
            version,
            model: content.model,
            fallbacks: content.fallbacks,
            parameters: content.parameters,
            output_schema: content.output_schema,
            repeat_streamed: content.repeat_streamed,
            cache_ttl: content.cache_ttl_ms.map(Duration::from_millis),
            templates,
            bytes: content.system.map_or(0, |system| system.len()) + content.template.len(),
        })
    }

    /// Puts the variables into the texts, which together have at most `max_bytes` then. Values may be any JSON: strings stand as they
    /// are, anything else as JSON. Variables that the texts do not name are ignored.
    pub fn render(&self, variables: &Map<String, Value>, max_bytes: usize) -> Result<Rendered, RenderError> {
        self.templates.render(variables, max_bytes)
    }

    /// What the texts name, in their order.
    pub fn variables(&self) -> &[Variable] {
        self.templates.variables()
    }
}

/// Checks the texts of a version, and says which variables they name.
pub fn detect_variables(system: Option<&str>, template: &str) -> Result<Vec<Variable>, TemplateError> {
    Ok(Templates::compile(system, template)?.variables().to_vec())
}

/// The prompts of all accounts, with a cache that every change empties within a second. Cheap to clone.
#[derive(Clone)]
pub struct Prompts {
    db: DatabaseConnection,
    changes: Changes,
    known: Lookups<Question, Arc<ResolvedPrompt>>,
}

/// What is remembered: whose, which, and the version asked for.
type Question = (AccountId, String, Option<i32>);

impl Prompts {
    pub fn new(db: DatabaseConnection, changes: Changes) -> Self {
        let weigh = |prompt: &Arc<ResolvedPrompt>| {
            // The compiled form is a few times as large as the text, and has filters and tests of its own.
            u32::try_from(prompt.bytes.saturating_mul(4).saturating_add(16 * 1024)).unwrap_or(u32::MAX)
        };
        Self { known: Lookups::new(changes.clone(), MAX_REMEMBERED_BYTES, weigh, MAX_REMEMBERED_ABSENCES), db, changes }
    }

    /// The PRODUCTION version, or the one asked for.
    pub async fn resolve(
        &self,
        account: AccountId,
        name: &str,
        version: Option<i32>,
    ) -> Result<Option<Arc<ResolvedPrompt>>, StoreError> {
        if name.len() > MAX_NAME_BYTES {
            return Ok(None);
        }
        let wanted = version.map_or(VersionWanted::Production, VersionWanted::Number);
        self.known
            .get((account, name.to_owned(), version), async || {
                let Some((prompt, version, content)) = self.read(account, name, wanted).await? else {
                    return Ok(None);
                };
                let resolved = ResolvedPrompt::new(prompt, name.to_owned(), version, content);
                resolved.map(Arc::new).map(Some).map_err(crate::accounts::unreadable)
            })
            .await
    }
}

/// No prompt's name is longer: it has at most 200 characters of four bytes.
const MAX_NAME_BYTES: usize = 800;
