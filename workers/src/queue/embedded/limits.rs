//! What a scope (a provider) allows: concurrency slots, requests and tokens a minute, pauses.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{
    minute::{Entry, Fit, Minute},
    run::far,
};
use crate::{job::RunId, queue::ScopeLimits};

/// What calls of one scope have taken.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Concurrency slots. They are leases: one whose time is over is free again, whoever had it.
    slots: BTreeSet<(Instant, RunId)>,
    /// Requests, with their tokens.
    calls: Minute,
    paused_until: Option<Instant>,
}

impl Scope {
    /// When a call that may use so many tokens can be made.
    pub(super) fn room(&mut self, limits: &ScopeLimits, tokens: u64, now: Instant) -> Fit {
        while self.slots.first().is_some_and(|&(until, _)| until <= now) {
            self.slots.pop_first();
        }
        self.calls.slide(now);
        let pause = match self.paused_until {
            Some(until) if until > now => Fit::At(until),
            _ => Fit::Now,
        };
        let slot = limits.max_concurrency.map_or(Fit::Now, |limit| self.fits_slot(limit));
        let request = limits.requests_per_minute.map_or(Fit::Now, |limit| self.calls.fits_count(limit));
        let tokens = limits.tokens_per_minute.map_or(Fit::Now, |limit| self.calls.fits_sum(tokens, limit));
        let at_once = match limits.at_once {
            Some(at_once) if at_once.calls == 0 => Fit::At(far(now, at_once.next)),
            _ => Fit::Now,
        };
        pause.max(slot).max(request).max(tokens).max(at_once)
    }

    /// Takes a slot until `expires`, a request and its tokens.
    pub(super) fn take(
        &mut self,
        limits: &ScopeLimits,
        run: RunId,
        tokens: u64,
        expires: Instant,
        now: Instant,
    ) -> Option<Entry> {
        self.slots.insert((expires, run));
        // Nothing needs to be remembered of a provider that counts neither.
        let counted = limits.requests_per_minute.is_some() || limits.tokens_per_minute.is_some();
        counted.then(|| self.calls.add(now, tokens))
    }

    /// Moves the end of a slot. Nothing happens when it has run out before.
    pub(super) fn renew(&mut self, run: RunId, from: Instant, to: Instant) {
        if self.slots.remove(&(from, run)) {
            self.slots.insert((to, run));
        }
    }

    pub(super) fn free(&mut self, run: RunId, expires: Instant) {
        self.slots.remove(&(expires, run));
    }

    /// Corrects the tokens of a call to what it used.
    pub(super) fn settle(&mut self, entry: Entry, tokens: u64) {
        self.calls.correct(entry, tokens);
    }

    /// Makes no calls for a while. A shorter pause does not end a longer one.
    pub(super) fn pause(&mut self, after: Duration, now: Instant) {
        let until = far(now, after);
        self.paused_until = Some(self.paused_until.map_or(until, |other| other.max(until)));
    }

    /// A slot is free at the latest when the first lease runs out.
    fn fits_slot(&self, limit: u32) -> Fit {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if self.slots.len() < limit {
            return Fit::Now;
        }
        if limit == 0 {
            return Fit::Never;
        }
        self.slots.iter().nth(self.slots.len() - limit).map_or(Fit::Now, |&(until, _)| Fit::At(until))
    }
}
