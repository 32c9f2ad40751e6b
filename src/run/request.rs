//! A request for a run, parsed into types that cannot be wrong.
//!
//! All problems of a body are found in one pass and told together. `null` means the same as leaving a field out, because
//! that is how many languages write an absent value.

mod fields;

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use workers::{job::Lane, ledger::IdempotencyKey};

use self::fields::{Fields, kind};
use super::json;

/// One run to start.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRequest {
    pub prompt: PromptName,
    pub variables: Map<String, Value>,
    /// `None`: the PRODUCTION version.
    pub version: Option<PromptVersion>,
    pub stream: bool,
    pub timeout: Option<Duration>,
    pub lane: Lane,
    pub metadata: BTreeMap<String, String>,
    /// Whether its result may be another run's; `None`: as the prompt has it.
    pub cache: Option<bool>,
    pub webhook_url: Option<String>,
    /// `None`: as the way of asking has it, see [`RunRequest::on_disconnect`].
    pub on_disconnect: Option<OnDisconnect>,
    pub answer: Answer,
    /// The caller's name for the request.
    pub key: Option<IdempotencyKey>,
}

/// The name of a prompt as a caller writes it: 1 to 255 characters, none of them a control character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptName(String);

impl PromptName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PromptName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a prompt version: at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptVersion(i32);

impl From<PromptVersion> for i32 {
    fn from(version: PromptVersion) -> i32 {
        version.0
    }
}

/// How long the caller stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Until the run ends or its deadline comes.
    #[default]
    Wait,
    /// The same, but no longer than this; then it is told where to look.
    WaitAtMost(Duration),
    /// Not at all: it is told where to look.
    Later,
}

/// What becomes of the run of a caller that hangs up while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    Cancel,
    Continue,
}

impl RunRequest {
    /// Reads the body of a run request: UTF-8, one JSON object, known fields of the right types.
    pub fn parse(body: &[u8], answer: Answer) -> Result<Self, InvalidRequest> {
        Self::read(body, answer, None)
    }

    /// The same for a request that its caller has named. Two bodies that mean the same JSON are the same request.
    pub fn parse_keyed(body: &[u8], answer: Answer, key: &str) -> Result<Self, InvalidRequest> {
        Self::read(body, answer, Some(key))
    }

    fn read(body: &[u8], answer: Answer, key: Option<&str>) -> Result<Self, InvalidRequest> {
        let text = std::str::from_utf8(body).map_err(|error| InvalidRequest::NotUtf8 { at: error.valid_up_to() })?;
        if text.trim_ascii().is_empty() {
            return Err(InvalidRequest::Empty);
        }
        let value = json::parse(text)?;
        let key = key.map(|key| IdempotencyKey { key: key.to_owned(), digest: digest(&value) });
        match value {
            Value::Object(map) => Ok(Self { key, ..Self::of_fields(map, answer)? }),
            other => Err(InvalidRequest::NotAnObject { found: kind(&other) }),
        }
    }

    /// The same from the members of an object that was read by [`parse_json`](super::parse_json).
    pub fn of_fields(map: Map<String, Value>, answer: Answer) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::of(map);
        let request = Self::take(&mut fields, answer);
        fields.finish()?;
        Ok(request)
    }

    fn take(fields: &mut Fields, answer: Answer) -> Self {
        Self {
            prompt: fields.prompt_name(),
            variables: fields.object("variables").unwrap_or_default(),
            version: fields.version(),
            stream: fields.boolean("stream").unwrap_or(false),
            timeout: fields.timeout(),
            lane: fields.word("priority", &["interactive", "default", "batch"], |word| word.parse().ok()),
            metadata: fields.metadata(),
            cache: fields.boolean("cache"),
            webhook_url: fields.string("webhookUrl"),
            on_disconnect: fields.word("onDisconnect", &["cancel", "continue"], |word| match word {
                "cancel" => Some(Some(OnDisconnect::Cancel)),
                "continue" => Some(Some(OnDisconnect::Continue)),
                _ => None,
            }),
            answer,
            key: None,
        }
    }

    /// Every field that is known.
    #[cfg(test)]
    pub(crate) fn field_names() -> Vec<String> {
        let mut fields = Fields::of(Map::new());
        Self::take(&mut fields, Answer::Wait);
        fields.asked
    }

    /// What becomes of the run when its caller hangs up. A request that can be sent again is sent again by a caller whose connection
    /// broke, so that its run goes on, unless the caller says otherwise.
    pub fn on_disconnect(&self) -> OnDisconnect {
        let default = if self.key.is_some() { OnDisconnect::Continue } else { OnDisconnect::Cancel };
        self.on_disconnect.unwrap_or(default)
    }
}

