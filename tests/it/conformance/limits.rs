//! Limits of a scope hold over all workers, and hold nobody else back.

use std::time::Duration;

use tokio::time::Instant;
use workers::{
    job::Lane,
    queue::{AtOnce, Claim, ScopeLimits, Work},
};

use super::bench::{Bench, LONG, OPEN, Spec, Store, eventually, run, slots, succeeded, succeeded_with, unlimited};

/// Both workers claim at the same time, several times over.
async fn both_claim(bench: &Bench, limits: &ScopeLimits) -> Vec<Claim> {
    let limits = [limits.clone()];
    let mut all = Vec::new();
    for _ in 0..3 {
        let (one, two) =
            tokio::join!(bench.queue.claim(bench.worker, 2, &limits), bench.queue.claim(bench.other, 2, &limits));
        all.extend(one.unwrap().claims);
        all.extend(two.unwrap().claims);
    }
    all
}

pub async fn workers_share_concurrency_slots<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 20).await;
    assert_eq!(both_claim(&bench, &slots(OPEN, 3)).await.len(), 3);
}

pub async fn workers_share_requests_a_minute<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 20).await;
    let limits = ScopeLimits { requests_per_minute: Some(5), ..unlimited(OPEN) };
    let claims = both_claim(&bench, &limits).await;
    assert_eq!(claims.len(), 5);
    for claim in &claims {
        bench.end(claim).await;
    }
    // What has ended still counts for the minute.
    let later = bench.claim_in(10, &[limits]).await;
    assert!(later.claims.is_empty());
    let next = later.next.expect("a run is held back");
    assert!(next > Duration::from_secs(1) && next <= Duration::from_millis(60_001), "{next:?}");
}

pub async fn workers_share_tokens_a_minute<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { tokens: 30, ..run() }, 20).await;
    let limits = ScopeLimits { tokens_per_minute: Some(100), ..unlimited(OPEN) };
    let claims = both_claim(&bench, &limits).await;
    assert_eq!(claims.len(), 3);
    // The provider did not count: the reservations stand.
    for claim in &claims {
        bench.stash(&succeeded(claim)).await;
    }
    let later = bench.claim_in(10, &[limits]).await;
    assert!(later.claims.is_empty() && later.next.is_some());
}

pub async fn a_worker_gets_no_more_than_may_leave_at_once<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 100).await;
    bench.flood(&Spec { scopes: vec!["other"], ..run() }, 2).await;
    let next = Duration::from_millis(300);
    let paced = |calls| [ScopeLimits { at_once: Some(AtOnce { calls, next }), ..unlimited(OPEN) }, unlimited("other")];
    // More than Redis hands out in one step.
    let claims = bench.claim_in(100, &paced(60)).await.claims;
    let open = claims.iter().filter(|claim| claim.scope() == Some(OPEN)).count();
    assert_eq!((open, claims.len()), (60, 62), "the other scope waits for nobody");
    let claimed = bench.claim_in(100, &paced(0)).await;
    assert!(claimed.claims.is_empty());
    let told = claimed.next.expect("runs are held back");
    assert!(told > next - Duration::from_millis(20) && told <= next + Duration::from_millis(2), "{told:?}");
    assert_eq!(bench.claim_in(100, &[unlimited(OPEN)]).await.claims.len(), 40);
}

pub async fn what_is_not_called_needs_no_pace<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { deadline: -1, ..run() }, 1).await;
    let none = [ScopeLimits { at_once: Some(AtOnce { calls: 0, next: Duration::from_secs(60) }), ..unlimited(OPEN) }];
    let claim = bench.claim_in(1, &none).await.claims.remove(0);
    assert_eq!(claim.work, Work::Expire(None));
}

pub async fn a_stash_frees_its_slot<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 3).await;
    let limits = [slots(OPEN, 1)];
    for _ in 0..3 {
        let claims = bench.claim_in(10, &limits).await.claims;
        assert_eq!(claims.len(), 1);
        assert!(bench.claim_in(10, &limits).await.claims.is_empty());
        bench.stash(&succeeded(&claims[0])).await;
    }
}

