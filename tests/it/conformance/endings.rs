//! Stash and finish: a result is never lost, never doubled, and never paid for twice.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use workers::{
    job::{Fence, RunId},
    queue::{Cancelled, Held, Renewal, Restored, Work},
};

use super::bench::{LONG, SHORT, Store, run, succeeded, succeeded_with};

pub async fn a_stash_reaches_the_front_door_that_waits<S: Store>() {
    let bench = S::open(LONG).await;
    let (mut waiting, mut other) = (bench.front_door().await, bench.front_door().await);
    let (job, others) = (run().job(), run().job());
    bench.enqueue_for(waiting.id, &job).await;
    bench.enqueue_for(other.id, &others).await;
    bench.enqueue(&run().job()).await;
    for claim in bench.claim(10).await {
        let ending = succeeded_with(&claim, Some(12));
        assert_eq!(bench.stash(&ending).await, Held::Done);
        if claim.job.id == job.id {
            assert_eq!(waiting.next().await, ending);
        }
        if claim.job.id == others.id {
            assert_eq!(other.next().await, ending);
        }
    }
}

pub async fn a_repeated_stash_changes_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let jobs = [run().job(), run().job()];
    for job in &jobs {
        bench.enqueue_for(front_door.id, job).await;
    }
    let claims = bench.claim(10).await;
    let first = succeeded(&claims[0]);
    assert_eq!(bench.stash(&first).await, Held::Done);
    let second = succeeded_with(&claims[0], Some(99));
    assert_eq!(bench.stash(&second).await, Held::Done);
    bench.stash(&succeeded(&claims[1])).await;
    assert_eq!(front_door.next().await, first);
    assert_eq!(front_door.next().await.run, claims[1].job.id);
}

pub async fn a_stash_under_an_old_fence_changes_nothing<S: Store>() {
    let bench = S::open(SHORT).await;
    let mut front_door = bench.front_door().await;
    bench.enqueue_for(front_door.id, &run().job()).await;
    let lost = bench.take().await;
    let reaped = bench.reap().await;
    assert_eq!(bench.stash(&succeeded(&lost)).await, Held::Elsewhere);
    bench.retry(&reaped, Duration::ZERO).await;
    assert_eq!(bench.stash(&succeeded(&lost)).await, Held::Elsewhere);
    let owner = bench.take().await;
    assert_eq!(bench.stash(&succeeded(&lost)).await, Held::Elsewhere);
    let ending = succeeded(&owner);
    assert_eq!(bench.stash(&ending).await, Held::Done);
    assert_eq!(front_door.next().await, ending);
    bench.queue.finish(&[(owner.job.id, owner.fence)]).await.unwrap();
    assert_eq!(bench.stash(&succeeded(&lost)).await, Held::Elsewhere);
}

pub async fn a_stash_of_an_unknown_run_says_so<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    let mut ending = succeeded(&bench.take().await);
    ending.run = RunId::new();
    assert_eq!(bench.stash(&ending).await, Held::Unknown);
}

pub async fn a_stashed_ending_outlives_its_worker<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    let ending = succeeded_with(&claim, Some(3));
    bench.stash(&ending).await;
    let mut fence = claim.fence;
    for _ in 0..2 {
        let reaped = bench.reap().await;
        assert_eq!(reaped.work, Work::Record(Box::new(ending.clone())));
        assert!(reaped.fence > fence);
        fence = reaped.fence;
    }
    bench.queue.finish(&[(claim.job.id, fence)]).await.unwrap();
    assert_eq!(bench.queue.stats().await.unwrap().leased, 0);
}

pub async fn a_stashed_run_is_held_until_it_is_finished<S: Store>() {
    let bench = S::open(SHORT).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    bench.stash(&succeeded(&claim)).await;
    let until = Instant::now() + SHORT * 2;
    while Instant::now() < until {
        let renewals = bench.queue.heartbeat(bench.worker, &[(claim.job.id, claim.fence)]).await.unwrap();
        assert_eq!(renewals, [Renewal::Held]);
        bench.reaps_nothing().await;
        sleep(SHORT / 10).await;
    }
    assert_eq!(bench.hand_back(&claim).await, Held::Elsewhere);
    bench.claims_nothing().await;
}

pub async fn a_finished_run_does_not_come_back<S: Store>() {
    let bench = S::open(SHORT).await;
    let job = run().job();
    bench.enqueue(&job).await;
    let claim = bench.take().await;
    bench.end(&claim).await;
    assert_eq!(bench.queue.missing(&[job.id]).await.unwrap(), []);
    bench.enqueue(&job).await;
    bench.queue.restore(&[Restored { job: Arc::clone(&job), attempts: 1, limited: 0, fence: Fence(0) }]).await.unwrap();
    bench.claims_nothing().await;
    assert_eq!(bench.queue.locate(job.id).await.unwrap(), None);
    assert_eq!(bench.cancel(job.id).await, Cancelled::Finished);
    assert_eq!(bench.stash(&succeeded(&claim)).await, Held::Elsewhere);
    sleep(SHORT * 2).await;
    bench.reaps_nothing().await;
    // Finishing again is allowed.
    bench.queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert_eq!(bench.queue.stats().await.unwrap().leased, 0);
}

pub async fn finishing_under_an_old_fence_changes_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 2).await;
    let claims = bench.claim(2).await;
    for claim in &claims {
        bench.stash(&succeeded(claim)).await;
    }
    let old = Fence(claims[0].fence.0 - 1);
    bench.queue.finish(&[(claims[0].job.id, old), (claims[1].job.id, claims[1].fence)]).await.unwrap();
    assert_eq!(bench.queue.stats().await.unwrap().leased, 1);
    let held = [(claims[0].job.id, claims[0].fence), (claims[1].job.id, claims[1].fence)];
    assert_eq!(bench.queue.heartbeat(bench.worker, &held).await.unwrap(), [Renewal::Held, Renewal::Lost]);
}

pub async fn a_finished_run_that_was_unknown_does_not_come_back<S: Store>() {
    let bench = S::open(LONG).await;
    let job = run().job();
    bench.queue.finish(&[(job.id, Fence(1))]).await.unwrap();
    bench.queue.restore(&[Restored { job: Arc::clone(&job), attempts: 1, limited: 0, fence: Fence(0) }]).await.unwrap();
    bench.claims_nothing().await;
    assert_eq!(bench.queue.missing(&[job.id]).await.unwrap(), []);
}
