//! Every key there is, once: its name, its kind, its default and its names in the environment and on the command line.

/// What a value is shown as, and whether it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Number,
    Flag,
    Text,
    List,
    /// A URL that may hold a password.
    Url,
    /// Never shown.
    Secret,
}

/// A key of a section: `server.listen`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and key, with a dot between them.
    pub name: &'static str,
    pub kind: Kind,
    /// As it would be written in the environment; `None` is "not set".
    pub default: Option<&'static str>,
    /// The short name in the environment, for the few keys that have one.
    pub short_env: Option<&'static str>,
}

impl Key {
    /// The name in the environment that every key has: `PROMPT_MANAGER_SERVER__LISTEN`.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.replacen('.', "__", 1).to_uppercase())
    }
}

/// What all names in the environment begin with.
pub const ENV_PREFIX: &str = "PROMPT_MANAGER_";

/// The variable that names the configuration file.
pub const ENV_CONFIG: &str = "PROMPT_MANAGER_CONFIG";

/// What the client reads (`prompt-manager run`); servers ignore them.
pub const ENV_CLIENT: [&str; 2] = ["PROMPT_MANAGER_API_KEY", "PROMPT_MANAGER_BASE_URL"];

const fn key(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default: Some(default), short_env: None }
}

const fn unset(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, default: None, short_env: None }
}

const fn short(short_env: &'static str, key: Key) -> Key {
    Key { short_env: Some(short_env), ..key }
}

/// Where the API is served unless somebody says otherwise.
pub const USUAL_LISTEN: &str = "127.0.0.1:8080";

/// The keys of the sections, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    short("PROMPT_MANAGER_LISTEN", key("server.listen", Kind::Text, USUAL_LISTEN)),
    short("PROMPT_MANAGER_METRICS_LISTEN", unset("server.metrics_listen", Kind::Text)),
    key("server.max_body_bytes", Kind::Number, "1048576"),
    key("server.header_read_timeout_ms", Kind::Number, "10000"),
    key("server.drain_timeout_ms", Kind::Number, "30000"),
    unset("runtime.threads", Kind::Number),
    short("PROMPT_MANAGER_DATABASE_URL", key("database.url", Kind::Url, "sqlite://prompt-manager.db?mode=rwc")),
    key("database.max_connections", Kind::Number, "10"),
    key("database.connect_timeout_ms", Kind::Number, "5000"),
    short("PROMPT_MANAGER_REDIS_URL", unset("redis.url", Kind::Url)),
    key("redis.pool", Kind::Text, "default"),
    key("redis.max_connections", Kind::Number, "16"),
    short("PROMPT_MANAGER_SECRET_KEY", unset("security.secret_key", Kind::Secret)),
    key("workers.slots", Kind::Number, "64"),
    key("workers.lease_ms", Kind::Number, "15000"),
    unset("websocket.allowed_origins", Kind::List),
    key("websocket.max_sockets", Kind::Number, "20000"),
    key("websocket.max_sockets_per_key", Kind::Number, "1000"),
    key("websocket.max_runs", Kind::Number, "32"),
    key("websocket.max_message_bytes", Kind::Number, "1048576"),
    key("websocket.ping_ms", Kind::Number, "30000"),
    key("queue.max_depth", Kind::Number, "200000"),
    key("queue.max_bytes", Kind::Number, "536870912"),
    key("batches.max_lines", Kind::Number, "100000"),
    key("batches.max_bytes", Kind::Number, "268435456"),
    key("batches.max_in_flight", Kind::Number, "1000"),
    unset("limits.account_requests_per_minute", Kind::Number),
    unset("limits.key_requests_per_minute", Kind::Number),
    key("limits.default_timeout_ms", Kind::Number, "30000"),
    key("limits.max_timeout_ms", Kind::Number, "3600000"),
    key("limits.async_timeout_ms", Kind::Number, "3600000"),
    key("limits.max_rendered_bytes", Kind::Number, "1048576"),
    key("cache.ttl_ms", Kind::Number, "3600000"),
    key("retry.max_attempts", Kind::Number, "4"),
    key("retry.base_ms", Kind::Number, "250"),
    key("retry.cap_ms", Kind::Number, "20000"),
    unset("webhooks.allow", Kind::List),
    key("webhooks.timeout_ms", Kind::Number, "15000"),
    key("webhooks.retry_base_ms", Kind::Number, "30000"),
    key("webhooks.retry_cap_ms", Kind::Number, "1800000"),
    key("webhooks.give_up_after_ms", Kind::Number, "259200000"),
    key("webhooks.secret_overlap_ms", Kind::Number, "86400000"),
    key("retention.keep_content", Kind::Flag, "true"),
    key("log.level", Kind::Text, "info"),
    key("log.format", Kind::Text, "text"),
];

/// The keys of a `[[provider]]`.
pub const PROVIDER_KEYS: &[(&str, Kind)] = &[
    ("name", Kind::Text),
    ("kind", Kind::Text),
    ("base_url", Kind::Url),
    ("api_key_env", Kind::Text),
    ("api_key_file", Kind::Text),
    ("attempt_timeout_ms", Kind::Number),
    ("idle_timeout_ms", Kind::Number),
    ("connect_timeout_ms", Kind::Number),
    ("max_response_bytes", Kind::Number),
    ("max_concurrency", Kind::Number),
    ("requests_per_minute", Kind::Number),
    ("tokens_per_minute", Kind::Number),
    ("demo_delay_ms", Kind::Number),
];

/// The keys of a `[[model]]`.
pub const MODEL_KEYS: &[(&str, Kind)] = &[
    ("name", Kind::Text),
    ("provider", Kind::Text),
    ("upstream", Kind::Text),
    ("input_usd_per_million", Kind::Number),
    ("output_usd_per_million", Kind::Number),
    ("plans", Kind::List),
];
