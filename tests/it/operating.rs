//! What operators meet: processes that start, refuse to start, drain and log.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    app::{App, Mode, Shape, client, free_port},
    postgres,
    process::{self, Process},
    provider::{Answer, Gate},
};

fn with(env: &[(String, String)], name: &str, value: String) -> Vec<(String, String)> {
    let mut env = env.to_vec();
    env.retain(|(other, _)| other != name);
    env.push((name.to_owned(), value));
    env
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_has_one_embedded_queue() {
    let mut app = App::start(Mode::Embedded).await;
    let serve =
        |env: &[(String, String)]| process::run(app.folder.path(), &["serve", "--listen", "127.0.0.1:0"], env, "");
    let second = serve(app.env());
    assert_eq!((second.code, second.stdout.as_str()), (69, ""), "{second:?}");
    assert!(second.stderr.contains("another `prompt-manager serve` has this database; stop it"), "{second:?}");
    // Commands beside it are welcome, and a killed process leaves nothing in the way of the next.
    assert_eq!(app.cli(&["account", "list"]).code, 0);
    app.front_doors[0].kill();
    app.restart_front_door(0).await;

    let url = postgres::database().await;
    assert_eq!(app.cli(&["migrate", "--database-url", &url]).code, 0);
    let env = with(app.env(), "PROMPT_MANAGER_DATABASE_URL", url);
    let first = with(&env, "PROMPT_MANAGER_LISTEN", format!("127.0.0.1:{}", free_port()));
    let mut first = Process::start(app.folder.path(), "postgres", &["serve"], &first);
    until(|| first.said().contains("ready address=")).await;
    let second = process::run(app.folder.path(), &["serve", "--listen", "127.0.0.1:0"], &env, "");
    assert_eq!(second.code, 69, "{second:?}");
    assert!(second.stderr.contains("has this database; stop it"), "{second:?}");
    assert!(first.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_drains_says_so_until_its_end() {
    let operations = format!("127.0.0.1:{}", free_port());
    let config = format!("[server]\nmetrics_listen = \"{operations}\"\n");
    let mut app = App::shaped(Shape { config, ..Shape::of(Mode::Embedded) }).await;
    app.import_greeting();
    let gate = Gate::new();
    app.provider().push(Answer::text("Hello Ada").held(&gate));
    let (url, key) = (app.url(), app.key());
    let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
    let caller = tokio::spawn(async move {
        let request = client().post(format!("{url}/api/v1/run")).header("x-api-key", key).json(&body);
        request.send().await.unwrap().status().as_u16()
    });
    app.provider().wait_for_requests(1).await;
    app.front_doors[0].signal("TERM");
    until(|| app.front_doors[0].said().contains("draining")).await;

    let probe = async |path: &str| client().get(format!("http://{operations}{path}")).send().await.unwrap();
    let ready = probe("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert!(ready.headers().contains_key("retry-after"));
    assert_eq!(ready.json::<serde_json::Value>().await.unwrap()["code"], "draining");
    assert_eq!(probe("/healthz").await.status(), 200, "it is alive");

    gate.open();
    assert_eq!(caller.await.unwrap(), 200);
    assert_eq!(app.front_doors[0].exited(Duration::from_secs(20)).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_and_bad_requests_are_no_noise() {
    let app = App::start(Mode::Embedded).await;
    for body in [json!({ "promptName": 1, "planted": "planted" }), json!({ "priority": "planted" }), json!([])] {
        assert_eq!(app.post(&body).await.status, 400);
    }
    assert_eq!(app.post(&json!({ "promptName": "planted" })).await.status, 404);
    let said = app.front_doors[0].said();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("ready address="), "{said}");

    // The schema of a new file is made on the way, and told in one line.
    let env = with(app.env(), "PROMPT_MANAGER_DATABASE_URL", "sqlite://new.db?mode=rwc".into());
    let env = with(&env, "PROMPT_MANAGER_LISTEN", "127.0.0.1:0".into());
    let new = Process::start(app.folder.path(), "new", &["serve"], &env);
    until(|| new.said().contains("ready address=")).await;
    assert_eq!(new.said().lines().count(), 2, "{}", new.said());
    assert!(new.said().contains("schema was brought up to this version"), "{}", new.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told_with_the_setting_that_chose_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let start = |variable: &str| {
        let env = [("PROMPT_MANAGER_LISTEN".to_owned(), "127.0.0.1:0".to_owned())];
        process::run(folder.path(), &["serve"], &with(&env, variable, address.clone()), "")
    };
    for (variable, setting) in [
        ("PROMPT_MANAGER_LISTEN", "--listen or PROMPT_MANAGER_LISTEN"),
        ("PROMPT_MANAGER_METRICS_LISTEN", "PROMPT_MANAGER_METRICS_LISTEN"),
    ] {
        let said = start(variable);
        let sentence = format!(
            "error: cannot listen on {address}: another process has that port; stop it, or choose another with {setting}\n"
        );
        assert_eq!((said.code, said.stderr), (1, sentence));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

/// Waits until something that must come has come.
async fn until(is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
