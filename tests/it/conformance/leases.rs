//! Claims, heartbeats and releases.

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, sleep};
use workers::{
    job::{Fence, RunId, UnixMillis},
    queue::{Held, Release, Renewal, Work},
};

use super::bench::{LONG, OPEN, SHORT, Spec, Store, ids, run, slots, unlimited};

pub async fn a_claim_tells_all_that_a_call_needs<S: Store>() {
    let bench = S::open(LONG).await;
    let job = Spec { scopes: vec![OPEN, "fallback"], tokens: 7, ..run() }.job();
    let before = bench.queue.now();
    bench.enqueue(&job).await;
    let claim = bench.take().await;
    assert_eq!(claim.job, job);
    assert_eq!((claim.attempt, claim.limited, claim.target, claim.work), (1, 0, 0, Work::Call));
    assert!(claim.queue_ms < 10_000, "{}", claim.queue_ms);
    assert!(claim.started_at >= before && claim.started_at <= bench.queue.now().plus(1));
    assert!(claim.fence > Fence(0));
}

pub async fn two_workers_never_get_the_same_run<S: Store>() {
    let bench = S::open(LONG).await;
    let jobs = bench.flood(&run(), 60).await;
    let scopes = [unlimited(OPEN)];
    let mut seen = HashSet::new();
    for _ in 0..5 {
        let (one, two) =
            tokio::join!(bench.queue.claim(bench.worker, 7, &scopes), bench.queue.claim(bench.other, 7, &scopes));
        for claim in one.unwrap().claims.into_iter().chain(two.unwrap().claims) {
            assert!(seen.insert(claim.job.id), "{} was claimed twice", claim.job.id);
        }
    }
    assert_eq!(seen.len(), jobs.len());
}

pub async fn fences_grow_with_every_claim<S: Store>() {
    let bench = S::open(LONG).await;
    bench.enqueue(&run().job()).await;
    let mut last = Fence(UnixMillis::now().0 * 1_000 - 1_000_000);
    for _ in 0..5 {
        let claim = bench.take().await;
        assert!(claim.fence > last, "fences come from the clock, in microseconds, and grow");
        last = claim.fence;
        assert_eq!(bench.hand_back(&claim).await, Held::Done);
    }
}

pub async fn only_the_named_scopes_are_claimed<S: Store>() {
    let bench = S::open(LONG).await;
    let here = bench.flood(&run(), 1).await;
    bench.flood(&Spec { scopes: vec!["elsewhere"], ..run() }, 1).await;
    assert_eq!(ids(&bench.claim(10).await), [here[0].id]);
    assert!(bench.claim_in(10, &[]).await.claims.is_empty());
    assert_eq!(bench.claim_in(10, &[unlimited(OPEN), unlimited("elsewhere")]).await.claims.len(), 1);
}

pub async fn heartbeats_are_answered_in_order<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 3).await;
    let claims = bench.claim(3).await;
    bench.cancel(claims[1].job.id).await;
    let held = [
        (claims[2].job.id, claims[2].fence),
        (RunId::new(), Fence(1)),
        (claims[1].job.id, claims[1].fence),
        (claims[0].job.id, Fence(claims[0].fence.0 - 1)),
        (claims[0].job.id, claims[0].fence),
    ];
    let expected = [Renewal::Held, Renewal::Lost, Renewal::Cancel, Renewal::Lost, Renewal::Held];
    assert_eq!(bench.queue.heartbeat(bench.worker, &held).await.unwrap(), expected);
    assert_eq!(bench.queue.heartbeat(bench.worker, &[]).await.unwrap(), []);
    bench.hand_back(&claims[0]).await;
    assert_eq!(bench.queue.heartbeat(bench.worker, &held[4..]).await.unwrap(), [Renewal::Lost]);
}

pub async fn a_heartbeat_keeps_the_lease_and_the_slot<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 2).await;
    let limits = [slots(OPEN, 1)];
    let claim = bench.claim_in(10, &limits).await.claims.remove(0);
    let until = Instant::now() + SHORT * 3;
    while Instant::now() < until {
        let renewals = bench.queue.heartbeat(bench.worker, &[(claim.job.id, claim.fence)]).await.unwrap();
        assert_eq!(renewals, [Renewal::Held]);
        bench.reaps_nothing().await;
        assert!(bench.claim_in(10, &limits).await.claims.is_empty());
        sleep(SHORT / 10).await;
    }
    assert!(matches!(bench.reap().await.work, Work::Lost(_)));
    let renewals = bench.queue.heartbeat(bench.worker, &[(claim.job.id, claim.fence)]).await.unwrap();
    assert_eq!(renewals, [Renewal::Lost]);
}

