//! Providers and models: what is added, what is there unwritten, and what is refused.

use std::time::Duration;

use workers::{job::Price, providers::ProviderKind};

use super::{Setup, check_refused};

#[test]
fn an_entry_adds_a_provider_or_changes_one_that_exists() {
    let setup = Setup::new()
        .file(
            "[[provider]]\nname = 'openai'\nrequests_per_minute = 9\n\
             [[provider]]\nname = 'local'\nkind = 'openai'\nbase_url = 'http://127.0.0.1:11434/v1/'\napi_key_env = 'LOCAL_KEY'\n\
             tokens_per_minute = 5\nmax_concurrency = 2\nattempt_timeout_ms = 7\n\
             [[provider]]\nname = 'azure'\nkind = 'azure-openai'\nbase_url = 'https://x.openai.azure.com/openai/v1'\n\
             [[provider]]\nname = 'demo'\ndemo_delay_ms = 40",
        )
        .env("LOCAL_KEY", " local-secret\n")
        .env("OPENAI_API_KEY", "openai-secret")
        .env("AZURE_OPENAI_API_KEY", "azure-secret");
    let config = setup.config();
    let openai = &config.providers["openai"];
    assert_eq!((openai.requests_per_minute, openai.base_url.as_str()), (Some(9), "https://api.openai.com/v1"));
    assert_eq!(openai.api_key.as_ref().unwrap().expose(), "openai-secret");
    let local = &config.providers["local"];
    assert_eq!(local.base_url, "http://127.0.0.1:11434/v1");
    assert_eq!(local.api_key.as_ref().unwrap().expose(), "local-secret");
    assert_eq!((local.tokens_per_minute, local.max_concurrency), (Some(5), Some(2)));
    assert_eq!(local.attempt_timeout, Duration::from_millis(7));
    assert_eq!(config.providers["azure"].kind, ProviderKind::AzureOpenAi);
    assert_eq!(config.providers["azure"].api_key.as_ref().unwrap().expose(), "azure-secret");
    assert_eq!(config.providers["demo"].demo_delay, Duration::from_millis(40));
}

#[test]
fn a_variable_for_a_key_may_be_called_anything() {
    let file = "[[provider]]\nname = 'openai'\napi_key_env = 'PROMPT_MANAGER_UPSTREAM_KEY'";
    let config = Setup::new().file(file).env("PROMPT_MANAGER_UPSTREAM_KEY", "secret").config();
    assert_eq!(config.providers["openai"].api_key.as_ref().unwrap().expose(), "secret");
}

#[test]
fn no_key_goes_to_an_address_it_was_not_made_for() {
    let file = "[[provider]]\nname = 'other'\nkind = 'openai'\nbase_url = 'https://other.example/v1'\n\
                [[provider]]\nname = 'second'\nkind = 'openai'";
    let config = Setup::new().file(file).env("OPENAI_API_KEY", "openai-secret").config();
    assert_eq!(config.providers["other"].api_key, None);
    assert_eq!(config.providers["other"].api_key_env, None);
    assert_eq!(config.providers["second"].api_key.as_ref().unwrap().expose(), "openai-secret");
}

#[test]
fn a_key_may_come_from_a_file_beside_the_configuration() {
    let entry = "[[provider]]\nname = 'openai'\napi_key_file = 'key'";
    let config =
        Setup::new().file(entry).named_file("key", "file-secret\n").env("OPENAI_API_KEY", "env-secret").config();
    assert_eq!(config.providers["openai"].api_key.as_ref().unwrap().expose(), "file-secret");

    let setup = Setup::new().file(entry);
    let path = setup.directory.path().join("key").display().to_string();
    let source = "provider.openai.api_key_file (prompt-manager.toml, line 3) names";
    check_refused(setup, &format!("{source} {path}, which cannot be read: No such file or directory (os error 2)"));
    let setup = Setup::new().file(entry).named_file("key", "\n");
    let path = setup.directory.path().join("key").display().to_string();
    check_refused(setup, &format!("{source} {path}, which is empty"));
    check_refused(
        Setup::new().file(entry).named_file("key", "two words"),
        "provider.openai.api_key (prompt-manager.toml, line 3) must be visible ASCII characters without spaces, \
         but is something else (not shown)",
    );
}

