//! Who owns what, and until when; and what has ended and must not come back.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::run::{Lease, Now, Place, Run, Task, far, millis};
use crate::{
    job::{Fence, RunId, WorkerId},
    queue::LostCall,
};

#[derive(Debug)]
pub(super) struct Leases {
    length: Duration,
    by_expiry: BTreeSet<(Instant, RunId)>,
    fence: Fence,
}

impl Leases {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, by_expiry: BTreeSet::new(), fence: Fence::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.by_expiry.len()
    }

    /// When a lease that is taken or renewed now runs out.
    pub(super) fn expiry(&self, now: Now) -> Instant {
        far(now.at, self.length)
    }

    /// A number above all that were given, and above those of an earlier boot.
    pub(super) fn fence(&mut self, now: Now) -> Fence {
        self.fence = Fence(self.fence.0.saturating_add(1).max(now.micros));
        self.fence
    }

    /// All fences from now on are greater than this one.
    pub(super) fn pass(&mut self, fence: Fence) {
        self.fence = self.fence.max(fence);
    }

    /// Leases a run that is in no list.
    pub(super) fn grant(
        &mut self,
        run: &mut Run,
        worker: Option<WorkerId>,
        task: Task,
        ready_since: Instant,
        now: Now,
    ) {
        let expires = self.expiry(now);
        let first = matches!(task, Task::Call) && run.started_at.is_none();
        if matches!(task, Task::Call) {
            run.attempts = run.attempts.saturating_add(1);
            run.started_at.get_or_insert(now.moment());
        }
        let lease = Lease {
            worker,
            fence: self.fence(now),
            expires,
            task,
            taken_at: now.moment(),
            ready_since,
            queue_ms: millis(now.at.saturating_duration_since(ready_since)),
            charge: None,
            first,
            asked: None,
            ending: None,
        };
        self.by_expiry.insert((expires, run.id()));
        run.place = Place::Leased(Box::new(lease));
    }

    /// Leaves a run that is in no list to the next reaper, to be ended with the result of another run.
    pub(super) fn leave_answered(&mut self, run: &mut Run, now: Now) {
        self.grant(run, None, Task::Answer, now.at, now);
        if let Place::Leased(lease) = &mut run.place {
            self.renew(run.job.id, lease, now.at);
            lease.queue_ms = lease.taken_at.since(run.job.created_at);
        }
    }

    /// Moves the end of a lease, and returns where it was.
    pub(super) fn renew(&mut self, run: RunId, lease: &mut Lease, expires: Instant) -> Instant {
        self.by_expiry.remove(&(lease.expires, run));
        self.by_expiry.insert((expires, run));
        std::mem::replace(&mut lease.expires, expires)
    }

    pub(super) fn drop(&mut self, run: RunId, lease: &Lease) {
        self.by_expiry.remove(&(lease.expires, run));
    }

    /// A run whose lease has run out.
    pub(super) fn expired(&self, now: Now) -> Option<RunId> {
        self.by_expiry.first().filter(|&&(expires, _)| expires <= now.at).map(|&(_, run)| run)
    }

    /// Gives an expired lease to a reaper, with what is left to do.
    pub(super) fn take_over(&mut self, run: &mut Run, worker: WorkerId, now: Now) {
        let (expires, fence) = (self.expiry(now), self.fence(now));
        let (id, attempt) = (run.id(), run.attempts);
        let Place::Leased(lease) = &mut run.place else { return };
        self.renew(id, lease, expires);
        let lost = match &lease.task {
            _ if lease.ending.is_some() => None,
            Task::Call => {
                run.losses = run.losses.saturating_add(1);
                // Only a worker makes calls.
                let owner = lease.worker.unwrap_or(worker);
                // As the claim was told: never before the run.
                let started_at = lease.taken_at.max(run.job.created_at);
                Some(LostCall { worker: owner, fence: lease.fence, attempt, started_at })
            }
            // A reaper was lost before it had dealt with it.
            Task::Lost(call) => Some(call.clone()),
            Task::Expire(lost) | Task::Cancel(lost) => lost.clone(),
            Task::Record | Task::Answer => None,
        };
        let task = match (&lease.ending, &lease.asked, lost) {
            (Some(_), _, _) => Task::Record,
            (None, Some(outcome), lost) => Task::end_as(outcome, lost),
            (None, None, Some(call)) if matches!(lease.task, Task::Call) => Task::Lost(call),
            (None, None, _) => lease.task.clone(),
        };
        lease.task = task;
        lease.worker = Some(worker);
        lease.fence = fence;
        lease.taken_at = now.moment();
        lease.charge = None;
    }

    /// Leaves a run that was given back to the next reaper, out of reach of whoever had it. When its call has been dealt with, only the end is
    /// left that somebody asked for.
    pub(super) fn orphan(&mut self, run: RunId, lease: &mut Lease, now: Now) {
        self.renew(run, lease, now.at);
        lease.fence = self.fence(now);
        lease.worker = None;
        if let (Task::Call | Task::Expire(_), Some(outcome)) = (&lease.task, &lease.asked) {
            lease.task = Task::end_as(outcome, None);
        }
    }

    #[cfg(test)]
    pub(super) fn check<'a>(&self, runs: impl Iterator<Item = &'a Run>) {
        let expected = runs.filter_map(|run| Some((run.lease()?.expires, run.id()))).collect::<BTreeSet<_>>();
        assert_eq!(self.by_expiry, expected);
    }
}

/// Runs that are over. A late copy of one changes nothing while its tombstone stands.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    known: HashSet<RunId>,
    by_age: VecDeque<(Instant, RunId)>,
}

/// How long a tombstone stands: longer than any message about a run that has ended can be on its way.
const TOMBSTONE: Duration = Duration::from_secs(60);

impl Tombstones {
    pub(super) fn contains(&self, run: RunId) -> bool {
        self.known.contains(&run)
    }

    pub(super) fn add(&mut self, run: RunId, now: Now) {
        if self.known.insert(run) {
            self.by_age.push_back((now.at, run));
        }
    }

    pub(super) fn prune(&mut self, now: Now) {
        while let Some(&(at, run)) = self.by_age.front() {
            if at + TOMBSTONE > now.at {
                break;
            }
            self.by_age.pop_front();
            self.known.remove(&run);
        }
    }
}
