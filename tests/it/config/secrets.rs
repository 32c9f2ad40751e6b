//! Secrets are in force and nowhere to be read.

use super::Setup;

/// Secrets in every place that takes one.
fn planted() -> Setup {
    Setup::new()
        .file(
            "[security]\nsecret_key = 'planted-1'\n[redis]\nurl = 'redis://:planted-2@cache/0'\n\
             [[provider]]\nname = 'openai'\napi_key_file = 'key'\n\
             [[provider]]\nname = 'local'\nkind = 'openai'\nbase_url = 'http://127.0.0.1/v1?api-version=3'\napi_key_env = 'LOCAL_KEY'",
        )
        .named_file("key", "planted-4")
        .env("PROMPT_MANAGER_DATABASE_URL", "postgres://pm:planted-5@db/pm?password=planted-6")
        .env("LOCAL_KEY", "planted-7")
}

#[test]
fn secrets_are_in_force_and_in_no_list() {
    let loaded = planted().load();
    assert_eq!(loaded.config.secret_key.as_ref().unwrap().expose(), "planted-1");
    assert_eq!(loaded.config.providers["openai"].api_key.as_ref().unwrap().expose(), "planted-4");
    assert_eq!(loaded.config.providers["local"].api_key.as_ref().unwrap().expose(), "planted-7");
    let settings = format!("{:?}", loaded.settings);
    assert!(!settings.contains("planted"), "{settings}");
    assert!(settings.contains("redis://:[secret]@cache/0"), "{settings}");
}

#[test]
fn of_several_secret_keys_the_first_is_in_use() {
    let config = Setup::new().env("PROMPT_MANAGER_SECRET_KEY", "new, old,older").config();
    assert_eq!(config.secret_key.unwrap().expose(), "new");
    let old: Vec<_> = config.old_secret_keys.iter().map(|key| key.expose()).collect();
    assert_eq!(old, ["old", "older"]);
    let problems = Setup::new().env("PROMPT_MANAGER_SECRET_KEY", "planted,,old").problems();
    assert!(problems.len() == 1 && !problems[0].contains("planted"), "{problems:?}");
}

#[test]
fn the_debug_text_of_a_configuration_has_no_secret() {
    let debug = format!("{:?}", planted().load());
    assert!(!debug.contains("planted"), "{debug}");
}

#[test]
fn a_secret_that_is_wrong_is_not_shown_either() {
    for (name, value) in [
        ("PROMPT_MANAGER_DATABASE_URL", "mysql://pm:planted@db"),
        ("PROMPT_MANAGER_DATABASE_URL", "planted@db"),
        ("PROMPT_MANAGER_DATABASE_URL", "postgres://pm:planted@db:port/x"),
        ("PROMPT_MANAGER_REDIS_URL", "planted"),
        ("OPENAI_API_KEY", "planted planted"),
        ("PROMPT_MANAGER_SECRET", "planted"),
    ] {
        let problems = Setup::new().env(name, value).problems();
        assert_eq!(problems.len(), 1, "{name}={value}: {problems:?}");
        assert!(!problems[0].contains("planted"), "{problems:?}");
    }
    let problems =
        Setup::new().file("[[provider]]\nname = 'openai'\nbase_url = 'http://x/?api-key=planted'").problems();
    assert!(problems.len() == 1 && !problems[0].contains("planted"), "{problems:?}");
    let problems = Setup::new().file("[security]\nsecret_key = 31337").problems();
    assert_eq!(
        problems,
        [
            "security.secret_key (prompt-manager.toml, line 2) must be a text that is not empty, but is something else (not shown)"
        ]
    );
}
