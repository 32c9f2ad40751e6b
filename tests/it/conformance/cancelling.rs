//! Cancel works in every state, and has one winner.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use workers::{
    job::{Fence, Outcome, RunId},
    queue::{Cancelled, Held, Renewal, Restored, Work},
};

use super::bench::{Bench, LONG, OPEN, PATIENCE, SHORT, Store, eventually, run, succeeded, unlimited};

/// Cancels a waiting run, and checks that it has ended for everybody.
async fn ends_at_once(bench: &Bench, run: RunId) -> Box<workers::job::Ending> {
    let cancelled = bench.cancel(run).await;
    let Cancelled::Ended { ending, .. } = cancelled else { panic!("the run was waiting: {cancelled:?}") };
    assert_eq!((ending.run, &ending.outcome), (run, &Outcome::Cancelled));
    assert_eq!(bench.queue.locate(run).await.unwrap(), None);
    assert_eq!(bench.cancel(run).await, Cancelled::Finished);
    bench.claims_nothing().await;
    let stats = bench.queue.stats().await.unwrap();
    assert_eq!((stats.delayed, stats.bytes), (0, 0));
    ending
}

pub async fn a_waiting_run_ends_at_once<S: Store>() {
    let bench = S::open(SHORT).await;
    let mut front_door = bench.front_door().await;
    let job = run().job();
    bench.enqueue_for(front_door.id, &job).await;
    let ending = ends_at_once(&bench, job.id).await;
    assert_eq!(front_door.next().await, *ending);
    assert_eq!((ending.started_at, ending.attempt.is_none()), (None, true));
    bench.queue.finish(&[(job.id, ending.fence)]).await.unwrap();
    bench.queue.restore(&[Restored { job: Arc::clone(&job), attempts: 0, limited: 0, fence: Fence(0) }]).await.unwrap();
    bench.claims_nothing().await;
    assert_eq!(bench.queue.stats().await.unwrap().leased, 0);
}

pub async fn a_delayed_run_ends_at_once<S: Store>() {
    let bench = S::open(LONG).await;
    let job = run().job();
    bench.enqueue(&job).await;
    let claim = bench.take().await;
    bench.retry(&claim, Duration::from_secs(60)).await;
    let ending = ends_at_once(&bench, job.id).await;
    assert!(ending.fence > claim.fence);
    assert_eq!(ending.started_at, Some(claim.started_at));
}

pub async fn a_leased_run_is_signalled<S: Store>() {
    let bench = S::open(LONG).await;
    let mut signals = bench.queue.cancellations(CancellationToken::new()).await.unwrap();
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    assert_eq!(bench.cancel(claim.job.id).await, Cancelled::Signalled);
    assert_eq!(timeout(PATIENCE, signals.recv()).await.expect("a signal"), Some(claim.job.id));
    for _ in 0..2 {
        let renewals = bench.queue.heartbeat(bench.worker, &[(claim.job.id, claim.fence)]).await.unwrap();
        assert_eq!(renewals, [Renewal::Cancel]);
        assert_eq!(bench.cancel(claim.job.id).await, Cancelled::Signalled);
    }
    let mut ending = succeeded(&claim);
    ending.outcome = Outcome::Cancelled;
    assert_eq!(bench.stash(&ending).await, Held::Done);
    assert_eq!(bench.cancel(claim.job.id).await, Cancelled::Finished);
    let renewals = bench.queue.heartbeat(bench.worker, &[(claim.job.id, claim.fence)]).await.unwrap();
    assert_eq!(renewals, [Renewal::Held]);
}

pub async fn a_signalled_run_is_not_called_again<S: Store>() {
    for hand_back in [false, true] {
        let bench = S::open(LONG).await;
        bench.flood(&run(), 1).await;
        let claim = bench.take().await;
        bench.cancel(claim.job.id).await;
        let released = match hand_back {
            true => bench.hand_back(&claim).await,
            false => bench.retry(&claim, Duration::from_secs(60)).await,
        };
        assert_eq!(released, Held::Done);
        assert_eq!(bench.stash(&succeeded(&claim)).await, Held::Elsewhere);
        // Whoever comes first, a claim or a reaper, is told to end it.
        let claim = eventually("the cancelled run", async || match bench.claim(1).await.pop() {
            Some(claim) => Some(claim),
            None => bench.queue.reap(bench.other, 1).await.unwrap().pop(),
        })
        .await;
        assert_eq!(claim.work, Work::Cancel(None));
        bench.end(&claim).await;
    }
}