/// Why a body is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidRequest {
    Empty,
    /// The offset of the first byte that is not.
    NotUtf8 {
        at: usize,
    },
    NotJson {
        message: String,
        line: usize,
        column: usize,
    },
    NotAnObject {
        found: &'static str,
    },
    /// Everything that is wrong with the fields, in a fixed order.
    Fields(Vec<Problem>),
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    field: String,
    /// What belongs there; `None` when the field itself does not.
    expected: Option<String>,
    /// What was there; `None` when nothing was.
    found: Option<String>,
}

impl InvalidRequest {
    /// Stable snake_case, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty | Self::NotUtf8 { .. } | Self::NotJson { .. } => "invalid_json",
            Self::NotAnObject { .. } | Self::Fields(_) => "invalid_request",
        }
    }

    /// The same for programs: where the text breaks, or every field with what is wrong with it.
    pub fn details(&self) -> Option<Value> {
        match self {
            Self::Empty | Self::NotAnObject { .. } => None,
            Self::NotUtf8 { at } => Some(json!({ "byte": at })),
            Self::NotJson { line, column, .. } => Some(json!({ "line": line, "column": column })),
            Self::Fields(problems) => {
                let fields = problems.iter().map(|problem| {
                    let mut entry = Map::from_iter([("field".to_owned(), Value::from(problem.field.as_str()))]);
                    match &problem.expected {
                        Some(expected) => entry.insert("expected".to_owned(), Value::from(expected.as_str())),
                        None => entry.insert("unknown".to_owned(), Value::Bool(true)),
                    };
                    if let Some(found) = &problem.found {
                        entry.insert("found".to_owned(), Value::from(found.as_str()));
                    }
                    Value::Object(entry)
                });
                Some(json!({ "fields": fields.collect::<Vec<_>>() }))
            }
        }
    }
}

impl From<serde_json::Error> for InvalidRequest {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        // The position is told once, in the words of the sentence.
        let text = error.to_string();
        let message = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text).to_owned();
        Self::NotJson { message, line, column }
    }
}

impl std::error::Error for InvalidRequest {}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("The body is empty; a JSON object is expected"),
            Self::NotUtf8 { at } => write!(f, "The body is not UTF-8 (byte {at})"),
            Self::NotJson { message, line, column } => {
                write!(f, "The body is not valid JSON: {message} at line {line} column {column}")
            }
            Self::NotAnObject { found } => write!(f, "The body must be a JSON object, not {found}"),
            Self::Fields(problems) => {
                f.write_str("The request is not valid: ")?;
                for (index, problem) in problems.iter().enumerate() {
                    write!(f, "{}{problem}", if index == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, expected, found } = self;
        match (expected, found) {
            (None, _) => write!(f, "'{field}' is not a known field"),
            (Some(expected), None) => write!(f, "'{field}' is required and must be {expected}"),
            (Some(expected), Some(found)) => write!(f, "'{field}' must be {expected}, not {found}"),
        }
    }
}

/// Of the JSON that a body means: names in order, no spaces.
fn digest(value: &Value) -> [u8; 32] {
    Sha256::digest(value.to_string()).into()
}

#[cfg(test)]
mod tests;
