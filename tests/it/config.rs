//! The configuration as operators meet it: which source wins, what is refused and in which words, and what is never shown.

mod documents;
mod secrets;
mod tables;

use std::{fs, path::Path, time::Duration};

use prompt_manager::config::{AllowedHost, Config, Inputs, KEYS, Kind, Loaded, Source};
use tempfile::TempDir;
use workers::providers::ProviderKind;

/// A working directory, an environment and flags to load from.
struct Setup {
    directory: TempDir,
    inputs: Inputs,
}

impl Setup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let inputs = Inputs { directory: directory.path().to_owned(), ..Inputs::default() };
        Self { directory, inputs }
    }

    fn file(self, text: &str) -> Self {
        self.named_file("prompt-manager.toml", text)
    }

    fn named_file(self, name: &str, text: &str) -> Self {
        fs::write(self.directory.path().join(name), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.inputs.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn listen_flag(mut self, value: &str) -> Self {
        self.inputs.flags.listen = Some(value.to_owned());
        self
    }

    fn load(&self) -> Loaded {
        Config::load(&self.inputs).unwrap_or_else(|error| panic!("{error}"))
    }

    fn config(&self) -> Config {
        self.load().config
    }

    fn problems(&self) -> Vec<String> {
        Config::load(&self.inputs).err().map(|error| error.problems).unwrap_or_default()
    }
}

/// One problem, in exactly these words.
#[track_caller]
fn check_refused(setup: Setup, sentence: &str) {
    assert_eq!(setup.problems(), [sentence.to_owned()]);
}

#[test]
fn without_anything_the_documented_defaults_hold() {
    let loaded = Setup::new().load();
    let config = loaded.config;
    assert_eq!(config.file, None);
    assert_eq!(config.server.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.server.metrics_listen, None);
    assert_eq!(config.database.url.expose(), "sqlite://prompt-manager.db?mode=rwc");
    assert!(config.redis.is_none());
    assert!(config.secret_key.is_none());
    assert_eq!(config.workers.slots, 64);
    assert_eq!(config.workers.lease, Duration::from_secs(15));
    assert_eq!(config.limits.default_timeout, Duration::from_secs(30));
    assert_eq!(config.retry, workers::retry::RetryPolicy::default());
    assert!(config.keep_content);
    let openai = &config.providers["openai"];
    assert_eq!((openai.kind, openai.base_url.as_str()), (ProviderKind::OpenAi, "https://api.openai.com/v1"));
    assert_eq!(openai.api_key_env.as_deref(), Some("OPENAI_API_KEY"));
    assert_eq!(openai.attempt_timeout, Duration::from_secs(120));
    assert_eq!(openai.idle_timeout, Duration::from_secs(30));
    assert_eq!(openai.max_response_bytes, 4 << 20);
    assert_eq!(openai.requests_per_minute, None);
    assert_eq!(config.providers["demo"].kind, ProviderKind::Demo);
    assert!(loaded.settings.iter().all(|setting| setting.source == Source::Default));
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = "[server]\nlisten = '127.0.0.1:1'\nmax_body_bytes = 7\n[workers]\nslots = 3";
    let setup = Setup::new().file(file);
    assert_eq!(setup.config().server.listen.port(), 1);
    let setup = setup.env("PROMPT_MANAGER_LISTEN", "127.0.0.1:2").env("PROMPT_MANAGER_WORKERS__SLOTS", "5");
    assert_eq!(setup.config().server.listen.port(), 2);
    let setup = setup.listen_flag("127.0.0.1:3");
    let loaded = setup.load();
    assert_eq!(loaded.config.server.listen.port(), 3);
    assert_eq!(loaded.config.workers.slots, 5);
    assert_eq!(loaded.config.server.max_body_bytes, 7);
    let source = |key: &str| loaded.settings.iter().find(|setting| setting.key == key).unwrap().source.to_string();
    assert_eq!(source("server.listen"), "flag --listen");
    assert_eq!(source("workers.slots"), "environment variable PROMPT_MANAGER_WORKERS__SLOTS");
    assert_eq!(source("server.max_body_bytes"), "prompt-manager.toml, line 3");
    assert_eq!(source("log.level"), "default");
}

#[test]
fn the_file_is_the_flags_then_the_environments_then_the_working_directorys() {
    let setup = Setup::new()
        .file("[workers]\nslots = 1")
        .named_file("env.toml", "[workers]\nslots = 2")
        .named_file("flag.toml", "[workers]\nslots = 3");
    assert_eq!(setup.config().workers.slots, 1);
    let mut setup = setup.env("PROMPT_MANAGER_CONFIG", "env.toml");
    assert_eq!(setup.config().workers.slots, 2);
    setup.inputs.flags.config = Some("flag.toml".into());
    let config = setup.config();
    assert_eq!(config.workers.slots, 3);
    assert_eq!(config.file.as_deref(), Some(Path::new("flag.toml")));
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let mut setup = Setup::new().file("");
    setup.inputs.flags.config = Some("absent.toml".into());
    check_refused(
        setup,
        "the configuration file absent.toml (flag --config) cannot be read: No such file or directory (os error 2)",
    );
    check_refused(
        Setup::new().env("PROMPT_MANAGER_CONFIG", "absent.toml"),
        "the configuration file absent.toml (environment variable PROMPT_MANAGER_CONFIG) cannot be read: \
         No such file or directory (os error 2)",
    );
}

/// A value for each key that differs from its default, as the environment would give it.
fn another_value(key: &str) -> &'static str {
    match key {
        "server.listen" | "server.metrics_listen" => "127.0.0.1:0",
        "database.url" => "postgres://db/pm",
        "redis.url" => "redis://cache",
        "redis.pool" => "eu",
        "websocket.allowed_origins" => "https://chat.example",
        "security.secret_key" => "0123456789abcdef",
        "retention.keep_content" => "false",
        "log.level" => "debug",
        "log.format" => "json",
        "webhooks.allow" => "10.1.0.0/16,hooks.internal",
        "webhooks.retry_cap_ms" => "1800001",
        "workers.lease_ms" => "11000",
        "limits.max_timeout_ms" => "3600001",
        "retry.cap_ms" => "20001",
        _ => "11",
    }
}

