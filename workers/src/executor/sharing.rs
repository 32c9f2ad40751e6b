//! Runs that end with the result of another run, which was the same call.

use super::Shared;
use crate::{
    job::{CacheUse, Ending, Outcome, UnixMillis, WIRE_VERSION},
    ledger::{CachedResult, LedgerError},
    queue::Claim,
};

/// The result that the run may take over, if it shares and there is one: a run that waited behind the call, or in line while it was
/// made, needs none of its own.
pub async fn look_up(shared: &Shared, claim: &Claim) -> Result<Option<CachedResult>, LedgerError> {
    shared.ledger.cached(&claim.job, shared.queue.now()).await
}

/// How a claimed run ends that takes a result over.
pub fn ending(claim: &Claim, result: CachedResult, now: UnixMillis) -> Ending {
    Ending {
        v: WIRE_VERSION,
        run: claim.job.id,
        fence: claim.fence,
        model: result.model.clone(),
        outcome: result.outcome(),
        started_at: None,
        finished_at: now.max(claim.job.created_at),
        queue_ms: claim.queue_ms,
        attempt: None,
        cache: Some(CacheUse::Joined),
    }
}

/// What a run that ends by its own call says of its result.
pub fn made(claim: &Claim, outcome: &Outcome) -> Option<CacheUse> {
    let has_result = matches!(outcome, Outcome::Succeeded { .. });
    claim.job.caching.as_ref().filter(|_| has_result).map(|_| CacheUse::Miss)
}
