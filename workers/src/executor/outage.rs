//! What is said while a store is away: that it is, now and then that it still is, and for how long it was.

use std::time::Duration;

use tokio::time::Instant;

/// How often an outage that goes on is spoken of.
const AGAIN: Duration = Duration::from_secs(30);

/// Whether one kind of step fails, and since when.
#[derive(Debug, Default)]
pub struct Outage(Option<Since>);

#[derive(Debug)]
struct Since {
    began: Instant,
    said: Instant,
}

impl Outage {
    /// The step failed. Returns whether that is to be said.
    pub fn goes_on(&mut self, now: Instant) -> bool {
        match &mut self.0 {
            None => {
                self.0 = Some(Since { began: now, said: now });
                true
            }
            Some(since) if now.saturating_duration_since(since.said) >= AGAIN => {
                since.said = now;
                true
            }
            Some(_) => false,
        }
    }

    /// The step worked. Returns how long it did not, once.
    pub fn is_over(&mut self, now: Instant) -> Option<Duration> {
        self.0.take().map(|since| now.saturating_duration_since(since.began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_at_once_then_now_and_then_and_when_it_is_over() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert_eq!(outage.is_over(start), None);
        let said: Vec<u64> = (0..100).filter(|&second| outage.goes_on(after(second))).collect();
        assert_eq!(said, [0, 30, 60, 90]);
        assert_eq!(outage.is_over(after(100)), Some(Duration::from_secs(100)));
        assert_eq!(outage.is_over(after(101)), None);
        assert!(outage.goes_on(after(102)), "the next one is another");
    }
}
