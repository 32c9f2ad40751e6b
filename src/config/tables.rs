//! `[[provider]]` and `[[model]]`: entries under a name, and those that exist without being written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    time::Duration,
};

use workers::{
    job::Price,
    providers::{ProviderKind, ProviderSettings, Secret},
};

use super::{
    ModelConfig,
    file::TableEntry,
    keys::{Kind, MODEL_KEYS, PROVIDER_KEYS},
    reader::{Given, Reader, Reported, Setting},
    source::Source,
    value::{self, Value, Wrong},
};

/// The provider and the model that need no entry, no key and no network.
pub(super) const DEMO: &str = "demo";
/// The provider of models without an entry.
pub(super) const OPENAI: &str = "openai";

const OPENAI_URL: &str = "https://api.openai.com/v1";
const KINDS: &[&str] = &["openai", "azure-openai", "demo"];
const PLANS: &[&str] = &["free", "pro"];

/// Providers by name.
pub(super) struct Providers {
    pub settings: HashMap<String, ProviderSettings>,
    /// The names of all, of those that are written but wrong too.
    names: BTreeSet<String>,
}

/// Reads the providers that are written and adds `openai` and `demo` where they are not.
///
/// `directory` is what relative paths of key files start from.
pub(super) fn providers(
    reader: &mut Reader,
    entries: Vec<TableEntry>,
    environment: &HashMap<String, String>,
    directory: &Path,
) -> Providers {
    let mut entries = named(reader, "provider", PROVIDER_KEYS, entries, value::name);
    for unwritten in [OPENAI, DEMO] {
        if !entries.iter().any(|entry| entry.name == unwritten) {
            entries.push(Entry::unwritten("provider", PROVIDER_KEYS, unwritten));
        }
    }
    let names = entries.iter().map(|entry| entry.name.clone()).collect();
    let read = entries.into_iter().filter_map(|entry| provider(reader, entry, environment, directory).ok());
    Providers { settings: read.map(|provider| (provider.name.clone(), provider)).collect(), names }
}

/// Reads the models that are written and adds `demo` where it is not.
pub(super) fn models(
    reader: &mut Reader,
    entries: Vec<TableEntry>,
    providers: &Providers,
) -> HashMap<String, ModelConfig> {
    let mut entries = named(reader, "model", MODEL_KEYS, entries, value::model_name);
    if !entries.iter().any(|entry| entry.name == DEMO) {
        let mut demo = Entry::unwritten("model", MODEL_KEYS, DEMO);
        demo.default("provider", DEMO);
        entries.push(demo);
    }
    let read = entries.into_iter().filter_map(|entry| model(reader, entry, providers).ok());
    read.map(|model| (model.name.clone(), model)).collect()
}

fn provider(
    reader: &mut Reader,
    mut entry: Entry,
    environment: &HashMap<String, String>,
    directory: &Path,
) -> Result<ProviderSettings, Reported> {
    if entry.name == OPENAI || entry.name == DEMO {
        let kind = entry.name.clone();
        entry.default("kind", &kind);
    }
    let kind = entry.required(reader, "kind", provider_kind)?;
    match kind {
        ProviderKind::OpenAi => entry.default("base_url", OPENAI_URL),
        ProviderKind::Demo => entry.refuse(reader, &["base_url", "api_key_env", "api_key_file"]),
        ProviderKind::AzureOpenAi => {}
    }
    if kind != ProviderKind::Demo {
        entry.refuse(reader, &["demo_delay_ms"]);
    }
    for (key, default) in [
        ("attempt_timeout_ms", "120000"),
        ("idle_timeout_ms", "30000"),
        ("connect_timeout_ms", "5000"),
        ("max_response_bytes", "4194304"),
    ] {
        entry.default(key, default);
    }
    let base_url = match kind {
        ProviderKind::Demo => Ok(String::new()),
        _ => entry.required(reader, "base_url", value::base_url),
    };
    let key = match kind {
        ProviderKind::Demo => Ok((None, None)),
        _ => api_key(reader, &mut entry, kind, base_url.as_deref().unwrap_or_default(), environment, directory),
    };
    let attempt_timeout = entry.required(reader, "attempt_timeout_ms", value::millis);
    let idle_timeout = entry.required(reader, "idle_timeout_ms", value::millis);
    let connect_timeout = entry.required(reader, "connect_timeout_ms", value::millis);
    let max_response_bytes = entry.required(reader, "max_response_bytes", value::whole(1..=1 << 30));
    let max_concurrency = entry.optional(reader, "max_concurrency", value::limit);
    let requests_per_minute = entry.optional(reader, "requests_per_minute", value::limit);
    let tokens_per_minute = entry.optional(reader, "tokens_per_minute", value::limit);
    let demo_delay = match kind {
        ProviderKind::Demo => {
            entry.default("demo_delay_ms", "0");
            entry.required(reader, "demo_delay_ms", value::whole(0..=600_000)).map(Duration::from_millis)
        }
        _ => Ok(Duration::ZERO),
    };
    let (api_key, api_key_env) = key?;
    Ok(ProviderSettings {
        name: entry.name,
        kind,
        base_url: base_url?,
        api_key,
        api_key_env,
        attempt_timeout: attempt_timeout?,
        idle_timeout: idle_timeout?,
        connect_timeout: connect_timeout?,
        max_response_bytes: max_response_bytes?,
        demo_delay: demo_delay?,
        requests_per_minute: requests_per_minute?,
        tokens_per_minute: tokens_per_minute?,
        max_concurrency: max_concurrency?,
    })
}

