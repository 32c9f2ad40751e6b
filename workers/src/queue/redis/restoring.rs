//! What the ledger has and the queue does not know.

use super::{
    BATCH, RedisQueue,
    parts::{self, Before},
    scripts, wire,
};
use crate::{
    job::RunId,
    queue::{Restored, Unreachable},
};

/// Jobs, and bytes of jobs, that one script restores.
const RESTORE_BATCH: usize = 100;
const RESTORE_BYTES: usize = 1 << 20;

impl RedisQueue {
    pub(super) async fn missing_of(&self, runs: &[RunId]) -> Result<Vec<RunId>, Unreachable> {
        let mut missing = Vec::new();
        for batch in runs.chunks(BATCH) {
            let is_missing: Vec<bool> = self.run(wire::with_runs(self.step(scripts::MISSING), batch)).await?;
            missing.extend(batch.iter().zip(is_missing).filter(|(_, is_missing)| *is_missing).map(|(run, _)| *run));
        }
        Ok(missing)
    }

    pub(super) async fn put_back(&self, runs: &[Restored]) -> Result<(), Unreachable> {
        let mut runs = runs.iter().peekable();
        while runs.peek().is_some() {
            let mut step = self.step(scripts::RESTORE);
            let mut bytes = 0;
            for Restored { job, attempts, limited, fence } in runs.by_ref().take(RESTORE_BATCH) {
                let encoded = job.encode();
                bytes += encoded.len();
                let before = Before { attempts: *attempts, limited: *limited, fence: *fence };
                step = parts::put(step, job, &encoded, &before, None);
                if bytes >= RESTORE_BYTES {
                    break;
                }
            }
            self.run::<()>(step).await?;
        }
        Ok(())
    }
}
