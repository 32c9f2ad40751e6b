//! Results that runs share, over SQLite and PostgreSQL.

use std::sync::Arc;

use futures::future::join_all;
use workers::{
    job::{AccountId, CacheUse, Caching, Ending, Job, Outcome, RunId, UnixMillis},
    ledger::{Ledger, Settled},
};

use super::{Site, ending, job, refused, succeeded};

const TTL_MS: u64 = 1_000;

fn shared(account: AccountId, digest: &str) -> Arc<Job> {
    Arc::new(Job {
        id: RunId::new(),
        account,
        caching: Some(Caching { digest: digest.into(), ttl_ms: TTL_MS }),
        ..job()
    })
}

async fn end(ledger: &Ledger, job: &Arc<Job>, outcome: Outcome, cache: Option<CacheUse>) -> UnixMillis {
    let ending = Ending { cache, ..ending(job, outcome, 1, None) };
    let finished_at = ending.finished_at;
    assert_eq!(ledger.finish(&[(job.clone(), Arc::new(ending))]).await.unwrap(), [Settled::Won]);
    finished_at
}

fn text(output: &str) -> Outcome {
    Outcome::Succeeded { output: output.into(), finish_reason: Some("stop".into()) }
}

async fn output(ledger: &Ledger, account: AccountId, digest: &str, now: UnixMillis) -> Option<String> {
    ledger.cached(&shared(account, digest), now).await.unwrap().map(|result| result.output)
}

pub async fn a_result_stands_for_its_time_and_its_account(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let account = AccountId::new();
    let at = end(&ledger, &shared(account, "a"), succeeded(), Some(CacheUse::Miss)).await;
    let found = ledger.cached(&shared(account, "a"), at.plus(TTL_MS - 1)).await.unwrap().unwrap();
    assert_eq!((found.model.as_str(), found.finish_reason.as_deref()), ("gpt-4-turbo", Some("stop")));
    assert_eq!(found.outcome(), succeeded());
    assert_eq!(output(&ledger, account, "a", at.plus(TTL_MS)).await, None, "its time is over");
    assert_eq!(output(&ledger, account, "b", at).await, None);
    assert_eq!(output(&ledger, AccountId::new(), "a", at).await, None, "another account's");
    // The newest one stands.
    end(&ledger, &shared(account, "a"), text("newer"), Some(CacheUse::Miss)).await;
    assert_eq!(output(&ledger, account, "a", at).await.as_deref(), Some("newer"));
    assert_eq!(ledger.prune(at.plus(TTL_MS - 1)).await.unwrap(), 0);
    assert_eq!(ledger.prune(at.plus(TTL_MS)).await.unwrap(), 1);
    assert_eq!(output(&ledger, account, "a", at).await, None);
}

pub async fn only_a_result_of_a_call_is_kept(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let account = AccountId::new();
    let at = end(&ledger, &shared(account, "failed"), Outcome::Failed(refused()), None).await;
    end(&ledger, &shared(account, "joined"), succeeded(), Some(CacheUse::Joined)).await;
    end(&ledger, &shared(account, "unmarked"), succeeded(), None).await;
    let own = Arc::new(Job { caching: None, ..(*shared(account, "own")).clone() });
    end(&ledger, &own, succeeded(), Some(CacheUse::Miss)).await;
    let bare = Arc::new(Job { keep_content: false, ..(*shared(account, "bare")).clone() });
    end(&ledger, &bare, succeeded(), Some(CacheUse::Miss)).await;
    for digest in ["failed", "joined", "unmarked", "own", "bare"] {
        assert_eq!(output(&ledger, account, digest, at).await, None, "{digest}");
    }
    // An ending that came too late brings no result.
    let job = shared(account, "late");
    end(&ledger, &job, Outcome::Cancelled, None).await;
    let late = Ending { cache: Some(CacheUse::Miss), ..ending(&job, succeeded(), 2, None) };
    assert_eq!(ledger.finish(&[(job, Arc::new(late))]).await.unwrap(), [Settled::AlreadyEnded]);
    assert_eq!(output(&ledger, account, "late", at).await, None);
}

pub async fn many_may_write_one_result_at_once(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let account = AccountId::new();
    let digests = ["x", "y", "z"];
    let batches = (0..12_usize).map(|batch| {
        let jobs = (0..6).map(|entry| shared(account, digests[(batch + entry) % digests.len()]));
        let endings = jobs.map(|job| {
            let ending = Ending { cache: Some(CacheUse::Miss), ..ending(&job, succeeded(), 1, None) };
            (job, Arc::new(ending))
        });
        endings.collect::<Vec<_>>()
    });
    let batches = batches.collect::<Vec<_>>();
    let settled = join_all(batches.iter().map(|batch| ledger.finish(batch))).await;
    assert!(settled.iter().all(|settled| settled.as_ref().is_ok_and(|all| *all == [Settled::Won; 6])), "{settled:?}");
    for digest in digests {
        assert!(output(&ledger, account, digest, UnixMillis(1_700_000_002_500)).await.is_some());
    }
}
