//! The outbox, over SQLite and PostgreSQL.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use uuid::Uuid;
use workers::{
    job::{AccountId, DeliveryId, Ending, Failure, Job, Outcome, UnixMillis},
    ledger::{Claimed, DeliveryState, Ledger, Outbox, Redelivery, Settled, Try, Verdict},
};

use super::{Site, ending, job, succeeded};

const LEASE: Duration = Duration::from_secs(30);

fn told(account: AccountId) -> Job {
    Job { account, webhook_url: Some("https://example.com/h".into()), ..job() }
}

async fn end(ledger: &Ledger, job: &Job, outcome: Outcome) -> Settled {
    let ending: Ending = ending(job, outcome, 9, None);
    ledger.finish(&[(Arc::new(job.clone()), Arc::new(ending))]).await.unwrap()[0]
}

fn made(at: UnixMillis, error: Option<&str>) -> Try {
    Try { id: Uuid::now_v7(), at, duration_ms: 7, status: None, error: error.map(str::to_owned) }
}

/// What is due and nobody's.
async fn claim(outbox: &Outbox, now: UnixMillis, busy: &[AccountId]) -> Vec<Claimed> {
    let is_due = outbox.is_due(now).await.unwrap();
    let claimed = outbox.claim(now, LEASE, busy, 100).await.unwrap();
    assert!(is_due != claimed.is_empty() || !busy.is_empty(), "{is_due} {claimed:?}");
    claimed
}

pub async fn an_ending_that_won_is_told_of_once(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let (outbox, account) = (ledger.outbox(), AccountId::new());
    let failed = Outcome::Failed(Failure { code: "x".into(), message: "y".into(), retryable: false });
    let outcomes = [
        (succeeded(), "run.completed"),
        (failed, "run.failed"),
        (Outcome::Expired, "run.failed"),
        (Outcome::Cancelled, "run.cancelled"),
    ];
    for (outcome, event) in outcomes {
        let job = told(account);
        ledger.insert(Arc::new(job.clone())).await.unwrap();
        assert!(outbox.of(account, Some(job.id), None, 9).await.unwrap().is_empty(), "it has not ended");
        assert_eq!(end(&ledger, &job, outcome.clone()).await, Settled::Won);
        assert_eq!(end(&ledger, &job, Outcome::Expired).await, Settled::AlreadyEnded);
        let found = outbox.of(account, Some(job.id), None, 9).await.unwrap();
        let [delivery] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((delivery.event.as_str(), delivery.state, delivery.tries), (event, DeliveryState::Pending, 0));
        assert_eq!(delivery.url, "https://example.com/h");
    }
    let silent = Job { account, ..job() };
    end(&ledger, &silent, succeeded()).await;
    assert_eq!(outbox.of(account, None, None, 9).await.unwrap().len(), 4);
    assert_eq!(outbox.of(AccountId::new(), None, None, 9).await.unwrap(), []);
    // Two endings of one run in a batch: one of them is told of.
    let twice = Arc::new(told(account));
    let both =
        [Outcome::Cancelled, succeeded()].map(|outcome| (twice.clone(), Arc::new(ending(&twice, outcome, 9, None))));
    assert_eq!(ledger.finish(&both).await.unwrap(), [Settled::Won, Settled::AlreadyEnded]);
    assert_eq!(outbox.of(account, Some(twice.id), None, 9).await.unwrap()[0].event, "run.cancelled");
}

