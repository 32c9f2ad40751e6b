//! Lays the layers over each other and builds a [`Config`] from what is on top.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::EnvFilter;
use workers::{EngineSettings, retry::RetryPolicy};

use super::{
    BatchesConfig, Config, DatabaseConfig, LimitsConfig, LogConfig, RedisConfig, ServerConfig, WebSocketConfig,
    WebhookConfig, WorkerConfig, environment,
    file::{self, FileContent, TableEntry},
    keys::ENV_CONFIG,
    reader::{Given, Reader, Reported, Setting},
    source::{ConfigError, Source},
    tables,
    value::{self, Value, Wrong},
};

/// The file that is read when none is named, if it is there.
const DEFAULT_FILE: &str = "prompt-manager.toml";

/// The longest time for which a shared result may stand: a year.
pub(crate) const MAX_CACHE_TTL_MS: u64 = 365 * 24 * 60 * 60 * 1000;

/// What a configuration is made of. It has no `Debug`: the environment holds secrets.
#[derive(Clone, Default)]
pub struct Inputs {
    pub flags: Flags,
    pub environment: HashMap<String, String>,
    /// The working directory: where `prompt-manager.toml` is looked for, and what relative paths of files start from.
    pub directory: PathBuf,
}

/// What the command line may set. Values are as they were typed.
#[derive(Clone, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub listen: Option<String>,
    pub database_url: Option<String>,
    pub redis_url: Option<String>,
}

/// A configuration, and the list of what is in force in the order of its keys.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub settings: Vec<Setting>,
}

impl Loaded {
    /// Whether nobody set this key.
    pub fn is_default(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key && setting.source == Source::Default)
    }
}

impl Config {
    /// Reads the configuration file, if there is one, and everything else from `inputs`.
    pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigError> {
        let mut problems = Vec::new();
        let (path, content) = read_file(inputs, &mut problems);
        let key_variables: Vec<&str> = content.providers.iter().filter_map(TableEntry::key_variable).collect();
        let environment = environment::parse(&inputs.environment, &key_variables, &mut problems);
        let mut values = content.values;
        values.extend(environment);
        values.extend(flags(&inputs.flags));

        let mut reader = Reader::new(values, problems);
        let unlisted_models = content.models.is_empty();
        let sections = sections(&mut reader);
        // Key files are named relative to the file that names them.
        let directory = path.as_deref().and_then(Path::parent).map(|parent| inputs.directory.join(parent));
        let directory = directory.unwrap_or_else(|| inputs.directory.clone());
        let providers = tables::providers(&mut reader, content.providers, &inputs.environment, &directory);
        let models = tables::models(&mut reader, content.models, &providers);

        let Reader { problems, settings, .. } = reader;
        match sections {
            Ok(sections) if problems.is_empty() => {
                let config = Config { file: path, providers: providers.settings, models, unlisted_models, ..sections };
                Ok(Loaded { config, settings })
            }
            _ => Err(ConfigError { problems }),
        }
    }
}

/// The path of the file that was read, and what it says.
fn read_file(inputs: &Inputs, problems: &mut Vec<String>) -> (Option<PathBuf>, FileContent) {
    let from_environment = inputs.environment.get(ENV_CONFIG).map(PathBuf::from);
    let (path, named_by) = match (&inputs.flags.config, from_environment) {
        (Some(path), _) => (path.clone(), Some(Source::Flag("--config"))),
        (None, Some(path)) => (path, Some(Source::Environment(ENV_CONFIG.to_owned()))),
        (None, None) => (PathBuf::from(DEFAULT_FILE), None),
    };
    match fs::read_to_string(inputs.directory.join(&path)) {
        Ok(text) => {
            let content = file::parse(&path, &text, problems);
            (Some(path), content)
        }
        Err(error) if named_by.is_none() && error.kind() == ErrorKind::NotFound => (None, FileContent::default()),
        Err(error) => {
            let by = named_by.map(|source| format!(" ({source})")).unwrap_or_default();
            problems.push(format!("the configuration file {}{by} cannot be read: {error}", path.display()));
            (None, FileContent::default())
        }
    }
}

fn flags(flags: &Flags) -> BTreeMap<String, Given> {
    let typed = [
        ("server.listen", "--listen", &flags.listen),
        ("database.url", "--database-url", &flags.database_url),
        ("redis.url", "--redis-url", &flags.redis_url),
    ];
    typed
        .into_iter()
        .filter_map(|(key, flag, text)| {
            let value = Value::Untyped(text.clone()?);
            Some((key.to_owned(), Given { value, source: Source::Flag(flag) }))
        })
        .collect()
}