#[test]
fn origins_are_written_as_browsers_write_them() {
    let origins = |list: &str| Setup::new().file(&format!("[websocket]\nallowed_origins = {list}"));
    let allowed = origins("['https://chat.example', 'http://localhost:3000']").config().websocket.allowed_origins;
    assert_eq!(allowed, ["https://chat.example", "http://localhost:3000"]);
    assert_eq!(origins("['*']").config().websocket.allowed_origins, ["*"]);
    let listed = Setup::new().env("PROMPT_MANAGER_WEBSOCKET__ALLOWED_ORIGINS", "https://a.example, https://b.example");
    assert_eq!(listed.config().websocket.allowed_origins, ["https://a.example", "https://b.example"]);
    check_refused(
        origins("['https://chat.example:443/']"),
        "websocket.allowed_origins (prompt-manager.toml, line 2) must be a list of origins, such as https://chat.example, or *, \
         but is a list with \"https://chat.example:443/\", which browsers write \"https://chat.example\"",
    );
    check_refused(
        origins("['chat.example']"),
        "websocket.allowed_origins (prompt-manager.toml, line 2) must be a list of origins, such as https://chat.example, or *, \
         but is a list with \"chat.example\"",
    );
}

#[test]
fn every_key_can_be_set_in_the_environment_and_in_the_file() {
    for key in KEYS {
        let text = another_value(key.name);
        let (section, name) = key.name.split_once('.').unwrap();
        let typed = match key.kind {
            Kind::Number | Kind::Flag => text.to_owned(),
            Kind::List => format!("{:?}", text.split(',').collect::<Vec<_>>()),
            _ => format!("{text:?}"),
        };
        let file = Setup::new().file(&format!("[{section}]\n{name} = {typed}"));
        let mut setups = vec![file, Setup::new().env(&key.env(), text)];
        setups.extend(key.short_env.map(|short| Setup::new().env(short, text)));
        let values: Vec<_> = setups
            .iter()
            .map(|setup| {
                let settings = setup.load().settings;
                let setting = settings.into_iter().find(|setting| setting.key == key.name).unwrap();
                assert_ne!(setting.source, Source::Default, "{}", key.name);
                setting.value
            })
            .collect();
        assert!(values.iter().all(|value| *value == values[0]), "{}: {values:?}", key.name);
    }
}

