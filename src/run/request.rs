//! A request for a run, parsed into types that cannot be wrong.
//!
//! All problems of a body are found in one pass and told together. `null` means the same as leaving a field out, because
//! that is how many languages write an absent value.

use std::{collections::BTreeMap, fmt, num::NonZeroU64, time::Duration};

use serde_json::{Map, Value, json};
use workers::job::Lane;

use super::{RunError, json};

const MAX_PROMPT_NAME: usize = 255;
/// Entries of `metadata`, and characters of each name and each value.
const MAX_METADATA: usize = 16;
const MAX_METADATA_NAME: usize = 64;
const MAX_METADATA_VALUE: usize = 512;
/// How much of a caller's own text an error repeats: names, and characters of each.
const MAX_SHOWN_NAMES: usize = 20;
const MAX_SHOWN: usize = 64;

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
    pub cache: bool,
    pub webhook_url: Option<String>,
    pub on_disconnect: OnDisconnect,
    pub answer: Answer,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    #[default]
    Cancel,
    Continue,
}

impl RunRequest {
    /// Reads the body of a run request: UTF-8, one JSON object, known fields of the right types.
    pub fn parse(body: &[u8], answer: Answer) -> Result<Self, InvalidRequest> {
        let text = std::str::from_utf8(body).map_err(|error| InvalidRequest::NotUtf8 { at: error.valid_up_to() })?;
        if text.trim_ascii().is_empty() {
            return Err(InvalidRequest::Empty);
        }
        match json::parse(text)? {
            Value::Object(map) => Self::of_fields(map, answer),
            other => Err(InvalidRequest::NotAnObject { found: kind(&other) }),
        }
    }

    /// The same from the members of an object that was read by [`parse_json`](super::parse_json).
    pub fn of_fields(map: Map<String, Value>, answer: Answer) -> Result<Self, InvalidRequest> {
        let mut fields = Fields { map, problems: Vec::new() };
        let request = Self {
            prompt: fields.prompt_name(),
            variables: fields.object("variables").unwrap_or_default(),
            version: fields.version(),
            stream: fields.boolean("stream").unwrap_or(false),
            timeout: fields.timeout(),
            lane: fields.word("priority", &["interactive", "default", "batch"], |word| word.parse().ok()),
            metadata: fields.metadata(),
            cache: fields.boolean("cache").unwrap_or(false),
            webhook_url: fields.string("webhookUrl"),
            on_disconnect: fields.word("onDisconnect", &["cancel", "continue"], |word| match word {
                "cancel" => Some(OnDisconnect::Cancel),
                "continue" => Some(OnDisconnect::Continue),
                _ => None,
            }),
            answer,
        };
        fields.finish()?;
        Ok(request)
    }

