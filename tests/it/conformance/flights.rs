//! Runs that would be the same call share one.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use workers::{
    job::{Failure, Job, Lane, Outcome},
    queue::{Cancelled, Claim, Held, Release, Work},
};

use super::bench::{Bench, LONG, Spec, Store, run, succeeded};

fn shared() -> Spec {
    Spec { flight: Some("f"), ..run() }
}

/// A run that is being called, and others that came while it was.
async fn under_way(bench: &Bench, followers: usize) -> (Claim, Vec<Arc<Job>>) {
    bench.enqueue(&shared().job()).await;
    let leader = bench.take().await;
    let followers = bench.flood(&shared(), followers).await;
    bench.claims_nothing().await;
    (leader, followers)
}

async fn end_as(bench: &Bench, claim: &Claim, outcome: Outcome) {
    let ending = workers::job::Ending { outcome, ..succeeded(claim) };
    assert_eq!(bench.stash(&ending).await, Held::Done);
    bench.queue.finish(&[(claim.job.id, claim.fence)]).await.unwrap();
}

fn failed() -> Outcome {
    Outcome::Failed(Failure { code: "provider_error".into(), message: "It failed".into(), retryable: true })
}

pub async fn who_would_be_the_same_call_waits_behind_it<S: Store>() {
    let bench = S::open(LONG).await;
    bench.enqueue(&shared().job()).await;
    bench.enqueue(&shared().job()).await;
    bench.enqueue(&Spec { flight: Some("another"), ..run() }.job()).await;
    bench.enqueue(&run().job()).await;
    let stats = bench.queue.stats().await.unwrap();
    assert_eq!((stats.lanes[0].ready, stats.delayed), (3, 1));
    assert_eq!(bench.claim(10).await.len(), 3);
    // A leader that is to be called again still leads.
    let bench = S::open(LONG).await;
    let (leader, _) = under_way(&bench, 1).await;
    assert_eq!(bench.retry(&leader, Duration::ZERO).await, Held::Done);
    bench.enqueue(&shared().job()).await;
    assert_eq!(bench.take().await.job.id, leader.job.id);
    bench.claims_nothing().await;
}

pub async fn whoever_follows_a_success_is_to_be_answered<S: Store>() {
    let bench = S::open(LONG).await;
    let (leader, followers) = under_way(&bench, 2).await;
    assert_eq!(bench.stash(&succeeded(&leader)).await, Held::Done);
    // Not before the result is in the ledger, which is when the run is finished.
    bench.reaps_nothing().await;
    bench.enqueue(&shared().job()).await;
    bench.queue.finish(&[(leader.job.id, leader.fence)]).await.unwrap();
    bench.claims_nothing().await;
    for _ in 0..3 {
        let claim = bench.reap().await;
        assert_eq!(claim.work, Work::Answer);
        bench.end(&claim).await;
    }
    assert!(bench.queue.recall(followers[0].id).await.unwrap().is_none());
    bench.reaps_nothing().await;
    // The next one is a call again, as far as the queue knows.
    bench.enqueue(&shared().job()).await;
    bench.take().await;
}

pub async fn an_answer_that_is_gone_is_a_call_of_its_own<S: Store>() {
    let bench = S::open(LONG).await;
    let (leader, followers) = under_way(&bench, 1).await;
    bench.end(&leader).await;
    let claim = bench.reap().await;
    let how = Release::Retry { after: Duration::ZERO, target: claim.target };
    assert_eq!(bench.queue.release(claim.job.id, claim.fence, how).await.unwrap(), Held::Done);
    let own = bench.take().await;
    assert_eq!((own.job.id, own.attempt), (followers[0].id, 1));
}

pub async fn whoever_follows_a_failure_goes_alone<S: Store>() {
    let bench = S::open(LONG).await;
    let (leader, followers) = under_way(&bench, 3).await;
    end_as(&bench, &leader, failed()).await;
    let claims = bench.claim(10).await;
    let claimed: BTreeSet<_> = claims.iter().map(|claim| claim.job.id).collect();
    assert_eq!(claimed, followers.iter().map(|job| job.id).collect());
    assert!(claims.iter().all(|claim| claim.work == Work::Call));
}

pub async fn whoever_follows_a_run_that_left_has_a_new_leader<S: Store>() {
    let bench = S::open(LONG).await;
    let (leader, followers) = under_way(&bench, 3).await;
    end_as(&bench, &leader, Outcome::Cancelled).await;
    let leader = bench.take().await;
    assert_eq!(leader.job.id, followers[0].id);
    bench.claims_nothing().await;
    end_as(&bench, &leader, Outcome::Expired).await;
    let leader = bench.take().await;
    assert_eq!(leader.job.id, followers[1].id);
    bench.end(&leader).await;
    assert_eq!(bench.reap().await.job.id, followers[2].id);
}

pub async fn who_is_more_urgent_does_not_wait_behind_who_waits<S: Store>() {
    let bench = S::open(LONG).await;
    let slow = Spec { lane: Lane::Batch, ..shared() };
    let first = slow.job();
    bench.enqueue(&first).await;
    let urgent = shared().job();
    bench.enqueue(&urgent).await;
    bench.enqueue(&slow.job()).await;
    // Both wait in their lanes; the third one waits behind the urgent one, which leads.
    let stats = bench.queue.stats().await.unwrap();
    assert_eq!((stats.lanes[0].ready, stats.lanes[2].ready, stats.delayed), (1, 1, 1));
    let claims = bench.claim(10).await;
    assert_eq!(claims.len(), 2);
    let of_urgent = claims.iter().find(|claim| claim.job.id == urgent.id).unwrap();
    bench.end(of_urgent).await;
    assert_eq!(bench.reap().await.work, Work::Answer);
    // Once the slow one is called, whoever comes waits for it.
    let bench = S::open(LONG).await;
    bench.enqueue(&slow.job()).await;
    bench.take().await;
    bench.enqueue(&shared().job()).await;
    bench.claims_nothing().await;
}

pub async fn a_run_behind_another_can_be_cancelled_and_can_expire<S: Store>() {
    let bench = S::open(LONG).await;
    let (leader, followers) = under_way(&bench, 1).await;
    let soon = Spec { deadline: 300, ..shared() }.job();
    bench.enqueue(&soon).await;
    assert!(matches!(bench.cancel(followers[0].id).await, Cancelled::Ended { .. }));
    let expired = bench.reap().await;
    assert_eq!((expired.job.id, expired.work), (soon.id, Work::Expire(None)));
    bench.end(&leader).await;
    bench.reaps_nothing().await;
}

pub async fn a_hundred_times_ten_runs_share_one_call<S: Store>() {
    let bench = S::open(LONG).await;
    let (leader, followers) = under_way(&bench, 1_000).await;
    bench.end(&leader).await;
    let mut answered = BTreeSet::new();
    while answered.len() < followers.len() {
        // What one step does not tell is told when the next run is finished, which finds the result as well.
        for claim in bench.claim(10).await {
            assert!(answered.insert(claim.job.id));
            bench.end(&claim).await;
        }
        for claim in bench.queue.reap(bench.other, 50).await.unwrap() {
            assert_eq!(claim.work, Work::Answer);
            assert!(answered.insert(claim.job.id));
            bench.end(&claim).await;
        }
    }
    assert_eq!(answered, followers.iter().map(|job| job.id).collect());
    bench.reaps_nothing().await;
}
