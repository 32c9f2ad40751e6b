//! What becomes of a claim: calls, retries, stops, and endings that nobody takes.

use super::*;
use crate::{
    executor::{
        call::{Done, execute},
        settling::settle,
        stop::{Stop, StopReason},
    },
    job::{AttemptOutcome, Ending, Outcome, RunState},
    queue::{LogMark, LostCall, NewText, Work},
    tests::{Loss, Step},
};

/// Executes a claim whose call is stopped for a reason after it has begun.
async fn execute_and_stop(rig: &Rig, claim: &Claim, reason: StopReason) -> Done {
    rig.provider.play(&[Play::Hang]);
    let stop = Stop::default();
    let stopping = async {
        eventually("the call", async || (rig.provider.calls() > 0).then_some(())).await;
        stop.stop(reason);
    };
    tokio::join!(execute(&rig.shared, claim, &stop), stopping).0
}

fn recorded(done: Done) -> Ending {
    match done {
        Done::Record(ending) => *ending,
        Done::Gone => panic!("the run has no ending"),
    }
}

fn outcomes(attempts: &[Attempt]) -> Vec<(i32, AttemptOutcome)> {
    attempts.iter().map(|attempt| (attempt.number, attempt.outcome)).collect()
}

/// Writes an ending as the recorder does.
async fn record(rig: &Rig, job: &Arc<Job>, ending: Ending) {
    rig.memory.ledger.finish(&[(job.clone(), Arc::new(ending))]).await.unwrap();
}

#[tokio::test]
async fn failed_calls_are_made_again_until_one_succeeds() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::Fail, Play::Fail]);
    let job = rig.submit(job()).await;
    for _ in 0..2 {
        let claim = rig.claim().await;
        assert!(matches!(execute(&rig.shared, &claim, &Stop::default()).await, Done::Gone));
    }
    let ending = recorded(execute(&rig.shared, &rig.claim().await, &Stop::default()).await);
    assert_eq!(ending.outcome.state(), RunState::Succeeded);
    record(&rig, &job, ending).await;
    let failed = AttemptOutcome::ProviderError;
    let expected = [(1, failed), (2, failed), (3, AttemptOutcome::Succeeded)];
    assert_eq!(outcomes(&rig.attempts(&job).await), expected);
}

#[tokio::test]
async fn a_cancelled_call_ends_as_cancelled() {
    let rig = Rig::new(1).await;
    rig.submit(job()).await;
    let claim = rig.claim().await;
    let ending = recorded(execute_and_stop(&rig, &claim, StopReason::Cancelled).await);
    assert_eq!(ending.outcome, Outcome::Cancelled);
    assert_eq!(ending.attempt.map(|attempt| attempt.outcome), Some(AttemptOutcome::Cancelled));
}

#[tokio::test]
async fn a_call_that_is_still_going_at_its_deadline_ends_as_expired() {
    let rig = Rig::new(1).await;
    rig.provider.play(&[Play::Hang]);
    let job = job();
    rig.submit(Job { deadline: job.created_at.plus(200), ..job }).await;
    let ending = recorded(execute(&rig.shared, &rig.claim().await, &Stop::default()).await);
    assert_eq!(ending.outcome, Outcome::Expired);
    assert_eq!(ending.attempt.map(|attempt| attempt.outcome), Some(AttemptOutcome::Expired));
}

#[tokio::test]
async fn a_drained_call_is_handed_back_and_stays_visible() {
    let rig = Rig::new(1).await;
    let job = rig.submit(job()).await;
    let claim = rig.claim().await;
    assert!(matches!(execute_and_stop(&rig, &claim, StopReason::Drain).await, Done::Gone));
    assert_eq!(rig.claim().await.attempt, 1, "a run that is handed back is not counted");
    assert_eq!(outcomes(&rig.attempts(&job).await), [(1, AttemptOutcome::WorkerLost)]);
}

#[tokio::test]
async fn a_drained_call_is_handed_back_while_the_ledger_is_away() {
    let rig = Rig::new(1).await;
    let job = rig.submit(job()).await;
    let claim = rig.claim().await;
    rig.memory.go().await;
    let next = async {
        let next = rig.claim().await;
        rig.memory.come_back().await;
        next
    };
    let (done, next) = tokio::join!(execute_and_stop(&rig, &claim, StopReason::Drain), next);
    assert!(matches!(done, Done::Gone));
    assert_eq!(next.attempt, 1);
    assert_eq!(outcomes(&rig.attempts(&job).await), [(1, AttemptOutcome::WorkerLost)]);
}

