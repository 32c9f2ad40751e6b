//! How a run ends, by exit code.

use super::{Client, app};
use crate::support::provider::{Answer, Gate};

const GREET: [&str; 3] = ["Greeting", "--var", "name=Ada"];

#[tokio::test(flavor = "multi_thread")]
async fn every_ending_has_its_exit_code() {
    let app = app().await;
    let check = async |arguments: &[&str], code: i32, sentence: &str| {
        let ended = Client::start(&app, arguments).ended().await;
        assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{arguments:?}: {ended:?}");
        let [line] = ended.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{arguments:?}: {ended:?}") };
        assert!(line.starts_with(&format!("error: {sentence}")), "{arguments:?}: {line}");
        assert!(line.contains(", request ") && line.ends_with(')'), "{arguments:?}: {line}");
        assert_eq!(line.contains(", run "), [3, 124].contains(&code), "{arguments:?}: {line}");
    };
    let gate = Gate::new();
    for more in [&[][..], &["--stream"]] {
        check(&[&["Greeting"], more].concat(), 1, "Missing variables: name (missing_variables").await;
        app.provider().push(Answer::error(400, "too long"));
        check(&[&GREET, more].concat(), 3, "The model's provider rejected the request (provider_rejected, run").await;
        app.provider().push(Answer::text("late").held(&gate));
        check(&[&GREET[..], &["--timeout", "0.4"], more].concat(), 124, "The run missed its deadline").await;
    }
    check(&[&GREET[..], &["--async", "--timeout", "999999"]].concat(), 1, "'timeoutMs' must be at most").await;
    let nobody = Client::start(&app, &["--follow", "0190b3a0-0000-7000-8000-000000000000"]).ended().await;
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.starts_with("error: The run was not found (run_not_found, request "), "{nobody:?}");
    for wrong in [&["--follow", "x"][..], &["Greeting", "--stream", "--async"], &["Greeting", "--follow", "x"], &[]] {
        assert_eq!(Client::start(&app, wrong).ended().await.code, 2, "{wrong:?}");
    }
    assert!(app.cli(&["queue", "drain", "--no-wait"]).code == 0);
    crate::support::eventually("new runs are refused", async || {
        Client::start(&app, &[&GREET[..], &["--stream"]].concat()).ended().await.code == 69
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_somebody_cancels_has_no_output() {
    let app = app().await;
    let gate = Gate::new();
    app.provider().push(Answer::pieces(["one ", "two"]).held_after(1, &gate));
    let client = Client::start(&app, &[&GREET[..], &["--stream"]].concat());
    client.until_stdout("one ").await;
    let run = super::only_run(&app).await["runId"].as_str().unwrap().to_owned();
    let cancel = app.client().post(format!("{}/api/v1/runs/{run}/cancel", app.url())).header("x-api-key", app.key());
    assert!(cancel.send().await.unwrap().status().is_success());
    let ended = client.ended().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (3, "one "));
    assert!(ended.stderr.contains(&format!("(run_cancelled, run {run}, request ")), "{ended:?}");
}
