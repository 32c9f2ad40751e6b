//! Spreads the calls of one process to a provider over the minute. The exact limit is held by the queue's claim; this
//! keeps a minute's worth of requests from leaving in one burst.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

pub struct Shaper(Option<DefaultDirectRateLimiter>);

impl Shaper {
    /// At most a tenth of a minute's requests at once, then evenly; no limit is no shaping.
    pub fn new(requests_per_minute: Option<u32>) -> Self {
        let limiter = requests_per_minute.and_then(NonZeroU32::new).map(|per_minute| {
            let burst = NonZeroU32::new(per_minute.get() / 10).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_minute(per_minute).allow_burst(burst))
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
    use std::time::{Duration, Instant};

    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_burst_is_a_tenth_of_the_minute() {
        let shaper = Shaper::new(Some(100));
        let at_once = (0..100).take_while(|_| shaper.ready().now_or_never().is_some()).count();
        assert_eq!(at_once, 10);
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let started = Instant::now();
        let shaper = Shaper::new(None);
        assert!((0..10_000).all(|_| shaper.ready().now_or_never().is_some()));
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
