//! What a streamed call says, on its way to the log of its run.

use super::*;
use crate::{
    executor::{
        call::{Done, execute},
        stop::{Stop, StopReason},
    },
    job::{Ending, Event, FrontDoorId, Logged, Outcome, RunState},
    queue::Followed,
    tests::{Loss, Step},
};

fn streamed() -> Job {
    Job { stream: true, ..job() }
}

/// What the log of a run says, a word each.
async fn log(rig: &Rig, job: &Job) -> Vec<String> {
    let followed = rig.queue.follow(job.id, FrontDoorId::new(), 0).await.unwrap();
    let Followed::Log { events, .. } = followed else { panic!("a streamed run has a log") };
    let word = |logged: Logged| match logged.event {
        Event::Queued => "queued".to_owned(),
        Event::Started { attempt } => format!("started {attempt}"),
        Event::Delta(text) => text,
        Event::Retrying => "retrying".to_owned(),
        Event::Ended(ending) => ending.outcome.state().as_str().to_owned(),
        Event::Skipped => "skipped".to_owned(),
    };
    events.into_iter().map(word).collect()
}

async fn says(rig: &Rig, job: &Job, text: &str) {
    let said = async || log(rig, job).await.iter().any(|word| word == text).then_some(());
    eventually("the text in the log", said).await;
}

fn recorded(done: Done) -> Ending {
    match done {
        Done::Record(ending) => *ending,
        Done::Gone => panic!("the run has no ending"),
    }
}

#[tokio::test]
async fn text_is_written_once_though_answers_are_lost() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::SayAndRefuse]);
    let job = rig.submit(streamed()).await;
    let claim = rig.claim().await;
    rig.queue.fail(&[Step::Append], Loss::Answer);
    let healing = async {
        says(&rig, &job, "Bon").await;
        rig.queue.heal();
    };
    let stop = Stop::default();
    let ending = recorded(tokio::join!(execute(&rig.shared, &claim, &stop), healing).0);
    assert_eq!(ending.outcome.state(), RunState::Failed);
    assert_eq!(log(&rig, &job).await, ["queued", "started 1", "Bon", "failed"]);
}

#[tokio::test]
async fn the_last_text_of_a_call_that_succeeded_goes_with_its_ending() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::Say]);
    let job = rig.submit(streamed()).await;
    let claim = rig.claim().await;
    rig.queue.fail(&[Step::Append], Loss::Question);
    recorded(execute(&rig.shared, &claim, &Stop::default()).await);
    assert_eq!(log(&rig, &job).await, ["queued", "started 1", "Bonjour", "succeeded"]);
}

#[tokio::test]
async fn text_that_cannot_be_written_does_not_hold_an_ending_up_for_long() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::SayAndRefuse]);
    let job = rig.submit(streamed()).await;
    let claim = rig.claim().await;
    rig.queue.fail(&[Step::Append], Loss::Question);
    let ending = recorded(execute(&rig.shared, &claim, &Stop::default()).await);
    assert_eq!(ending.outcome.state(), RunState::Failed);
    assert_eq!(log(&rig, &job).await, ["queued", "started 1", "failed"]);
}

#[tokio::test]
async fn what_a_call_said_before_it_failed_is_written() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::SayAndRefuse]);
    let job = rig.submit(streamed()).await;
    let claim = rig.claim().await;
    recorded(execute(&rig.shared, &claim, &Stop::default()).await);
    assert_eq!(log(&rig, &job).await, ["queued", "started 1", "Bon", "failed"]);
}

#[tokio::test]
async fn a_run_that_is_not_streamed_writes_no_text() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::Say]);
    let job = rig.submit(job()).await;
    // Somebody follows it all the same.
    assert_eq!(log(&rig, &job).await, ["queued"]);
    recorded(execute(&rig.shared, &rig.claim().await, &Stop::default()).await);
    assert_eq!(log(&rig, &job).await, ["queued", "started 1", "succeeded"]);
}

#[tokio::test]
async fn a_stream_that_its_worker_gives_up_has_failed() {
    for reason in [StopReason::Drain, StopReason::LeaseLost] {
        let rig = Rig::new(1).await;
        rig.provider.play(&[Play::SayAndHang]);
        let job = rig.submit(streamed()).await;
        let (claim, stop) = (rig.claim().await, Stop::default());
        let stopping = async {
            says(&rig, &job, "Bon").await;
            stop.stop(reason);
        };
        let ending = recorded(tokio::join!(execute(&rig.shared, &claim, &stop), stopping).0);
        let Outcome::Failed(failure) = ending.outcome else { panic!("{:?}", ending.outcome) };
        assert_eq!((failure.code.as_str(), failure.retryable), ("worker_lost", true));
        assert_eq!(log(&rig, &job).await, ["queued", "started 1", "Bon", "failed"], "{reason:?}");
    }
}

#[tokio::test]
async fn a_stream_that_may_be_repeated_is_handed_back() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::SayAndHang, Play::Say]);
    let job = rig.submit(Job { repeat_streamed: true, ..streamed() }).await;
    let (claim, stop) = (rig.claim().await, Stop::default());
    let stopping = async {
        says(&rig, &job, "Bon").await;
        stop.stop(StopReason::Drain);
    };
    let done = tokio::join!(execute(&rig.shared, &claim, &stop), stopping).0;
    assert!(matches!(done, Done::Gone), "{done:?}");
    recorded(execute(&rig.shared, &rig.claim().await, &Stop::default()).await);
    let expect = ["queued", "started 1", "Bon", "retrying", "started 1", "Bonjour", "succeeded"];
    assert_eq!(log(&rig, &job).await, expect);
}
