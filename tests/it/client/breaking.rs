//! Connections that break while a run is told.

use std::time::Duration;

use super::{Client, app, ended_run};
use crate::support::{
    provider::{Answer, Gate},
    proxy::FaultProxy,
};

const GREET: [&str; 4] = ["Greeting", "--var", "name=Ada", "--stream"];

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_goes_on_without_a_gap() {
    let app = app().await;
    let (proxy, url) = FaultProxy::in_front_of(&app.url());
    let gates = [Gate::new(), Gate::new()];
    let answer = Answer::pieces(["one ", "two ", "three"]).held_after(1, &gates[0]).held_after(2, &gates[1]);
    app.provider().push(answer);
    let text = Client::start_at(&app, &url, &GREET);
    text.until_stdout("one ").await;
    proxy.cut();
    gates[0].open();
    text.until_stdout("one two ").await;
    proxy.cut();
    proxy.refuse();
    gates[1].open();
    assert_eq!(ended_run(&app).await["state"], "succeeded");
    proxy.heal();
    let ended = text.ended().await;
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "one two three\n", ""));
    assert_eq!(app.provider().requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_not_answered_is_sent_again_and_runs_once() {
    let app = app().await;
    let (proxy, url) = FaultProxy::in_front_of(&app.url());
    proxy.half_close(crate::support::proxy::Direction::Answer);
    let client = Client::start_at(&app, &url, &GREET);
    app.provider().wait_for_requests(1).await;
    proxy.cut();
    proxy.heal();
    let ended = client.ended().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "Greet Ada.\n"), "{ended:?}");
    assert_eq!(app.provider().requests().len(), 1);
    assert_eq!(ended_run(&app).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_given_up() {
    let app = app().await;
    let (proxy, url) = FaultProxy::in_front_of(&app.url());
    let gate = Gate::new();
    app.provider().push(Answer::pieces(["one ", "two"]).held_after(1, &gate));
    let client = Client::start_at(&app, &url, &GREET);
    client.until_stdout("one ").await;
    let run = super::only_run(&app).await["runId"].as_str().unwrap().to_owned();
    proxy.refuse();
    proxy.cut();
    let ended = client.ended().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (69, "one "), "{ended:?}");
    assert!(ended.stderr.contains("could not be taken up again: "), "{ended:?}");
    assert!(ended.stderr.ends_with(&format!("; the run {run} goes on\n")), "{ended:?}");
    gate.open();
    assert_eq!(app.ended(0, &run, Duration::from_secs(10)).await["state"], "succeeded");
}
