//! The configuration file: TOML into values that remember their lines.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    keys::{KEYS, Kind, MODEL_KEYS, PROVIDER_KEYS},
    reader::Given,
    source::{Source, did_you_mean},
    value::Value,
};

/// What a file says, unknown keys aside.
#[derive(Default)]
pub(super) struct FileContent {
    /// By the full name of the key: `server.listen`.
    pub values: BTreeMap<String, Given>,
    pub providers: Vec<TableEntry>,
    pub models: Vec<TableEntry>,
}

/// One `[[provider]]` or `[[model]]`.
pub(super) struct TableEntry {
    /// Where it begins.
    pub source: Source,
    pub values: BTreeMap<String, Given>,
}

impl TableEntry {
    /// The variable that this provider reads its key from, if it names one.
    pub(super) fn key_variable(&self) -> Option<&str> {
        match &self.values.get("api_key_env")?.value {
            Value::Text(name) => Some(name),
            _ => None,
        }
    }
}

/// Reads `text`, the content of the file at `path`, and adds what is wrong with it to `problems`.
pub(super) fn parse(path: &Path, text: &str, problems: &mut Vec<String>) -> FileContent {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            problems.push(format!("{}, line {line}: this is not TOML: {}", path.display(), one_line(error.message())));
            return FileContent::default();
        }
    };
    let mut reading = Reading { path: path.to_owned(), text, problems, content: FileContent::default() };
    reading.document(document.get_ref());
    reading.content
}

struct Reading<'a> {
    path: PathBuf,
    text: &'a str,
    problems: &'a mut Vec<String>,
    content: FileContent,
}

impl Reading<'_> {
    fn document(&mut self, document: &DeTable<'_>) {
        for (name, value) in document {
            let at = self.source(name.span().start);
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("provider", DeValue::Array(entries)) => {
                    self.content.providers = self.entries("provider", PROVIDER_KEYS, entries);
                }
                ("model", DeValue::Array(entries)) => {
                    self.content.models = self.entries("model", MODEL_KEYS, entries);
                }
                (name @ ("provider" | "model"), _) => {
                    self.problems.push(format!("{name} ({at}) must be a list of tables: write [[{name}]]"));
                }
                (section, DeValue::Table(table)) if is_section(section) => self.section(section, table),
                (section, _) if is_section(section) => {
                    self.problems.push(format!("{section} ({at}) must be a section: write [{section}]"));
                }
                (unknown, _) => {
                    let known = KEYS.iter().filter_map(|key| key.name.split('.').next()).chain(["provider", "model"]);
                    let hint = did_you_mean(unknown, known);
                    self.problems.push(format!("{unknown} ({at}) is not a section of the configuration{hint}"));
                }
            }
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = format!("{section}.{}", key.get_ref());
            let source = self.source(key.span().start);
            if KEYS.iter().any(|known| known.name == name) {
                self.content.values.insert(name, Given { value: plain(value.get_ref()), source });
            } else {
                let hint = did_you_mean(&name, KEYS.iter().map(|key| key.name));
                self.problems.push(format!("{name} ({source}) is not a key of the configuration{hint}"));
            }
        }
    }

    fn entries(&mut self, table: &str, keys: &[(&str, Kind)], entries: &[Spanned<DeValue<'_>>]) -> Vec<TableEntry> {
        let mut read = Vec::new();
        for entry in entries {
            let source = self.source(entry.span().start);
            let DeValue::Table(fields) = entry.get_ref() else {
                self.problems.push(format!("{table} ({source}) must be a list of tables: write [[{table}]]"));
                continue;
            };
            let mut values = BTreeMap::new();
            for (key, value) in fields {
                let source = self.source(key.span().start);
                let name = key.get_ref().as_ref();
                if keys.iter().any(|(known, _)| *known == name) {
                    values.insert(name.to_owned(), Given { value: plain(value.get_ref()), source });
                } else {
                    let hint = did_you_mean(name, keys.iter().map(|(known, _)| *known));
                    self.problems.push(format!("{name} ({source}) is not a key of a [[{table}]]{hint}"));
                }
            }
            read.push(TableEntry { source, values });
        }
        read
    }

    fn source(&self, offset: usize) -> Source {
        Source::File { path: self.path.clone(), line: line_of(self.text, offset) }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split('.').next() == Some(name))
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("number that is too large"), Value::Integer),
        DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Array(items) => Value::List(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Datetime(_) => Value::Other("date"),
        DeValue::Table(_) => Value::Other("table"),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The parser's words, without the line breaks that it puts between expectations.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