/// All but the tables, which the caller adds. Every key is read before the first error ends it.
fn sections(reader: &mut Reader) -> Result<Config, Reported> {
    let server = server(reader);
    let threads = reader.optional("runtime.threads", value::whole(1..=1_024));
    let database = database(reader);
    let redis = redis(reader);
    let secret_keys = reader.optional("security.secret_key", value::secrets);
    let slots = reader.required("workers.slots", value::whole(1..=100_000));
    let lease = reader.required("workers.lease_ms", value::whole(1_000..=600_000)).map(Duration::from_millis);
    let websocket = websocket(reader);
    let max_depth = reader.required("queue.max_depth", value::whole(1..=1_000_000_000));
    let max_bytes = reader.required("queue.max_bytes", value::whole(1..=1 << 50));
    let batches = batches(reader);
    let limits = limits(reader);
    let cache_ttl = reader.required("cache.ttl_ms", value::whole(1..=MAX_CACHE_TTL_MS)).map(Duration::from_millis);
    let retry = retry(reader);
    let webhooks = webhooks(reader);
    let keep_content = reader.required("retention.keep_content", value::boolean);
    let log = log(reader);
    let (secret_key, old_secret_keys) = secret_keys?.map_or((None, Vec::new()), |(first, old)| (Some(first), old));
    Ok(Config {
        file: None,
        server: server?,
        threads: threads?,
        database: database?,
        redis: redis?,
        secret_key,
        old_secret_keys,
        workers: WorkerConfig { slots: slots?, lease: lease? },
        websocket: websocket?,
        engine: EngineSettings { max_depth: max_depth?, max_bytes: max_bytes? },
        batches: batches?,
        limits: limits?,
        retry: retry?,
        webhooks: webhooks?,
        cache_ttl: cache_ttl?,
        keep_content: keep_content?,
        log: log?,
        providers: HashMap::new(),
        models: HashMap::new(),
        unlisted_models: false,
    })
}

fn server(reader: &mut Reader) -> Result<ServerConfig, Reported> {
    let listen = reader.required("server.listen", value::address);
    let metrics_listen = reader.optional("server.metrics_listen", value::address);
    let max_body_bytes = reader.required("server.max_body_bytes", value::whole(1..=1 << 30));
    let header_read_timeout = reader.required("server.header_read_timeout_ms", value::millis);
    let drain_timeout = reader.required("server.drain_timeout_ms", value::millis);
    let (listen, metrics_listen) = (listen?, metrics_listen?);
    // Port 0 is a port of the system's choice, and never the same one twice.
    if metrics_listen == Some(listen) && listen.port() != 0 {
        let source = reader.source("server.metrics_listen");
        return reader.report(format!(
            "server.metrics_listen ({source}) must be another address than server.listen, but is {listen} as well"
        ));
    }
    Ok(ServerConfig {
        listen,
        metrics_listen,
        max_body_bytes: max_body_bytes?,
        header_read_timeout: header_read_timeout?,
        drain_timeout: drain_timeout?,
    })
}

fn websocket(reader: &mut Reader) -> Result<WebSocketConfig, Reported> {
    let allowed_origins = reader.optional("websocket.allowed_origins", value::origins);
    let max_sockets = reader.required("websocket.max_sockets", value::whole(1..=1_000_000));
    let max_sockets_per_key = reader.required("websocket.max_sockets_per_key", value::whole(1..=1_000_000));
    let max_runs = reader.required("websocket.max_runs", value::whole(1..=10_000));
    let max_message_bytes = reader.required("websocket.max_message_bytes", value::whole(1..=1 << 30));
    let ping = reader.required("websocket.ping_ms", value::millis);
    Ok(WebSocketConfig {
        allowed_origins: allowed_origins?.unwrap_or_default(),
        max_sockets: max_sockets?,
        max_sockets_per_key: max_sockets_per_key?,
        max_runs: max_runs?,
        max_message_bytes: max_message_bytes?,
        ping: ping?,
    })
}

fn database(reader: &mut Reader) -> Result<DatabaseConfig, Reported> {
    let url = reader.required("database.url", |value| value::url(value, &["sqlite", "postgres", "postgresql"]));
    let max_connections = reader.required("database.max_connections", value::whole(1..=10_000));
    let connect_timeout = reader.required("database.connect_timeout_ms", value::millis);
    Ok(DatabaseConfig { url: url?, max_connections: max_connections?, connect_timeout: connect_timeout? })
}

fn redis(reader: &mut Reader) -> Result<Option<RedisConfig>, Reported> {
    let url = reader.optional("redis.url", |value| value::url(value, &["redis", "rediss", "valkey", "valkeys"]));
    let pool = reader.required("redis.pool", value::name);
    let max_connections = reader.required("redis.max_connections", value::whole(1..=10_000));
    let (url, pool, max_connections) = (url?, pool?, max_connections?);
    Ok(url.map(|url| RedisConfig { url, pool, max_connections }))
}

