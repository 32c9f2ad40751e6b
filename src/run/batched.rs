//! Runs that come as lines of a batch: planned like any other, and accepted without anybody who waits.

use workers::job::{Lane, RunId, UnixMillis};

use super::{Planned, RunError, RunRequest, Runner, plan, rules};
use crate::{config::LimitsConfig, keys::Principal};

impl Runner {
    /// Whether the account may start runs now, as far as that is known without one.
    pub async fn admit(&self, principal: &Principal) -> Result<(), RunError> {
        plan::admit(&principal.account, UnixMillis::now())?;
        if self.engine.is_draining() || !self.intake.is_open().await? {
            return Err(RunError::Draining);
        }
        Ok(())
    }

    pub fn limits(&self) -> &LimitsConfig {
        &self.config.limits
    }

    /// Accepts a run under an id that was chosen before, or says why not. It may be repeated while nobody knows what became of it.
    /// Its time counts from now.
    pub async fn feed(&self, principal: &Principal, run: RunId, request: RunRequest) -> Result<(), RunError> {
        let Planned { mut job, .. } = self.plan(principal, request).await?;
        job.id = run;
        job.lane = Lane::Batch;
        Ok(self.engine.feed(job, rules(principal, &self.config.limits)).await?)
    }
}
