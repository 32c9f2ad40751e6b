//! Claiming: whose run is next, and whether it may go.

use super::{
    lanes::{PerLane, Turn},
    minute::Fit,
    run::{Now, Task},
    state::State,
};
use crate::{
    job::{Event, RunId, WorkerId},
    queue::{Claim, Claimed, ScopeLimits, Work},
};

impl State {
    /// Leases runs one by one: the lane by its weight, in it the scopes in turn, in a scope's line the account that had least. A
    /// scope whose next run cannot go is left alone for the rest of the claim, so that runs which need less do not overtake it for
    /// ever.
    pub(super) fn claim(&mut self, worker: WorkerId, free: usize, scopes: &[ScopeLimits], now: Now) -> Claimed {
        let mut claims = Vec::new();
        let mut next = self.waiting.first_due().map_or(Fit::Never, |(due, _)| Fit::At(due));
        let mut open = scopes.to_vec();
        while claims.len() < free && !self.paused {
            let Some((index, turn)) = self.choose(&open, now) else { break };
            let Some(limits) = open.get_mut(index) else { break };
            match self.take(worker, limits, turn, now) {
                Ok(claim) => {
                    if let (Work::Call, Some(at_once)) = (&claim.work, &mut limits.at_once) {
                        at_once.calls = at_once.calls.saturating_sub(1);
                    }
                    claims.push(claim);
                }
                Err(fit) => {
                    next = next.min(fit);
                    open.swap_remove(index);
                }
            }
        }
        self.looked(worker, claims.len() < free);
        let next = match next {
            Fit::At(at) if !self.paused => Some(at.saturating_duration_since(now.at)),
            _ => None,
        };
        Claimed { claims, next }
    }

    /// The lane and the scope that are next among the open ones.
    fn choose(&self, open: &[ScopeLimits], now: Now) -> Option<(usize, Turn)> {
        let waits = PerLane::from_fn(|lane| {
            let oldest = open.iter().filter_map(|limits| self.waiting.line(&limits.scope, lane)?.oldest()).min()?;
            Some(now.at.saturating_duration_since(oldest))
        });
        let turn = self.lanes.next(waits)?;
        let line = |limits: &ScopeLimits| {
            let line = self.waiting.line(&limits.scope, turn.lane)?;
            Some((line.oldest()?, line.served))
        };
        let candidates = open.iter().enumerate().filter_map(|(index, limits)| Some((index, line(limits)?)));
        let (index, _) = if turn.aged {
            candidates.min_by_key(|&(_, (oldest, _))| oldest)?
        } else {
            candidates.min_by_key(|&(_, (_, served))| served)?
        };
        Some((index, turn))
    }

    /// Leases the first run of a line, or says when it could go.
    fn take(&mut self, worker: WorkerId, limits: &ScopeLimits, turn: Turn, now: Now) -> Result<Claim, Fit> {
        let head = self.waiting.line(&limits.scope, turn.lane).and_then(|line| line.head());
        let Some(run) = head.and_then(|id: RunId| self.runs.get_mut(&id)) else { return Err(Fit::Never) };
        let tokens = run.job.tokens;
        let call = run.deadline > now.at;
        let mut charge = None;
        if call {
            let scope = self.scopes.entry(limits.scope.clone()).or_default();
            match scope.room(limits, tokens, now.at) {
                Fit::Now => charge = scope.take(limits, run.id(), tokens, self.leases.expiry(now), now.at),
                later => return Err(later),
            }
        }
        self.turns += 1;
        self.lanes.took(turn);
        if let Some(line) = self.waiting.line_mut(&limits.scope, turn.lane) {
            line.served = self.turns;
            line.charge(run.job.account, run.cost());
        }
        let since = self.waiting.remove(run).unwrap_or(now.at);
        self.leases.grant(run, Some(worker), if call { Task::Call } else { Task::Expire(None) }, since, now);
        if let Some(lease) = run.lease_mut() {
            lease.charge = charge;
        }
        if let Some(log) = run.log.as_mut().filter(|_| call) {
            log.note(run.job.id, Event::Started { attempt: run.attempts }, &mut self.outbox);
        }
        run.claim().ok_or(Fit::Never)
    }
}
