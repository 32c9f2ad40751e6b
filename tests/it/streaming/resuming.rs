//! A stream that is taken up again, on another front door, live or after the end.

use std::time::Duration;

use serde_json::json;

use super::{app, greeting, other};
use crate::support::{
    app::Mode,
    events::{Told, check_whole, names},
    eventually, invariants,
    provider::{Answer, Gate},
};

crate::support::in_both_modes! {
    a_stream_is_resumed_anywhere
    a_log_that_is_gone_still_has_an_end
    a_place_that_is_no_number_is_refused
}

/// The events after a number, as two front doors have to tell them.
fn after(events: &[Told], seq: u64) -> Vec<Told> {
    events.iter().filter(|told| told.seq > seq || told.name == "[DONE]").cloned().collect()
}

async fn a_stream_is_resumed_anywhere(mode: Mode) {
    let app = app(mode).await;
    let (first, second) = (Gate::new(), Gate::new());
    let answer = Answer::pieces(["one ", "two ", "three"]).held_after(1, &first).held_after(2, &second);
    app.provider().push(answer);
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let mut events = stream.until("run.output_text.delta").await;
    // Live, from several places.
    let door = other(&app);
    let mut followers = Vec::new();
    for seq in 0..4 {
        followers.push(app.follow(door, &run, seq).await);
    }
    let header = [("last-event-id", "3")];
    followers.push(app.follow_with(door, &app.key(), &run, "?after=1", &header).await.ok().unwrap());
    first.open();
    events.extend(stream.until("run.output_text.delta").await);
    followers.push(app.follow(door, &run, 3).await);
    second.open();
    events.extend(stream.rest().await);
    check_whole(&events, &run, 0);
    for (follower, seq) in followers.iter_mut().zip([0, 1, 2, 3, 3, 3]) {
        assert_eq!(follower.rest().await, after(&events, seq), "after {seq}");
    }
    // Finished, on both.
    app.ended(0, &run, Duration::from_secs(10)).await;
    let last = events[events.len() - 2].seq;
    for door in [0, door] {
        for seq in 0..last {
            let rest = app.follow(door, &run, seq).await.rest().await;
            assert_eq!(rest, after(&events, seq), "after {seq}");
        }
        // Whoever has it all is told the end again, under its number.
        assert_eq!(app.follow(door, &run, last).await.rest().await, after(&events, last - 1));
        // A number that the log does not have is one of a log that is gone.
        let anew = app.follow(door, &run, 1_000).await.rest().await;
        assert_eq!((anew[0].seq, anew[0].name.as_str()), (1_001, "run.retrying"));
        check_whole(&anew, &run, 1_000);
        let far = app.follow(door, &run, u64::MAX).await.rest().await;
        assert_eq!(far.last().unwrap().name, "[DONE]");
    }
    invariants::hold(&app, &[run]).await;
}

async fn a_log_that_is_gone_still_has_an_end(mode: Mode) {
    let mut app = app(mode).await;
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    let events = stream.rest().await;
    let output = events[events.len() - 2].data["output"].clone();
    app.ended(0, &run, Duration::from_secs(10)).await;
    match &app.redis {
        Some(redis) => {
            eventually("the run is finished", async || {
                redis.cli(&["EXISTS", &format!("{{q:default}}:run:{run}")]).trim() == "0"
            })
            .await;
            assert_eq!(redis.cli(&["DEL", &format!("{{q:default}}:events:{run}")]).trim(), "1");
        }
        // The memory of an embedded queue goes with its process. That is stopped, and not killed: a status is shown before the ledger has it.
        None => {
            app.front_doors[0].signal("TERM");
            assert!(app.front_doors[0].exited(Duration::from_secs(60)).success());
            app.restart_front_door(0).await;
        }
    }
    let door = other(&app);
    let told = app.follow(door, &run, 0).await.rest().await;
    check_whole_without_text(&told, &run, 0);
    assert_eq!(names(&told), ["run.queued", "run.started", "run.completed", "[DONE]"]);
    assert_eq!(told[2].data["output"], output);
    for seq in [2, 7] {
        let told = app.follow(door, &run, seq).await.rest().await;
        assert_eq!(names(&told), ["run.completed", "[DONE]"]);
        assert_eq!((told[0].seq, &told[0].data["output"]), (seq + 1, &output));
    }
    invariants::hold(&app, &[run]).await;
}

fn check_whole_without_text(events: &[Told], run: &str, after: u64) {
    for (told, seq) in events.iter().zip(after + 1..).take(events.len() - 1) {
        assert_eq!((told.seq, &told.data["runId"]), (seq, &json!(run)));
    }
}

async fn a_place_that_is_no_number_is_refused(mode: Mode) {
    let app = app(mode).await;
    let mut stream = app.stream(0, &greeting()).await;
    let run = stream.run();
    stream.rest().await;
    for (query, headers) in [("?after=soon", &[][..]), ("?since=1", &[]), ("", &[("last-event-id", "-1")])] {
        let answer = app.follow_with(0, &app.key(), &run, query, headers).await.err().expect("a refusal");
        assert_eq!((answer.status, &answer.body["code"]), (400, &json!("invalid_request")), "{query} {headers:?}");
    }
}
