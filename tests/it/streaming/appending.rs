//! Faults at the very step that writes text to a run's log, by the fail points of debug builds.

use std::time::Duration;

use serde_json::json;

use super::{app, app_with, greeting, other};
use crate::support::{
    app::{App, Mode},
    events::{EventStream, Told, check_whole, names, text},
    eventually, invariants,
    process::Process,
    provider::{Answer, Gate},
};

crate::support::in_both_modes! {
    an_append_may_fail_or_lose_its_answer
    text_that_cannot_be_written_is_told_with_the_end
}

const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: &str = "name = \"Again\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\nrepeat_streamed = true\n";

/// The process that calls models.
fn worker(app: &mut App) -> &mut Process {
    match app.mode {
        Mode::Embedded => &mut app.front_doors[0],
        Mode::Distributed => &mut app.workers[0],
    }
}

async fn arm(app: &mut App, points: &str) {
    let points = [("FAIL_POINTS", points)];
    match app.mode {
        Mode::Embedded => {
            app.restart_front_door_with(0, &points);
            app.until_ready(0).await;
        }
        Mode::Distributed => app.restart_worker_with(0, &points),
    }
}

async fn disarm(app: &mut App) {
    match app.mode {
        Mode::Embedded => app.restart_front_door(0).await,
        Mode::Distributed => app.restart_worker(0),
    }
}