fn provider_kind(value: &Value) -> Result<ProviderKind, Wrong> {
    if let Ok(planned) = value::word(value, &["anthropic", "gemini"]) {
        return Err(Wrong {
            expected: KINDS.join(" or "),
            found: Some(format!("{planned:?}, for which this version has no adapter yet")),
        });
    }
    value::word(value, KINDS).map(|word| match word {
        "azure-openai" => ProviderKind::AzureOpenAi,
        "demo" => ProviderKind::Demo,
        _ => ProviderKind::OpenAi,
    })
}

/// The key, when there is one, and the variable that it comes from.
///
/// A variable is looked at without being named only where it cannot send a key to a stranger: `OPENAI_API_KEY` for the provider
/// `openai` and for OpenAI's own address, `AZURE_OPENAI_API_KEY` for Azure.
fn api_key(
    reader: &mut Reader,
    entry: &mut Entry,
    kind: ProviderKind,
    base_url: &str,
    environment: &HashMap<String, String>,
    directory: &Path,
) -> Result<(Option<Secret>, Option<String>), Reported> {
    if let (Some(_), Some(file)) = (entry.values.get("api_key_env"), entry.values.get("api_key_file")) {
        let problem =
            format!("{} ({}) and api_key_env exclude each other: keep one", entry.label("api_key_file"), file.source);
        return reader.report(problem);
    }
    if !entry.values.contains_key("api_key_file") {
        match kind {
            ProviderKind::AzureOpenAi => entry.default("api_key_env", "AZURE_OPENAI_API_KEY"),
            _ if entry.name == OPENAI || base_url == OPENAI_URL => entry.default("api_key_env", "OPENAI_API_KEY"),
            _ => {}
        }
    }
    let variable = entry.optional(reader, "api_key_env", value::name)?;
    let file = entry.optional(reader, "api_key_file", value::text)?;
    let label = entry.label("api_key");
    let (text, source) = match (&variable, &file) {
        (Some(variable), _) => match environment.get(variable) {
            Some(text) => (text.trim().to_owned(), Source::Environment(variable.clone())),
            None => (String::new(), Source::Default),
        },
        (None, Some(file)) => {
            let source = reader.source(&entry.label("api_key_file"));
            let path = directory.join(file);
            let problem = match fs::read_to_string(&path) {
                Ok(text) if text.trim().is_empty() => "is empty".to_owned(),
                Ok(text) => {
                    return header_safe(reader, &label, text.trim(), source).map(|key| (Some(key), None));
                }
                Err(error) => format!("cannot be read: {error}"),
            };
            let label = entry.label("api_key_file");
            return reader.report(format!("{label} ({source}) names {}, which {problem}", path.display()));
        }
        (None, None) => (String::new(), Source::Default),
    };
    if text.is_empty() {
        // A front door without executors needs no key: the call that needs it says that it is missing, and where it was looked for.
        reader.settings.push(Setting { key: label, value: serde_json::Value::Null, source });
        return Ok((None, variable));
    }
    header_safe(reader, &label, &text, source).map(|key| (Some(key), variable))
}

/// A key travels in an HTTP header, where only visible ASCII is safe.
fn header_safe(reader: &mut Reader, label: &str, text: &str, source: Source) -> Result<Secret, Reported> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return reader.report(format!(
            "{label} ({source}) must be visible ASCII characters without spaces, but is something else (not shown)"
        ));
    }
    reader.settings.push(Setting { key: label.to_owned(), value: "[secret]".into(), source });
    Ok(Secret::new(text))
}

