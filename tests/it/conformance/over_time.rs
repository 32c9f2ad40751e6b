//! What takes minutes, or a hundred thousand runs: on the embedded queue, whose clock the tests move.

use std::time::Duration;

use tokio::time::sleep;
use workers::{
    job::Lane,
    queue::{Admission, Admitted, RateRule, ScopeLimits, Submission},
};

use super::{
    bench::{Embedded, LONG, OPEN, SHORT, Spec, Store, ids, run, unlimited},
    fairness::shares,
};

#[tokio::test(start_paused = true)]
async fn a_lower_lane_that_waited_long_gets_more_than_its_share() {
    let bench = Embedded::open(LONG).await;
    for lane in [Lane::Interactive, Lane::Batch] {
        bench.flood(&Spec { lane, ..run() }, 100).await;
    }
    let [_, _, fresh] = shares(&bench, 36).await;
    assert!((3..=5).contains(&fresh), "{fresh} of 36");
    sleep(Duration::from_secs(61)).await;
    let [_, _, aged] = shares(&bench, 36).await;
    assert!((11..=13).contains(&aged), "{aged} of 36: a turn in four, and a ninth of the others");
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_stands_for_a_minute() {
    let bench = Embedded::open(LONG).await;
    let job = run().job();
    bench.enqueue(&job).await;
    let claim = bench.take().await;
    bench.end(&claim).await;
    sleep(Duration::from_secs(59)).await;
    assert_eq!(bench.queue.missing(&[job.id]).await.unwrap(), []);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.queue.missing(&[job.id]).await.unwrap(), [job.id]);
}

/// The paused clock runs away from the wall clock, as if that had been set back.
#[tokio::test(start_paused = true)]
async fn the_clock_of_a_queue_without_runs_follows_the_wall_clock() {
    const AWAY: u64 = 600_000;
    let bench = Embedded::open(LONG).await;
    let start = bench.queue.now();
    bench.enqueue(&run().job()).await;
    sleep(Duration::from_millis(AWAY)).await;
    assert!(bench.queue.now() >= start.plus(AWAY), "a run is there, and its deadline is a moment of this clock");
    let claim = bench.take().await;
    assert!(claim.started_at >= start.plus(AWAY) && claim.queue_ms >= AWAY, "{claim:?}");
    bench.end(&claim).await;
    sleep(Duration::from_secs(59)).await;
    assert!(bench.queue.now() >= start.plus(AWAY));
    sleep(Duration::from_secs(60)).await;
    assert!(bench.queue.now() < start.plus(AWAY), "nobody holds a moment of it any more");
}

#[tokio::test(start_paused = true)]
async fn an_accounts_minute_slides() {
    let bench = Embedded::open(LONG).await;
    let rules = vec![RateRule { name: "account", subject: "a".into(), per_minute: 2 }];
    let admission = Admission { rules, max_depth: 100, max_bytes: 1 << 30 };
    let enqueue =
        async || bench.queue.enqueue(Submission { job: run().job(), reply_to: None }, Some(&admission)).await.unwrap();
    assert!(matches!(enqueue().await, Admitted::Yes { .. }));
    sleep(Duration::from_secs(40)).await;
    assert!(matches!(enqueue().await, Admitted::Yes { .. }));
    let Admitted::Limited { after, .. } = enqueue().await else { panic!("two requests in this minute") };
    assert_eq!(after, Duration::from_secs(20));
    sleep(after - Duration::from_millis(1)).await;
    assert!(matches!(enqueue().await, Admitted::Limited { .. }));
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(enqueue().await, Admitted::Yes { .. }));
    assert!(matches!(enqueue().await, Admitted::Limited { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_providers_minute_slides() {
    let bench = Embedded::open(LONG).await;
    bench.flood(&Spec { tokens: 10, ..run() }, 10).await;
    let limits = [ScopeLimits { requests_per_minute: Some(3), tokens_per_minute: Some(20), ..unlimited(OPEN) }];
    assert_eq!(bench.claim_in(1, &limits).await.claims.len(), 1);
    sleep(Duration::from_secs(45)).await;
    assert_eq!(bench.claim_in(10, &limits).await.claims.len(), 1);
    let next = bench.claim_in(10, &limits).await.next.expect("runs are held back");
    assert_eq!(next, Duration::from_secs(15));
    sleep(next).await;
    assert_eq!(bench.claim_in(10, &limits).await.claims.len(), 1);
    assert_eq!(bench.claim_in(10, &limits).await.next, Some(Duration::from_secs(45)));
}

#[tokio::test(start_paused = true)]
async fn a_due_delay_ends_a_longer_wait() {
    let bench = Embedded::open(LONG).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    bench.retry(&claim, Duration::from_secs(7)).await;
    bench.claims_nothing().await;
    let slept = bench.wait(Duration::from_secs(60)).await.unwrap();
    assert_eq!(slept.as_secs(), 7);
    bench.take().await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_call_cannot_be_renewed_even_before_it_is_reaped() {
    let bench = Embedded::open(SHORT).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    sleep(SHORT).await;
    let renewals = bench.queue.heartbeat(bench.worker, &[(claim.job.id, claim.fence)]).await.unwrap();
    assert_eq!(renewals, [workers::queue::Renewal::Lost]);
}

#[tokio::test]
async fn a_hundred_thousand_runs_of_one_account_do_not_delay_another() {
    let bench = Embedded::open(LONG).await;
    bench.flood(&run(), 100_000).await;
    let first = bench.flood(&run(), 1).await;
    assert!(ids(&bench.claim(2).await).contains(&first[0].id));
    assert_eq!(bench.claim(1_000).await.len(), 1_000);
    let late = bench.flood(&run(), 1).await;
    assert!(ids(&bench.claim(2).await).contains(&late[0].id));
}
