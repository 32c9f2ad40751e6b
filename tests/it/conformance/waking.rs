//! Idle workers sleep, and none sleeps while there is work.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use workers::{job::Fence, queue::Restored};

use super::bench::{Bench, LONG, OPEN, Store, run, slots, succeeded, unlimited};

/// Longer than any case takes: whoever waits so long was not woken.
const NIGHT: Duration = Duration::from_secs(60);

/// Starts to wait, and goes on when the sleeper sleeps. Were it late, it would still have to be woken.
async fn asleep(bench: &Bench) -> JoinHandle<Duration> {
    let sleeper = bench.wait(NIGHT);
    sleep(Duration::from_millis(50)).await;
    sleeper
}

async fn is_woken(sleeper: JoinHandle<Duration>) {
    let slept = sleeper.await.unwrap();
    assert!(slept < NIGHT / 4, "slept for {slept:?}");
}

pub async fn an_idle_wait_ends_in_time<S: Store>() {
    let bench = S::open(LONG).await;
    bench.claims_nothing().await;
    let at_most = Duration::from_millis(300);
    let slept = bench.wait(at_most).await.unwrap();
    assert!(slept >= at_most - Duration::from_millis(5) && slept < NIGHT / 4, "{slept:?}");
}

pub async fn a_submission_wakes<S: Store>() {
    let bench = S::open(LONG).await;
    for _ in 0..5 {
        bench.claims_nothing().await;
        let sleeper = asleep(&bench).await;
        bench.enqueue(&run().job()).await;
        is_woken(sleeper).await;
        bench.take().await;
    }
}

pub async fn a_submission_between_a_claim_and_its_wait_wakes<S: Store>() {
    let bench = S::open(LONG).await;
    bench.claims_nothing().await;
    bench.enqueue(&run().job()).await;
    is_woken(bench.wait(NIGHT)).await;
}

pub async fn a_worker_that_left_runs_behind_does_not_sleep<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 3).await;
    for left in [2, 1] {
        let claimed = bench.claim_in(1, &[unlimited(OPEN)]).await;
        assert_eq!(claimed.claims.len(), 1);
        // Either the claim says so, or the wait does.
        is_woken(bench.wait(claimed.next.unwrap_or(NIGHT))).await;
        assert_eq!(bench.queue.stats().await.unwrap().lanes[0].ready, left);
    }
}

pub async fn a_worker_that_took_all_there_was_is_woken<S: Store>() {
    let bench = S::open(LONG).await;
    // As many as Redis hands out in one step, and one.
    for there in [50, 1] {
        bench.flood(&run(), there).await;
        assert_eq!(bench.claim(there + 10).await.len(), there);
        let sleeper = asleep(&bench).await;
        bench.enqueue(&run().job()).await;
        // Once for what came before the claim, perhaps.
        is_woken(sleeper).await;
        if bench.claim(10).await.is_empty() {
            is_woken(bench.wait(NIGHT)).await;
            bench.take().await;
        }
    }
}

pub async fn a_restored_run_wakes<S: Store>() {
    let bench = S::open(LONG).await;
    bench.claims_nothing().await;
    let sleeper = asleep(&bench).await;
    let job = run().job();
    bench.queue.restore(&[Restored { job: Arc::clone(&job), attempts: 0, limited: 0, fence: Fence(0) }]).await.unwrap();
    is_woken(sleeper).await;
    assert_eq!(bench.take().await.job.id, job.id);
}

pub async fn a_freed_slot_wakes<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 2).await;
    let limits = [slots(OPEN, 1)];
    let claim = bench.claim_in(10, &limits).await.claims.remove(0);
    assert!(bench.claim_in(10, &limits).await.claims.is_empty());
    let sleeper = asleep(&bench).await;
    bench.stash(&succeeded(&claim)).await;
    is_woken(sleeper).await;
    assert_eq!(bench.claim_in(10, &limits).await.claims.len(), 1);
}

pub async fn a_run_that_is_handed_back_wakes<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    let claim = bench.queue.claim(bench.other, 1, &[unlimited(OPEN)]).await.unwrap().claims.remove(0);
    bench.claims_nothing().await;
    let sleeper = asleep(&bench).await;
    bench.hand_back(&claim).await;
    is_woken(sleeper).await;
    bench.take().await;
}

pub async fn the_claim_says_when_a_delayed_run_is_due<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    let (since, after) = (Instant::now(), Duration::from_millis(400));
    bench.retry(&claim, after).await;
    let claimed = bench.claim_in(10, &[unlimited(OPEN)]).await;
    assert!(claimed.claims.is_empty());
    let next = claimed.next.expect("a run is delayed");
    assert!(next <= after, "{next:?}");
    is_woken(bench.wait(next)).await;
    assert_eq!(bench.take_later().await.attempt, 2);
    assert!(since.elapsed() >= after - Duration::from_millis(5) && since.elapsed() < NIGHT / 4);
}

pub async fn a_paused_queue_hands_out_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 2).await;
    let claim = bench.claim(1).await.remove(0);
    bench.queue.set_paused(true).await.unwrap();
    assert!(bench.queue.stats().await.unwrap().paused);
    bench.claims_nothing().await;
    // What runs, goes on; what comes, waits.
    bench.end(&claim).await;
    bench.enqueue(&run().job()).await;
    bench.claims_nothing().await;
    bench.queue.set_paused(false).await.unwrap();
    assert!(!bench.queue.stats().await.unwrap().paused);
    assert_eq!(bench.claim(10).await.len(), 2);
}

pub async fn resuming_wakes<S: Store>() {
    let bench = S::open(LONG).await;
    bench.queue.set_paused(true).await.unwrap();
    bench.flood(&run(), 1).await;
    bench.claims_nothing().await;
    let sleeper = asleep(&bench).await;
    bench.queue.set_paused(false).await.unwrap();
    is_woken(sleeper).await;
    bench.take().await;
}
