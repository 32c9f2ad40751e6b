//! The command line: which commands there are, and what each of them needs before it starts.

pub mod account;
mod client;
pub mod config;
pub mod demo;
pub mod error;
pub mod healthcheck;
pub mod key;
mod logging;
pub mod migrate;
pub mod openapi;
pub mod output;
pub mod prompt;
pub mod queue;
pub mod run;
pub mod serve;
pub mod user;
pub mod webhook;

use std::{collections::HashMap, env, future::Future, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand};
use sea_orm::DatabaseConnection;
use tokio::runtime::{self, Runtime};
use workers::executor::run_system;

use self::{
    account::AccountCommand,
    config::ConfigCommand,
    error::CliError,
    key::KeyCommand,
    migrate::MigrateArgs,
    output::Output,
    prompt::PromptCommand,
    queue::QueueCommand,
    run::RunArgs,
    user::UserCommand,
    webhook::{SecretsCommand, WebhookCommand},
};
use crate::{
    config::{Config, ENV_PREFIX, Flags, Inputs},
    node::{Roles, open_database},
};

/// Runs managed prompts as a service.
// No `Debug` here and on the flags: a database URL may hold a password.
#[derive(Parser)]
#[command(name = "prompt-manager", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong command line, 69 a server does not answer, \
                        70 internal error, 78 wrong configuration; `run --help` has more.")]
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

#[derive(Subcommand)]
enum Command {
    /// Serve the contract's example from a throw-away database with the offline demo model, and run it once
    Demo {
        #[command(flatten)]
        listen: ListenFlags,
        /// End after the run
        #[arg(long)]
        once: bool,
    },
    /// Serve the API, and execute runs
    Serve {
        #[command(flatten)]
        listen: ListenFlags,
        #[command(flatten)]
        stores: StoreFlags,
        /// Only serve: workers execute the runs
        #[arg(long)]
        no_workers: bool,
    },
    /// Only execute runs
    Worker {
        #[command(flatten)]
        stores: StoreFlags,
    },
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
    /// Print the OpenAPI document of the HTTP API
    Openapi,
    /// Look at the configuration
    Config {
        #[command(flatten)]
        listen: ListenFlags,
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Manage accounts and their plans
    Account {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: AccountCommand,
    },
    /// Manage the people of an account
    User {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Manage API keys
    Key {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Manage prompts and which version is PRODUCTION
    Prompt {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: PromptCommand,
    },
    /// Manage webhook secrets, look at deliveries, and send them again
    Webhook {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: WebhookCommand,
    },
    /// Look after the secrets that are stored
    Secrets {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: SecretsCommand,
    },
    /// Look at the queue, pause, drain and resume it, and look after dead runs
    Queue {
        #[command(flatten)]
        stores: StoreFlags,
        #[command(subcommand)]
        command: QueueCommand,
    },
    /// Run a prompt on the server at PROMPT_MANAGER_BASE_URL with the key in PROMPT_MANAGER_API_KEY
    Run(RunArgs),
}

#[derive(Args)]
struct ListenFlags {
    /// Where the API is served, as IP:PORT
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
}

#[derive(Args)]
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
            Command::Demo { listen, once } => {
                inputs.flags.listen = listen.listen;
                let config = start_command(&inputs)?;
                serve(config.threads, demo::run(config, once, output))
            }
            Command::Serve { listen, stores, no_workers } => {
                inputs.flags.listen = listen.listen;
                stores.apply(&mut inputs.flags);
                let config = start_server(&inputs)?;
                let roles = Roles { front_door: true, executors: !no_workers };
                serve(config.threads, serve::run(config, roles))
            }
            Command::Worker { stores } => {
                stores.apply(&mut inputs.flags);
                let config = start_server(&inputs)?;
                let roles = Roles { front_door: false, executors: true };
                serve(config.threads, serve::run(config, roles))
            }
            Command::Account { stores, command } => {
                with_database(inputs, stores, async |db, config| account::run(command, &db, &config, output).await)
            }
            Command::User { stores, command } => {
                with_database(inputs, stores, async |db, config| user::run(command, &db, &config, output).await)
            }
            Command::Key { stores, command } => {
                with_database(inputs, stores, async |db, config| key::run(command, &db, &config, output).await)
            }
            Command::Prompt { stores, command } => {
                with_database(inputs, stores, async |db, config| prompt::run(command, &db, &config, output).await)
            }
            Command::Webhook { stores, command } => {
                with_database(inputs, stores, async |db, config| webhook::run(command, &db, &config, output).await)
            }
            Command::Secrets { stores, command } => with_database(inputs, stores, async |db, config| {
                webhook::run_secrets(command, &db, &config, output).await
            }),
            Command::Queue { stores, command } => {
                stores.apply(&mut inputs.flags);
                let config = start_command(&inputs)?;
                one_thread(queue::run(command, &config, output))
            }
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
            // These have no configuration: they run where no server is.
            Command::Openapi => openapi::run(output),
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

/// Loads the configuration of a process that serves.
fn start_server(inputs: &Inputs) -> Result<Config, CliError> {
    let config = Config::load(inputs)?.config;
    logging::start(&config.log.level, config.log.json, &inputs.environment)?;
    Ok(config)
}

/// Runs a command on the database, which must have the schema of this version (SQLite is migrated on the way).
fn with_database(
    mut inputs: Inputs,
    stores: StoreFlags,
    command: impl AsyncFnOnce(DatabaseConnection, Config) -> Result<(), CliError>,
) -> Result<(), CliError> {
    stores.apply(&mut inputs.flags);
    let config = start_command(&inputs)?;
    one_thread(async {
        let db = open_database(&config).await?;
        let result = command(db.clone(), config).await;
        migrate::close_database(db).await;
        result
    })
}

/// Runs a process that serves, as the actix system that its actors need.
fn serve(threads: Option<usize>, command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let threads = match threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2)),
    };
    let runtime = if threads == 1 {
        build(runtime::Builder::new_current_thread())?
    } else {
        let mut builder = runtime::Builder::new_multi_thread();
        builder.worker_threads(threads);
        build(builder)?
    };
    run_system(runtime, command)
}

fn one_thread(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    build(runtime::Builder::new_current_thread())?.block_on(command)
}

fn build(mut builder: runtime::Builder) -> Result<Runtime, CliError> {
    builder.enable_all().build().map_err(|error| CliError::Software(format!("the threads cannot be started: {error}")))
}

/// Reads an argument that is an id.
fn id<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected an id, such as 01a2091c-cfe8-75ce-96d7-252e74adc8aa")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_tree_of_commands_is_sound() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn what_is_no_id_is_told_what_one_looks_like() {
        for command in ["run --follow abc", "queue dead requeue abc", "queue dead discard abc", "webhook redeliver abc"]
        {
            let error = super::Cli::try_parse_from(format!("prompt-manager {command}").split(' ')).err().unwrap();
            assert!(error.to_string().contains("expected an id, such as 01a2"), "{error}");
        }
    }
}