#[tokio::test]
async fn a_call_whose_lease_is_lost_stays_visible() {
    let rig = Rig::new(1).await;
    let job = rig.submit(job()).await;
    let claim = rig.claim().await;
    assert!(matches!(execute_and_stop(&rig, &claim, StopReason::LeaseLost).await, Done::Gone));
    // Nobody else may know of it: a queue that lost its memory tells no reaper.
    assert_eq!(outcomes(&rig.attempts(&job).await), [(1, AttemptOutcome::WorkerLost)]);
}

#[tokio::test]
async fn an_answer_that_is_there_is_not_lost_to_whoever_stops_the_call() {
    for reason in [StopReason::Cancelled, StopReason::LeaseLost, StopReason::Drain] {
        let rig = Rig::new(1).await;
        rig.provider.play(&[Play::Wait]);
        rig.submit(job()).await;
        let (claim, stop) = (rig.claim().await, Stop::default());
        let both_at_once = async {
            eventually("the call", async || (rig.provider.calls() > 0).then_some(())).await;
            stop.stop(reason);
            rig.provider.gate.notify_one();
        };
        let (done, ()) = tokio::join!(execute(&rig.shared, &claim, &stop), both_at_once);
        assert_eq!(recorded(done).outcome.state(), RunState::Succeeded, "{reason:?}");
    }
}

#[tokio::test]
async fn what_was_stopped_before_its_call_is_not_called() {
    for reason in [StopReason::Cancelled, StopReason::LeaseLost, StopReason::Drain] {
        let rig = Rig::new(1).await;
        rig.submit(job()).await;
        let (claim, stop) = (rig.claim().await, Stop::default());
        stop.stop(reason);
        execute(&rig.shared, &claim, &stop).await;
        assert_eq!(rig.provider.calls(), 0, "{reason:?}");
    }
}

#[tokio::test]
async fn a_late_ending_is_discarded_and_its_usage_recorded() {
    let rig = Rig::new(1).await;
    let job = rig.submit(job()).await;
    let late = rig.claim().await;
    let handed_back = rig.queue.release(job.id, late.fence, crate::queue::Release::HandBack).await.unwrap();
    assert_eq!(handed_back, crate::queue::Held::Done);
    let next = rig.claim().await;
    assert!(matches!(execute(&rig.shared, &late, &Stop::default()).await, Done::Gone));
    let attempts = rig.attempts(&job).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].fence, attempts[0].usage.total()), (late.fence, Some(15)));
    assert_eq!(recorded(execute(&rig.shared, &next, &Stop::default()).await).fence, next.fence);
}

#[tokio::test]
async fn an_ending_that_the_queue_does_not_know_goes_to_the_ledger() {
    let rig = Rig::new(1).await;
    let other = Rig::new(1).await;
    other.submit(job()).await;
    let ending = recorded(execute(&rig.shared, &other.claim().await, &Stop::default()).await);
    assert_eq!(ending.outcome.state(), RunState::Succeeded);
}

#[tokio::test]
async fn an_ending_goes_to_the_ledger_when_the_queue_is_away() {
    let rig = Rig::new(1).await;
    rig.submit(job()).await;
    let claim = rig.claim().await;
    rig.queue.fail(&[Step::Stash], Loss::Question);
    let ending = recorded(execute(&rig.shared, &claim, &Stop::default()).await);
    assert_eq!(ending.outcome.state(), RunState::Succeeded);
}

/// The claim as a reaper gets it once its worker is lost.
fn lost(rig: &Rig, claim: &Claim) -> Claim {
    let call = LostCall {
        worker: rig.shared.worker,
        fence: claim.fence,
        attempt: claim.attempt,
        started_at: claim.started_at,
    };
    Claim { work: Work::Lost(call), attempt: claim.attempt + 1, ..claim.clone() }
}

