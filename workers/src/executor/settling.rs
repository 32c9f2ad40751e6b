//! What is left to do for a run that is not to be called: because it ended, because somebody wants it to end, or because its worker was lost.

use std::time::Duration;

use super::{
    Shared,
    call::{Done, end, end_shared, give_back, record_attempt, streamed_and_lost, target},
    sharing,
};
use crate::{
    job::{Attempt, AttemptOutcome, Ending, Failure, Outcome, Usage},
    ledger::LedgerError,
    queue::{Claim, LostCall, Release, Work},
};

/// Does it.
pub async fn settle(shared: &Shared, claim: &Claim) -> Done {
    // A worker that could not stash its ending wrote it to the ledger all the same. Then only the queue does not know.
    let was_lost = matches!(claim.work, Work::Lost(_) | Work::Poison(_));
    if was_lost || (claim.attempt > 1 && !matches!(claim.work, Work::Record(_))) {
        match ending_in_ledger(shared, claim).await {
            Ok(Some(ending)) => return Done::Record(Box::new(Ending { fence: claim.fence, ..ending })),
            Ok(None) => {}
            Err(error) => {
                // The lease runs out, and whoever takes it over asks again.
                tracing::warn!(run = %claim.job.id, %error, "a lost run is left to the next reaper");
                return Done::Gone;
            }
        }
    }
    match &claim.work {
        Work::Record(ending) => Done::Record(Box::new(Ending { fence: claim.fence, ..(**ending).clone() })),
        Work::Answer => match sharing::look_up(shared, claim).await {
            Ok(Some(result)) => end_shared(shared, claim, result).await,
            Ok(None) => give_back(shared, claim, Release::Retry { after: Duration::ZERO, target: claim.target }).await,
            Err(error) => {
                tracing::warn!(run = %claim.job.id, %error, "a run that waits for another one's result is left to the next reaper");
                Done::Gone
            }
        },
        Work::Expire(lost) => end(shared, claim, Outcome::Expired, lost_before(shared, claim, lost)).await,
        Work::Cancel(lost) => end(shared, claim, Outcome::Cancelled, lost_before(shared, claim, lost)).await,
        Work::Poison(lost) => {
            let failure = Failure {
                code: Failure::POISON.into(),
                message: "The run was lost by every worker that took it and will not be tried again".into(),
                retryable: false,
            };
            end(shared, claim, Outcome::Failed(failure), Some(lost_attempt(shared, claim, lost))).await
        }
        Work::Lost(lost) if claim.log.is_some_and(|log| log.streamed) && !claim.job.repeat_streamed => {
            end(shared, claim, streamed_and_lost(), Some(lost_attempt(shared, claim, lost))).await
        }
        Work::Lost(lost) => {
            record_attempt(shared, claim, lost_attempt(shared, claim, lost)).await;
            give_back(shared, claim, Release::Retry { after: Duration::ZERO, target: claim.target }).await
        }
        Work::Call => Done::Gone,
    }
}

/// The ending of a run whose worker is thought lost: the worker may have written it down while the queue could not be told.
async fn ending_in_ledger(shared: &Shared, claim: &Claim) -> Result<Option<Ending>, LedgerError> {
    match shared.ledger.endings(&[claim.job.id]).await {
        Ok(endings) => Ok(endings.into_iter().next()),
        Err(error @ (LedgerError::Unreachable(_) | LedgerError::Full(_))) => Err(error),
        // Nobody can tell, now or later.
        Err(LedgerError::Refused(_) | LedgerError::Unreadable(_)) => Ok(None),
    }
}

fn lost_before(shared: &Shared, claim: &Claim, lost: &Option<LostCall>) -> Option<Attempt> {
    lost.as_ref().map(|lost| lost_attempt(shared, claim, lost))
}

fn lost_attempt(shared: &Shared, claim: &Claim, lost: &LostCall) -> Attempt {
    let (provider, model) =
        target(claim).map(|target| (target.provider.clone(), target.model.clone())).unwrap_or_default();
    let started_at = lost.started_at.max(claim.started_at);
    Attempt {
        number: lost.attempt,
        fence: lost.fence,
        provider,
        model,
        worker: lost.worker,
        started_at,
        duration_ms: shared.queue.now().since(started_at),
        first_token_ms: None,
        outcome: AttemptOutcome::WorkerLost,
        status: None,
        detail: None,
        usage: Usage::default(),
        cost_nano_usd: None,
    }
}
