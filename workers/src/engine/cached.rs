//! Runs whose result is there before they begin: they are counted and recorded like any other, and no worker sees them.

use std::sync::Arc;

use super::{Engine, Entry, Promise, SubmitError, admitted};
use crate::{
    fail,
    job::{CacheUse, Ending, Fence, Job, WIRE_VERSION},
    ledger::{CachedResult, Entered},
    queue::{Admission, RateRule},
};

impl Engine {
    /// The result that a new run may take over. A ledger that does not say has none: then the model is called.
    pub(super) async fn look_up(&self, job: &Job) -> Option<CachedResult> {
        self.0.ledger.cached(job, self.now()).await.unwrap_or_else(|error| {
            tracing::debug!(run = %job.id, %error, "a run is made without a look at the results of others");
            None
        })
    }

    /// Accepts a run that ends at once. Its caller is told when its row is committed.
    pub(super) async fn answer(
        &self,
        job: Arc<Job>,
        result: CachedResult,
        rules: Vec<RateRule>,
        promise: Promise,
    ) -> Result<Entry, SubmitError> {
        let inner = &self.0;
        let rates = if rules.is_empty() {
            Vec::new()
        } else {
            // It takes no room in the queue, so that a full one is no reason to refuse it.
            let admission = Admission { rules, max_depth: u64::MAX, max_bytes: u64::MAX };
            admitted(inner.queue.admit(&job, &admission).await?)?
        };
        if let Promise::Keyed(key) = promise
            && let Entered::Known(known) = fail::around("insert", inner.ledger.insert_keyed(job.clone(), key)).await?
        {
            return Err(SubmitError::Known(known));
        }
        fail::point("answered").await;
        let now = self.now().max(job.created_at);
        let ending = Arc::new(Ending {
            v: WIRE_VERSION,
            run: job.id,
            // The clock of all fences, in microseconds.
            fence: Fence(now.0.saturating_mul(1_000)),
            model: result.model.clone(),
            outcome: result.outcome(),
            started_at: None,
            finished_at: now,
            queue_ms: 0,
            attempt: None,
            cache: Some(CacheUse::Hit),
        });
        inner.ledger.finish(&[(job, ending.clone())]).await?;
        Ok(Entry { rates, cache: ending.cache, ending: Some(Box::new(Arc::unwrap_or_clone(ending))) })
    }
}