fn batches(reader: &mut Reader) -> Result<BatchesConfig, Reported> {
    let max_lines = reader.required("batches.max_lines", value::whole(1..=10_000_000));
    let max_bytes = reader.required("batches.max_bytes", value::whole(1..=1 << 50));
    let max_in_flight = reader.required("batches.max_in_flight", value::whole(1..=100_000));
    Ok(BatchesConfig { max_lines: max_lines?, max_bytes: max_bytes?, max_in_flight: max_in_flight? })
}

fn limits(reader: &mut Reader) -> Result<LimitsConfig, Reported> {
    let account = reader.optional("limits.account_requests_per_minute", value::limit);
    let key = reader.optional("limits.key_requests_per_minute", value::limit);
    let default_timeout = reader.required("limits.default_timeout_ms", value::millis);
    let max_timeout = reader.required("limits.max_timeout_ms", value::millis);
    let async_timeout = reader.required("limits.async_timeout_ms", value::millis);
    let max_rendered_bytes = reader.required("limits.max_rendered_bytes", value::whole(1..=1 << 30));
    let max_timeout = max_timeout?;
    for (key, timeout) in [("limits.default_timeout_ms", &default_timeout), ("limits.async_timeout_ms", &async_timeout)]
    {
        if timeout.as_ref().is_ok_and(|timeout| *timeout > max_timeout) {
            at_most(reader, key, "limits.max_timeout_ms");
        }
    }
    Ok(LimitsConfig {
        account_requests_per_minute: account?,
        key_requests_per_minute: key?,
        default_timeout: default_timeout?,
        max_timeout,
        async_timeout: async_timeout?,
        max_rendered_bytes: max_rendered_bytes?,
    })
}

fn retry(reader: &mut Reader) -> Result<RetryPolicy, Reported> {
    let max_attempts = reader.required("retry.max_attempts", value::whole(1..=100));
    let base = reader.required("retry.base_ms", value::millis);
    let cap = reader.required("retry.cap_ms", value::millis);
    let (base, cap) = (base?, cap?);
    if base > cap {
        at_most(reader, "retry.base_ms", "retry.cap_ms");
    }
    Ok(RetryPolicy { max_attempts: max_attempts?, base, cap })
}

fn webhooks(reader: &mut Reader) -> Result<WebhookConfig, Reported> {
    const MONTH: u64 = 30 * 24 * 60 * 60 * 1000;
    let allow = reader.optional("webhooks.allow", value::hosts);
    let timeout = reader.required("webhooks.timeout_ms", value::whole(1..=60_000)).map(Duration::from_millis);
    let retry_base = reader.required("webhooks.retry_base_ms", value::millis);
    let retry_cap = reader.required("webhooks.retry_cap_ms", value::millis);
    let long = |reader: &mut Reader, key| reader.required(key, value::whole(1..=MONTH)).map(Duration::from_millis);
    let give_up_after = long(reader, "webhooks.give_up_after_ms");
    let secret_overlap = long(reader, "webhooks.secret_overlap_ms");
    let (retry_base, retry_cap) = (retry_base?, retry_cap?);
    if retry_base > retry_cap {
        at_most(reader, "webhooks.retry_base_ms", "webhooks.retry_cap_ms");
    }
    Ok(WebhookConfig {
        allow: allow?.unwrap_or_default(),
        timeout: timeout?,
        retry_base,
        retry_cap,
        give_up_after: give_up_after?,
        secret_overlap: secret_overlap?,
    })
}

/// Reports that the value of one key is above that of another.
fn at_most(reader: &mut Reader, key: &str, bound: &str) {
    let value = |name: &str| {
        reader.settings.iter().find(|setting| setting.key == name).map(|setting| setting.value.to_string())
    };
    let (found, limit) = (value(key).unwrap_or_default(), value(bound).unwrap_or_default());
    let problem = format!(
        "{key} ({}) must be at most {bound} ({limit}, {}), but is {found}",
        reader.source(key),
        reader.source(bound)
    );
    reader.problems.push(problem);
}

fn log(reader: &mut Reader) -> Result<LogConfig, Reported> {
    let level = reader.required("log.level", |value| {
        value::text(value)
            .ok()
            .filter(|text| EnvFilter::try_new(text).is_ok())
            .ok_or_else(|| Wrong::expected("a log filter, such as info or prompt_manager=debug,info"))
    });
    let json = reader.required("log.format", |value| value::word(value, &["text", "json"]).map(|word| word == "json"));
    Ok(LogConfig { level: level?, json: json? })
}