#[tokio::test]
async fn a_lost_call_is_recorded_and_made_again() {
    let rig = Rig::new(1).await;
    let job = rig.submit(job()).await;
    let claim = rig.claim().await;
    assert!(matches!(settle(&rig.shared, &lost(&rig, &claim)).await, Done::Gone));
    assert_eq!(rig.claim().await.attempt, 2);
    assert_eq!(outcomes(&rig.attempts(&job).await), [(1, AttemptOutcome::WorkerLost)]);
}

#[tokio::test]
async fn a_lost_call_stays_visible_on_a_run_that_was_cancelled_or_expired() {
    for (end, state) in [(Work::Cancel as fn(_) -> _, RunState::Cancelled), (Work::Expire, RunState::Expired)] {
        let rig = Rig::new(1).await;
        let job = rig.submit(job()).await;
        let claim = rig.claim().await;
        let Work::Lost(call) = lost(&rig, &claim).work else { panic!("it is lost") };
        let claim = Claim { work: end(Some(call)), attempt: 2, ..claim };
        let ending = recorded(settle(&rig.shared, &claim).await);
        assert_eq!((ending.outcome.state(), ending.started_at), (state, Some(claim.started_at)));
        record(&rig, &job, ending).await;
        assert_eq!(outcomes(&rig.attempts(&job).await), [(1, AttemptOutcome::WorkerLost)]);
    }
}

#[tokio::test]
async fn a_lost_stream_fails_and_is_not_billed_again() {
    let rig = Rig::new(1).await;
    rig.submit(Job { stream: true, ..job() }).await;
    let claim = rig.claim().await;
    let before = claim.log.unwrap();
    let silent = lost(&rig, &claim);
    assert!(matches!(settle(&rig.shared, &silent).await, Done::Gone), "nobody was told anything yet");
    let claim = rig.claim().await;
    let text = NewText { first: 5, before: 0, deltas: vec!["Bon".into()] };
    rig.queue.append(claim.job.id, claim.fence, &text).await.unwrap();
    let said = Claim { log: Some(LogMark { streamed: true, ..before }), ..lost(&rig, &claim) };
    let ending = recorded(settle(&rig.shared, &said).await);
    let Outcome::Failed(failure) = &ending.outcome else { panic!("{ending:?}") };
    assert_eq!(failure.code, "worker_lost");
    assert_eq!(ending.attempt.map(|attempt| attempt.outcome), Some(AttemptOutcome::WorkerLost));
}

#[tokio::test]
async fn a_lost_stream_of_which_nothing_was_said_is_called_again() {
    let rig = Rig::new(1).await;
    rig.submit(Job { stream: true, ..job() }).await;
    let claim = rig.claim().await;
    assert!(matches!(settle(&rig.shared, &lost(&rig, &claim)).await, Done::Gone));
    assert_eq!(rig.claim().await.attempt, 2);
}

#[tokio::test]
async fn a_lost_run_whose_ending_is_in_the_ledger_is_not_called_again() {
    // The queue was away when the call ended, heard of neither the ending nor its record, and is back with its memory.
    for stream in [false, true] {
        let rig = Rig::new(1).await;
        let job = rig.submit(Job { stream, ..job() }).await;
        let claim = rig.claim().await;
        rig.queue.fail(&[Step::Stash, Step::Finish], Loss::Question);
        let ending = recorded(execute(&rig.shared, &claim, &Stop::default()).await);
        record(&rig, &job, ending).await;
        rig.queue.heal();
        let again = recorded(settle(&rig.shared, &lost(&rig, &claim)).await);
        assert_eq!(again.outcome.state(), RunState::Succeeded);
        assert_eq!(again.fence, claim.fence, "it is finished under the reaper's own lease");
        assert_eq!(outcomes(&rig.attempts(&job).await), [(1, AttemptOutcome::Succeeded)]);
    }
}

#[tokio::test]
async fn a_lost_run_is_left_to_the_next_reaper_while_the_ledger_cannot_say_whether_it_ended() {
    let rig = Rig::new(1).await;
    let job = job();
    let job = rig.submit(Job { deadline: job.created_at.plus(100), ..job }).await;
    let claim = rig.claim().await;
    rig.memory.go().await;
    assert!(matches!(settle(&rig.shared, &lost(&rig, &claim)).await, Done::Gone));
    assert!(rig.queue.locate(job.id).await.unwrap().unwrap().leased);
}
