//! How runs come in, and what can be seen of them.

use std::{sync::Arc, time::Duration};

use workers::{
    job::{Fence, Lane, RunId, WorkerId},
    queue::{Epoch, Held, Restored, Sighting},
};

use super::bench::{LONG, SHORT, Store, eventually, run, succeeded};

pub async fn enqueueing_a_known_run_changes_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    let job = run().job();
    bench.enqueue(&job).await;
    bench.enqueue(&job).await;
    assert_eq!(bench.queue.stats().await.unwrap().lanes[0].ready, 1);
    let claim = bench.take().await;
    assert_eq!(claim.job, job);
    bench.enqueue(&job).await;
    bench.claims_nothing().await;
    bench.stash(&succeeded(&claim)).await;
    bench.enqueue(&job).await;
    bench.claims_nothing().await;
}

pub async fn a_restored_run_keeps_its_attempts_and_others_are_left_as_they_are<S: Store>() {
    let bench = S::open(LONG).await;
    let (known, unknown) = (run().job(), run().job());
    bench.enqueue(&known).await;
    let known_claim = bench.take().await;
    let restored =
        [&known, &unknown].map(|job| Restored { job: Arc::clone(job), attempts: 2, limited: 1, fence: Fence(0) });
    bench.queue.restore(&restored).await.unwrap();
    let claim = bench.take().await;
    assert_eq!((claim.job.id, claim.attempt, claim.limited, claim.target), (unknown.id, 3, 1, 0));
    bench.end(&known_claim).await;
}

pub async fn a_restored_run_goes_on_above_its_last_fence<S: Store>() {
    let bench = S::open(LONG).await;
    // The clock that it came from was ahead of this queue's by a day.
    let fence = Fence(bench.queue.now().plus(86_400_000).0 * 1_000);
    let restored = Restored { job: run().job(), attempts: 1, limited: 0, fence };
    bench.queue.restore(&[restored]).await.unwrap();
    let claim = bench.take().await;
    assert!(claim.fence > fence, "{claim:?}");
    assert_eq!(bench.hand_back(&claim).await, Held::Done);
    assert!(bench.take().await.fence > claim.fence);
}

pub async fn a_submission_that_comes_after_its_restoration_is_still_answered<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    let jobs = [run().job(), run().job()];
    let restored =
        jobs.each_ref().map(|job| Restored { job: Arc::clone(job), attempts: 0, limited: 0, fence: Fence(0) });
    bench.queue.restore(&restored).await.unwrap();
    bench.enqueue_for(front_door.id, &jobs[0]).await;
    let claims = bench.claim(10).await;
    for claim in &claims {
        bench.stash(&succeeded(claim)).await;
    }
    assert_eq!(front_door.next().await.run, jobs[0].id);
    // This one has ended before its own submission came.
    bench.enqueue_for(front_door.id, &jobs[1]).await;
    assert_eq!(front_door.next().await.run, jobs[1].id);
}

pub async fn missing_are_the_runs_that_the_queue_never_heard_of<S: Store>() {
    let bench = S::open(LONG).await;
    let jobs = [run().job(), run().job(), run().job(), run().job()];
    let unknown = RunId::new();
    let mut asked = vec![unknown];
    for job in &jobs {
        bench.enqueue(job).await;
        asked.push(job.id);
    }
    let claims = bench.claim(3).await;
    bench.end(&claims[0]).await;
    bench.stash(&succeeded(&claims[1])).await;
    assert_eq!(bench.queue.missing(&asked).await.unwrap(), [unknown]);
    assert_eq!(bench.queue.missing(&[]).await.unwrap(), []);
}

pub async fn a_loss_of_memory_is_told_until_it_is_restored<S: Store>() {
    let bench = S::open(SHORT).await;
    let told = bench.queue.was_reset().await.unwrap().expect("a new queue knows nothing");
    assert_eq!(bench.queue.was_reset().await.unwrap(), None, "one is enough");
    bench.enqueue(&run().job()).await;
    assert_eq!(bench.queue.was_reset().await.unwrap(), None);
    // Whoever was told says nothing: the next one is told the same.
    let again = eventually("another one is told", async || bench.queue.was_reset().await.unwrap()).await;
    assert_eq!(again, told);
    // Another memory than this one was restored.
    bench.queue.restored(Epoch(uuid::Uuid::now_v7())).await.unwrap();
    eventually("it is told again", async || bench.queue.was_reset().await.unwrap()).await;
    bench.queue.restored(told).await.unwrap();
    tokio::time::sleep(SHORT + Duration::from_millis(100)).await;
    assert_eq!(bench.queue.was_reset().await.unwrap(), None);
}

pub async fn one_worker_compares_the_ledger_in_a_while<S: Store>() {
    let bench = S::open(LONG).await;
    let [one, other] = [WorkerId::new(), WorkerId::new()];
    assert!(bench.queue.claim_sweep(one, SHORT).await.unwrap());
    let due = async || bench.queue.claim_sweep(other, LONG).await.unwrap().then_some(());
    eventually("another one is due", due).await;
    assert!(!bench.queue.claim_sweep(one, SHORT).await.unwrap(), "one is enough");
    assert!(bench.queue.claim_sweep(other, LONG).await.unwrap(), "it goes on");
}

