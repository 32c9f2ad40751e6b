//! The reconciler's looks at the queue.

use super::*;
use crate::{
    executor::reconciler::{Bounds, Compared, PAGE, SWEEP, Sweep, compare, look},
    job::{RunId, WorkerId},
};

/// Runs that are in the ledger and not in the queue, in the order of their ids.
async fn lost_runs(rig: &Rig, many: usize) -> Vec<RunId> {
    let jobs: Vec<_> = (0..many).map(|_| Arc::new(job())).collect();
    let mut ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    for written in futures::future::join_all(jobs.into_iter().map(|job| rig.memory.ledger.insert(job))).await {
        written.unwrap();
    }
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn a_comparison_without_time_goes_on_where_it_was() {
    let rig = Rig::new(1).await;
    let page = usize::try_from(PAGE).unwrap();
    let ids = lost_runs(&rig, 2 * page + 1).await;
    let bounds = || Some(Bounds { last: ids[2 * page], until: Instant::now() });
    let mut after = None;
    for pages in [1, 2] {
        let compared = compare(&rig.shared, after, bounds()).await;
        after = Some(ids[pages * page - 1]);
        assert_eq!(compared, Compared::Until(after));
        assert_eq!(rig.queue.missing(&ids).await.unwrap(), ids[pages * page..]);
    }
    assert_eq!(compare(&rig.shared, after, bounds()).await, Compared::All);
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), []);
}

/// What a lost memory held is not put off to the routine, nor is what the routine had begun with.
#[tokio::test]
async fn a_loss_of_memory_is_not_a_routine() {
    let rig = Rig::with_lease(1, Duration::from_millis(1)).await;
    let ids = lost_runs(&rig, usize::try_from(3 * PAGE).unwrap()).await;
    let (sweep, owed) = look(&rig.shared, Sweep::UnderWay { after: Some(ids[10]), last: ids[20] }, None).await;
    assert!(matches!(sweep, Sweep::Ended(_)), "{sweep:?}");
    assert_eq!(owed, None);
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), []);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(rig.queue.was_reset().await.unwrap(), None, "whoever was told has said that it is restored");
}

/// In half a minute a run may be lost again: by a front door that dies between the row and the queue.
#[tokio::test]
async fn the_routine_begins_anew_after_a_while_and_in_one_worker() {
    let rig = Rig::new(1).await;
    let (sweep, _) = look(&rig.shared, Sweep::Owed, None).await;
    let Sweep::Ended(at) = sweep else { panic!("{sweep:?}") };
    let ids = lost_runs(&rig, 2).await;
    assert_eq!(look(&rig.shared, sweep, None).await, (sweep, None));
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), ids, "it is not time yet");

    let past = Sweep::Ended(at - SWEEP);
    assert_ne!(look(&rig.shared, past, None).await, (past, None));
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), []);

    let other = Rig { shared: Shared { worker: WorkerId::new(), ..rig.shared }, ..rig };
    let ids = lost_runs(&other, 2).await;
    assert_ne!(look(&other.shared, past, None).await, (past, None));
    assert_eq!(other.queue.missing(&ids).await.unwrap(), ids, "another worker has just done it");
}

/// A worker that cannot read the ledger does not keep others from it.
#[tokio::test]
async fn a_routine_that_fails_is_left_to_others() {
    let rig = Rig::new(1).await;
    let (sweep, _) = look(&rig.shared, Sweep::Owed, None).await;
    let Sweep::Ended(at) = sweep else { panic!("{sweep:?}") };
    rig.memory.go().await;
    for begun in [Sweep::Ended(at - SWEEP), Sweep::UnderWay { after: None, last: RunId::new() }] {
        let (sweep, _) = look(&rig.shared, begun, None).await;
        let Sweep::Ended(until) = sweep else { panic!("{sweep:?}") };
        assert!(until > Instant::now(), "it is later than the end of its claim");
    }
}

/// Or else it would run behind those that come, and never look at the first ones again.
#[tokio::test]
async fn the_routine_goes_on_from_where_it_was_to_the_run_that_was_the_last_one() {
    let rig = Rig::new(1).await;
    look(&rig.shared, Sweep::Owed, None).await;
    let ids = lost_runs(&rig, usize::try_from(3 * PAGE).unwrap()).await;
    let (sweep, _) = look(&rig.shared, Sweep::UnderWay { after: Some(ids[0]), last: ids[2] }, None).await;
    assert!(matches!(sweep, Sweep::Ended(_)), "{sweep:?}");
    let page = usize::try_from(PAGE).unwrap();
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), [&ids[..1], &ids[page + 1..]].concat());
}
