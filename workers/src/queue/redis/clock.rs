//! Redis's clock, as a process knows it that does not look at its own wall clock.
//!
//! It is the process's monotonic clock plus an offset. Every sample bounds the offset: Redis showed its time after it was asked, and before
//! its answer was here. An offset within the bounds is as good as any, so it stays; one outside is moved to the nearer bound. That follows
//! the drift of the two clocks, mends a first sample that was slow, and is not disturbed by later ones that are.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::{FromRedisValue, ParsingError, Value};
use tokio::time::Instant;

use crate::job::UnixMillis;

/// A step, in microseconds, that an operator should hear of: leases and deadlines move by as much.
const NOTABLE: u64 = 1_000_000;

/// What Redis's `TIME` answers, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown(pub i64);

impl FromRedisValue for Shown {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (seconds, micros): (i64, i64) = redis::from_redis_value(value)?;
        Ok(Self(seconds.saturating_mul(1_000_000).saturating_add(micros)))
    }
}

/// A reading of Redis's clock, between two moments of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub asked: Instant,
    pub shown: Shown,
    pub answered: Instant,
}

pub(super) struct Clock {
    /// Where the monotonic clock counts from.
    base: Instant,
    /// What Redis's clock showed at the base, in microseconds.
    offset: Mutex<i64>,
}

impl Clock {
    pub fn new(first: Sample) -> Self {
        let (least, most) = bounds(first, first.asked);
        Self { base: first.asked, offset: Mutex::new(i64::midpoint(least, most)) }
    }

    pub fn now(&self) -> UnixMillis {
        let elapsed = micros(self.base, Instant::now());
        UnixMillis::from_micros(self.offset().saturating_add(elapsed))
    }

    pub fn learn(&self, sample: Sample) {
        let (least, most) = bounds(sample, self.base);
        let mut known = self.offset();
        let offset = (*known).clamp(least, most);
        if offset.abs_diff(*known) >= NOTABLE {
            let millis = offset.saturating_sub(*known) / 1_000;
            tracing::warn!(
                millis,
                "the clock of Redis was set: leases and deadlines of the runs that it holds move by as much"
            );
        }
        *known = offset;
    }

    fn offset(&self) -> MutexGuard<'_, i64> {
        self.offset.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The least and the greatest offset that a sample allows.
fn bounds(sample: Sample, base: Instant) -> (i64, i64) {
    let shown = sample.shown.0;
    (shown.saturating_sub(micros(base, sample.answered)), shown.saturating_sub(micros(base, sample.asked)))
}

fn micros(from: Instant, to: Instant) -> i64 {
    i64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A moment of Redis's clock, and an hour, in microseconds.
    const NOON: i64 = 1_700_000_000_000_000;
    const HOUR: i64 = 3_600_000_000;

    /// By the process's clock in milliseconds, and by Redis's in microseconds.
    fn sample(base: Instant, asked: u64, shown: i64, answered: u64) -> Sample {
        let at = |millis| base + Duration::from_millis(millis);
        Sample { asked: at(asked), shown: Shown(shown), answered: at(answered) }
    }

    /// What is known after samples of `(asked, shown, answered)`: how much Redis's clock was past noon at the base.
    #[track_caller]
    fn check(samples: &[(u64, i64, u64)], expect: i64) {
        let base = Instant::now();
        let mut samples = samples.iter().map(|&(asked, shown, answered)| sample(base, asked, NOON + shown, answered));
        let clock = Clock::new(samples.next().unwrap());
        samples.for_each(|sample| clock.learn(sample));
        assert_eq!(*clock.offset() - NOON, expect);
    }

    #[test]
    fn a_first_sample_is_taken_to_be_half_way() {
        check(&[(0, 0, 0)], 0);
        check(&[(0, 10_000, 10)], 5_000);
    }

    #[test]
    fn a_sample_that_contradicts_nothing_changes_nothing() {
        check(&[(0, 0, 0), (1_000, 1_000_000, 1_000)], 0);
        // Its answer took a second to come, or to be looked at.
        check(&[(0, 0, 0), (1_000, 1_001_000, 2_000)], 0);
    }

    #[test]
    fn a_quick_sample_mends_a_slow_one() {
        // All of the delay was on one side: half-way is wrong by 10 ms, and 1 ms of it is left to doubt.
        check(&[(0, 0, 20), (1_000, 1_000_000, 1_001)], -1_000);
        check(&[(0, 20_000, 20), (1_000, 1_001_000, 1_001)], 1_000);
    }

    #[test]
    fn drift_is_followed() {
        // Redis's clock gains 100 microseconds in every second.
        let seconds = (0_u64..).zip(0_i64..).take(100);
        let samples: Vec<_> =
            seconds.map(|(second, shown)| (second * 1_000, shown * 1_000_100, second * 1_000)).collect();
        check(&samples, 9_900);
    }

    #[test]
    fn a_clock_that_is_set_is_followed_at_once() {
        for by in [HOUR, -HOUR] {
            check(&[(0, 0, 0), (1_000, by + 1_000_000, 1_000)], by);
        }
        // Another machine with another clock.
        check(&[(0, 0, 0), (1_000, 7, 1_000)], 7 - 1_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_with_the_monotonic_clock() {
        let now = || {
            let now = Instant::now();
            Sample { asked: now, shown: Shown(NOON), answered: now }
        };
        let clock = Clock::new(now());
        assert_eq!(clock.now(), UnixMillis(NOON / 1_000));
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now(), UnixMillis(NOON / 1_000 + 1_500));
        clock.learn(now());
        assert_eq!(clock.now(), UnixMillis(NOON / 1_000));
    }

    #[test]
    fn what_redis_answers_is_read() {
        let answer = Value::Array(vec![Value::BulkString(b"1700000000".into()), Value::BulkString(b"000123".into())]);
        assert_eq!(redis::from_redis_value::<Shown>(answer).unwrap(), Shown(NOON + 123));
    }
}