pub async fn a_run_is_located_until_it_has_ended<S: Store>() {
    let bench = S::open(LONG).await;
    let job = run().job();
    // Two readings of one clock may differ by the way between them: whoever shows a run lets it begin no sooner than it was created.
    let sight = async || {
        let sighting = bench.queue.locate(job.id).await.unwrap()?;
        Some(Sighting { started_at: sighting.started_at.map(|started_at| started_at.max(job.created_at)), ..sighting })
    };
    assert_eq!(sight().await, None);
    bench.enqueue(&job).await;
    assert_eq!(sight().await, Some(Sighting { leased: false, started_at: None }));
    let claim = bench.take().await;
    assert_eq!(sight().await, Some(Sighting { leased: true, started_at: Some(claim.started_at) }));
    bench.retry(&claim, Duration::from_secs(60)).await;
    assert_eq!(sight().await, Some(Sighting { leased: false, started_at: Some(claim.started_at) }));

    let other = run().job();
    bench.enqueue(&other).await;
    let claim = bench.take().await;
    bench.stash(&succeeded(&claim)).await;
    assert_eq!(bench.queue.locate(other.id).await.unwrap(), None);
    bench.queue.finish(&[(other.id, claim.fence)]).await.unwrap();
    assert_eq!(bench.queue.locate(other.id).await.unwrap(), None);
}

pub async fn the_runs_that_a_worker_has_are_counted<S: Store>() {
    let bench = S::open(LONG).await;
    // One is not known, one in a call, one begins its second call, one has ended, one was put off, one waits.
    let unknown = run().job().id;
    let mut runs = vec![unknown];
    let mut take = async || {
        let job = run().job();
        bench.enqueue(&job).await;
        runs.push(job.id);
        bench.take().await
    };
    take().await;
    let again = take().await;
    bench.retry(&again, Duration::ZERO).await;
    assert_eq!(bench.take().await.job.id, again.job.id);
    let ended = take().await;
    bench.stash(&succeeded(&ended)).await;
    bench.retry(&take().await, LONG).await;
    let waits = run().job();
    bench.enqueue(&waits).await;
    runs.push(waits.id);
    assert_eq!(runs.len(), 6);
    assert_eq!(bench.queue.count_leased(&runs).await.unwrap(), 2);
    assert_eq!(bench.queue.count_leased(&[]).await.unwrap(), 0);
}

pub async fn a_run_is_recalled_until_it_is_finished<S: Store>() {
    let bench = S::open(LONG).await;
    let job = run().job();
    let recall = async || bench.queue.recall(job.id).await.unwrap();
    assert!(recall().await.is_none());
    bench.enqueue(&job).await;
    let claim = bench.take().await;
    let recalled = recall().await.unwrap();
    assert_eq!((&recalled.job, recalled.ending), (&job, None));
    let ending = succeeded(&claim);
    bench.stash(&ending).await;
    let recalled = recall().await.unwrap();
    assert_eq!((&recalled.job, recalled.ending.as_deref()), (&job, Some(&ending)));
    bench.queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert!(recall().await.is_none());
}

pub async fn stats_count_every_run_where_it_is<S: Store>() {
    let bench = S::open(LONG).await;
    assert_eq!(bench.queue.stats().await.unwrap(), Default::default());
    for (lane, count) in [(Lane::Interactive, 4), (Lane::Default, 2), (Lane::Batch, 3)] {
        let spec = super::bench::Spec { lane, ..run() };
        bench.flood(&spec, count).await;
    }
    let full = bench.queue.stats().await.unwrap();
    assert_eq!(full.lanes.map(|lane| lane.ready), [4, 2, 3]);
    assert!(full.bytes > 0 && !full.paused);
    assert_eq!((full.delayed, full.leased), (0, 0));

    let first = bench.claim(9).await;
    assert_eq!(first.len(), 9);
    let claimed = bench.queue.stats().await.unwrap();
    assert_eq!(claimed.lanes.map(|lane| lane.ready), [0, 0, 0]);
    assert_eq!((claimed.leased, claimed.bytes), (9, 0));

    bench.retry(&first[0], Duration::from_secs(60)).await;
    bench.hand_back(&first[1]).await;
    bench.end(&first[2]).await;
    let later = bench.queue.stats().await.unwrap();
    assert_eq!((later.delayed, later.leased), (1, 6));
    assert_eq!(later.lanes.iter().map(|lane| lane.ready).sum::<u64>(), 1);

    tokio::time::sleep(Duration::from_millis(30)).await;
    let aged = bench.queue.stats().await.unwrap();
    assert!(aged.lanes.iter().any(|lane| lane.oldest_ms >= 30), "{aged:?}");
}

pub async fn the_store_answers<S: Store>() {
    S::open(LONG).await.queue.ping().await.unwrap();
}