pub async fn a_run_that_has_ended_is_finished<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&run(), 1).await;
    let claim = bench.take().await;
    bench.stash(&succeeded(&claim)).await;
    assert_eq!(bench.cancel(claim.job.id).await, Cancelled::Finished);
    bench.queue.finish(&[(claim.job.id, claim.fence)]).await.unwrap();
    assert_eq!(bench.cancel(claim.job.id).await, Cancelled::Finished);
}

pub async fn an_unknown_run_is_unknown<S: Store>() {
    let bench = S::open(LONG).await;
    assert_eq!(bench.cancel(RunId::new()).await, Cancelled::Unknown);
}

pub async fn a_run_can_be_expired_from_outside<S: Store>() {
    let bench = S::open(SHORT).await;
    let (waiting, leased) = (run().job(), run().job());
    bench.enqueue(&leased).await;
    let taken = bench.take().await;
    bench.enqueue(&waiting).await;
    let expired = bench.queue.cancel(waiting.id, Outcome::Expired).await.unwrap();
    let Cancelled::Ended { ending, .. } = expired else { panic!("the run was waiting: {expired:?}") };
    assert_eq!(ending.outcome, Outcome::Expired);
    bench.queue.finish(&[(waiting.id, ending.fence)]).await.unwrap();
    assert_eq!(bench.queue.cancel(leased.id, Outcome::Expired).await.unwrap(), Cancelled::Signalled);
    let reaped = bench.reap().await;
    assert!(matches!(&reaped.work, Work::Expire(Some(lost)) if lost.fence == taken.fence), "{:?}", reaped.work);
}

pub async fn an_ending_that_its_canceller_did_not_record_is_found<S: Store>() {
    let bench = S::open(SHORT).await;
    let job = run().job();
    bench.enqueue(&job).await;
    let Cancelled::Ended { ending, .. } = bench.cancel(job.id).await else { panic!("the run was waiting") };
    let reaped = bench.reap().await;
    assert_eq!(reaped.work, Work::Record(ending));
    bench.queue.finish(&[(job.id, reaped.fence)]).await.unwrap();
    assert_eq!(bench.queue.stats().await.unwrap().leased, 0);
}

pub async fn of_a_cancellation_and_a_stash_one_wins<S: Store>() {
    let bench = S::open(LONG).await;
    let mut front_door = bench.front_door().await;
    for _ in 0..20 {
        bench.enqueue_for(front_door.id, &run().job()).await;
        let claim = bench.take().await;
        let ending = succeeded(&claim);
        let (cancelled, held) = tokio::join!(bench.cancel(claim.job.id), bench.stash(&ending));
        // The owner has the last word; the canceller only ever asks it.
        assert_eq!(held, Held::Done);
        assert!(matches!(cancelled, Cancelled::Signalled | Cancelled::Finished), "{cancelled:?}");
        assert_eq!(front_door.next().await, ending);
    }
}

pub async fn of_a_cancellation_and_a_claim_one_wins<S: Store>() {
    let bench = S::open(LONG).await;
    let scopes = [unlimited(OPEN)];
    for round in 0..20 {
        let job = run().job();
        bench.enqueue(&job).await;
        let claim = bench.queue.claim(bench.worker, 1, &scopes);
        let (cancelled, claimed) = match round % 2 {
            0 => tokio::join!(bench.cancel(job.id), claim),
            _ => {
                let (claimed, cancelled) = tokio::join!(claim, bench.cancel(job.id));
                (cancelled, claimed)
            }
        };
        let claims = claimed.unwrap().claims;
        match cancelled {
            Cancelled::Ended { .. } => assert!(claims.is_empty(), "{claims:?}"),
            Cancelled::Signalled => assert_eq!(claims.len(), 1),
            other => panic!("{other:?}"),
        }
    }
}

pub async fn of_two_cancellations_one_wins<S: Store>() {
    let bench = S::open(LONG).await;
    for _ in 0..20 {
        let job = run().job();
        bench.enqueue(&job).await;
        let (one, two) = tokio::join!(bench.cancel(job.id), bench.queue.cancel(job.id, Outcome::Expired));
        let winners = [one, two.unwrap()].into_iter().filter(|cancelled| match cancelled {
            Cancelled::Ended { .. } => true,
            other => {
                assert_eq!(other, &Cancelled::Finished);
                false
            }
        });
        assert_eq!(winners.count(), 1);
    }
}