pub async fn a_retry_waits_and_goes_to_its_target<S: Store>() {
    let bench = S::open(LONG).await;
    let spec = Spec { scopes: vec![OPEN, "fallback"], ..run() };
    bench.flood(&spec, 1).await;
    let claim = bench.take().await;
    let after = Duration::from_millis(300);
    let since = Instant::now();
    let how = Release::Retry { after, target: 1 };
    assert_eq!(bench.queue.release(claim.job.id, claim.fence, how).await.unwrap(), Held::Done);
    let again = super::bench::eventually("the retry", async || {
        bench.claims_nothing().await;
        bench.claim_in(10, &[unlimited("fallback")]).await.claims.pop()
    })
    .await;
    assert!(since.elapsed() >= after, "{:?}", since.elapsed());
    assert_eq!((again.job.id, again.attempt, again.target), (claim.job.id, 2, 1));
    assert_eq!(again.started_at, claim.started_at);
    assert!(again.fence > claim.fence);
}

pub async fn a_retry_at_once_is_ready_at_once<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    assert_eq!(bench.retry(&claim, Duration::ZERO).await, Held::Done);
    assert_eq!(bench.take().await.attempt, 2);
}

pub async fn a_retry_goes_before_the_account_s_later_runs<S: Store>() {
    let bench = S::open(LONG).await;
    let jobs = bench.flood(&run(), 3).await;
    for after in [Duration::ZERO, Duration::from_millis(20)] {
        let claim = bench.claim(1).await.remove(0);
        assert_eq!(claim.job.id, jobs[0].id);
        assert_eq!(bench.retry(&claim, after).await, Held::Done);
        super::bench::eventually("the retry is in line", async || {
            // Whoever claims puts it there, whatever is claimed.
            bench.claim_in(1, &[unlimited("nobody's")]).await;
            let ready: u64 = bench.queue.stats().await.unwrap().lanes.iter().map(|lane| lane.ready).sum();
            (ready == 3).then_some(())
        })
        .await;
    }
    assert_eq!(ids(&bench.claim(3).await), [jobs[0].id, jobs[1].id, jobs[2].id]);
}

pub async fn calls_that_a_provider_limited_are_counted_apart<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&Spec { scopes: vec![OPEN, "fallback"], ..run() }, 1).await;
    let limited = async |after, target| {
        let claim = bench.take().await;
        let how = Release::Limited { after, target };
        assert_eq!(bench.queue.release(claim.job.id, claim.fence, how).await.unwrap(), Held::Done);
    };
    limited(Duration::ZERO, 0).await;
    limited(Duration::from_millis(20), 0).await;
    let again = bench.take_later().await;
    assert_eq!((again.attempt, again.limited), (3, 2));
    // Every other way of coming back leaves the count as it is.
    bench.retry(&again, Duration::ZERO).await;
    let again = bench.take().await;
    assert_eq!((again.attempt, again.limited), (4, 2));
    bench.hand_back(&again).await;
    let again = bench.take().await;
    assert_eq!((again.attempt, again.limited), (4, 2));
    let lost = bench.reap().await;
    assert_eq!((lost.attempt, lost.limited), (5, 2));
    bench.retry(&lost, Duration::ZERO).await;
    limited(Duration::ZERO, 1).await;
    let moved = bench.claim_in(1, &[unlimited("fallback")]).await.claims.remove(0);
    assert_eq!((moved.attempt, moved.limited, moved.target), (6, 3, 1));
}

pub async fn a_run_that_is_handed_back_is_uncounted_and_goes_first<S: Store>() {
    let bench = S::open(LONG).await;
    let jobs = bench.flood(&run(), 3).await;
    let claim = bench.claim(1).await.remove(0);
    assert_eq!(claim.job.id, jobs[0].id);
    assert_eq!(bench.hand_back(&claim).await, Held::Done);
    let again = bench.claim(3).await;
    assert_eq!(ids(&again), [jobs[0].id, jobs[1].id, jobs[2].id]);
    assert_eq!((again[0].attempt, again[1].attempt), (1, 1));
}

pub async fn an_old_fence_releases_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    let old = bench.take().await;
    bench.hand_back(&old).await;
    assert_eq!(bench.hand_back(&old).await, Held::Elsewhere);
    let new = bench.take().await;
    assert_eq!(bench.retry(&old, Duration::ZERO).await, Held::Elsewhere);
    bench.claims_nothing().await;
    bench.end(&new).await;
    assert_eq!(bench.hand_back(&new).await, Held::Elsewhere);
    let unknown = bench.queue.release(RunId::new(), new.fence, Release::HandBack).await.unwrap();
    assert_eq!(unknown, Held::Unknown);
}
