//! The clock of an embedded queue.
//!
//! It begins with the wall clock and goes on with the monotonic one, so that a wall clock that is set ends no run early and keeps none too
//! long. But a process may live for months, and the machine be asleep in between (its monotonic clock then stands still): so
//! a queue that holds no run, and has told nobody the time for a while, takes the wall clock's time over again.

use std::time::Duration;

use tokio::time::Instant;

/// How long a time that somebody was told may go on to mean something before its run is in the queue: more than a store may take to
/// answer.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Clock {
    /// What the clock showed at a moment, in microseconds since 1970.
    shown: i64,
    at: Instant,
    told: Instant,
}

impl Clock {
    pub(super) fn new(wall_micros: i64, at: Instant) -> Self {
        Self { shown: wall_micros, at, told: at }
    }

    /// What it shows at a moment, in microseconds since 1970.
    pub(super) fn read(&self, at: Instant) -> i64 {
        let elapsed = i64::try_from(at.saturating_duration_since(self.at).as_micros()).unwrap_or(i64::MAX);
        self.shown.saturating_add(elapsed)
    }

    /// The same for somebody who will come back with it.
    pub(super) fn tell(&mut self, at: Instant) -> i64 {
        self.told = self.told.max(at);
        self.read(at)
    }

    /// Takes the time of the wall clock over, if nobody can notice.
    pub(super) fn follow(&mut self, wall_micros: i64, at: Instant, holds_runs: bool) {
        if holds_runs {
            self.told = self.told.max(at);
        } else if at.saturating_duration_since(self.told) >= REMEMBERED {
            *self = Self { shown: wall_micros, at, told: self.told };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_700_000_000_000_000;
    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn it_goes_on_by_itself() {
        let start = Instant::now();
        let clock = Clock::new(NOON, start);
        assert_eq!(clock.read(start), NOON);
        assert_eq!(clock.read(start + Duration::from_millis(1_500)), NOON + 1_500_000);
    }

    #[test]
    fn it_follows_a_wall_clock_that_was_set_only_while_nobody_can_notice() {
        let check = |by: i64, told_at: u64, holds_runs: bool, follows: bool| {
            let start = Instant::now();
            let mut clock = Clock::new(NOON, start);
            clock.tell(start + Duration::from_secs(told_at));
            let at = start + Duration::from_secs(100);
            clock.follow(NOON + 100_000_000 + by, at, holds_runs);
            let expect = NOON + 100_000_000 + if follows { by } else { 0 };
            assert_eq!(clock.read(at), expect, "by {by}, told at {told_at}, holds runs: {holds_runs}");
        };
        for by in [HOUR, -HOUR] {
            check(by, 0, false, true);
            check(by, 40, false, true);
            check(by, 41, false, false);
            check(by, 0, true, false);
        }
    }

    #[test]
    fn a_run_is_remembered_for_a_while_after_it_has_gone() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = Clock::new(NOON, start);
        clock.follow(NOON + HOUR, at(200), true);
        clock.follow(NOON + HOUR, at(259), false);
        assert_eq!(clock.read(at(259)), NOON + 259_000_000);
        clock.follow(NOON + HOUR, at(260), false);
        assert_eq!(clock.read(at(260)), NOON + HOUR);
    }
}
