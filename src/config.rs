//! Configuration: defaults < file < environment < flags, parsed into types that cannot be wrong.
//!
//! [`Config::load`] lays the layers over each other as untyped values that remember their origin, then parses each key
//! once. It stops at nothing: all problems are told together, each with its key, its origin, what was expected and what was found.

mod environment;
mod file;
mod keys;
mod load;
mod reader;
mod source;
mod tables;
mod value;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use workers::{
    EngineSettings,
    job::Price,
    providers::{ProviderSettings, Secret},
    retry::RetryPolicy,
};

pub(crate) use self::load::MAX_CACHE_TTL_MS;
pub use self::{
    keys::{ENV_PREFIX, KEYS, Key, Kind, MODEL_KEYS, PROVIDER_KEYS, USUAL_LISTEN},
    load::{Flags, Inputs, Loaded},
    reader::Setting,
    source::{ConfigError, Source},
    value::mask_url,
};

/// The validated configuration of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    pub server: ServerConfig,
    /// Threads that drive connections and runs; `None` is as many as suits the machine.
    pub threads: Option<usize>,
    pub database: DatabaseConfig,
    /// Absent: the embedded queue.
    pub redis: Option<RedisConfig>,
    /// Keys the hashes of API keys (absent, hashes are unkeyed), and seals secrets that are stored.
    pub secret_key: Option<Secret>,
    /// Keys of before, which still open what they sealed.
    pub old_secret_keys: Vec<Secret>,
    pub workers: WorkerConfig,
    pub websocket: WebSocketConfig,
    pub engine: EngineSettings,
    pub batches: BatchesConfig,
    pub limits: LimitsConfig,
    pub retry: RetryPolicy,
    pub webhooks: WebhookConfig,
    /// How long a shared result stands when the prompt does not say.
    pub cache_ttl: Duration,
    /// Whether rendered inputs and outputs are stored with ended runs.
    pub keep_content: bool,
    pub log: LogConfig,
    /// By name; `openai` and `demo` are always there.
    pub providers: HashMap<String, ProviderSettings>,
    /// By name; `demo` is always there. Ask [`Config::model`], which knows what holds for others.
    pub models: HashMap<String, ModelConfig>,
    /// Whether models without an entry may be used: as long as no `[[model]]` is written.
    pub unlisted_models: bool,
}

impl Config {
    /// The model that prompts call `name`; `None` when this configuration does not know it.
    ///
    /// While no `[[model]]` is written, every name is a model of OpenAI's, so that a first prompt needs no entry. The first entry
    /// makes the list complete: from then on a slip in a name is an error here and not a bill elsewhere.
    pub fn model(&self, name: &str) -> Option<ModelConfig> {
        self.models.get(name).cloned().or_else(|| {
            self.unlisted_models.then(|| ModelConfig {
                name: name.to_owned(),
                provider: tables::OPENAI.to_owned(),
                upstream: name.to_owned(),
                price: None,
                plans: Vec::new(),
            })
        })
    }
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Where `/healthz` and `/readyz` are served beside the API, or alone on a worker.
    pub metrics_listen: Option<SocketAddr>,
    pub max_body_bytes: usize,
    pub header_read_timeout: Duration,
    /// How long requests and runs in flight may take after SIGTERM.
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct WebSocketConfig {
    /// Origins of pages that may open sockets beside those of the server's own, as browsers write them; `*` is any.
    pub allowed_origins: Vec<String>,
    /// Sockets of one front door, at most; and of one key on it.
    pub max_sockets: usize,
    pub max_sockets_per_key: usize,
    /// Runs that one socket follows at a time.
    pub max_runs: usize,
    /// Of a message from a client.
    pub max_message_bytes: usize,
    /// How often clients are asked whether they are there, and how long they have to answer.
    pub ping: Duration,
}

#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub url: Secret,
    pub max_connections: u32,
    pub connect_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct RedisConfig {
    pub url: Secret,
    /// The name of the pool of workers: the hash tag of all keys.
    pub pool: String,
    pub max_connections: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// Runs that one process executes at a time.
    pub slots: usize,
    /// How long a worker owns a run without a heartbeat.
    pub lease: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct BatchesConfig {
    pub max_lines: u32,
    /// Of a whole body.
    pub max_bytes: u64,
    /// Runs of one batch that have not ended, at most.
    pub max_in_flight: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct LimitsConfig {
    /// `None` is no limit.
    pub account_requests_per_minute: Option<u32>,
    pub key_requests_per_minute: Option<u32>,
    /// How long a run may take when its caller does not say.
    pub default_timeout: Duration,
    pub max_timeout: Duration,
    /// How long an async run may take when its caller does not say.
    pub async_timeout: Duration,
    pub max_rendered_bytes: usize,
}

/// How ended runs are told to the URLs that their callers named.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// What may be called although it is not on the public Internet, and by `http` as well.
    pub allow: Vec<AllowedHost>,
    /// How long one call may take, to the head of its answer.
    pub timeout: Duration,
    /// The pause after the first failed call; it doubles up to `retry_cap`.
    pub retry_base: Duration,
    pub retry_cap: Duration,
    /// How long a delivery is tried.
    pub give_up_after: Duration,
    /// How long a secret that was replaced signs beside its successor.
    pub secret_overlap: Duration,
}

/// A destination that an operator vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedHost {
    Network(IpNet),
    /// In lower case.
    Name(String),
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A `tracing` filter: `info`, `prompt_manager=debug`.
    pub level: String,
    pub json: bool,
}

/// A model as prompts name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    pub name: String,
    pub provider: String,
    pub upstream: String,
    pub price: Option<Price>,
    /// Plans whose accounts may use it, in lower case; empty is every plan.
    pub plans: Vec<String>,
}
