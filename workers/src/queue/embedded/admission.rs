//! What accounts and keys may ask for: requests in a sliding minute, per subject.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::minute::{Fit, MINUTE, Minute};
use crate::queue::{RateLeft, RateRule};

/// The counted requests. A subject is remembered for as long as one of its requests is counted.
#[derive(Debug, Default)]
pub(super) struct Rates {
    minutes: HashMap<&'static str, HashMap<Arc<str>, Minute>>,
    /// Every charge in the order of time, so that what is over is found without a search.
    charges: VecDeque<(Instant, &'static str, Arc<str>)>,
}

impl Rates {
    pub(super) fn prune(&mut self, now: Instant) {
        while let Some((at, name, subject)) = self.charges.front() {
            if *at + MINUTE > now {
                break;
            }
            if let Some(subjects) = self.minutes.get_mut(name)
                && let Some(minute) = subjects.get_mut(subject)
            {
                minute.slide(now);
                if minute.is_empty() {
                    subjects.remove(subject);
                }
            }
            self.charges.pop_front();
        }
    }

    /// The rule that has no request left for the longest time, and for how long. To be called after [`Rates::prune`].
    pub(super) fn exceeded(&self, rules: &[RateRule], now: Instant) -> Option<(&'static str, Duration)> {
        rules
            .iter()
            .filter_map(|rule| {
                let fit = self.minute(rule).map_or_else(
                    || if rule.per_minute == 0 { Fit::Never } else { Fit::Now },
                    |minute| minute.fits_count(rule.per_minute),
                );
                match fit {
                    Fit::Now => None,
                    Fit::At(at) => Some((rule.name, at.saturating_duration_since(now))),
                    Fit::Never => Some((rule.name, MINUTE)),
                }
            })
            .max_by_key(|&(_, after)| after)
    }

    /// Counts one request for every rule.
    pub(super) fn charge(&mut self, rules: &[RateRule], now: Instant) {
        for rule in rules {
            let subjects = self.minutes.entry(rule.name).or_default();
            let subject = match subjects.get_key_value(rule.subject.as_str()) {
                Some((subject, _)) => Arc::clone(subject),
                None => Arc::from(rule.subject.as_str()),
            };
            subjects.entry(Arc::clone(&subject)).or_default().add(now, 0);
            self.charges.push_back((now, rule.name, subject));
        }
    }

    /// What is left of each rule.
    pub(super) fn left(&self, rules: &[RateRule], now: Instant) -> Vec<RateLeft> {
        let left = |rule: &RateRule| {
            let used = self.minute(rule).map_or(0, Minute::count);
            RateLeft {
                name: rule.name,
                per_minute: rule.per_minute,
                remaining: rule.per_minute.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)),
                reset: self.minute(rule).map(|minute| minute.reset(now)).unwrap_or_default(),
            }
        };
        rules.iter().map(left).collect()
    }

    fn minute(&self, rule: &RateRule) -> Option<&Minute> {
        self.minutes.get(rule.name)?.get(rule.subject.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_forgotten_with_its_last_request() {
        let start = Instant::now();
        let mut rates = Rates::default();
        let rule = |subject: u32| RateRule { name: "key", subject: subject.to_string(), per_minute: 2 };
        for n in 0..1_000 {
            rates.charge(&[rule(n)], start);
        }
        rates.charge(&[rule(0)], start + Duration::from_secs(1));
        assert_eq!(rates.exceeded(&[rule(0)], start + Duration::from_secs(1)), Some(("key", Duration::from_secs(59))));
        rates.prune(start + MINUTE);
        assert_eq!(rates.minutes["key"].len(), 1);
        assert_eq!(rates.charges.len(), 1);
        assert_eq!(rates.left(&[rule(0)], start + MINUTE)[0].remaining, 1);
        rates.prune(start + MINUTE + Duration::from_secs(1));
        assert!(rates.minutes["key"].is_empty());
    }
}
