//! What a caller is told, and when.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CONFIG, app, app_with, greeting, other};
use crate::support::{
    app::{App, Mode, Shape},
    events::{EventStream, Told, check_whole, names, text},
    invariants,
    provider::{Answer, Gate},
};

crate::support::in_both_modes! {
    a_stream_is_told_as_documented
    the_first_text_comes_while_the_rest_is_held_back
    what_is_refused_has_its_status
    a_run_in_the_background_is_followed
    a_reader_that_is_stuck_holds_nobody_up
}

async fn a_stream_is_told_as_documented(mode: Mode) {
    let limits = "[limits]\naccount_requests_per_minute = 100\n";
    let app = app_with(mode, limits, "").await;
    app.provider().push(Answer::pieces(["Bonjour ", "Ada", "\n!"]).usage(7, 3));
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    assert_eq!(stream.headers["x-prompt-version"], "1");
    assert!(stream.headers["ratelimit"].to_str().unwrap().starts_with("\"account\";r=99;"), "{:?}", stream.headers);
    assert!(stream.headers.contains_key("x-request-id"));
    assert_eq!(stream.headers["cache-control"], "no-store");
    let events = stream.rest().await;
    check_whole(&events, &run, 0);
    assert_eq!(events[0].data, json!({"type": "run.queued", "runId": run, "seq": 1, "promptVersion": 1}));
    assert_eq!(events[1].data, json!({"type": "run.started", "runId": run, "seq": 2, "attempt": 1}));
    let deltas = &events[2..events.len() - 2];
    assert!(!deltas.is_empty());
    for Told { seq, data, .. } in deltas {
        let delta = &data["delta"];
        assert_eq!(*data, json!({"type": "run.output_text.delta", "runId": run, "seq": seq, "delta": delta}));
    }
    let last = &events[events.len() - 2];
    let took = last.data["durationMs"].as_u64().unwrap();
    let expect = json!({
        "type": "run.completed", "runId": run, "seq": last.seq, "success": true, "output": "Bonjour Ada\n!",
        "promptVersion": 1, "durationMs": took, "model": "gpt-4",
        "usage": {"inputTokens": 7, "outputTokens": 3, "costUsd": 4.75e-5}, "cached": false, "finishReason": "stop",
    });
    assert_eq!(last.data, expect);
    assert!(app.provider().requests()[0].is_stream());
    let shown = app.ended(other(&app), &run, Duration::from_secs(10)).await;
    assert_eq!((&shown["state"], &shown["output"]), (&json!("succeeded"), &json!("Bonjour Ada\n!")));
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 1);
    invariants::hold(&app, &[run]).await;
}

async fn the_first_text_comes_while_the_rest_is_held_back(mode: Mode) {
    let app = app(mode).await;
    let (first, second) = (Gate::new(), Gate::new());
    let answer = Answer::pieces(["one ", "two ", "three"]).held_after(1, &first).held_after(2, &second);
    app.provider().push(answer);
    let mut stream = app.stream(0, &greeting()).await;
    let mut events = stream.until("run.output_text.delta").await;
    assert_eq!(
        (names(&events), text(&events)),
        (vec!["run.queued", "run.started", "run.output_text.delta"], "one ".into())
    );
    first.open();
    events.extend(stream.until("run.output_text.delta").await);
    assert_eq!(text(&events), "one two ");
    second.open();
    events.extend(stream.rest().await);
    check_whole(&events, &stream.run(), 0);
    invariants::hold(&app, &[stream.run()]).await;
}

async fn what_is_refused_has_its_status(mode: Mode) {
    let limits = "[limits]\nkey_requests_per_minute = 1\n";
    let mut app = app_with(mode, limits, "").await;
    let check = async |key: &str, body: Value, status: u16, code: &str| {
        let answer = app.stream_with(0, key, &body, &[]).await.err().expect("a refusal");
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{answer:?}");
        assert_eq!(answer.body["success"], false);
    };
    let key = app.key();
    check(&key, json!({"promptName": "Greeting"}), 400, "missing_variables").await;
    check(&key, json!({"promptName": 1}), 400, "invalid_request").await;
    check("sk_wrong", greeting(), 401, "invalid_api_key").await;
    check(&app.free_key(), greeting(), 403, "plan_required").await;
    check(&key, json!({"promptName": "None"}), 404, "prompt_not_found").await;
    app.stream(0, &greeting()).await.rest().await;
    check(&key, greeting(), 429, "rate_limited").await;
    let poor = app.account("poor", &["--plan", "pro", "--monthly-budget-usd", "0"]);
    app.import_prompt_of("poor", "name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\n");
    check(&poor, greeting(), 402, "budget_spent").await;
    if let Some(redis) = &mut app.redis {
        redis.stop();
        let answer = app.stream_with(0, &app.key(), &greeting(), &[]).await.err().expect("a refusal");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.header("retry-after").is_some());
    }
}