#[test]
fn a_provider_that_makes_no_sense_is_refused_in_one_sentence() {
    let refused =
        |entry: &str, sentence: &str| check_refused(Setup::new().file(&format!("[[provider]]\n{entry}")), sentence);
    refused("kind = 'openai'", "provider (prompt-manager.toml, line 1) must have a name");
    refused("name = 'x'", "provider.x.kind (prompt-manager.toml, line 2) must be set");
    refused(
        "name = 'x'\nkind = 'cohere'",
        "provider.x.kind (prompt-manager.toml, line 3) must be openai or azure-openai or demo, but is \"cohere\"",
    );
    for planned in ["anthropic", "gemini"] {
        refused(
            &format!("name = 'x'\nkind = '{planned}'"),
            &format!(
                "provider.x.kind (prompt-manager.toml, line 3) must be openai or azure-openai or demo, but is \"{planned}\", \
                 for which this version has no adapter yet"
            ),
        );
    }
    refused("name = 'x'\nkind = 'azure-openai'", "provider.x.base_url (prompt-manager.toml, line 2) must be set");
    refused(
        "name = 'x'\nkind = 'openai'\nrequests_per_minute = 0",
        "provider.x.requests_per_minute (prompt-manager.toml, line 4) must be a whole number from 1 up \
         (leave it out for no limit), but is 0",
    );
    refused(
        "name = 'openai'\nbase_url = 'ftp://x'",
        "provider.openai.base_url (prompt-manager.toml, line 3) must be a URL that begins with https: or http:, \
         but is one that begins with ftp:",
    );
    refused(
        "name = 'openai'\nbase_url = 'https://user:planted@x/v1'",
        "provider.openai.base_url (prompt-manager.toml, line 3) must be an http: or https: URL without user name, password, key or fragment, \
         but is one with them",
    );
    refused(
        "name = 'openai'\napi_key_env = 'A'\napi_key_file = 'b'",
        "provider.openai.api_key_file (prompt-manager.toml, line 4) and api_key_env exclude each other: keep one",
    );
    refused(
        "name = 'demo'\nbase_url = 'http://x'",
        "provider.demo.base_url (prompt-manager.toml, line 3) means nothing for a provider of this kind",
    );
    refused(
        "name = 'x'\nkind = 'demo'\n[[provider]]\nname = 'x'\nkind = 'demo'",
        "provider \"x\" (prompt-manager.toml, line 5) is there already (prompt-manager.toml, line 2): names are unique",
    );
}

#[test]
fn a_model_has_an_upstream_name_an_exact_price_and_plans() {
    let config = Setup::new()
        .file(
            "[[model]]\nname = 'gpt-4'\nprovider = 'openai'\nupstream = 'gpt-4-0613'\n\
             input_usd_per_million = 0.1\noutput_usd_per_million = 3\nplans = ['pro']\n\
             [[model]]\nname = 'meta-llama/Llama-3.1:free'\nprovider = 'demo'",
        )
        .config();
    let model = config.model("gpt-4").unwrap();
    assert_eq!((model.provider.as_str(), model.upstream.as_str()), ("openai", "gpt-4-0613"));
    assert_eq!(model.price, Some(Price { input: 100_000_000, output: 3_000_000_000 }));
    assert_eq!(model.plans, ["pro"]);
    let model = config.model("meta-llama/Llama-3.1:free").unwrap();
    assert_eq!((model.upstream.as_str(), model.price, model.plans.len()), ("meta-llama/Llama-3.1:free", None, 0));
}

#[test]
fn the_list_of_models_is_open_until_its_first_entry() {
    let config = Setup::new().config();
    assert_eq!(config.model("demo").unwrap().provider, "demo");
    let unlisted = config.model("gpt-4o").unwrap();
    assert_eq!((unlisted.provider.as_str(), unlisted.upstream.as_str(), unlisted.price), ("openai", "gpt-4o", None));

    let config = Setup::new().file("[[model]]\nname = 'gpt-4o'\nprovider = 'openai'").config();
    assert!(config.model("gpt-4o").is_some());
    assert!(config.model("demo").is_some());
    assert_eq!(config.model("gpt4-o"), None);
}

#[test]
fn a_model_that_makes_no_sense_is_refused_in_one_sentence() {
    let refused =
        |entry: &str, sentence: &str| check_refused(Setup::new().file(&format!("[[model]]\n{entry}")), sentence);
    refused("name = 'x'", "model.x.provider (prompt-manager.toml, line 2) must be set");
    refused(
        "name = 'x'\nprovider = 'opnai'",
        "model.x.provider (prompt-manager.toml, line 3) must be the name of a provider (demo, openai), but is \"opnai\"",
    );
    refused(
        "name = 'x y'\nprovider = 'demo'",
        "model.name (prompt-manager.toml, line 2) must be a name of at most 200 visible ASCII characters without spaces, but is \"x y\"",
    );
    for price in ["-1", "-0.5", "nan", "inf", "0.0000000001", "'2'"] {
        let shown = price.replace('\'', "\"");
        refused(
            &format!("name = 'x'\nprovider = 'demo'\ninput_usd_per_million = {price}\noutput_usd_per_million = 1"),
            &format!(
                "model.x.input_usd_per_million (prompt-manager.toml, line 4) must be a price in US dollars of at least 0 \
                 with at most nine decimals, such as 2.5, but is {shown}"
            ),
        );
    }
    refused(
        "name = 'x'\nprovider = 'demo'\ninput_usd_per_million = 1",
        "model.x.output_usd_per_million (prompt-manager.toml, line 2) must be set too: a price has two parts",
    );
    refused(
        "name = 'x'\nprovider = 'demo'\nplans = ['gold']",
        "model.x.plans (prompt-manager.toml, line 4) must be a list of free and pro, but is a list with \"gold\"",
    );
    refused(
        "name = 'x'\nprovider = 'demo'\n[[model]]\nname = 'x'\nprovider = 'demo'",
        "model \"x\" (prompt-manager.toml, line 5) is there already (prompt-manager.toml, line 2): names are unique",
    );
}

#[test]
fn a_provider_that_is_wrong_is_reported_once_and_not_again_for_its_models() {
    let setup = Setup::new().file("[[provider]]\nname = 'x'\nkind = 'gemini'\n[[model]]\nname = 'm'\nprovider = 'x'");
    assert_eq!(setup.problems().len(), 1, "{:?}", setup.problems());
}
