//! Runs that nobody waits for and that come by the thousand: the lines of a batch.

use std::sync::Arc;

use super::{Engine, Promise, SubmitError, admitted};
use crate::{
    fail,
    job::{AccountId, Job, RunId, RunState},
    ledger::{LedgerError, RunRecord},
    queue::{Admission, RateRule, Submission},
};

impl Engine {
    /// Accepts a run that nobody waits for. It may be repeated with the same id for as long as nobody knows what became of it: a row that is
    /// there is left as it is, and the queue takes a run once.
    ///
    /// It takes only the first half of what the queue and the rules allow, so that the other half is always left to callers that wait.
    pub async fn feed(&self, job: Job, rules: Vec<RateRule>) -> Result<(), SubmitError> {
        if self.is_draining() {
            return Err(SubmitError::Draining);
        }
        let inner = &self.0;
        let rules = rules.into_iter().map(|rule| RateRule { per_minute: rule.per_minute.div_ceil(2), ..rule });
        let admission = Admission {
            rules: rules.collect(),
            max_depth: inner.settings.max_depth.div_ceil(2),
            max_bytes: inner.settings.max_bytes.div_ceil(2),
        };
        let job = Arc::new(job);
        if let Some(result) = self.look_up(&job).await {
            self.answer(job, result, admission.rules, Promise::Committed).await?;
            return Ok(());
        }
        admitted(inner.queue.admit(&job, &admission).await?)?;
        fail::around("insert", inner.ledger.insert(job.clone())).await?;
        // The row is committed: from here on the run is accepted.
        self.hand_over(Submission { job, reply_to: None }).await;
        Ok(())
    }

    /// The states of those of these runs that were accepted, in no order. One that has not ended is `Queued`, wherever it is.
    pub async fn states(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunState)>, LedgerError> {
        self.0.ledger.states(runs).await
    }

    /// Those of these runs that the account has, in no order, without their attempts.
    pub async fn records(&self, account: AccountId, runs: &[RunId]) -> Result<Vec<RunRecord>, LedgerError> {
        self.0.ledger.records(account, runs).await
    }

    /// How many of these runs a worker has. None, while the queue does not say.
    pub async fn count_leased(&self, runs: &[RunId]) -> usize {
        self.0.queue.count_leased(runs).await.unwrap_or_default()
    }
}