async fn until(app: &mut App, what: &str, is_so: impl Fn(&mut Process) -> bool) {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    while !is_so(worker(app)) {
        assert!(tokio::time::Instant::now() < give_up, "{what}:\n{}", worker(app).said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn acted(process: &Process) -> usize {
    process.said().matches("a fail point acts").count()
}

/// A run of twelve words, one after the other, and what its caller is told: all of them, once.
async fn twelve_words(app: &App) -> (String, Vec<Told>) {
    let words: Vec<String> = (0..12).map(|number| format!("word {number} ")).collect();
    let pieces = words.iter().map(String::as_str);
    app.provider().push(Answer::pieces(pieces).piece_delay(Duration::from_millis(40)));
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let events = stream.rest().await;
    check_whole(&events, &run, 0);
    assert_eq!(text(&events), words.concat());
    // Nothing was taken back: the caller was told every word once.
    assert!(!names(&events).contains(&"run.retrying"), "{events:#?}");
    let shown = app.ended(other(app), &run, PATIENCE).await;
    assert_eq!((&shown["state"], &shown["output"]), (&json!("succeeded"), &json!(words.concat())), "{shown}");
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(app.provider().requests().len(), 1);
    (run, events)
}

async fn an_append_may_fail_or_lose_its_answer(mode: Mode) {
    let mut app = app(mode).await;
    let points =
        "append.before=error@1;append.after=error@1;append.after=error@2;append.before=error@5;append.after=error@5";
    arm(&mut app, points).await;
    let (run, events) = twelve_words(&app).await;
    assert_eq!(acted(worker(&mut app)), 5, "{}", worker(&mut app).said());
    // What was on its way came in pieces all the same, not with the end.
    let pieces = names(&events).iter().filter(|name| **name == "run.output_text.delta").count();
    assert!(pieces > 2, "{events:#?}");
    assert_eq!(app.follow(other(&app), &run, 0).await.rest().await, events);
    disarm(&mut app).await;
    invariants::hold(&app, &[run]).await;
}

async fn text_that_cannot_be_written_is_told_with_the_end(mode: Mode) {
    for points in ["append.before=error", "append.after=error"] {
        let mut app = app(mode).await;
        arm(&mut app, points).await;
        let (run, events) = twelve_words(&app).await;
        // What was tried again and again, and all that came since: both go with the ending.
        let told = names(&events).iter().filter(|name| **name == "run.output_text.delta").count();
        assert_eq!(told, 2, "{points}: {events:#?}");
        let again = app.follow(other(&app), &run, 0).await.rest().await;
        assert_eq!(again, events, "{points}");
        disarm(&mut app).await;
        invariants::hold(&app, &[run]).await;
    }
}

/// A run whose worker is to be hit at one of its first two appends, and what its caller was told before that.
async fn begun(app: &App, prompt: &str, append: usize) -> (EventStream, Vec<Told>) {
    let gates = [Gate::new(), Gate::new()];
    let answer = Answer::pieces(["one ", "two ", "and no end"]).held(&gates[0]).held_after(1, &gates[1]);
    app.provider().push(answer.held_after(2, &Gate::new()));
    let mut body = greeting();
    body["promptName"] = prompt.into();
    body["onDisconnect"] = "continue".into();
    let mut stream = app.stream(0, &body).await;
    let mut events = Vec::new();
    if append == 1 {
        events.extend(stream.until("run.started").await);
        gates[0].open();
    } else {
        gates[0].open();
        events.extend(stream.until("run.output_text.delta").await);
        assert_eq!(text(&events), "one ");
        gates[1].open();
    }
    (stream, events)
}

/// The worker dies at an append, and another one comes. `called_again`: whether that is right.
async fn dies(prompt: &str, point: &str, append: usize, called_again: bool) {
    let mut app = app_with(Mode::Distributed, "", "").await;
    app.import_prompt(AGAIN);
    arm(&mut app, &format!("{point}=abort@{append}")).await;
    let (mut stream, mut events) = begun(&app, prompt, append).await;
    let run = stream.run();
    app.provider().push(Answer::pieces(["three ", "four"]));
    until(&mut app, "the worker dies", |worker| !worker.is_running()).await;
    disarm(&mut app).await;
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    let shown = app.ended(other(&app), &run, PATIENCE).await;
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!(attempts[0]["outcome"], "worker_lost", "{shown}");
    assert_eq!(attempts.len(), if called_again { 2 } else { 1 }, "{prompt} {point}@{append}: {shown}");
    assert_eq!(app.provider().requests().len(), attempts.len());
    let told = app.follow(other(&app), &run, 0).await.rest().await;
    assert_eq!(told, events);
    if called_again {
        assert_eq!((&shown["state"], &shown["output"]), (&json!("succeeded"), &json!("three four")), "{shown}");
        assert_eq!(text(&events), "three four");
    } else {
        let last = &events[events.len() - 2];
        assert_eq!((last.name.as_str(), &last.data["code"]), ("run.failed", &json!("worker_lost")), "{last:?}");
    }
    // The second answer, where nobody asked for it.
    app.provider().set_default(Answer::echo());
    invariants::hold_after_kills(&app, &[run]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_before_any_text_was_told_is_followed_by_another_call() {
    dies("Greeting", "append.before", 1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_once_text_was_told_is_not() {
    let points = [("append.after", 1), ("append.before", 2), ("append.after", 2)];
    futures::future::join_all(points.map(|(point, append)| dies("Greeting", point, append, false))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unless_the_prompt_asks_for_it() {
    let points = [("append.before", 1), ("append.after", 1), ("append.before", 2), ("append.after", 2)];
    futures::future::join_all(points.map(|(point, append)| dies("Again", point, append, true))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_may_die_at_an_append() {
    for (point, append) in [("append.before", 1), ("append.after", 1), ("append.before", 2), ("append.after", 2)] {
        let mut app = app(Mode::Embedded).await;
        app.provider().set_default(Answer::pieces(["three ", "four"]));
        arm(&mut app, &format!("{point}=abort@{append}")).await;
        let (stream, _) = begun(&app, "Greeting", append).await;
        let run = stream.run();
        until(&mut app, "the server dies", |server| !server.is_running()).await;
        drop(stream);
        disarm(&mut app).await;
        let told = app.follow(0, &run, 0).await.rest().await;
        check_whole(&told, &run, 0);
        let shown = app.ended(0, &run, PATIENCE).await;
        assert_eq!(
            (&shown["state"], &shown["output"]),
            (&json!("succeeded"), &json!("three four")),
            "{point}: {shown}"
        );
        assert_eq!(text(&told), "three four");
    }
}

/// A worker sleeps past its lease with text in its hands, and wakes while another one tells the same run.
#[tokio::test(flavor = "multi_thread")]
async fn text_of_a_lost_lease_is_told_to_nobody() {
    let mut app = app(Mode::Distributed).await;
    app.import_prompt(AGAIN);
    arm(&mut app, "append.before=stop@2").await;
    let (mut stream, mut events) = begun(&app, "Again", 2).await;
    let run = stream.run();
    let gate = Gate::new();
    app.provider().push(Answer::pieces(["three ", "four"]).held_after(1, &gate));
    until(&mut app, "the worker sleeps", |worker| worker.is_stopped()).await;
    app.add_worker();
    events.extend(stream.until("run.retrying").await);
    events.extend(stream.until("run.output_text.delta").await);
    assert_eq!(text(&events), "three ");
    worker(&mut app).signal("CONT");
    until(&mut app, "it is told that the run is another's", |worker| worker.said().contains("the run is given up"))
        .await;
    gate.open();
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    assert_eq!(text(&events), "three four");
    assert_eq!(app.follow(other(&app), &run, 0).await.rest().await, events);
    let shown = async || app.run(1, &run).await.body["attempts"].as_array().unwrap().len() == 2;
    eventually("both calls are shown", shown).await;
    assert_eq!(app.ended(1, &run, PATIENCE).await["output"], "three four");
}
