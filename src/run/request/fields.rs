//! The fields of a body, taken one by one; every problem is noted, and told together with the others.

use std::{collections::BTreeMap, num::NonZeroU64, time::Duration};

use serde_json::{Map, Value};

use super::{InvalidRequest, Problem, PromptName, PromptVersion};

const MAX_PROMPT_NAME: usize = 255;
/// Entries of `metadata`, and characters of each name and each value.
const MAX_METADATA: usize = 16;
const MAX_METADATA_NAME: usize = 64;
const MAX_METADATA_VALUE: usize = 512;
/// How much of a caller's own text an error repeats: names, and characters of each.
const MAX_SHOWN_NAMES: usize = 20;
const MAX_SHOWN: usize = 64;

/// The members of the body that nobody has read yet, and what was wrong with those that were.
pub(super) struct Fields {
    pub(super) map: Map<String, Value>,
    pub(super) problems: Vec<Problem>,
    /// Every field that was looked for.
    #[cfg(test)]
    pub(super) asked: Vec<String>,
}

impl Fields {
    pub(super) fn of(map: Map<String, Value>) -> Self {
        Self {
            map,
            problems: Vec::new(),
            #[cfg(test)]
            asked: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        #[cfg(test)]
        self.asked.push(field.to_owned());
        self.map.remove(field).filter(|value| !value.is_null())
    }

    pub(super) fn refuse(&mut self, field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) {
        let (field, expected, found) = (field.into(), Some(expected.into()), Some(found.into()));
        self.problems.push(Problem { field, expected, found });
    }

    pub(super) fn string(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            other => {
                self.refuse(field, "a string", kind(&other));
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(value) => Some(value),
            other => {
                self.refuse(field, "a boolean", kind(&other));
                None
            }
        }
    }

    pub(super) fn object(&mut self, field: &str) -> Option<Map<String, Value>> {
        match self.take(field)? {
            Value::Object(map) => Some(map),
            other => {
                self.refuse(field, "an object", kind(&other));
                None
            }
        }
    }

    /// An empty name stands in for a bad one: it never leaves [`RunRequest::parse`], because the problem is noted.
    pub(super) fn prompt_name(&mut self) -> PromptName {
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

    pub(super) fn version(&mut self) -> Option<PromptVersion> {
        let value = self.take("version")?;
        let version = value.as_i64().and_then(|number| i32::try_from(number).ok()).filter(|&number| number >= 1);
        if version.is_none() {
            self.refuse("version", format!("an integer from 1 to {}", i32::MAX), kind_or_number(&value));
        }
        version.map(PromptVersion)
    }

    pub(super) fn timeout(&mut self) -> Option<Duration> {
        let value = self.take("timeoutMs")?;
        let millis = value.as_u64().and_then(NonZeroU64::new);
        if millis.is_none() {
            self.refuse("timeoutMs", "an integer of at least 1", kind_or_number(&value));
        }
        millis.map(|millis| Duration::from_millis(millis.get()))
    }

    /// One of a few words; the default when it is absent.
    pub(super) fn word<T: Default>(&mut self, field: &str, words: &[&str], read: impl Fn(&str) -> Option<T>) -> T {
        let Some(value) = self.take(field) else { return T::default() };
        let word = value.as_str().and_then(read);
        if word.is_none() {
            let found = value.as_str().map_or_else(|| kind(&value).to_owned(), |text| format!("'{}'", shown(text)));
            let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
            self.refuse(field, words.join(" or "), found);
        }
        word.unwrap_or_default()
    }

    pub(super) fn metadata(&mut self) -> BTreeMap<String, String> {
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
    pub(super) fn finish(mut self) -> Result<(), InvalidRequest> {
        let unknown = self.map.iter().take(MAX_SHOWN_NAMES);
        self.problems.extend(unknown.map(|(name, _)| Problem { field: shown(name), expected: None, found: None }));
        if self.problems.is_empty() { Ok(()) } else { Err(InvalidRequest::Fields(self.problems)) }
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
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
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        short.push('…');
    }
    short
}