fn model(reader: &mut Reader, mut entry: Entry, providers: &Providers) -> Result<ModelConfig, Reported> {
    let upstream = entry.name.clone();
    entry.default("upstream", &upstream);
    let provider = entry.required(reader, "provider", value::name);
    let upstream = entry.required(reader, "upstream", value::text);
    let input = entry.optional(reader, "input_usd_per_million", value::nano_dollars);
    let output = entry.optional(reader, "output_usd_per_million", value::nano_dollars);
    let plans = entry.optional(reader, "plans", |value| value::words(value, PLANS));

    let provider = provider.and_then(|name| {
        if providers.names.contains(&name) {
            return Ok(name);
        }
        let label = entry.label("provider");
        let source = reader.source(&label);
        let known = providers.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        reader.report(format!("{label} ({source}) must be the name of a provider ({known}), but is {name:?}"))
    });
    let price = match (input?, output?) {
        (Some(input), Some(output)) => Some(Price { input, output }),
        (None, None) => None,
        (input, _) => {
            let missing = if input.is_some() { "output_usd_per_million" } else { "input_usd_per_million" };
            return reader.report(format!(
                "{} ({}) must be set too: a price has two parts",
                entry.label(missing),
                entry.source
            ));
        }
    };
    Ok(ModelConfig {
        name: entry.name,
        provider: provider?,
        upstream: upstream?,
        price,
        plans: plans?.unwrap_or_default(),
    })
}

/// An entry whose name is known.
struct Entry {
    table: &'static str,
    keys: &'static [(&'static str, Kind)],
    name: String,
    /// Where it begins.
    source: Source,
    values: BTreeMap<String, Given>,
}

/// Takes the names of entries; those without one, or with another's, are reported and left out.
fn named(
    reader: &mut Reader,
    table: &'static str,
    keys: &'static [(&'static str, Kind)],
    entries: Vec<TableEntry>,
    parse: fn(&Value) -> Result<String, Wrong>,
) -> Vec<Entry> {
    let mut named: Vec<Entry> = Vec::new();
    for TableEntry { source, mut values } in entries {
        let Some(given) = values.remove("name") else {
            reader.problems.push(format!("{table} ({source}) must have a name"));
            continue;
        };
        let name = match parse(&given.value) {
            Ok(name) => name,
            Err(Wrong { expected, .. }) => {
                let problem = format!("{table}.name ({}) must be {expected}, but is {}", given.source, given.value);
                reader.problems.push(problem);
                continue;
            }
        };
        if let Some(first) = named.iter().find(|entry| entry.name == name) {
            let problem =
                format!("{table} {name:?} ({}) is there already ({}): names are unique", given.source, first.source);
            reader.problems.push(problem);
            continue;
        }
        named.push(Entry { table, keys, name, source: given.source, values });
    }
    named
}

impl Entry {
    fn unwritten(table: &'static str, keys: &'static [(&'static str, Kind)], name: &str) -> Self {
        Self { table, keys, name: name.to_owned(), source: Source::Default, values: BTreeMap::new() }
    }

    fn label(&self, key: &str) -> String {
        format!("{}.{}.{key}", self.table, self.name)
    }

    /// Gives a key a value where the file gives none.
    fn default(&mut self, key: &str, text: &str) {
        self.values
            .entry(key.to_owned())
            .or_insert_with(|| Given { value: Value::Untyped(text.to_owned()), source: Source::Default });
    }

    /// Reports keys that mean nothing for this kind.
    fn refuse(&self, reader: &mut Reader, keys: &[&str]) {
        for key in keys {
            if let Some(given) = self.values.get(*key) {
                let problem =
                    format!("{} ({}) means nothing for a provider of this kind", self.label(key), given.source);
                reader.problems.push(problem);
            }
        }
    }

    fn required<T>(
        &mut self,
        reader: &mut Reader,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        match self.optional(reader, key, parse)? {
            Some(value) => Ok(value),
            None => reader.report(format!("{} ({}) must be set", self.label(key), self.source)),
        }
    }

    fn optional<T>(
        &mut self,
        reader: &mut Reader,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Reported> {
        let kind = self.keys.iter().find(|(name, _)| *name == key).map_or(Kind::Secret, |(_, kind)| *kind);
        let given = self.values.remove(key);
        reader.parse(self.label(key), kind, given, parse)
    }
}