pub async fn a_release_frees_its_slot<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 3).await;
    let limits = [slots(OPEN, 1)];
    let first = bench.claim_in(10, &limits).await.claims.remove(0);
    bench.retry(&first, Duration::from_secs(60)).await;
    let second = bench.claim_in(10, &limits).await.claims.remove(0);
    assert_ne!(second.job.id, first.job.id);
    bench.hand_back(&second).await;
    assert_eq!(bench.claim_in(10, &limits).await.claims.len(), 1);
}

pub async fn tokens_are_settled_to_what_was_used<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { tokens: 60, ..run() }, 4).await;
    let limits = [ScopeLimits { tokens_per_minute: Some(100), ..unlimited(OPEN) }];
    let claim = bench.claim_in(10, &limits).await.claims.remove(0);
    assert!(bench.claim_in(10, &limits).await.claims.is_empty());
    bench.stash(&succeeded_with(&claim, Some(40))).await;
    // 40 used and 60 reserved: exactly the limit.
    let claim = bench.claim_in(10, &limits).await.claims.remove(0);
    // 40 and 90 used: more than was reserved counts as well.
    bench.stash(&succeeded_with(&claim, Some(90))).await;
    assert!(bench.claim_in(10, &limits).await.claims.is_empty());
}

pub async fn more_tokens_than_a_minute_allows_go_alone<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { tokens: 1_000, ..run() }, 2).await;
    let limits = [ScopeLimits { tokens_per_minute: Some(100), ..unlimited(OPEN) }];
    assert_eq!(bench.claim_in(10, &limits).await.claims.len(), 1);
    assert!(bench.claim_in(10, &limits).await.claims.is_empty());
}

pub async fn a_throttled_scope_holds_nobody_else_back<S: Store>() {
    let bench = S::open(LONG).await;
    let account = run().account;
    bench.flood(&Spec { account, scopes: vec!["slow"], ..run() }, 20).await;
    bench.flood(&Spec { account, lane: Lane::Batch, ..run() }, 5).await;
    let limits = [slots("slow", 1), unlimited(OPEN)];
    let claims = bench.claim_in(10, &limits).await.claims;
    let slow = claims.iter().filter(|claim| claim.job.targets[0].provider == "slow").count();
    assert_eq!((slow, claims.len()), (1, 6));
}

pub async fn a_paused_scope_waits_and_goes_on<S: Store>() {
    let bench = S::open(LONG).await;
    let paused = bench.flood(&Spec { scopes: vec!["paused"], ..run() }, 1).await;
    bench.flood(&run(), 1).await;
    let (since, after) = (Instant::now(), Duration::from_millis(400));
    bench.queue.pause_scope("paused", after).await.unwrap();
    let limits = [unlimited("paused"), unlimited(OPEN)];
    let claimed = bench.claim_in(10, &limits).await;
    assert_eq!(claimed.claims.len(), 1);
    assert_ne!(claimed.claims[0].job.id, paused[0].id);
    let next = claimed.next.expect("a run is held back");
    assert!(next <= after + Duration::from_millis(5), "{next:?}");
    let claim = eventually("the end of the pause", async || bench.claim_in(10, &limits).await.claims.pop()).await;
    assert!(since.elapsed() >= after - Duration::from_millis(5));
    assert_eq!(claim.job.id, paused[0].id);
}

pub async fn a_shorter_pause_does_not_end_a_longer_one<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    bench.queue.pause_scope(OPEN, Duration::from_secs(60)).await.unwrap();
    bench.queue.pause_scope(OPEN, Duration::from_millis(1)).await.unwrap();
    let claimed = bench.claim_in(10, &[unlimited(OPEN)]).await;
    assert!(claimed.claims.is_empty());
    assert!(claimed.next.is_some_and(|next| next > Duration::from_secs(30)), "{:?}", claimed.next);
}
