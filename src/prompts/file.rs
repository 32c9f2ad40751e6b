//! Prompts as TOML files, so that they can live in git.
//!
//! ```toml
//! name = "Email de Bienvenue"
//! model = "gpt-4"
//! fallback = ["gpt-4o-mini"]                # optional: models to try after it
//! system = "Tu rédiges des courriels brefs et chaleureux."   # optional
//! template = """
//! Écris un courriel de bienvenue à {{ nom_utilisateur }} pour {{ nom_service }}.
//! """
//! note = "Plus court"                       # optional: what changed
//! repeat_streamed = false                   # optional: may a stream whose worker went away be called, and billed, again
//! cache_ttl_ms = 600000                     # optional: how long a result stands for runs that would be the same call
//!
//! [parameters]                              # optional, each of them
//! temperature = 0.7
//! top_p = 1.0
//! max_tokens = 400
//! stop = ["FIN"]
//! seed = 7
//!
//! [output_schema]                           # optional: a JSON Schema, as a table or as a string of JSON
//! type = "object"
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;
use workers::job::Parameters;

use super::{Content, detect_variables};
use crate::{accounts::checked_name, config::MAX_CACHE_TTL_MS};

/// Why a file is no prompt: one sentence that names the file, and the line where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(String);

/// Reads one file. `path` is for the sentences.
pub fn parse(path: &str, text: &str) -> Result<(String, Content), FileError> {
    let file: PromptFile = toml::from_str(text).map_err(|error| {
        let place = match error.span().and_then(|span| text.get(..span.start)) {
            Some(before) => format!("{path}:{}", before.matches('\n').count() + 1),
            None => path.to_owned(),
        };
        FileError(format!("{place}: {}", error.message().lines().collect::<Vec<_>>().join(" ")))
    })?;
    let refuse = |sentence: String| FileError(format!("{path}: {sentence}"));
    let name = checked_name("a prompt", &file.name).map_err(|error| refuse(error.to_string()))?;
    if file.model.trim().is_empty() || file.fallback.iter().any(|model| model.trim().is_empty()) {
        return Err(refuse("the name of a model must not be empty".to_owned()));
    }
    if file.template.trim().is_empty() {
        return Err(refuse("the template must not be empty".to_owned()));
    }
    if file.cache_ttl_ms.is_some_and(|ttl| !(1..=MAX_CACHE_TTL_MS).contains(&ttl)) {
        return Err(refuse(format!("cache_ttl_ms must be between 1 and {MAX_CACHE_TTL_MS} (a year)")));
    }
    check_parameters(&file.parameters).map_err(refuse)?;
    let output_schema = match file.output_schema {
        None => None,
        Some(Value::String(json)) => {
            Some(serde_json::from_str(&json).map_err(|error| refuse(format!("output_schema is not JSON: {error}")))?)
        }
        Some(schema) => Some(schema),
    };
    if output_schema.as_ref().is_some_and(|schema| !schema.is_object() && !schema.is_boolean()) {
        return Err(refuse("output_schema must be a JSON Schema: a table".to_owned()));
    }
    detect_variables(file.system.as_deref(), &file.template).map_err(|error| refuse(error.to_string()))?;
    let content = Content {
        system: file.system,
        template: file.template,
        model: file.model,
        fallbacks: file.fallback,
        parameters: file.parameters,
        output_schema,
        repeat_streamed: file.repeat_streamed,
        cache_ttl_ms: file.cache_ttl_ms,
        note: file.note,
    };
    Ok((name, content))
}

/// Writes one file that reads as the same prompt.
pub fn write(name: &str, content: &Content) -> Result<String, FileError> {
    let file = PromptFile {
        name: name.to_owned(),
        model: content.model.clone(),
        fallback: content.fallbacks.clone(),
        system: content.system.clone(),
        template: content.template.clone(),
        note: content.note.clone(),
        repeat_streamed: content.repeat_streamed,
        cache_ttl_ms: content.cache_ttl_ms,
        parameters: content.parameters.clone(),
        // TOML has no null, and no integers above 2⁶³; JSON in a string has.
        output_schema: content
            .output_schema
            .as_ref()
            .map(|schema| if fits_toml(schema) { schema.clone() } else { Value::String(schema.to_string()) }),
    };
    toml::to_string_pretty(&file)
        .map_err(|error| FileError(format!("prompt '{name}' cannot be written as TOML: {error}")))
}

/// The name of a prompt's file: its letters and digits in lower case, with hyphens between words.
pub fn stem(name: &str) -> String {
    let letters: String = name.to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let words: Vec<&str> = letters.split('-').filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "prompt".to_owned() } else { words.join("-") }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptFile {
    name: String,
    model: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fallback: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    template: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    repeat_streamed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_ttl_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "is_default")]
    parameters: Parameters,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_schema: Option<Value>,
}

fn is_default(parameters: &Parameters) -> bool {
    *parameters == Parameters::default()
}

/// Bounds that every provider has; narrower ones are a provider's own to refuse.
fn check_parameters(parameters: &Parameters) -> Result<(), String> {
    let within = |value: Option<f64>, end: f64| value.is_none_or(|value| (0.0..=end).contains(&value));
    if !within(parameters.temperature, 2.0) {
        Err("temperature must be between 0 and 2".to_owned())
    } else if !within(parameters.top_p, 1.0) {
        Err("top_p must be between 0 and 1".to_owned())
    } else if parameters.max_tokens == Some(0) {
        Err("max_tokens must be at least 1".to_owned())
    } else {
        Ok(())
    }
}

fn fits_toml(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Number(number) => !number.is_u64() || number.is_i64(),
        Value::Array(items) => items.iter().all(fits_toml),
        Value::Object(members) => members.values().all(fits_toml),
        Value::Bool(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests;
