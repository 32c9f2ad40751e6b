//! How a run leaves its owner, or its line, before it has run to its end: given back, or cancelled.

use super::{
    line::End,
    run::{Now, Place, Task, far},
    state::State,
};
use crate::{
    job::{Fence, FrontDoorId, Outcome, RunId},
    queue::{Cancelled, Held, Release, ending_in_queue},
};

impl State {
    pub(super) fn release(&mut self, id: RunId, fence: Fence, how: Release, now: Now) -> Held {
        let Some(run) = self.runs.get_mut(&id) else {
            return if self.tombstones.contains(id) { Held::Elsewhere } else { Held::Unknown };
        };
        let scope = self.scopes.get_mut(run.scope());
        let Some(lease) = run.held(fence).filter(|lease| lease.ending.is_none()) else { return Held::Elsewhere };
        if let Some(scope) = scope {
            scope.free(id, lease.expires);
        }
        self.changes += 1;
        let answering = matches!(lease.task, Task::Answer);
        let limited = matches!((&how, &lease.task), (Release::Limited { .. }, Task::Call));
        let uncounted = how == Release::HandBack && matches!(lease.task, Task::Call);
        let unfinished = how == Release::HandBack && !matches!(lease.task, Task::Call | Task::Expire(_));
        let (first, since) = (lease.first, lease.ready_since);
        if lease.asked.is_some() || unfinished {
            // What is left to do is no call, and reapers hand that out.
            self.leases.orphan(id, lease, now);
            return Held::Done;
        }
        self.leases.drop(id, lease);
        run.place = Place::Nowhere;
        if let Some(log) = run.log.as_mut().filter(|log| !answering && (how != Release::HandBack || log.streamed())) {
            log.retrying(id, &mut self.outbox);
        }
        match how {
            Release::Retry { after, target } | Release::Limited { after, target } => {
                run.limited += i32::from(limited);
                run.target = target.min(run.job.targets.len().saturating_sub(1));
                if after.is_zero() {
                    self.waiting.enter(run, now.at, End::Front);
                } else {
                    self.waiting.delay(run, far(now.at, after));
                }
            }
            Release::HandBack => {
                if uncounted {
                    run.attempts -= 1;
                }
                if first {
                    run.started_at = None;
                }
                self.waiting.enter(run, since, End::Front);
                if uncounted && let Some(line) = self.waiting.line_mut(run.scope(), run.job.lane) {
                    line.refund(run.job.account, run.cost());
                }
            }
        }
        Held::Done
    }

    /// Also returns which front door is to be told.
    pub(super) fn cancel(&mut self, id: RunId, outcome: Outcome, now: Now) -> (Cancelled, Option<FrontDoorId>) {
        let Some(run) = self.runs.get_mut(&id) else {
            let finished = self.tombstones.contains(id);
            return (if finished { Cancelled::Finished } else { Cancelled::Unknown }, None);
        };
        if let Some(lease) = run.lease_mut() {
            if lease.ending.is_some() {
                return (Cancelled::Finished, None);
            }
            lease.asked.get_or_insert(outcome);
            return (Cancelled::Signalled, None);
        }
        let since = self.waiting.remove(run).unwrap_or(now.at);
        self.leases.grant(run, None, Task::Record, since, now);
        let fence = run.lease().map(|lease| lease.fence).unwrap_or_default();
        let ending = Box::new(ending_in_queue(&run.job, fence, outcome, now.moment(), run.started_at));
        if let Some(lease) = run.lease_mut() {
            lease.ending = Some(ending.clone());
        }
        let reply_to = run.announce(&ending, &mut self.outbox);
        (Cancelled::Ended { job: run.job.clone(), ending }, reply_to)
    }
}