#[test]
fn what_webhooks_may_call_is_networks_addresses_and_names() {
    let config = Setup::new().file("[webhooks]\nallow = ['10.1.0.0/16', '::1', 'Hooks.internal']").config();
    let expect = [
        AllowedHost::Network("10.1.0.0/16".parse().unwrap()),
        AllowedHost::Network("::1/128".parse().unwrap()),
        AllowedHost::Name("hooks.internal".to_owned()),
    ];
    assert_eq!(config.webhooks.allow, expect);
    let wanted = "must be a list of networks, addresses and host names, such as 10.1.2.0/24 and hooks.internal, but is";
    for wrong in ["10.1.0.0/33", "10.1", "http://hooks", "a b", ""] {
        let problem = format!("webhooks.allow (prompt-manager.toml, line 2) {wanted} {wrong:?}");
        check_refused(Setup::new().file(&format!("[webhooks]\nallow = [{wrong:?}]")), &problem);
    }
    let problem = format!("webhooks.allow (prompt-manager.toml, line 2) {wanted} a list with 7");
    check_refused(Setup::new().file("[webhooks]\nallow = [7]"), &problem);
}

#[test]
fn unknown_names_are_refused_with_the_name_that_was_meant() {
    check_refused(
        Setup::new().file("[server]\nlisten = '127.0.0.1:1'\nlisen = 1"),
        "server.lisen (prompt-manager.toml, line 3) is not a key of the configuration; did you mean server.listen?",
    );
    check_refused(
        Setup::new().file("\n[sever]\nlisten = 1"),
        "sever (prompt-manager.toml, line 2) is not a section of the configuration; did you mean server?",
    );
    check_refused(
        Setup::new().file("[[model]]\nname = 'm'\nprovider = 'demo'\nupsteam = 'x'"),
        "upsteam (prompt-manager.toml, line 4) is not a key of a [[model]]; did you mean upstream?",
    );
    check_refused(
        Setup::new().env("PROMPT_MANAGER_REDIS_ULR", "redis://secret-host"),
        "environment variable PROMPT_MANAGER_REDIS_ULR is not one that Prompt Manager knows; \
         did you mean PROMPT_MANAGER_REDIS_URL?",
    );
    check_refused(
        Setup::new().env("PROMPT_MANAGER_SOMETHING_ELSE_ALTOGETHER", ""),
        "environment variable PROMPT_MANAGER_SOMETHING_ELSE_ALTOGETHER is not one that Prompt Manager knows",
    );
}

#[test]
fn the_clients_variables_and_everybody_elses_are_left_alone() {
    let setup = Setup::new()
        .env("PROMPT_MANAGER_API_KEY", "sk_x")
        .env("PROMPT_MANAGER_BASE_URL", "http://example.org")
        .env("PATH", "/bin")
        .env("PROMPT", ">");
    assert_eq!(setup.problems(), Vec::<String>::new());
}

#[test]
fn a_key_cannot_be_set_under_two_names() {
    check_refused(
        Setup::new().env("PROMPT_MANAGER_LISTEN", "127.0.0.1:1").env("PROMPT_MANAGER_SERVER__LISTEN", "127.0.0.1:1"),
        "environment variables PROMPT_MANAGER_LISTEN and PROMPT_MANAGER_SERVER__LISTEN both set server.listen: unset one of them",
    );
}

