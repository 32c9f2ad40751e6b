//! Claiming in batches, and reading what the scripts hand out.

use std::time::Duration;

use super::{
    CLAIM_BATCH, RedisQueue, millis, scripts,
    wire::{self, Read},
};
use crate::{
    job::WorkerId,
    queue::{Claim, Claimed, ScopeLimits, Unreachable},
};

/// How long a run that this process cannot read is left for a process that can.
pub(super) const FOREIGN_AFTER: Duration = Duration::from_secs(5);

impl RedisQueue {
    pub(super) async fn claim_in_batches(
        &self,
        worker: WorkerId,
        free: usize,
        scopes: &[ScopeLimits],
    ) -> Result<Claimed, Unreachable> {
        let mut claimed = Claimed::default();
        loop {
            let batch = (free - claimed.claims.len()).min(CLAIM_BATCH);
            let mut step = self.step(scripts::CLAIM).arg(worker.to_string()).arg(batch).arg(millis(self.lease));
            let (registered, waits) = self.waiters.is_registered(worker, scopes);
            step = step.arg(self.known_epoch()).arg(u8::from(registered)).arg(u8::from(waits));
            for limits in scopes {
                step = wire::limits(step, limits, &claimed.claims);
            }
            let answer: Result<(i64, Vec<Vec<u8>>), _> = self.run(step).await;
            if answer.is_err() {
                self.waiters.forget(worker);
            }
            let (next, handed_out) = match answer {
                Ok(answer) => answer,
                // What was claimed before is ours and must not be lost over this.
                Err(_) if !claimed.claims.is_empty() => return Ok(Claimed { next: Some(Duration::ZERO), ..claimed }),
                Err(error) => return Err(error),
            };
            // Two texts are a claim.
            let runs = handed_out.len() / 2;
            self.waiters.registered(worker, registered, runs < batch);
            claimed.next = u64::try_from(next).ok().map(Duration::from_millis);
            // It stopped at the size of a batch, in runs or in bytes. There is more, or else the worker must be known as idle.
            let more = runs == batch || (next == 0 && runs > 0);
            claimed.claims.extend(self.claims(handed_out).await?);
            if !more || claimed.claims.len() >= free {
                return Ok(claimed);
            }
        }
    }

    /// Reads claims. One that this process cannot read is put back for another one, and does not hold the rest up.
    pub(super) async fn claims(&self, handed_out: Vec<Vec<u8>>) -> Result<Vec<Claim>, Unreachable> {
        let mut claims = Vec::with_capacity(handed_out.len() / 2);
        for read in wire::claims(handed_out)? {
            match read {
                Read::Claim(claim) => claims.push(*claim),
                Read::Foreign { run, fence } => {
                    tracing::warn!(%run, "a queued run was written by another version; it is left to a worker of that version");
                    // Should this fail, its lease runs out and the reaper finds it.
                    let _ = self.give_back(run, fence, FOREIGN_AFTER, None, "uncounted").await;
                }
            }
        }
        Ok(claims)
    }
}
