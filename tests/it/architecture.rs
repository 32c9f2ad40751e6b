//! What must be absent, looked for in the sources: the invariants that ARCHITECTURE.md states about who may know what.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Whether a source file holds nothing but tests.
fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.contains("/property")
}

/// No source file outside `allowed` contains any of `words`.
fn check(words: &[&str], allowed: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut strays = Vec::new();
    for folder in ["src", "workers/src", "migrations/src"] {
        for file in sources(&root.join(folder)) {
            let name = file.strip_prefix(root).unwrap().display().to_string();
            if is_test(&name) || allowed.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            // Comments may speak of what the code must not do.
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for (number, line) in code.enumerate() {
                for word in words.iter().filter(|word| line.contains(**word)) {
                    strays.push(format!("{name}: `{word}` near code line {}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(strays.is_empty(), "only {allowed:?} may know this:\n{}", strays.join("\n"));
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "lua") {
            found.push(path);
        }
    }
    assert!(!found.is_empty() || folder.ends_with("demo"), "{folder:?} has no sources");
    found
}

#[test]
fn only_the_executors_know_actix() {
    check(&["actix"], &["workers/src/executor"]);
}

#[test]
fn no_mailbox_is_filled_past_its_bound() {
    check(&["do_send("], &[]);
}

#[test]
fn only_the_redis_queue_knows_redis() {
    check(&["redis::cmd", "redis::Script", "{q:"], &["workers/src/queue/redis", "workers/src/queue/scripts"]);
}

#[test]
fn only_the_front_door_knows_http_servers() {
    check(&["axum", "hyper_util", "hyper::server"], &["src/http", "src/node.rs"]);
}

#[test]
fn a_release_build_has_no_fail_points() {
    check(&["FAIL_POINTS"], &["workers/src/fail/armed.rs"]);
    check(&["CLOCK_SKEW_FILE"], &["workers/src/fail/skewed.rs"]);
    let fail = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/src/fail.rs")).unwrap();
    for line in ["mod armed;", "mod skewed;", "pub(crate) use self::armed::", "pub(crate) use self::skewed::"] {
        let (before, _) = fail.split_once(line).unwrap();
        assert!(before.ends_with("#[cfg(debug_assertions)]\n"), "`{line}` is for debug builds only");
    }
}

#[test]
fn a_release_build_has_the_clock_of_redis() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/src/queue/redis/scripts.rs");
    let text = fs::read_to_string(scripts).unwrap();
    let (before, after) = text.split_once("include_str!(\"tests/clock.lua\")").unwrap();
    assert!(
        before.ends_with("#[cfg(test)]\nmacro_rules! clock {\n    () => {\n        "),
        "a clock that moves is for tests only"
    );
    assert!(!after.contains("tests/clock.lua"));
}

#[test]
fn the_wall_clock_is_read_in_one_place() {
    check(&["Utc::now", "Local::now", "SystemTime", "UNIX_EPOCH"], &["workers/src/clock.rs"]);
    check(&["wall_micros"], &["workers/src/clock.rs", "workers/src/job.rs", "workers/src/queue/embedded"]);
}

#[test]
fn no_moment_of_a_run_comes_from_the_wall_clock() {
    // The rest of the program has dates that people set: of keys, plans and the audit log.
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/src")) {
        let (name, text) = (file.display().to_string(), fs::read_to_string(&file).unwrap());
        // A provider that names a date for the next call has no other clock in common with us.
        if name.ends_with("/providers/openai.rs") || is_test(&name) || name.contains("/workers/src/tests") {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let mut lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        assert!(!lines.any(|line| line.contains("UnixMillis::now(") || line.contains("RunId::new(")), "{name}");
    }
}

#[test]
fn each_table_has_one_owner() {
    check(&["table_name = \"runs\"", "table_name = \"attempts\""], &["workers/src/ledger"]);
    check(&["table_name = \"webhook_outbox\"", "table_name = \"webhook_attempts\""], &["workers/src/ledger/outbox"]);
    check(&["table_name = \"webhook_secrets\""], &["src/webhooks"]);
    check(&["table_name = \"api_keys\""], &["src/keys"]);
    check(&["table_name = \"intake\""], &["src/intake.rs"]);
    check(&["table_name = \"batches\"", "table_name = \"batch_lines\""], &["src/batches"]);
    check(&["table_name = \"accounts\"", "table_name = \"users\""], &["src/accounts"]);
    check(&["table_name = \"prompts\"", "table_name = \"prompt_versions\""], &["src/prompts"]);
}

#[test]
fn migrations_import_no_entity() {
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/src")) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("workers::") && !text.contains("prompt_manager::"), "{}", file.display());
    }
}

#[test]
fn no_source_file_has_grown_past_its_concept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let long: Vec<_> = ["src", "workers/src", "migrations/src"]
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .map(|file| {
            // A module's own tests stand below it and are not its size. What else is for tests only is part of it.
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("\nmod tests {").next().unwrap_or_default();
            (code.lines().count(), file.strip_prefix(root).unwrap().display().to_string())
        })
        .filter(|(lines, name)| *lines > 420 && !is_test(name))
        .collect();
    assert!(long.is_empty(), "split by concept: {long:?}");
}
