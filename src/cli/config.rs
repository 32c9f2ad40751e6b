//! `prompt-manager config check`: what is in force, and where it comes from.

use serde::Serialize;

use super::{
    error::CliError,
    output::{Output, table},
};
use crate::config::{Config, ConfigError, Inputs, Loaded, Setting};

#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration and list every value with its origin; secrets are not shown
    Check,
}

#[derive(Serialize)]
struct Report<'a> {
    valid: bool,
    file: Option<String>,
    settings: Vec<ShownSetting<'a>>,
    problems: &'a [String],
}

#[derive(Serialize)]
struct ShownSetting<'a> {
    key: &'a str,
    value: &'a serde_json::Value,
    /// `default`, `file`, `environment` or `flag`.
    source: &'static str,
    /// The same for people: with line, variable or flag.
    origin: String,
}

impl<'a> From<&'a Setting> for ShownSetting<'a> {
    fn from(Setting { key, value, source }: &'a Setting) -> Self {
        Self { key, value, source: source.kind(), origin: source.to_string() }
    }
}

pub fn run(command: &ConfigCommand, inputs: &Inputs, output: Output) -> Result<(), CliError> {
    let ConfigCommand::Check = command;
    match Config::load(inputs) {
        Ok(loaded) => show(&loaded, output),
        Err(error) => {
            if output.json {
                let report = Report { valid: false, file: None, settings: Vec::new(), problems: &error.problems };
                output.emit(&report, String::new)?;
            }
            Err(error.into())
        }
    }
}

fn show(loaded: &Loaded, output: Output) -> Result<(), CliError> {
    let report = Report {
        valid: true,
        file: loaded.config.file.as_ref().map(|path| path.display().to_string()),
        settings: loaded.settings.iter().map(ShownSetting::from).collect(),
        problems: &[],
    };
    output.emit(&report, || {
        let rows = report.settings.iter().map(|setting| {
            let value = match setting.value {
                serde_json::Value::Null => "(not set)".to_owned(),
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            [setting.key.to_owned(), value, setting.origin.clone()]
        });
        table(["KEY", "VALUE", "SOURCE"], rows)
    })
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        CliError::Config(error.to_string())
    }
}
