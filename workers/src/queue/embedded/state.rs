//! The state machine of the embedded queue: every rule of [`crate::queue`], without I/O and without a clock.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    admission::Rates,
    flights::Flights,
    lanes::Lanes,
    leases::{Leases, Tombstones},
    limits::Scope,
    line::End,
    log::{KeptLogs, Log, Outbox},
    memory::Memory,
    run::{Now, Place, Run, Task, far, millis, weight},
    waiting::Waiting,
};
use crate::{
    job::{Ending, Fence, FrontDoorId, Job, Lane, RunId, WorkerId},
    queue::{
        Admission, Admitted, Claim, Held, LaneStats, QueueStats, Recalled, Renewal, Restored, Sighting, Submission,
    },
};

/// When a caller that met a full queue may try again.
const FULL_FOR: Duration = Duration::from_secs(1);

/// Everything the queue knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) runs: HashMap<RunId, Run>,
    pub(super) waiting: Waiting,
    pub(super) leases: Leases,
    pub(super) scopes: HashMap<String, Scope>,
    pub(super) lanes: Lanes,
    /// Turns given so far; the scopes of a lane go round by it.
    pub(super) turns: u64,
    pub(super) paused: bool,
    pub(super) logs: KeptLogs,
    /// What is to be sent when the step is done.
    pub(super) outbox: Outbox,
    pub(super) memory: Memory,
    rates: Rates,
    pub(super) flights: Flights,
    pub(super) tombstones: Tombstones,
    /// Grows with every change that may let a worker claim something.
    pub(super) changes: u64,
    /// For each worker that found less than it could take: the changes it had seen. There is one worker a process.
    drained: HashMap<WorkerId, u64>,
}

/// What a worker that looks for runs may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// Something changed since it last looked, or it left something.
    Now,
    /// A delayed run is due then.
    At(Instant),
    Nothing,
}

