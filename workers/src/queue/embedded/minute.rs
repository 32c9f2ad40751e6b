//! A sliding minute: what happened in the last sixty seconds, exactly.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// When something fits under a limit. The later of two is their maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    Now,
    At(Instant),
    Never,
}

/// Events of the last minute with an amount each.
#[derive(Debug, Default)]
pub(super) struct Minute {
    /// When, and how much; in the order of time.
    entries: VecDeque<(Instant, u64)>,
    /// How many entries have left already: the number of the first one.
    gone: u64,
    sum: u64,
}

/// An entry of a [`Minute`], to correct its amount later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Minute {
    /// Forgets what is a minute old. To be called before any question.
    pub(super) fn slide(&mut self, now: Instant) {
        while let Some(&(at, amount)) = self.entries.front() {
            if at + MINUTE > now {
                break;
            }
            self.entries.pop_front();
            self.gone += 1;
            self.sum -= amount;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn add(&mut self, now: Instant, amount: u64) -> Entry {
        let entry = Entry(self.gone + self.entries.len() as u64);
        let amount = amount.min(u64::MAX - self.sum);
        self.entries.push_back((now, amount));
        self.sum += amount;
        entry
    }

    /// Replaces the amount of an entry, unless it has left the minute.
    pub(super) fn correct(&mut self, entry: Entry, amount: u64) {
        let index = entry.0.checked_sub(self.gone).and_then(|index| usize::try_from(index).ok());
        if let Some((_, old)) = index.and_then(|index| self.entries.get_mut(index)) {
            self.sum -= *old;
            *old = amount.min(u64::MAX - self.sum);
            self.sum += *old;
        }
    }

    /// When one more entry fits under `limit` entries a minute.
    pub(super) fn fits_count(&self, limit: u32) -> Fit {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if limit == 0 {
            return Fit::Never;
        }
        // With room for `limit`, the one that must leave first is `limit` entries from the end.
        match self.entries.len().checked_sub(limit).and_then(|index| self.entries.get(index)) {
            None => Fit::Now,
            Some(&(at, _)) => Fit::At(at + MINUTE),
        }
    }

    /// When `amount` more fits under a sum of `limit` a minute. What is larger than the limit itself fits an empty minute:
    /// an estimate must not keep a run waiting for ever.
    pub(super) fn fits_sum(&self, amount: u64, limit: u64) -> Fit {
        if limit == 0 {
            return Fit::Never;
        }
        let room = limit - amount.min(limit);
        let mut sum = self.sum;
        let mut fit = Fit::Now;
        for &(at, amount) in &self.entries {
            if sum <= room {
                break;
            }
            sum -= amount;
            fit = Fit::At(at + MINUTE);
        }
        fit
    }

    /// Until the oldest entry leaves; zero without one.
    pub(super) fn reset(&self, now: Instant) -> Duration {
        self.entries.front().map(|&(at, _)| (at + MINUTE).saturating_duration_since(now)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minute_slides_over_each_entry_exactly() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut minute = Minute::default();
        minute.add(second(0), 10);
        minute.add(second(20), 30);
        minute.slide(second(59));
        assert_eq!(minute.fits_count(2), Fit::At(second(60)));
        assert_eq!(minute.fits_count(1), Fit::At(second(80)));
        assert_eq!(minute.fits_count(3), Fit::Now);
        assert_eq!(minute.fits_sum(10, 50), Fit::Now);
        assert_eq!(minute.fits_sum(11, 50), Fit::At(second(60)));
        assert_eq!(minute.fits_sum(21, 50), Fit::At(second(80)));
        assert_eq!(minute.reset(second(59)), Duration::from_secs(1));
        minute.slide(second(60));
        assert_eq!((minute.count(), minute.sum), (1, 30));
        minute.slide(second(80));
        assert!(minute.is_empty());
        assert_eq!(minute.sum, 0);
    }

    #[test]
    fn an_amount_above_the_limit_fits_an_empty_minute_only() {
        let start = Instant::now();
        let mut minute = Minute::default();
        assert_eq!(minute.fits_sum(500, 100), Fit::Now);
        minute.add(start, 1);
        assert_eq!(minute.fits_sum(500, 100), Fit::At(start + MINUTE));
    }

    #[test]
    fn a_correction_finds_its_entry_after_others_have_left() {
        let start = Instant::now();
        let mut minute = Minute::default();
        let old = minute.add(start, 5);
        let kept = minute.add(start + Duration::from_secs(30), 100);
        minute.slide(start + MINUTE);
        minute.correct(old, 1_000);
        assert_eq!(minute.sum, 100);
        minute.correct(kept, 7);
        assert_eq!(minute.sum, 7);
    }
}
