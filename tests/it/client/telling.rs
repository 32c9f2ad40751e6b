//! What is written, and when.

use std::process::Command;

use serde_json::{Value, json};

use super::{Client, app, ended_run, env, said};
use crate::support::{
    eventually, process,
    provider::{Act, Answer, Gate},
};

const GREET: [&str; 4] = ["Greeting", "--var", "name=Ada", "--stream"];

#[tokio::test(flavor = "multi_thread")]
async fn text_is_on_stdout_before_the_provider_goes_on() {
    let app = app().await;
    let (first, second) = (Gate::new(), Gate::new());
    let answer = Answer::pieces(["é🦀 ", "two ", "three"]).held_after(1, &first).held_after(2, &second);
    app.provider().push(answer);
    let client = Client::start(&app, &GREET);
    client.until_stdout("é🦀 ").await;
    let run = super::only_run(&app).await["runId"].as_str().unwrap().to_owned();
    let follower = Client::start(&app, &["--follow", &run]);
    follower.until_stdout("é🦀 ").await;
    first.open();
    client.until_stdout("é🦀 two ").await;
    second.open();
    for client in [client, follower] {
        let ended = client.ended().await;
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "é🦀 two three\n", ""));
    }
    // It can be looked at once it has ended.
    let ended = Client::start(&app, &["--follow", &run, "--json"]).ended().await;
    assert_eq!((ended.code, &ended.json()[0]["type"]), (0, &json!("run.queued")), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_what_the_server_said() {
    let app = app().await;
    let ended = Client::start(&app, &[&GREET[..], &["--json"]].concat()).ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let events = ended.json();
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[1], names[names.len() - 1]), ("run.queued", "run.started", "run.completed"));
    assert_eq!(events.last().unwrap()["output"], "Greet Ada.");
    assert!(events.iter().zip(1..).all(|(event, seq)| event["seq"] == json!(seq)), "{events:#?}");

    let ended = Client::start(&app, &[&GREET[..3], &["--async", "--json"]].concat()).ended().await;
    let [accepted] = &ended.json()[..] else { panic!("{ended:?}") };
    assert_eq!((ended.code, &accepted["success"]), (0, &json!(true)));
    let run = accepted["runId"].as_str().unwrap();
    app.ended(0, run, super::PATIENCE).await;

    for arguments in [&["None", "--json"][..], &["None", "--stream", "--json"], &["None", "--async", "--json"]] {
        let ended = Client::start(&app, arguments).ended().await;
        let [refusal] = &ended.json()[..] else { panic!("{ended:?}") };
        assert_eq!((ended.code, &refusal["code"]), (1, &json!("prompt_not_found")));
        let request = refusal["requestId"].as_str().unwrap();
        let sentence = "error: Prompt 'None' not found or has no PRODUCTION version (prompt_not_found, request";
        assert_eq!(ended.stderr, format!("{sentence} {request})\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_the_api_takes_can_be_said() {
    let app = app().await;
    let arguments = [
        "--version",
        "1",
        "--priority",
        "batch",
        "--metadata",
        "order=17",
        "--timeout",
        "20.5",
        "--idempotency-key",
        "a b",
    ];
    let mut runs = Vec::new();
    for _ in 0..2 {
        let ended = Client::start(&app, &[&["Greeting", "--var", "name:=[1]", "--async"], &arguments[..]].concat())
            .ended()
            .await;
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        runs.push(ended.stdout.trim().to_owned());
    }
    assert_eq!(runs[0], runs[1]);
    let run = ended_run(&app).await;
    assert_eq!((&run["runId"], &run["output"]), (&json!(runs[0]), &json!("Greet [1].")));
    assert_eq!((&run["priority"], &run["metadata"]), (&json!("batch"), &json!({ "order": "17" })));
    let ended = Client::start(&app, &["Greeting", "--var", "name=Ada", "--version", "7"]).ended().await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("version 7 (version_not_found, request "), "{ended:?}");
}

/// A first call that breaks off after "one ", and a second one that says something.
fn breaks_off_and(says: &str) -> [Answer; 2] {
    [Answer::pieces(["one ", "tw"]).then_after(1, Act::Reset), Answer::text(says)]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_into_a_pipe_is_continued_or_known_not_to_count() {
    let app = app().await;
    for (says, code, stdout) in
        [("one two three", 0, "one two three\n"), ("something else", 65, "one \nsomething else\n")]
    {
        breaks_off_and(says).into_iter().for_each(|answer| app.provider().push(answer));
        let ended = Client::start(&app, &GREET).ended().await;
        assert_eq!((ended.code, ended.stdout.as_str()), (code, stdout), "{ended:?}");
        assert!(ended.stderr.starts_with("the call broke off and is made again; "), "{ended:?}");
        let told = ended.stderr.contains("\nerror: the first 4 bytes on stdout, and the line break after them, ");
        assert_eq!(told, code == 65, "{ended:?}");
    }
    breaks_off_and("something else").into_iter().for_each(|answer| app.provider().push(answer));
    let ended = Client::start(&app, &[&GREET[..], &["--json"]].concat()).ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let events = ended.json();
    assert!(events.iter().any(|event| event["type"] == "run.retrying"), "{events:#?}");
    assert_eq!(events.last().unwrap()["output"], "something else");
}

/// The command on a terminal, by `script` of util-linux: stdout and stderr are the same one.
fn on_a_terminal(app: &crate::support::app::App, name: &str, arguments: &str, more: &[(&str, &str)]) -> super::Client {
    let file = app.folder.path().join(name);
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--flush", "--command"])
        .arg(format!("{} run {arguments}", env!("CARGO_BIN_EXE_prompt-manager")))
        .arg("/dev/null")
        .env_clear()
        .envs(env(app, &app.url()))
        .env("TERM", "xterm")
        .envs(more.iter().copied())
        .current_dir(app.folder.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&file).unwrap());
    Client { child: process::spawn(command), stdout: file.clone(), stderr: file }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_told_that_the_text_starts_over() {
    let app = app().await;
    breaks_off_and("some\u{1b}[2Jthing else").into_iter().for_each(|answer| app.provider().push(answer));
    let ended = on_a_terminal(&app, "terminal", "Greeting --var name=Ada --stream", &[("NO_COLOR", "1")]).ended().await;
    let expect = "one \r\nthe call broke off and is made again: the text starts over\r\nsome[2Jthing else\r\n";
    assert_eq!((ended.code, ended.stdout.as_str()), (0, expect));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_at_a_terminal_sees_the_time_pass() {
    let app = app().await;
    for (name, more, spins) in
        [("plain", &[("NO_COLOR", "1")][..], false), ("json", &[][..], false), ("spinner", &[][..], true)]
    {
        let gate = Gate::new();
        app.provider().push(Answer::text("Bonjour").held(&gate));
        let before = app.provider().requests().len();
        let json = if name == "json" { "--json" } else { "" };
        let client = on_a_terminal(&app, name, &format!("Greeting --var name=Ada {json}"), more);
        app.provider().wait_for_requests(before + 1).await;
        if spins {
            eventually("a spinner", async || said(&client.stdout).contains("running 1s")).await;
        }
        gate.open();
        let ended = client.ended().await;
        assert_eq!((ended.code, ended.stdout.contains("running")), (0, spins), "{ended:?}");
        if name == "json" {
            assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap()["output"], "Bonjour");
        } else {
            assert!(ended.stdout.ends_with("Bonjour\r\n"), "{ended:?}");
        }
    }
}
