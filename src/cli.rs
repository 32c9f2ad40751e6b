//! The command line: which commands there are, and what each of them needs before it starts.

mod client;
pub mod config;
pub mod error;
pub mod healthcheck;
mod logging;
pub mod migrate;
pub mod output;
pub mod run;

use std::{collections::HashMap, env, future::Future, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use tokio::runtime;

use self::{config::ConfigCommand, error::CliError, migrate::MigrateArgs, output::Output, run::RunArgs};
use crate::config::{Config, ENV_PREFIX, Flags, Inputs};

/// Runs managed prompts as a service.
#[derive(Debug, Parser)]
#[command(name = "prompt-manager", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong command line, 69 a server does not answer, \
                        70 internal error, 78 wrong configuration.")]
pub struct Cli {
    /// The configuration file [default: prompt-manager.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print data as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the database's schema up to this version
    Migrate {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(flatten)]
        args: MigrateArgs,
    },
    /// Ask the running process whether it is well; exit code 0 or 1
    Healthcheck {
        #[command(flatten)]
        listen: ListenFlags,
    },
    /// Look at the configuration
    Config {
        #[command(flatten)]
        listen: ListenFlags,
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run a prompt on the server at PROMPT_MANAGER_BASE_URL with the key in PROMPT_MANAGER_API_KEY
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct ListenFlags {
    /// Where the API is served, as IP:PORT
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
}

#[derive(Debug, Args)]
struct StoreFlags {
    /// The database: sqlite://… or postgres://…
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// The queue's Redis; without one, the queue is embedded
    #[arg(long, global = true, value_name = "URL")]
    redis_url: Option<String>,
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> Result<(), CliError> {
        let output = Output { json: self.json };
        let mut inputs = Inputs {
            flags: Flags { config: self.config, ..Flags::default() },
            environment: environment()?,
            directory: PathBuf::new(),
        };
        match self.command {
            Command::Migrate { stores, args } => {
                stores.apply(&mut inputs.flags);
                let config = start_command(&inputs)?;
                one_thread(migrate::run(&config, args, output))
            }
            Command::Healthcheck { listen } => {
                inputs.flags.listen = listen.listen;
                let config = start_command(&inputs)?;
                one_thread(healthcheck::run(&config.server, output))
            }
            Command::Config { listen, stores, command } => {
                inputs.flags.listen = listen.listen;
                stores.apply(&mut inputs.flags);
                config::run(&command, &inputs, output)
            }
            // The client has no configuration: it runs where no server is.
            Command::Run(args) => one_thread(run::run(args, &inputs.environment, output)),
        }
    }
}

impl StoreFlags {
    fn apply(self, flags: &mut Flags) {
        flags.database_url = self.database_url;
        flags.redis_url = self.redis_url;
    }
}

/// The environment as text. A variable of ours that is not text is refused; others are not our business.
fn environment() -> Result<HashMap<String, String>, CliError> {
    let mut environment = HashMap::new();
    for (name, value) in env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => {
                environment.insert(name, value);
            }
            (Ok(name), Err(_)) if name.starts_with(ENV_PREFIX) => {
                return Err(CliError::Config(format!("environment variable {name} must be UTF-8, but is not")));
            }
            _ => {}
        }
    }
    Ok(environment)
}

/// Loads the configuration of a command that does one thing, and is quieter about it than a server unless it is told.
fn start_command(inputs: &Inputs) -> Result<Config, CliError> {
    let loaded = Config::load(inputs)?;
    let log = &loaded.config.log;
    let level = if loaded.is_default("log.level") { "warn" } else { &log.level };
    logging::start(level, log.json, &inputs.environment)?;
    Ok(loaded.config)
}

fn one_thread(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    block_on(runtime::Builder::new_current_thread(), command)
}

fn block_on(
    mut builder: runtime::Builder,
    command: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CliError::Software(format!("the threads cannot be started: {error}")))?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_tree_of_commands_is_sound() {
        super::Cli::command().debug_assert();
    }
}