async fn a_run_in_the_background_is_followed(mode: Mode) {
    let app = app(mode).await;
    let gate = Gate::new();
    app.provider().push(Answer::pieces(["one ", "two"]).held_after(1, &gate));
    let body = {
        let mut body = greeting();
        body["stream"] = true.into();
        body
    };
    let accepted = app.post_with(0, &body, &[("prefer", "respond-async")]).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let run = accepted.body["runId"].as_str().unwrap();
    let mut stream = app.follow(other(&app), run, 0).await;
    let mut events = stream.until("run.output_text.delta").await;
    assert_eq!(text(&events), "one ");
    gate.open();
    events.extend(stream.rest().await);
    check_whole(&events, run, 0);

    // One that was not to be streamed is told as well, without its text.
    app.provider().push(Answer::text("plain").held(&gate));
    let plain = app.post_async(0).await;
    let events = app.follow(other(&app), &plain, 0).await.rest().await;
    assert_eq!(names(&events), ["run.queued", "run.started", "run.completed", "[DONE]"]);
    assert_eq!(events[2].data["output"], "plain");

    // Another account has no such run.
    let stranger = app.account("stranger", &["--plan", "pro"]);
    for id in [run, "01a20928-9a61-7603-89d4-84c3557942af", "none"] {
        let answer = app.follow_with(0, &stranger, id, "", &[]).await.err().expect("a refusal");
        assert_eq!((answer.status, &answer.body["code"]), (404, &json!("run_not_found")), "{answer:?}");
    }
    let answer = app.follow_with(0, "sk_wrong", run, "", &[]).await.err().expect("a refusal");
    assert_eq!(answer.status, 401);
    invariants::hold(&app, &[run.to_owned(), plain]).await;
}

/// Far more than any buffer on the way holds.
const PIECES: usize = 400;
const PIECE: usize = 32 * 1024;

async fn a_reader_that_is_stuck_holds_nobody_up(mode: Mode) {
    let shape = Shape {
        front_doors: 2,
        config: CONFIG.into(),
        provider: "max_response_bytes = 67108864".into(),
        ..Shape::of(mode)
    };
    let app = App::shaped(shape).await;
    app.import_greeting();
    let pieces: Vec<String> = (0..PIECES).map(|number| format!("{number:0>PIECE$}")).collect();
    let answer = Answer::pieces(pieces.iter().map(String::as_str)).piece_delay(Duration::from_millis(5));
    app.provider().push(answer);
    let before = app.front_doors[0].resident();
    let mut stream: EventStream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let mut events = stream.until("run.started").await;
    // The reader does not read; the run ends all the same.
    let shown = app.ended(other(&app), &run, Duration::from_secs(60)).await;
    assert_eq!(shown["state"], "succeeded");
    if mode == Mode::Distributed {
        // The answer alone (13 MB) is there for the moment in which it is passed on, more than once.
        let grown = app.front_doors[0].resident().saturating_sub(before);
        assert!(grown < 128 << 20, "the front door grew by {grown} bytes");
    }
    events.extend(stream.rest().await);
    let (done, told) = events.split_last().unwrap();
    assert_eq!(done.name, "[DONE]");
    assert!(told.is_sorted_by(|one, next| one.seq < next.seq));
    // What the log had no room for is in the output.
    let output = told.last().unwrap().data["output"].as_str().unwrap();
    assert!(output == pieces.concat(), "the output is not whole");
    assert!(output.starts_with(&text(told)), "what was told is no part of the output");
    assert!(text(told).len() > 3 << 20, "{}", text(told).len());
    invariants::hold(&app, &[run]).await;
}