impl State {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            runs: HashMap::new(),
            waiting: Waiting::default(),
            leases: Leases::new(lease),
            scopes: HashMap::new(),
            lanes: Lanes::default(),
            turns: 0,
            paused: false,
            logs: KeptLogs::default(),
            outbox: Outbox::new(),
            rates: Rates::default(),
            flights: Flights::default(),
            tombstones: Tombstones::default(),
            memory: Memory::default(),
            changes: 0,
            drained: HashMap::new(),
        }
    }

    /// Does what time alone brings about. To be called before every step.
    pub(super) fn tidy(&mut self, now: Now) {
        self.tombstones.prune(now);
        self.logs.prune(now);
        self.rates.prune(now.at);
        while let Some((due, id)) = self.waiting.first_due()
            && due <= now.at
            && let Some(run) = self.runs.get_mut(&id)
        {
            self.waiting.remove(run);
            // The account's other runs came after it.
            self.waiting.enter(run, due, End::Front);
            self.changes += 1;
        }
    }

    /// Whether it holds no run.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn take_outbox(&mut self) -> Outbox {
        std::mem::take(&mut self.outbox)
    }

    pub(super) fn pending(&self, worker: WorkerId) -> Pending {
        if self.drained.get(&worker).copied().unwrap_or(0) != self.changes {
            return Pending::Now;
        }
        self.waiting.first_due().map_or(Pending::Nothing, |(due, _)| Pending::At(due))
    }

    /// Remembers whether a worker found all there was.
    pub(super) fn looked(&mut self, worker: WorkerId, drained: bool) {
        if drained {
            self.drained.insert(worker, self.changes);
        } else {
            self.drained.remove(&worker);
        }
    }

    pub(super) fn admit(&mut self, job: &Job, admission: &Admission, now: Now) -> Admitted {
        if !self.knows(job.id) {
            if let Some(refused) = self.refuse(weight(job), admission, now) {
                return refused;
            }
            self.rates.charge(&admission.rules, now.at);
        }
        Admitted::Yes { rates: self.rates.left(&admission.rules, now.at) }
    }

    /// Also returns an ending that is to be sent at once: the run was restored from the ledger, and has ended, before its own submission came.
    pub(super) fn enqueue(
        &mut self,
        submission: Submission,
        admission: Option<&Admission>,
        now: Now,
    ) -> (Admitted, Option<(FrontDoorId, Box<Ending>)>) {
        let Submission { job, reply_to } = submission;
        let admitted = match admission {
            Some(admission) => self.admit(&job, admission, now),
            None => Admitted::Yes { rates: Vec::new() },
        };
        let mut missed = None;
        if let Some(run) = self.runs.get_mut(&job.id) {
            // Whoever restored it did not know who waits.
            if let (None, Some(front_door)) = (run.reply_to, reply_to) {
                run.reply_to = reply_to;
                if let Some(log) = &mut run.log {
                    log.follow(front_door);
                }
                missed = run.lease().and_then(|lease| lease.ending.clone()).map(|ending| (front_door, ending));
            }
        } else if matches!(admitted, Admitted::Yes { .. }) {
            let restored = Restored { job, attempts: 0, limited: 0, fence: Fence::default() };
            self.add(restored, reply_to, 0, now);
        }
        (admitted, missed)
    }

    pub(super) fn heartbeat(&mut self, worker: WorkerId, held: &[(RunId, Fence)], now: Now) -> Vec<Renewal> {
        let expires = self.leases.expiry(now);
        let mut renew = |id: RunId, fence: Fence| {
            let run = self.runs.get_mut(&id)?;
            let lease = run.held(fence).filter(|lease| lease.worker.is_none_or(|owner| owner == worker))?;
            let calling = lease.ending.is_none() && matches!(lease.task, Task::Call);
            // The slot of an expired call may be somebody else's by now, even if no reaper has come yet.
            if calling && lease.expires <= now.at {
                return None;
            }
            let before = self.leases.renew(id, lease, expires);
            let wanted = lease.ending.is_none() && lease.asked.is_some();
            if let Some(scope) = self.scopes.get_mut(run.scope()) {
                scope.renew(id, before, expires);
            }
            Some(if wanted { Renewal::Cancel } else { Renewal::Held })
        };
        held.iter().map(|&(id, fence)| renew(id, fence).unwrap_or(Renewal::Lost)).collect()
    }

    /// Also returns which front door is to be told.
    pub(super) fn stash(&mut self, ending: &Ending) -> (Held, Option<FrontDoorId>) {
        let id = ending.run;
        let Some(run) = self.runs.get_mut(&id) else {
            return (if self.tombstones.contains(id) { Held::Elsewhere } else { Held::Unknown }, None);
        };
        let Some(lease) = run.held(ending.fence) else { return (Held::Elsewhere, None) };
        if lease.ending.is_some() {
            // A repetition: what was stashed first stays.
            return (Held::Done, None);
        }
        lease.ending = Some(Box::new(ending.clone()));
        let (expires, charge) = (lease.expires, lease.charge);
        if let Some(scope) = self.scopes.get_mut(run.scope()) {
            scope.free(id, expires);
            // While the provider did not say what it counted, the reservation stands.
            if let (Some(charge), Some(tokens)) = (charge, ending.usage().total()) {
                scope.settle(charge, tokens);
            }
        }
        self.changes += 1;
        (Held::Done, run.announce(ending, &mut self.outbox))
    }

    pub(super) fn finish(&mut self, runs: &[(RunId, Fence)], now: Now) {
        for &(id, fence) in runs {
            let Some(run) = self.runs.get_mut(&id) else {
                // Whatever became of it here, it has ended: a late copy must not come to life.
                self.tombstones.add(id, now);
                continue;
            };
            let Some(lease) = run.held(fence) else { continue };
            self.leases.drop(id, lease);
            let expires = lease.expires;
            if let Some(scope) = self.scopes.get_mut(run.scope()) {
                scope.free(id, expires);
            }
            self.tombstones.add(id, now);
            self.changes += 1;
            let Some(run) = self.runs.remove(&id) else { continue };
            self.land(&run, now);
            if let Some(log) = run.log {
                self.logs.keep(id, *log, now);
            }
        }
    }

    pub(super) fn reap(&mut self, worker: WorkerId, limit: usize, now: Now) -> Vec<Claim> {
        let mut claims = Vec::new();
        while claims.len() < limit {
            if let Some(run) = self.leases.expired(now).and_then(|id| self.runs.get_mut(&id)) {
                let expired = run.lease().map(|lease| lease.expires).unwrap_or(now.at);
                if let Some(scope) = self.scopes.get_mut(run.scope()) {
                    scope.free(run.id(), expired);
                }
                self.leases.take_over(run, worker, now);
                claims.extend(run.claim());
            } else if let Some(run) = self.waiting.expired(now).and_then(|id| self.runs.get_mut(&id)) {
                let since = self.waiting.remove(run).unwrap_or(now.at);
                self.leases.grant(run, Some(worker), Task::Expire(None), since, now);
                claims.extend(run.claim());
            } else {
                break;
            }
            self.changes += 1;
        }
        claims
    }

    pub(super) fn pause_scope(&mut self, scope: &str, after: Duration, now: Now) {
        self.scopes.entry(scope.to_owned()).or_default().pause(after, now.at);
    }

    pub(super) fn missing(&self, runs: &[RunId]) -> Vec<RunId> {
        runs.iter().copied().filter(|&id| !self.knows(id)).collect()
    }

    pub(super) fn restore(&mut self, runs: &[Restored], now: Now) {
        for run in runs {
            self.add(run.clone(), None, now.beginning(), now);
        }
    }

    pub(super) fn locate(&self, id: RunId) -> Option<Sighting> {
        let run = self.runs.get(&id)?;
        let lease = run.lease();
        if lease.is_some_and(|lease| lease.ending.is_some()) {
            return None;
        }
        Some(Sighting { leased: lease.is_some(), started_at: run.started_at })
    }

    pub(super) fn recall(&self, id: RunId) -> Option<Recalled> {
        let run = self.runs.get(&id)?;
        let ending = run.lease().and_then(|lease| lease.ending.clone());
        Some(Recalled { job: run.job.clone(), ending })
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.changes += 1;
    }

    pub(super) fn stats(&self, now: Now) -> QueueStats {
        let lane = |lane| {
            let (ready, oldest) = self.waiting.ready(lane);
            let waited = oldest.map(|since| now.at.saturating_duration_since(since)).unwrap_or_default();
            LaneStats { ready, oldest_ms: millis(waited) }
        };
        QueueStats {
            lanes: Lane::ALL.map(lane),
            delayed: self.waiting.delayed(),
            leased: self.leases.len() as u64,
            bytes: self.waiting.bytes(),
            paused: self.paused,
        }
    }

    fn knows(&self, id: RunId) -> bool {
        self.runs.contains_key(&id) || self.tombstones.contains(id)
    }

    /// Why a job of this weight cannot be admitted.
    fn refuse(&self, bytes: u64, admission: &Admission, now: Now) -> Option<Admitted> {
        if let Some((rule, after)) = self.rates.exceeded(&admission.rules, now.at) {
            let rates = self.rates.left(&admission.rules, now.at);
            return Some(Admitted::Limited { rule, after, rates });
        }
        let full = self.waiting.len() >= admission.max_depth
            || self.waiting.bytes().saturating_add(bytes) > admission.max_bytes;
        full.then_some(Admitted::Full { after: FULL_FOR })
    }

    /// Takes a run in that the queue does not know.
    fn add(&mut self, restored: Restored, reply_to: Option<FrontDoorId>, log_began: u64, now: Now) {
        let Restored { job, attempts, limited, fence } = restored;
        if self.knows(job.id) {
            return;
        }
        let log = job.stream.then(|| Box::new(Log::begin(reply_to, log_began)));
        self.leases.pass(fence);
        let mut run = Run {
            bytes: weight(&job),
            deadline: far(now.at, Duration::from_millis(job.deadline.since(now.moment()))),
            job,
            reply_to,
            attempts,
            limited,
            losses: 0,
            target: 0,
            started_at: None,
            behind: false,
            log,
            place: Place::Nowhere,
        };
        if self.waits_behind(&run) {
            // Whoever finishes the other one ends the delay, or a reaper at the deadline.
            self.waiting.delay(&mut run, far(now.at, Duration::MAX));
            run.behind = true;
        } else {
            self.waiting.enter(&mut run, now.at, End::Back);
        }
        self.runs.insert(run.id(), run);
        self.changes += 1;
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.waiting.check(self.runs.values());
        self.leases.check(self.runs.values());
        self.check_flights();
    }
}
