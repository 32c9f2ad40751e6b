//! What becomes of runs whose owner or time is gone.

use std::{sync::Arc, time::Duration};

use workers::{
    job::{Job, Outcome},
    queue::{Held, LostCall, MAX_LOSSES, Work},
};

use super::bench::{LONG, OPEN, SHORT, Spec, Store, eventually, run, slots, succeeded};

pub async fn a_lost_call_is_told_and_then_made_again<S: Store>() {
    let bench = S::open(SHORT).await;
    let job = run().job();
    bench.enqueue(&job).await;
    let lost = bench.take().await;
    let reaped = bench.reap().await;
    let told = LostCall { worker: bench.worker, fence: lost.fence, attempt: 1, started_at: lost.started_at };
    assert_eq!(reaped.work, Work::Lost(told));
    assert!(reaped.fence > lost.fence);
    assert_eq!(reaped.job, job);
    bench.claims_nothing().await;
    assert_eq!(bench.retry(&lost, Duration::ZERO).await, Held::Elsewhere);
    assert_eq!(bench.retry(&reaped, Duration::ZERO).await, Held::Done);
    let again = bench.take().await;
    assert_eq!((again.attempt, again.started_at), (2, lost.started_at));
    assert!(again.fence > reaped.fence);
}

pub async fn a_lost_call_does_not_begin_before_its_run<S: Store>() {
    let bench = S::open(SHORT).await;
    // Its front door's reading of the queue's clock is a little ahead.
    let early = run().job();
    let job = Arc::new(Job { created_at: early.created_at.plus(1_000), ..(*early).clone() });
    bench.enqueue(&job).await;
    let lost = bench.take().await;
    let Work::Lost(told) = bench.reap().await.work else { panic!("the call was lost") };
    assert_eq!((lost.started_at, told.started_at), (job.created_at, job.created_at));
}

pub async fn what_a_lost_reaper_had_is_told_again<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 1).await;
    bench.take().await;
    let first = bench.reap().await;
    let second = bench.reap().await;
    assert!(second.fence > first.fence);
    assert_eq!(second.work, first.work);
}

pub async fn a_lost_call_that_is_handed_back_is_told_again<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 1).await;
    bench.take().await;
    let first = bench.reap().await;
    assert_eq!(bench.hand_back(&first).await, Held::Done);
    bench.claims_nothing().await;
    assert_eq!(bench.reap().await.work, first.work);
}

pub async fn two_reapers_never_get_the_same_run<S: Store>() {
    let bench = S::open(LONG).await;
    let spec = Spec { deadline: -1, ..run() };
    bench.flood(&spec, 20).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        let (one, two) = tokio::join!(bench.queue.reap(bench.worker, 3), bench.queue.reap(bench.other, 3));
        for claim in one.unwrap().into_iter().chain(two.unwrap()) {
            assert!(seen.insert(claim.job.id), "{} was reaped twice", claim.job.id);
        }
    }
    assert_eq!(seen.len(), 20);
}

pub async fn a_run_that_is_lost_too_often_is_poison<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 1).await;
    for loss in 1..=MAX_LOSSES + 1 {
        let claim = bench.take().await;
        let reaped = bench.reap().await;
        match reaped.work {
            Work::Lost(ref call) if loss <= MAX_LOSSES => assert_eq!(call.fence, claim.fence),
            Work::Poison(ref call) if loss > MAX_LOSSES => assert_eq!(call.fence, claim.fence),
            other => panic!("loss {loss}: {other:?}"),
        }
        if loss <= MAX_LOSSES {
            bench.retry(&reaped, Duration::ZERO).await;
        } else {
            bench.end(&reaped).await;
        }
    }
    bench.claims_nothing().await;
}

pub async fn a_lost_run_that_was_cancelled_is_to_be_cancelled<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    bench.cancel(claim.job.id).await;
    let call = LostCall { worker: bench.worker, fence: claim.fence, attempt: 1, started_at: claim.started_at };
    assert_eq!(bench.reap().await.work, Work::Cancel(Some(call.clone())));
    // The call is still told after the loss of a reaper.
    let reaped = bench.reap().await;
    assert_eq!(reaped.work, Work::Cancel(Some(call)));
    let mut ending = succeeded(&reaped);
    ending.outcome = Outcome::Cancelled;
    assert_eq!(bench.stash(&ending).await, Held::Done);
}

pub async fn a_deadline_that_passed_is_found_by_a_claim<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { deadline: -1, ..run() }, 1).await;
    let claim = bench.claim(10).await.remove(0);
    assert_eq!(claim.work, Work::Expire(None));
    let mut ending = succeeded(&claim);
    (ending.outcome, ending.attempt) = (Outcome::Expired, None);
    assert_eq!(bench.stash(&ending).await, Held::Done);
}

pub async fn a_deadline_that_passed_is_found_by_a_reaper<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { deadline: 200, ..run() }, 1).await;
    let reaped = bench.reap().await;
    assert_eq!(reaped.work, Work::Expire(None));
    assert!(reaped.queue_ms >= 150, "{}", reaped.queue_ms);
    bench.claims_nothing().await;
    bench.end(&reaped).await;
}

pub async fn a_delayed_run_can_expire<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { deadline: 1_000, ..run() }, 1).await;
    let claim = bench.take().await;
    assert_eq!(bench.retry(&claim, Duration::from_secs(600)).await, Held::Done);
    let reaped = bench.reap().await;
    assert_eq!(reaped.work, Work::Expire(None));
    assert_eq!(reaped.started_at, claim.started_at);
    let stats = bench.queue.stats().await.unwrap();
    assert_eq!((stats.delayed, stats.leased), (0, 1));
}

pub async fn slots_of_a_lost_worker_heal<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 2).await;
    let limits = [slots(OPEN, 1)];
    assert_eq!(bench.claim_in(10, &limits).await.claims.len(), 1);
    let blocked = bench.claim_in(10, &limits).await;
    assert!(blocked.claims.is_empty());
    assert!(blocked.next.is_some_and(|next| next <= SHORT + Duration::from_millis(50)), "{:?}", blocked.next);
    // Nobody reaps: the slot alone comes back.
    let claim = eventually("a free slot", async || bench.claim_in(10, &limits).await.claims.pop()).await;
    assert_eq!((claim.work, claim.attempt), (Work::Call, 1));
}
