//! A run as its status shows it, put together from what the queue holds while the ledger's row is on its way.

use crate::{
    job::{Attempt, Ending, Job, Outcome, RunState, Usage},
    ledger::RunRecord,
    queue::Recalled,
};

impl RunRecord {
    /// What the ledger holds of a run the moment it is accepted.
    pub fn waiting(job: &Job) -> Self {
        Self {
            id: job.id,
            account: job.account,
            state: RunState::Queued,
            prompt_name: job.prompt_name.clone(),
            prompt_version: job.prompt_version,
            model: job.targets.first().map(|target| target.model.clone()).unwrap_or_default(),
            lane: job.lane,
            metadata: job.metadata.clone(),
            created_at: job.created_at,
            deadline: job.deadline,
            started_at: None,
            finished_at: None,
            queue_ms: None,
            attempts: Vec::new(),
            output: None,
            finish_reason: None,
            failure: None,
            usage: Usage::default(),
            cost_nano_usd: None,
            cache: None,
            requeued_from: None,
        }
    }

    /// What it will hold once this ending is written.
    fn ended(self, job: &Job, ending: &Ending) -> Self {
        let mut record = Self {
            state: ending.outcome.state(),
            model: ending.model.clone(),
            started_at: self.started_at.or(ending.started_at),
            finished_at: Some(ending.finished_at),
            queue_ms: Some(ending.queue_ms),
            usage: ending.usage(),
            cost_nano_usd: ending.cost_nano_usd(),
            cache: ending.cache,
            ..self
        };
        record.attempts.extend(ending.attempt.clone());
        match &ending.outcome {
            Outcome::Succeeded { output, finish_reason } => {
                record.output = job.keep_content.then(|| output.clone());
                record.finish_reason.clone_from(finish_reason);
            }
            Outcome::Failed(failure) => record.failure = Some(failure.clone()),
            Outcome::Cancelled | Outcome::Expired => {}
        }
        record
    }

    /// With the calls that were recorded by now: they may be older than the row, or younger than the look at it.
    pub(super) fn with_recorded(mut self, recorded: Vec<Attempt>) -> Self {
        let mut attempts = recorded;
        for attempt in self.attempts.drain(..) {
            if !attempts.iter().any(|known| known.fence == attempt.fence) {
                attempts.push(attempt);
            }
        }
        attempts.sort_by_key(|attempt| attempt.fence);
        for (attempt, number) in attempts.iter_mut().zip(1..) {
            attempt.number = number;
        }
        Self { attempts, ..self }
    }

    /// A row that is missing or not complete, with what the queue holds of the run.
    pub(super) fn completed(row: Option<Self>, recalled: &Recalled) -> Self {
        let record = row.unwrap_or_else(|| Self::waiting(&recalled.job));
        match &recalled.ending {
            Some(ending) => record.ended(&recalled.job, ending),
            None => record,
        }
    }
}
