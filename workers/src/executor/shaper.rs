//! Keeps a minute's worth of requests from leaving one process in one burst. The exact limit is held by the queue's claim, over
//! all processes; providers count shorter spells, too, and refuse a minute's allowance that arrives within a second.
//!
//! A claim counts its calls against the minute, so they have to leave at once: permits are taken before it, it hands out no
//! more runs than there are permits, and those that it did not need stay in hand for the next one.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};

use crate::queue::AtOnce;

/// The pace of one provider's calls.
pub struct Shaper<C: Clock = DefaultClock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    /// Permits that were taken and not used yet.
    in_hand: u32,
    most_in_hand: NonZeroU32,
}

impl Shaper {
    pub fn new(requests_per_minute: u32) -> Self {
        Self::with_clock(requests_per_minute, DefaultClock::default())
    }
}

impl<C: Clock> Shaper<C> {
    /// Spreads a minute's requests over ten seconds at least: a tenth of them a second. Half a second's worth is kept in hand and half in the
    /// limiter, so that no more than a second's worth (or two calls) ever leaves in one burst.
    fn with_clock(requests_per_minute: u32, clock: C) -> Self {
        let per_second = NonZeroU32::new(requests_per_minute / 10).unwrap_or(NonZeroU32::MIN);
        let half = NonZeroU32::new(per_second.get() / 2).unwrap_or(NonZeroU32::MIN);
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(per_second).allow_burst(half), clock);
        Self { limiter, in_hand: 0, most_in_hand: half }
    }

    /// How many calls may leave now, up to `most`.
    pub fn at_once(&mut self, most: usize) -> AtOnce {
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(self.most_in_hand.get());
        while self.in_hand < most {
            if let Err(not_yet) = self.limiter.check() {
                let next = not_yet.wait_time_from(self.limiter.clock().now());
                return AtOnce { calls: self.in_hand, next };
            }
            self.in_hand += 1;
        }
        AtOnce { calls: self.in_hand, next: Duration::ZERO }
    }

    /// A call leaves.
    pub fn used(&mut self) {
        self.in_hand = self.in_hand.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    /// Calls that leave before one has to wait, and how long that one does.
    fn burst(shaper: &mut Shaper<FakeRelativeClock>) -> (u32, Duration) {
        let mut left = 0;
        loop {
            let at_once = shaper.at_once(100);
            if at_once.calls == 0 {
                return (left, at_once.next);
            }
            (0..at_once.calls).for_each(|_| shaper.used());
            left += at_once.calls;
        }
    }

    #[test]
    fn a_burst_is_no_more_than_a_tenth_of_the_minute() {
        let clock = FakeRelativeClock::default();
        let mut shaper = Shaper::with_clock(100, clock.clone());
        for _ in 0..5 {
            assert_eq!(shaper.at_once(100).calls, 5);
            clock.advance(Duration::from_secs(10));
        }
        assert_eq!(burst(&mut shaper), (10, Duration::from_millis(100)));
        clock.advance(Duration::from_millis(99));
        assert_eq!(burst(&mut shaper), (0, Duration::from_millis(1)));
        clock.advance(Duration::from_millis(1));
        assert_eq!(burst(&mut shaper), (1, Duration::from_millis(100)));
    }

    #[test]
    fn permits_that_a_claim_did_not_need_stay_in_hand() {
        let mut shaper = Shaper::with_clock(40, FakeRelativeClock::default());
        assert_eq!(shaper.at_once(1).calls, 1);
        assert_eq!(shaper.at_once(1).calls, 1);
        assert_eq!(shaper.at_once(100).calls, 2);
        assert_eq!(shaper.at_once(100).calls, 2);
    }
}
