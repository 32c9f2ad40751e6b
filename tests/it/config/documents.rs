//! The example file and the documentation say what the program does.

use std::{collections::HashMap, fs, path::Path};

use prompt_manager::config::{KEYS, MODEL_KEYS, PROVIDER_KEYS, Source};

use super::Setup;

fn repository(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_example_file_is_valid_and_shows_every_default() {
    let example = repository("prompt-manager.example.toml");
    let setup = Setup::new().file(&example);
    let loaded = setup.load();
    let defaults: HashMap<String, serde_json::Value> =
        Setup::new().load().settings.into_iter().map(|setting| (setting.key, setting.value)).collect();
    for key in KEYS {
        let name = key.name.split_once('.').unwrap().1;
        let line = example.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{name} = ")));
        assert!(line.is_some(), "the example does not mention {}", key.name);
        let setting = loaded.settings.iter().find(|setting| setting.key == key.name).unwrap();
        if !matches!(setting.source, Source::Default) && key.default.is_some() {
            assert_eq!(setting.value, defaults[key.name], "{} is said to be the default", key.name);
        }
    }
}

#[test]
fn the_documentation_has_every_key_with_its_default_and_names() {
    let text = repository("docs/configuration.md");
    let row =
        |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no row {start}"));
    for key in KEYS {
        let row = row(&format!("| `{}` |", key.name));
        assert!(row.contains(&format!("`{}`", key.env())), "{row}");
        let default = key.default.map_or("| no".to_owned(), |default| format!("| `{default}` |"));
        assert!(row.contains(&default), "{row} must have {default}");
        assert!(key.short_env.is_none_or(|short| row.contains(&format!("`{short}`"))), "{row}");
    }
    let (providers, models) = text.split_once("## Models").unwrap();
    let providers = providers.split_once("## Providers").unwrap().1;
    for (section, keys) in [(providers, PROVIDER_KEYS), (models, MODEL_KEYS)] {
        for (key, _) in keys {
            assert!(section.contains(&format!("\n| `{key}` |")), "no row for {key}");
        }
    }
}