    /// Refuses what is understood and not offered.
    pub(super) fn refuse_unsupported(&self) -> Result<(), RunError> {
        let asked = [("cache", self.cache), ("webhookUrl", self.webhook_url.is_some())];
        let fields: Vec<_> = asked.into_iter().filter_map(|(field, asked)| asked.then_some(field)).collect();
        if fields.is_empty() { Ok(()) } else { Err(RunError::NotSupported(fields)) }
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

/// The members of the body that nobody has read yet, and what was wrong with those that were.
struct Fields {
    map: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Fields {
    fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    fn refuse(&mut self, field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) {
        let (field, expected, found) = (field.into(), Some(expected.into()), Some(found.into()));
        self.problems.push(Problem { field, expected, found });
    }

    fn string(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            other => {
                self.refuse(field, "a string", kind(&other));
                None
            }
        }
    }

    fn boolean(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(value) => Some(value),
            other => {
                self.refuse(field, "a boolean", kind(&other));
                None
            }
        }
    }

    fn object(&mut self, field: &str) -> Option<Map<String, Value>> {
        match self.take(field)? {
            Value::Object(map) => Some(map),
            other => {
                self.refuse(field, "an object", kind(&other));
                None
            }
        }
    }

    /// An empty name stands in for a bad one: it never leaves [`RunRequest::parse`], because the problem is noted.
    fn prompt_name(&mut self) -> PromptName {
        const FIELD: &str = "promptName";
        let Some(value) = self.take(FIELD) else {
            let expected = Some("a string".to_owned());
            self.problems.push(Problem { field: FIELD.to_owned(), expected, found: None });
            return PromptName(String::new());
        };
        let Value::String(name) = value else {
            self.refuse(FIELD, "a string", kind(&value));
            return PromptName(String::new());
        };
        let length = name.chars().count();
        if length == 0 || length > MAX_PROMPT_NAME {
            self.refuse(FIELD, format!("a string of 1 to {MAX_PROMPT_NAME} characters"), format!("one of {length}"));
        } else if name.chars().any(char::is_control) {
            self.refuse(FIELD, "a string without control characters", "one with them");
        }
        PromptName(name)
    }

    fn version(&mut self) -> Option<PromptVersion> {
        let value = self.take("version")?;
        let version = value.as_i64().and_then(|number| i32::try_from(number).ok()).filter(|&number| number >= 1);
        if version.is_none() {
            self.refuse("version", format!("an integer from 1 to {}", i32::MAX), kind_or_number(&value));
        }
        version.map(PromptVersion)
    }

    fn timeout(&mut self) -> Option<Duration> {
        let value = self.take("timeoutMs")?;
        let millis = value.as_u64().and_then(NonZeroU64::new);
        if millis.is_none() {
            self.refuse("timeoutMs", "an integer of at least 1", kind_or_number(&value));
        }
        millis.map(|millis| Duration::from_millis(millis.get()))
    }

    /// One of a few words; the default when it is absent.
    fn word<T: Default>(&mut self, field: &str, words: &[&str], read: impl Fn(&str) -> Option<T>) -> T {
        let Some(value) = self.take(field) else { return T::default() };
        let word = value.as_str().and_then(read);
        if word.is_none() {
            let found = value.as_str().map_or_else(|| kind(&value).to_owned(), |text| format!("'{}'", shown(text)));
            let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
            self.refuse(field, words.join(" or "), found);
        }
        word.unwrap_or_default()
    }

    fn metadata(&mut self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::new();
        let Some(map) = self.object("metadata") else { return metadata };
        if map.len() > MAX_METADATA {
            self.refuse(
                "metadata",
                format!("an object of at most {MAX_METADATA} members"),
                format!("one of {}", map.len()),
            );
            return metadata;
        }
        for (name, value) in map {
            let field = || format!("metadata.{}", shown(&name));
            if name.is_empty() || name.chars().count() > MAX_METADATA_NAME || name.chars().any(char::is_control) {
                let expected = format!("named with 1 to {MAX_METADATA_NAME} characters and no control character");
                self.refuse(field(), expected, "like that");
                continue;
            }
            match value {
                // A NUL cannot be stored as text by PostgreSQL.
                Value::String(text) if text.chars().count() <= MAX_METADATA_VALUE && !text.contains('\0') => {
                    metadata.insert(name, text);
                }
                Value::String(text) => {
                    let expected = format!("a string of at most {MAX_METADATA_VALUE} characters without NUL");
                    self.refuse(field(), expected, format!("one of {}", text.chars().count()));
                }
                other => self.refuse(field(), "a string", kind(&other)),
            }
        }
        metadata
    }

    /// What is left is unknown.
    fn finish(mut self) -> Result<(), InvalidRequest> {
        let unknown = self.map.iter().take(MAX_SHOWN_NAMES);
        self.problems.extend(unknown.map(|(name, _)| Problem { field: shown(name), expected: None, found: None }));
        if self.problems.is_empty() { Ok(()) } else { Err(InvalidRequest::Fields(self.problems)) }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn kind_or_number(value: &Value) -> String {
    if value.is_number() { value.to_string() } else { kind(value).to_owned() }
}

/// A caller's own text as an error repeats it: not too long, on one line.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
