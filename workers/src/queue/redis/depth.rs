//! How full the queue is, as this process heard last. While there is room for many runs, one that nothing else limits may come without asking.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::queue::Admission;

/// How long what was heard counts.
const COUNTS_FOR: Duration = Duration::from_millis(20);
/// More than all front doors together let in meanwhile.
const RUNS: u64 = 20_000;
const BYTES: u64 = 64 << 20;

/// Runs, and bytes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub runs: u64,
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Depth(Mutex<Option<(Instant, Waiting)>>);

impl Depth {
    /// What waited when it was asked for, or after that.
    pub fn heard(&self, asked: Instant, waiting: Waiting) {
        // Nothing panics while it holds the lock.
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.is_none_or(|(before, _)| before <= asked) {
            *heard = Some((asked, waiting));
        }
    }

    /// Whether this admission is sure to let in one more run, with a text of so many bytes, and counts nothing.
    pub fn lets_in(&self, Admission { rules, max_depth, max_bytes }: &Admission, text: u64) -> bool {
        if !rules.is_empty() {
            return false;
        }
        if (*max_depth, *max_bytes) == (u64::MAX, u64::MAX) {
            return true;
        }
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|(at, Waiting { runs, bytes })| {
            at.elapsed() < COUNTS_FOR
                && runs.saturating_add(RUNS) <= *max_depth
                && bytes.saturating_add(text).saturating_add(BYTES) <= *max_bytes
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::RateRule;

    fn admission(max_depth: u64, max_bytes: u64) -> Admission {
        Admission { rules: Vec::new(), max_depth, max_bytes }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_queue_that_was_far_from_full_a_moment_ago_lets_in() {
        let depth = Depth::default();
        let (large, small) = (admission(100_000, 1 << 30), admission(100, 1 << 30));
        assert!(!depth.lets_in(&large, 1), "nothing is known yet");
        let first = Instant::now();
        depth.heard(first, Waiting { runs: 80_000, bytes: 0 });
        assert!(depth.lets_in(&large, 1));
        assert!(!depth.lets_in(&small, 1));
        tokio::time::advance(COUNTS_FOR).await;
        assert!(!depth.lets_in(&large, 1), "it is some time ago");
        depth.heard(Instant::now(), Waiting { runs: 80_001, bytes: 0 });
        assert!(!depth.lets_in(&large, 1), "too many wait");
        depth.heard(Instant::now(), Waiting { runs: 0, bytes: (1 << 30) - BYTES - 1 });
        depth.heard(first, Waiting { runs: 80_001, bytes: 0 });
        assert!(depth.lets_in(&large, 1), "what was asked for last counts");
        assert!(!depth.lets_in(&large, 2), "it would be too much");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_counted_is_always_asked_for_and_no_limit_never() {
        let depth = Depth::default();
        depth.heard(Instant::now(), Waiting { runs: 0, bytes: 0 });
        let rule = RateRule { name: "key", subject: "k".to_owned(), per_minute: 1_000_000 };
        assert!(!depth.lets_in(&Admission { rules: vec![rule], ..admission(u64::MAX, u64::MAX) }, 1));
        tokio::time::advance(COUNTS_FOR).await;
        assert!(depth.lets_in(&admission(u64::MAX, u64::MAX), 1));
    }
}
