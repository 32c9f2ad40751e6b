//! Ending a run from outside: by its account, for a caller that has gone, at its deadline.

use std::sync::Arc;

use super::{CancelOutcome, Engine, SubmitError};
use crate::{
    fail,
    job::{AccountId, Ending, Fence, Outcome, RunId, RunState, WIRE_VERSION},
    ledger::Settled,
    queue::Cancelled,
};

impl Engine {
    /// Cancels a run of an account.
    pub async fn cancel(&self, account: AccountId, run: RunId) -> Result<CancelOutcome, SubmitError> {
        let Some(view) = self.find(account, run).await? else { return Ok(CancelOutcome::NotFound) };
        match view.state {
            RunState::Cancelled => return Ok(CancelOutcome::Cancelled),
            state if state.is_terminal() => return Ok(CancelOutcome::AlreadyEnded),
            _ => {}
        }
        match self.end(run, Outcome::Cancelled).await? {
            Ended::Now => Ok(CancelOutcome::Cancelled),
            Ended::Signalled => Ok(CancelOutcome::Requested),
            Ended::Before => match self.find(account, run).await?.map(|view| view.state) {
                Some(RunState::Cancelled) => Ok(CancelOutcome::Cancelled),
                Some(state) if state.is_terminal() => Ok(CancelOutcome::AlreadyEnded),
                // Its ending is on its way to the ledger: perhaps that of an earlier cancellation.
                _ => Ok(CancelOutcome::Requested),
            },
        }
    }

    /// Ends a run whose caller has gone, in the background.
    pub fn abandon(&self, run: RunId) {
        self.end_in_background(run, Outcome::Cancelled);
    }

    /// Ends a run that missed its deadline, in the background, whoever has it.
    pub fn expire(&self, run: RunId) {
        self.end_in_background(run, Outcome::Expired);
    }

    fn end_in_background(&self, run: RunId, outcome: Outcome) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            if let Err(error) = engine.end(run, outcome).await {
                // The run's own deadline ends it.
                tracing::warn!(%run, %error, "a run could not be ended early");
            }
        });
    }

    /// Ends a run from outside. The queue decides who was first, for as long as it knows the run.
    async fn end(&self, run: RunId, outcome: Outcome) -> Result<Ended, SubmitError> {
        if let Some(ended) = self.end_in_queue(run, outcome.clone()).await? {
            return Ok(ended);
        }
        let Some(fence) = self.end_in_ledger(run, outcome.clone()).await? else { return Ok(Ended::Before) };
        // The run may have been on its way into the queue: if it comes from now on it finds a tombstone, and if it came before, it is ended
        // there as well.
        self.0.queue.finish(&[(run, fence)]).await?;
        self.end_in_queue(run, outcome).await?;
        Ok(Ended::Now)
    }

    /// `None` when the queue does not know the run.
    async fn end_in_queue(&self, run: RunId, outcome: Outcome) -> Result<Option<Ended>, SubmitError> {
        let inner = &self.0;
        Ok(match fail::around("cancel", inner.queue.cancel(run, outcome)).await? {
            Cancelled::Ended { job, ending } => {
                let fence = ending.fence;
                // Should this process die before the end, the lease runs out and the stashed ending is recorded by another.
                inner.ledger.finish(&[(job, Arc::new(*ending))]).await?;
                inner.queue.finish(&[(run, fence)]).await?;
                Some(Ended::Now)
            }
            Cancelled::Signalled => Some(Ended::Signalled),
            Cancelled::Finished => Some(Ended::Before),
            Cancelled::Unknown => None,
        })
    }

    /// For a run that the queue does not know: it was not enqueued yet, or the queue lost it. Returns the fence of its ending, if this is it.
    async fn end_in_ledger(&self, run: RunId, outcome: Outcome) -> Result<Option<Fence>, SubmitError> {
        let Some(row) = self.0.ledger.unfinished_one(run).await? else { return Ok(None) };
        let now = self.now().max(row.job.created_at);
        let ending = Ending {
            v: WIRE_VERSION,
            run,
            // The clock of all fences, in microseconds.
            fence: Fence(now.0.saturating_mul(1_000).max(row.fence.0.saturating_add(1))),
            outcome,
            model: row.job.targets.first().map(|target| target.model.clone()).unwrap_or_default(),
            started_at: None,
            finished_at: now,
            queue_ms: now.since(row.job.created_at),
            attempt: None,
            cache: None,
        };
        let settled = self.0.ledger.finish(&[(row.job, Arc::new(ending.clone()))]).await?;
        if !settled.contains(&Settled::Won) {
            return Ok(None);
        }
        let fence = ending.fence;
        self.0.waiters.end(Box::new(ending));
        Ok(Some(fence))
    }
}

/// What ending a run from outside came to.
enum Ended {
    Now,
    Signalled,
    Before,
}
