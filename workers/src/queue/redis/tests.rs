//! The queue against a real Redis: every test starts its own.

mod clock;
mod faults;
mod lifecycle;
mod limits;
mod offers;
mod property;
mod replies;
mod server;
mod texts;
mod together;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use self::server::Server;
use super::*;
use crate::job::{AccountId, Attempt, AttemptOutcome, Caching, Lane, ModelRequest, Target, Usage, WIRE_VERSION};
use crate::queue::{AtOnce, LogMark, LostCall, Work};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

fn job() -> Job {
    Job { targets: vec![target("one")], ..crate::tests::job() }
}

fn target(provider: &str) -> Target {
    Target { model: format!("{provider}-model"), provider: provider.into(), upstream: "m".into(), price: None }
}

fn unlimited(scope: &str) -> ScopeLimits {
    ScopeLimits::unlimited(scope)
}

fn scopes() -> Vec<ScopeLimits> {
    vec![unlimited("one")]
}

fn ending(claim: &Claim, worker: WorkerId) -> Ending {
    Ending {
        v: WIRE_VERSION,
        run: claim.job.id,
        fence: claim.fence,
        outcome: Outcome::Succeeded { output: "Bonjour".into(), finish_reason: Some("stop".into()) },
        model: "one-model".into(),
        started_at: Some(claim.started_at),
        finished_at: UnixMillis::now(),
        queue_ms: claim.queue_ms,
        attempt: Some(Attempt {
            number: claim.attempt,
            fence: claim.fence,
            provider: "one".into(),
            model: "one-model".into(),
            worker,
            started_at: claim.started_at,
            duration_ms: 1,
            first_token_ms: None,
            outcome: AttemptOutcome::Succeeded,
            status: Some(200),
            detail: None,
            usage: Usage { input_tokens: Some(1), output_tokens: Some(1) },
            cost_nano_usd: None,
        }),
        cache: None,
    }
}

impl RedisQueue {
    async fn put(&self, job: &Job) {
        let submission = Submission { job: Arc::new(job.clone()), reply_to: None };
        assert_eq!(self.enqueue(submission, None).await.unwrap(), Admitted::Yes { rates: vec![] });
    }

    async fn put_for(&self, job: &Job, reply_to: FrontDoorId) {
        let submission = Submission { job: Arc::new(job.clone()), reply_to: Some(reply_to) };
        self.enqueue(submission, None).await.unwrap();
    }

    /// Waits for what is to be claimed.
    async fn rest(&self, worker: WorkerId, at_most: Duration) -> Result<(), Unreachable> {
        let offered = self.wait(worker, 1, at_most, &CancellationToken::new()).await?;
        assert!(offered.is_empty(), "{offered:?}");
        Ok(())
    }

    async fn claim_one(&self, worker: WorkerId) -> Claim {
        let mut claimed = self.claim(worker, 1, &scopes()).await.unwrap();
        assert_eq!(claimed.claims.len(), 1, "a run is ready");
        claimed.claims.remove(0)
    }

    /// Waits for the reaper to find something.
    async fn reap_some(&self, worker: WorkerId) -> Vec<Claim> {
        eventually(async || {
            let claims = self.reap(worker, 10).await.unwrap();
            (!claims.is_empty()).then_some(claims)
        })
        .await
    }
}

/// Asks until there is an answer.
async fn eventually<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "it did not come in time");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not come in time")
}
