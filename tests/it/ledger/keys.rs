//! Idempotency keys, over SQLite and PostgreSQL.

use std::sync::Arc;

use futures::future::join_all;
use workers::{
    job::{AccountId, Job, RunId, UnixMillis},
    ledger::{Entered, IdempotencyKey, KEY_LIFE, KnownRun, Ledger},
};

use super::{Site, job};

fn key(digest: u8) -> IdempotencyKey {
    IdempotencyKey { key: "order".into(), digest: [digest; 32] }
}

fn job_of(account: AccountId, created_at: UnixMillis) -> Arc<Job> {
    Arc::new(Job { account, created_at, ..job() })
}

async fn enter(ledger: &Ledger, job: &Arc<Job>, key: IdempotencyKey) -> Entered {
    ledger.insert_keyed(job.clone(), key).await.unwrap()
}

fn known(run: RunId, same_request: bool) -> Entered {
    Entered::Known(KnownRun { run, same_request })
}

pub async fn a_key_stands_for_one_run_for_a_day(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let (account, began) = (AccountId::new(), UnixMillis(1_700_000_000_000));
    let day = u64::try_from(KEY_LIFE.as_millis()).unwrap();
    let first = job_of(account, began);
    assert_eq!(ledger.keyed(account, &key(1), began).await.unwrap(), None);
    assert_eq!(enter(&ledger, &first, key(1)).await, Entered::New);
    assert_eq!(enter(&ledger, &first, key(1)).await, Entered::New, "its answer was lost, so it is sent again");
    let second = job_of(account, began.plus(day - 1));
    assert_eq!(enter(&ledger, &second, key(1)).await, known(first.id, true));
    assert_eq!(enter(&ledger, &second, key(2)).await, known(first.id, false));
    assert_eq!(ledger.find(account, second.id).await.unwrap(), None, "nothing was written of it");
    let found = ledger.keyed(account, &key(2), began.plus(day - 1)).await.unwrap();
    assert_eq!(found, Some(KnownRun { run: first.id, same_request: false }));
    assert_eq!(enter(&ledger, &job_of(AccountId::new(), began), key(2)).await, Entered::New, "another account's");

    assert_eq!(ledger.keyed(account, &key(1), began.plus(day)).await.unwrap(), None);
    let third = job_of(account, began.plus(day));
    assert_eq!(enter(&ledger, &third, key(3)).await, Entered::New);
    assert_eq!(enter(&ledger, &second, key(3)).await, known(third.id, true));
    assert_eq!(ledger.prune(began.plus(day)).await.unwrap(), 1, "the other account's");
    assert_eq!(ledger.prune(began.plus(2 * day)).await.unwrap(), 1);
    assert_eq!(ledger.prune(began.plus(2 * day)).await.unwrap(), 0);
}

pub async fn of_many_runs_with_one_key_one_is_written(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let account = AccountId::new();
    let jobs: Vec<_> = (0..40).map(|_| job_of(account, UnixMillis(1))).collect();
    let entered = join_all(jobs.iter().map(|job| ledger.insert_keyed(job.clone(), key(1)))).await;
    let new: Vec<_> = jobs.iter().zip(&entered).filter(|(_, entered)| matches!(entered, Ok(Entered::New))).collect();
    let [(winner, _)] = new.as_slice() else { panic!("{entered:?}") };
    assert_eq!(entered.iter().filter(|entered| *entered.as_ref().unwrap() == known(winner.id, true)).count(), 39);
    assert_eq!(ledger.count_unfinished().await.unwrap(), 1);
}
