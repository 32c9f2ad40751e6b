//! Logs go to stderr: as text for people, or one JSON object a line.

use std::{collections::HashMap, io::IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use super::error::CliError;

/// Libraries whose ordinary progress is news to nobody; whoever names one in the filter hears it all the same.
const QUIETER: &str = "sea_orm_migration=warn";

/// Installs the subscriber of this process.
pub(super) fn start(filter: &str, json: bool, environment: &HashMap<String, String>) -> Result<(), CliError> {
    // Of two directives for one target the later counts.
    let filter = EnvFilter::try_new(format!("{QUIETER},{filter}"))
        .map_err(|error| CliError::Config(format!("log.level must be a log filter: {error}")))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        builder.with_ansi(colour(environment)).try_init()
    };
    started.map_err(|error| CliError::Software(format!("logging cannot be started: {error}")))
}

/// Colour is for terminals, unless `NO_COLOR` says otherwise (<https://no-color.org>: present and not empty).
fn colour(environment: &HashMap<String, String>) -> bool {
    let refused = environment.get("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && std::io::stderr().is_terminal()
}