#[test]
fn a_value_that_makes_no_sense_is_refused_in_one_sentence() {
    let refused = |file: &str, sentence: &str| check_refused(Setup::new().file(file), sentence);
    refused(
        "[server]\nlisten = 'localhost'",
        "server.listen (prompt-manager.toml, line 2) must be an IP address and a port, such as 127.0.0.1:8080, but is \"localhost\"",
    );
    refused(
        "[workers]\nslots = '8'",
        "workers.slots (prompt-manager.toml, line 2) must be a whole number from 1 to 100000, but is \"8\"",
    );
    refused(
        "[workers]\nslots = 0",
        "workers.slots (prompt-manager.toml, line 2) must be a whole number from 1 to 100000, but is 0",
    );
    refused(
        "[workers]\nlease_ms = 999",
        "workers.lease_ms (prompt-manager.toml, line 2) must be a whole number from 1000 to 600000, but is 999",
    );
    refused(
        "[limits]\nkey_requests_per_minute = 0",
        "limits.key_requests_per_minute (prompt-manager.toml, line 2) must be a whole number from 1 up \
         (leave it out for no limit), but is 0",
    );
    refused(
        "[database]\nconnect_timeout_ms = 0",
        "database.connect_timeout_ms (prompt-manager.toml, line 2) must be a whole number of milliseconds from 1 to 86400000, but is 0",
    );
    refused(
        "[retention]\nkeep_content = 'yes'",
        "retention.keep_content (prompt-manager.toml, line 2) must be true or false, but is \"yes\"",
    );
    refused("[log]\nformat = 'xml'", "log.format (prompt-manager.toml, line 2) must be text or json, but is \"xml\"");
    refused(
        "[log]\nlevel = 'info=info=info'",
        "log.level (prompt-manager.toml, line 2) must be a log filter, such as info or prompt_manager=debug,info, \
         but is \"info=info=info\"",
    );
    refused(
        "[redis]\nurl = ''",
        "redis.url (prompt-manager.toml, line 2) must be a URL that begins with redis: or rediss: or valkey: or valkeys:, but is empty",
    );
    refused(
        "[redis]\npool = 'a b'",
        "redis.pool (prompt-manager.toml, line 2) must be a name of at most 100 letters, digits, '-', '_', '.', ':' and '/', \
         but is \"a b\"",
    );
    refused("server = 1", "server (prompt-manager.toml, line 1) must be a section: write [server]");
    refused(
        "[provider]\nname = 'x'",
        "provider (prompt-manager.toml, line 1) must be a list of tables: write [[provider]]",
    );
    refused(
        "[server]\nlisten = 1",
        "server.listen (prompt-manager.toml, line 2) must be an IP address and a port, such as 127.0.0.1:8080, but is 1",
    );
    check_refused(
        Setup::new().env("PROMPT_MANAGER_WORKERS__SLOTS", "many"),
        "workers.slots (environment variable PROMPT_MANAGER_WORKERS__SLOTS) must be a whole number from 1 to 100000, but is \"many\"",
    );
    check_refused(
        Setup::new().listen_flag(""),
        "server.listen (flag --listen) must be an IP address and a port, such as 127.0.0.1:8080, but is empty",
    );
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let refused = |file: &str, sentence: &str| check_refused(Setup::new().file(file), sentence);
    refused(
        "[server]\nmetrics_listen = '127.0.0.1:8080'",
        "server.metrics_listen (prompt-manager.toml, line 2) must be another address than server.listen, but is 127.0.0.1:8080 as well",
    );
    refused(
        "[limits]\nmax_timeout_ms = 3600000\ndefault_timeout_ms = 3600001",
        "limits.default_timeout_ms (prompt-manager.toml, line 3) must be at most limits.max_timeout_ms \
         (3600000, prompt-manager.toml, line 2), but is 3600001",
    );
    refused(
        "[retry]\nbase_ms = 30000",
        "retry.base_ms (prompt-manager.toml, line 2) must be at most retry.cap_ms (20000, default), but is 30000",
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let setup = Setup::new()
        .file("[server]\nlisten = 1\nlisen = 1\n[workers]\nslots = 0\n[[model]]\nprovider = 'demo'")
        .env("PROMPT_MANAGER_NOPE", "1")
        .env("PROMPT_MANAGER_LOG__FORMAT", "xml");
    let problems = setup.problems();
    for part in ["server.listen ", "server.lisen ", "workers.slots ", "model (", "PROMPT_MANAGER_NOPE", "log.format "] {
        assert_eq!(problems.iter().filter(|problem| problem.contains(part)).count(), 1, "{part}: {problems:#?}");
    }
    assert_eq!(problems.len(), 6, "{problems:#?}");
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    let problems = Setup::new().file("[server]\nlisten = '127.0.0.1:1'\nlisten = '127.0.0.1:2'\n").problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("prompt-manager.toml, line 3: this is not TOML: "), "{problems:?}");
    let problems = Setup::new().file("[security]\n\nsecret_key = planted-secret\n").problems();
    assert!(problems[0].starts_with("prompt-manager.toml, line 3: this is not TOML: "), "{problems:?}");
    assert!(!problems[0].contains("planted"), "{problems:?}");
}
