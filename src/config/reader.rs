//! Takes values by key, and keeps two lists: what is in force, and what is wrong.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    keys::{KEYS, Kind},
    source::Source,
    value::{Value, Wrong, mask_url},
};

/// A value with its origin.
#[derive(Clone)]
pub(super) struct Given {
    pub value: Value,
    pub source: Source,
}

/// One value in force, as it may be shown: secrets are `[secret]` already.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// `server.listen`, `provider.openai.base_url`.
    pub key: String,
    /// `null` when it is not set.
    pub value: serde_json::Value,
    pub source: Source,
}

/// The problem has been written down; there is no value to go on with.
pub(super) struct Reported;

/// Parses values while the problems add up, so that all of them are told at once.
pub(super) struct Reader {
    values: BTreeMap<String, Given>,
    pub settings: Vec<Setting>,
    pub problems: Vec<String>,
}

impl Reader {
    /// `values` are by the full names of their keys, the layers already laid over each other.
    pub(super) fn new(values: BTreeMap<String, Given>, problems: Vec<String>) -> Self {
        Self { values, settings: Vec::new(), problems }
    }

    /// A key that always has a value.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        match self.optional(name, parse)? {
            Some(value) => Ok(value),
            None => self.report(format!("{name} must be set")),
        }
    }

    /// A key that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Reported> {
        let known = KEYS.iter().find(|key| key.name == name);
        let kind = known.map_or(Kind::Secret, |key| key.kind);
        let default = known.and_then(|key| key.default).map(untyped_default);
        let given = self.values.remove(name).or(default);
        self.parse(name.to_owned(), kind, given, parse)
    }

    /// Parses a value that was found under `label`, and lists it.
    pub(super) fn parse<T>(
        &mut self,
        label: String,
        kind: Kind,
        given: Option<Given>,
        parse: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Reported> {
        let Some(Given { value, source }) = given else {
            self.settings.push(Setting { key: label, value: serde_json::Value::Null, source: Source::Default });
            return Ok(None);
        };
        match parse(&value) {
            Ok(parsed) => {
                self.settings.push(Setting { key: label, value: shown(&value, kind), source });
                Ok(Some(parsed))
            }
            Err(Wrong { expected, found }) => {
                let hidden = matches!(kind, Kind::Secret | Kind::Url);
                let found = match (found, &value) {
                    (Some(found), _) => found,
                    (None, Value::Untyped(text) | Value::Text(text)) if text.is_empty() => "empty".to_owned(),
                    (None, _) if hidden => "something else (not shown)".to_owned(),
                    (None, value) => value.to_string(),
                };
                self.report(format!("{label} ({source}) must be {expected}, but is {found}"))
            }
        }
    }

    /// Writes a problem down.
    pub(super) fn report<T>(&mut self, problem: String) -> Result<T, Reported> {
        self.problems.push(problem);
        Err(Reported)
    }

    /// Where the value of a key that was read came from.
    pub(super) fn source(&self, key: &str) -> Source {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        setting.map_or(Source::Default, |setting| setting.source.clone())
    }
}

fn untyped_default(text: &'static str) -> Given {
    Given { value: Value::Untyped(text.to_owned()), source: Source::Default }
}

fn shown(value: &Value, kind: Kind) -> serde_json::Value {
    match (value, kind) {
        (_, Kind::Secret) => json!("[secret]"),
        (Value::Untyped(text) | Value::Text(text), Kind::Url) => json!(mask_url(text)),
        // The environment has only text; the list shows what the text was taken for.
        (Value::Untyped(text), Kind::Number | Kind::Flag) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        (Value::Untyped(text), Kind::List) => text.split(',').map(str::trim).collect(),
        (Value::Untyped(text) | Value::Text(text), _) => json!(text),
        (Value::Integer(number), _) => i64::try_from(*number).map_or_else(|_| json!(number.to_string()), |n| json!(n)),
        (Value::Float(digits), _) => serde_json::from_str(digits).unwrap_or_else(|_| json!(digits)),
        (Value::Bool(value), _) => json!(value),
        (Value::List(items), _) => items.iter().map(|item| shown(item, kind)).collect(),
        (Value::Other(kind), _) => json!(kind),
    }
}
