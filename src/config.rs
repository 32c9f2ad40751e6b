//! Configuration: defaults < file < environment < flags, parsed into types that cannot be wrong.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

use workers::{
    EngineSettings,
    job::Price,
    providers::{ProviderSettings, Secret},
    retry::RetryPolicy,
};

/// The validated configuration of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    pub server: ServerConfig,
    pub database: DatabaseConfig,
    /// Absent: the embedded queue.
    pub redis: Option<RedisConfig>,
    /// Keys the hashes of API keys; absent, hashes are unkeyed.
    pub secret_key: Option<Secret>,
    pub workers: WorkerConfig,
    pub engine: EngineSettings,
    pub limits: LimitsConfig,
    pub retry: RetryPolicy,
    /// Whether rendered inputs and outputs are stored with ended runs.
    pub keep_content: bool,
    pub log: LogConfig,
    /// By name; `openai` and `demo` are always there.
    pub providers: HashMap<String, ProviderSettings>,
    /// By name; `demo` is always there.
    pub models: HashMap<String, ModelConfig>,
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
