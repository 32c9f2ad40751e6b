//! Whether the queue's memory has to be filled from the ledger, and who was told so.

use std::time::Duration;

use tokio::time::Instant;

use super::run::far;
use crate::{job::WorkerId, queue::Epoch};

/// A new queue is an empty memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    epoch: Epoch,
    is_restored: bool,
    /// Until when whoever was told has the time to restore it.
    told_until: Option<Instant>,
    /// Who compares the ledger with it, and until when nobody else does.
    swept: Option<(WorkerId, Instant)>,
}

impl Memory {
    /// What is to be restored, if nobody is at it.
    pub(super) fn due(&mut self, lease: Duration, now: Instant) -> Option<Epoch> {
        if self.is_restored || self.told_until.is_some_and(|until| until > now) {
            return None;
        }
        self.told_until = Some(far(now, lease));
        Some(self.epoch)
    }

    pub(super) fn claim_sweep(&mut self, worker: WorkerId, every: Duration, now: Instant) -> bool {
        let is_free = self.swept.is_none_or(|(by, until)| by == worker || until <= now);
        if is_free {
            self.swept = Some((worker, far(now, every)));
        }
        is_free
    }

    pub(super) fn restored(&mut self, epoch: Epoch) {
        self.is_restored |= epoch == self.epoch;
    }
}
