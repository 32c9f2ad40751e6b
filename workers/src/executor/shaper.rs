//! Keeps a minute's worth of requests from leaving one process in one burst. The exact limit is held by the queue's claim, over
//! all processes; providers count shorter spells, too, and refuse a minute's allowance that arrives within a second.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

pub struct Shaper(Option<DefaultDirectRateLimiter>);

impl Shaper {
    /// Spreads a minute's requests over ten seconds at least; no limit is no shaping.
    pub fn new(requests_per_minute: Option<u32>) -> Self {
        let limiter = requests_per_minute.map(|per_minute| {
            let per_second = NonZeroU32::new(per_minute / 10).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_second(per_second))
        });
        Self(limiter)
    }

    pub async fn ready(&self) {
        if let Some(limiter) = &self.0 {
            limiter.until_ready().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_second_has_a_tenth_of_the_minute() {
        let shaper = Shaper::new(Some(100));
        let at_once = (0..100).take_while(|_| shaper.ready().now_or_never().is_some()).count();
        assert_eq!(at_once, 10);
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let shaper = Shaper::new(None);
        assert!((0..10_000).all(|_| shaper.ready().now_or_never().is_some()));
    }
}
