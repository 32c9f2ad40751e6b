//! Dead runs, over SQLite and PostgreSQL.

use std::sync::Arc;

use futures::future::join_all;
use uuid::Uuid;
use workers::{
    job::{Failure, Job, Outcome, RunId, RunState, UnixMillis},
    ledger::Ledger,
};

use super::{Site, column, ending, find, finish, job};

async fn dies(ledger: &Ledger, job: &Job) {
    let failure = Failure { code: Failure::POISON.into(), message: "Lost too often".into(), retryable: false };
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    finish(ledger, job, &ending(job, Outcome::Failed(failure), 9, None)).await;
}

async fn dead(ledger: &Ledger) -> Vec<RunId> {
    ledger.dead(10).await.unwrap().iter().map(|run| run.id).collect()
}

pub async fn dead_runs_keep_their_job_until_somebody_has_looked_after_them(site: Site) {
    let (ledger, db) = site.ledger().await;
    let [first, second] = [job(), job()];
    for job in [&first, &second] {
        dies(&ledger, job).await;
    }
    assert_eq!(dead(&ledger).await, [second.id, first.id]);
    assert_eq!((ledger.count_dead().await.unwrap(), ledger.count_unfinished().await.unwrap()), (2, 0));
    let before = find(&ledger, &first).await;

    let new = ledger.requeue(first.id, UnixMillis::now()).await.unwrap().expect("it was dead");
    let expected = Job { id: new.id, created_at: new.created_at, deadline: new.deadline, ..first.clone() };
    assert_eq!(*new, expected);
    assert_eq!(new.deadline.since(new.created_at), first.deadline.since(first.created_at));
    assert_eq!(column::<Option<Uuid>>(&db, "requeued_from", new.id).await, Some(first.id.0));
    assert_eq!(find(&ledger, &new).await.state, RunState::Queued);
    let waiting = ledger.unfinished_one(new.id).await.unwrap().expect("the reconciler finds it");
    assert_eq!((waiting.job, waiting.attempts), (new, 0));
    assert_eq!(find(&ledger, &first).await, before, "its history stays");
    assert_eq!(column::<Option<String>>(&db, "job", first.id).await, None);

    assert!(ledger.discard(second.id).await.unwrap());
    assert_eq!(column::<Option<String>>(&db, "job", second.id).await, None);
    assert_eq!(column::<Option<String>>(&db, "input", second.id).await, None);
    assert_eq!(find(&ledger, &second).await.state, RunState::Failed);
    assert!(dead(&ledger).await.is_empty());
    for run in [first.id, second.id, RunId::new()] {
        assert!(ledger.requeue(run, UnixMillis::now()).await.unwrap().is_none() && !ledger.discard(run).await.unwrap());
    }
}

pub async fn a_dead_run_is_looked_after_once(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = job();
    dies(&ledger, &job).await;
    let requeued = join_all((0..8).map(|_| ledger.requeue(job.id, UnixMillis::now()))).await;
    assert_eq!(requeued.into_iter().filter(|new| new.as_ref().unwrap().is_some()).count(), 1);
    assert_eq!(ledger.count_unfinished().await.unwrap(), 1);
}
