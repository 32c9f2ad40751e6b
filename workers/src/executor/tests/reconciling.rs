//! The reconciler's looks at the queue.

use super::*;
use crate::{
    executor::reconciler::{Compared, PAGE, SWEEP, Sweep, compare, look},
    job::RunId,
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
    let mut after = None;
    for pages in [1, 2] {
        let compared = compare(&rig.shared, after, Some(Instant::now())).await;
        after = Some(ids[pages * page - 1]);
        assert_eq!(compared, Compared::Until(after));
        assert_eq!(rig.queue.missing(&ids).await.unwrap(), ids[pages * page..]);
    }
    assert_eq!(compare(&rig.shared, after, Some(Instant::now())).await, Compared::All);
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), []);
}

/// What a lost memory held is not put off to the routine, nor is what the routine had begun with.
#[tokio::test]
async fn a_loss_of_memory_is_not_a_routine() {
    let rig = Rig::new(1).await;
    let ids = lost_runs(&rig, usize::try_from(3 * PAGE).unwrap()).await;
    let (sweep, owed) = look(&rig.shared, Sweep::UnderWay(Some(ids[10])), None).await;
    assert!(matches!(sweep, Sweep::Ended(_)), "{sweep:?}");
    assert_eq!(owed, None);
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), []);
    assert_eq!(rig.queue.was_reset().await.unwrap(), None, "it knows that it was restored");
}

/// In half a minute a run may be lost again: by a front door that dies between the row and the queue.
#[tokio::test]
async fn the_routine_begins_anew_after_a_while_and_in_one_process() {
    let rig = Rig::new(1).await;
    let (sweep, _) = look(&rig.shared, Sweep::Owed, None).await;
    let Sweep::Ended(at) = sweep else { panic!("{sweep:?}") };
    let ids = lost_runs(&rig, 2).await;
    assert_eq!(look(&rig.shared, sweep, None).await, (sweep, None));
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), ids, "it is not time yet");

    let past = Sweep::Ended(at - SWEEP);
    assert_ne!(look(&rig.shared, past, None).await, (past, None));
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), []);

    let ids = lost_runs(&rig, 2).await;
    assert_ne!(look(&rig.shared, past, None).await, (past, None));
    assert_eq!(rig.queue.missing(&ids).await.unwrap(), ids, "another process has just done it");
}