pub async fn a_delivery_is_one_process_s_for_its_lease(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let (outbox, account, now) = (ledger.outbox(), AccountId::new(), UnixMillis(1_800_000_000_000));
    for _ in 0..30 {
        end(&ledger, &told(account), succeeded()).await;
    }
    let claims = join_all((0..6).map(|_| outbox.claim(now, LEASE, &[], 10))).await;
    let mut ids: Vec<DeliveryId> = claims.into_iter().flatten().flatten().map(|claimed| claimed.delivery.id).collect();
    let handed_out = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), handed_out, "no row is handed out twice");
    ids.extend(claim(&outbox, now, &[]).await.iter().map(|claimed| claimed.delivery.id));
    assert_eq!(ids.len(), 30, "and every row once");
    assert!(claim(&outbox, now.plus(29_999), &[]).await.is_empty());
    assert!(claim(&outbox, now.plus(30_000), &[account]).await.is_empty(), "others have their turn first");

    let late = claim(&outbox, now.plus(30_000), &[]).await;
    let [first, second, ..] = late.as_slice() else { panic!("{late:?}") };
    let stolen = claim(&outbox, now.plus(60_000), &[]).await;
    assert_eq!(stolen.len(), 30);
    let answer = made(now, None);
    assert!(!outbox.record(first, &answer, Verdict::Delivered).await.unwrap(), "its lease has passed to another");
    assert_eq!(outbox.tries(first.delivery.id).await.unwrap(), [answer], "it was called all the same");
    outbox.release(second).await.unwrap();
    assert!(claim(&outbox, now.plus(60_000), &[]).await.is_empty(), "nor can it give back what it does not have");
    outbox.release(&stolen[0]).await.unwrap();
    assert_eq!(claim(&outbox, now.plus(60_000), &[]).await[0].delivery.id, stolen[0].delivery.id);
}

pub async fn a_delivery_goes_its_way_and_begins_again(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let (outbox, account, now) = (ledger.outbox(), AccountId::new(), UnixMillis(1_800_000_000_000));
    let job = told(account);
    end(&ledger, &job, succeeded()).await;
    let only = async |now: UnixMillis| claim(&outbox, now, &[]).await.pop().unwrap();
    let look = async || outbox.of(account, Some(job.id), None, 9).await.unwrap().pop().unwrap();

    let claimed = only(now).await;
    let first = made(now, Some("no\0"));
    let due_at = now.plus(5_000);
    assert!(outbox.record(&claimed, &first, Verdict::Again { due_at }).await.unwrap());
    assert!(!outbox.record(&claimed, &first, Verdict::Again { due_at }).await.unwrap(), "an answer that was lost");
    let delivery = look().await;
    assert_eq!((delivery.state, delivery.tries, delivery.due_at), (DeliveryState::Pending, 1, Some(due_at)));
    assert!(claim(&outbox, now.plus(4_999), &[]).await.is_empty());

    let claimed = only(now.plus(5_000)).await;
    assert_eq!(claimed.delivery.tries, 1);
    assert!(outbox.record(&claimed, &made(now.plus(5_000), Some("no")), Verdict::GivenUp).await.unwrap());
    let delivery = look().await;
    assert_eq!((delivery.state, delivery.tries, delivery.due_at), (DeliveryState::Failed, 2, None));
    assert_eq!(delivery.finished_at, Some(now.plus(5_007)));
    assert!(claim(&outbox, now.plus(99_999_999), &[]).await.is_empty());

    let id = delivery.id;
    assert_eq!(outbox.redeliver(Some(AccountId::new()), id, now).await.unwrap(), Redelivery::NotFound);
    assert_eq!(outbox.redeliver(None, DeliveryId::new(), now).await.unwrap(), Redelivery::NotFound);
    let later = now.plus(10_000);
    assert!(matches!(outbox.redeliver(Some(account), id, later).await.unwrap(), Redelivery::Queued(_)));
    let claimed = only(later).await;
    assert_eq!((claimed.delivery.id, claimed.delivery.tries, claimed.delivery.queued_at), (id, 0, later));
    assert!(outbox.record(&claimed, &made(later, None), Verdict::Delivered).await.unwrap());
    assert_eq!(look().await.state, DeliveryState::Delivered);
    let errors: Vec<_> = outbox.tries(id).await.unwrap().into_iter().map(|made| made.error).collect();
    assert_eq!(errors, [Some("no\u{fffd}".to_owned()), Some("no".to_owned()), None]);
    let delivered = outbox.of(account, None, Some(DeliveryState::Delivered), 9).await.unwrap();
    assert_eq!(
        (delivered.len(), outbox.of(account, None, Some(DeliveryState::Failed), 9).await.unwrap().len()),
        (1, 0)
    );
}
