//! The environment as a layer of the configuration.

use std::collections::{BTreeMap, HashMap};

use super::{
    keys::{ENV_CLIENT, ENV_CONFIG, ENV_PREFIX, KEYS},
    reader::Given,
    source::{Source, did_you_mean},
    value::Value,
};

/// Reads every variable whose name begins with [`ENV_PREFIX`]; one that means nothing is a problem, for it was meant to mean something.
///
/// `key_variables` are those that providers read their keys from.
pub(super) fn parse(
    environment: &HashMap<String, String>,
    key_variables: &[&str],
    problems: &mut Vec<String>,
) -> BTreeMap<String, Given> {
    let mut variables: Vec<(&String, &String)> =
        environment.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    variables.sort();

    let mut values: BTreeMap<String, Given> = BTreeMap::new();
    for (name, value) in variables {
        let others = ENV_CLIENT.iter().chain(key_variables).chain([&ENV_CONFIG]);
        if others.into_iter().any(|other| other == name) {
            continue;
        }
        let Some(key) = KEYS.iter().find(|key| key.short_env == Some(name.as_str()) || key.env() == *name) else {
            problems
                .push(format!("environment variable {name} is not one that Prompt Manager knows{}", suggestion(name)));
            continue;
        };
        let given = Given { value: Value::Untyped(value.clone()), source: Source::Environment(name.clone()) };
        if let Some(Given { source: Source::Environment(other), .. }) = values.insert(key.name.to_owned(), given) {
            problems.push(format!("environment variables {other} and {name} both set {}: unset one of them", key.name));
        }
    }
    values
}

fn suggestion(name: &str) -> String {
    // All names share their prefix: it must not make strangers look alike.
    let known: Vec<String> = KEYS
        .iter()
        .flat_map(|key| [Some(key.env()), key.short_env.map(str::to_owned)])
        .flatten()
        .chain([ENV_CONFIG.to_owned()])
        .chain(ENV_CLIENT.map(str::to_owned))
        .collect();
    let tails = known.iter().filter_map(|name| name.strip_prefix(ENV_PREFIX));
    did_you_mean(name.strip_prefix(ENV_PREFIX).unwrap_or(name), tails).replace("mean ", &format!("mean {ENV_PREFIX}"))
}
