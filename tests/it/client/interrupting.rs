//! Ctrl-C, and readers that leave or stop reading.

use std::{
    io::Read,
    process::Stdio,
    time::{Duration, Instant},
};

use super::{Client, app, ended_run, only_run};
use crate::support::{
    eventually,
    provider::{Answer, Gate},
    proxy::FaultProxy,
};

const GREET: [&str; 3] = ["Greeting", "--var", "name=Ada"];

/// A run whose provider holds it back is interrupted, and cancelled for it.
async fn is_cancelled(more: &[&str], stdout: &str) {
    let app = app().await;
    let gate = Gate::new();
    let answer = Answer::pieces(["one ", "two"]);
    app.provider().push(if stdout.is_empty() { answer.held(&gate) } else { answer.held_after(1, &gate) });
    let client = Client::start(&app, &[&GREET, more].concat());
    app.provider().wait_for_requests(1).await;
    client.until_stdout(stdout).await;
    client.signal("INT");
    let ended = client.ended().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (130, stdout), "{ended:?}");
    let run = ended_run(&app).await;
    assert_eq!(run["state"], "cancelled", "{run}");
    assert!(
        ended.stderr.starts_with("error: interrupted; the run ") && ended.stderr.ends_with("is cancelled\n"),
        "{ended:?}"
    );
    app.provider().wait_until("the call is closed", |requests| requests[0].hung_up()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_waited_for_is_cancelled() {
    is_cancelled(&[], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_outlives_its_connection_is_found_by_its_key_and_cancelled() {
    is_cancelled(&["--idempotency-key", "order 17"], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_cancelled() {
    is_cancelled(&["--stream"], "one ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_looks_at_a_run_leaves_it_alone() {
    let app = app().await;
    let gate = Gate::new();
    app.provider().push(Answer::pieces(["one ", "two"]).held_after(1, &gate));
    let client = Client::start(&app, &[&GREET[..], &["--stream"]].concat());
    client.until_stdout("one ").await;
    let run = only_run(&app).await["runId"].as_str().unwrap().to_owned();
    let follower = Client::start(&app, &["--follow", &run]);
    follower.until_stdout("one ").await;
    follower.signal("TERM");
    let ended = follower.ended().await;
    assert_eq!((ended.code, ended.stderr), (143, format!("error: interrupted; the run {run} goes on\n")));
    gate.open();
    assert_eq!(client.ended().await.stdout, "one two\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let app = app().await;
    let (proxy, url) = FaultProxy::in_front_of(&app.url());
    let gate = Gate::new();
    app.provider().push(Answer::pieces(["one ", "two"]).held_after(1, &gate));
    let mut client = Client::start_at(&app, &url, &[&GREET[..], &["--stream"]].concat());
    client.until_stdout("one ").await;
    proxy.black_hole();
    let begun = Instant::now();
    // Two signals before the first was noticed are one.
    while client.child.try_wait().unwrap().is_none() {
        client.signal("INT");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(begun.elapsed() < Duration::from_secs(8), "it waits for the server");
    }
    let ended = client.ended().await;
    assert_eq!(ended.code, 130);
    assert!(ended.stderr.ends_with("is cancelled is not known: it was not waited for\n"), "{ended:?}");
    gate.open();
    ended_run(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_cancels_the_stream() {
    let app = app().await;
    let (first, second) = (Gate::new(), Gate::new());
    app.provider().push(Answer::pieces(["one ", "two ", "three"]).held_after(1, &first).held_after(2, &second));
    let mut client = Client::spawn(&app, &app.url(), &[&GREET[..], &["--stream"]].concat(), Some(Stdio::piped()));
    let mut stdout = client.child.stdout.take().unwrap();
    let read = tokio::task::spawn_blocking(move || stdout.read(&mut [0; 16]));
    assert_eq!(read.await.unwrap().unwrap(), 4);
    first.open();
    let ended = client.ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert_eq!(ended_run(&app).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_keeps_nobody_from_ending_it() {
    let app = app().await;
    for more in [&["--stream"][..], &[]] {
        // More than a pipe holds.
        app.provider().push(Answer::text(&"word ".repeat(100_000)));
        let before = app.provider().requests().len();
        let arguments = [&GREET[..], more].concat();
        let mut client = Client::spawn(&app, &app.url(), &arguments, Some(Stdio::piped()));
        let stdout = client.child.stdout.take().unwrap();
        eventually("the provider is done", async || {
            app.provider().requests().get(before).is_some_and(|request| request.end.is_some())
        })
        .await;
        client.signal("INT");
        let ended = client.ended().await;
        assert_eq!(ended.code, 130, "{ended:?}");
        drop(stdout);
    }
}
