//! A run as the queue knows it, and the time it is told.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    log::{Log, Outbox},
    minute::Entry,
};
use crate::{
    job::{Ending, Event, Fence, FrontDoorId, Job, Outcome, RunId, UnixMillis, WorkerId},
    queue::{Claim, LostCall, MAX_LOSSES, Work},
};

/// The time of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// What leases, delays, deadlines and limits are measured with.
    pub(super) at: Instant,
    /// The queue's clock, in microseconds since 1970: for fences, and for moments that leave the process.
    pub(super) micros: i64,
}

impl Now {
    pub(super) fn moment(self) -> UnixMillis {
        UnixMillis::from_micros(self.micros)
    }

    /// For what begins now and is to be told from what began before.
    pub(super) fn beginning(self) -> u64 {
        self.micros.unsigned_abs()
    }
}

/// The moment `after` from `at`, or a century from it: a time that is never reached must not overflow.
pub(super) fn far(at: Instant, after: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    at + after.min(CENTURY)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A run that has not been finished.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) job: Arc<Job>,
    /// What the job takes of the byte budget while it waits.
    pub(super) bytes: u64,
    pub(super) reply_to: Option<FrontDoorId>,
    /// The job's deadline on the queue's clock. Fixed when the run comes in.
    pub(super) deadline: Instant,
    /// Calls that were made, the present one included.
    pub(super) attempts: i32,
    /// Those of them that their provider put off.
    pub(super) limited: i32,
    /// Calls whose worker was lost.
    pub(super) losses: u32,
    /// Index into the job's targets.
    pub(super) target: usize,
    /// When a worker first took it for a call.
    pub(super) started_at: Option<UnixMillis>,
    /// It waits behind another run, which would be the same call.
    pub(super) behind: bool,
    /// What happened to it, if anybody is to be told.
    pub(super) log: Option<Box<Log>>,
    pub(super) place: Place,
}

/// Where a run is.
#[derive(Debug)]
pub(super) enum Place {
    /// In no list yet.
    Nowhere,
    Ready {
        since: Instant,
        /// Its place in its account's list.
        order: i64,
    },
    Delayed {
        until: Instant,
    },
    Leased(Box<Lease>),
}

/// The right to a run.
#[derive(Debug)]
pub(super) struct Lease {
    /// `None` for a run that was cancelled while it waited (its canceller writes the ending down), and for one that was given back with
    /// work left that only a reaper hands out.
    pub(super) worker: Option<WorkerId>,
    pub(super) fence: Fence,
    pub(super) expires: Instant,
    pub(super) task: Task,
    pub(super) taken_at: UnixMillis,
    /// When the run was last ready, and how long it had waited then.
    pub(super) ready_since: Instant,
    pub(super) queue_ms: u64,
    /// The call's entry in the minute of its scope.
    pub(super) charge: Option<Entry>,
    /// Nobody had taken the run for a call before.
    pub(super) first: bool,
    /// Somebody wants the run to end so.
    pub(super) asked: Option<Outcome>,
    /// How the run ended; it is not in the ledger yet.
    pub(super) ending: Option<Box<Ending>>,
}

/// What the owner of a lease has to do.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Call,
    Expire(Option<LostCall>),
    Cancel(Option<LostCall>),
    Record,
    /// End it with the result of another run.
    Answer,
    /// Deal with a call whose worker was lost.
    Lost(LostCall),
}

impl Task {
    /// Ends the run as somebody asked, with the call that was lost before.
    pub(super) fn end_as(outcome: &Outcome, lost: Option<LostCall>) -> Self {
        match outcome {
            Outcome::Expired => Task::Expire(lost),
            _ => Task::Cancel(lost),
        }
    }
}

impl Run {
    /// The limit scope of the run's present target.
    pub(super) fn scope(&self) -> &str {
        self.job.targets.get(self.target).map(|target| target.provider.as_str()).unwrap_or_default()
    }

    /// What its account pays for its turn.
    pub(super) fn cost(&self) -> u64 {
        self.job.tokens.max(1)
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        match &self.place {
            Place::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    pub(super) fn lease_mut(&mut self) -> Option<&mut Lease> {
        match &mut self.place {
            Place::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    /// The lease under this fence.
    pub(super) fn held(&mut self, fence: Fence) -> Option<&mut Lease> {
        self.lease_mut().filter(|lease| lease.fence == fence)
    }

    /// The lease as its owner is told of it; `None` when the run has none.
    pub(super) fn claim(&self) -> Option<Claim> {
        let lease = self.lease()?;
        let (attempt, work) = match &lease.task {
            Task::Call => (self.attempts, Work::Call),
            Task::Expire(lost) => (self.next_attempt(), Work::Expire(lost.clone())),
            Task::Cancel(lost) => (self.next_attempt(), Work::Cancel(lost.clone())),
            Task::Record => (self.attempts.max(1), Work::Record(lease.ending.clone()?)),
            Task::Answer => (self.next_attempt(), Work::Answer),
            Task::Lost(call) if self.losses > MAX_LOSSES => (self.next_attempt(), Work::Poison(call.clone())),
            Task::Lost(call) => (self.next_attempt(), Work::Lost(call.clone())),
        };
        Some(Claim {
            job: Arc::clone(&self.job),
            fence: lease.fence,
            attempt,
            limited: self.limited,
            target: self.target,
            queue_ms: lease.queue_ms,
            started_at: self.started_at.unwrap_or(lease.taken_at).max(self.job.created_at),
            log: self.log.as_ref().map(|log| log.mark()),
            work,
        })
    }

    /// Writes the ending to the log. Returns who waits for it and is not told by the log.
    pub(super) fn announce(&mut self, ending: &Ending, outbox: &mut Outbox) -> Option<FrontDoorId> {
        if let Some(log) = &mut self.log {
            log.note(self.job.id, Event::Ended(Box::new(ending.clone())), outbox);
        }
        self.reply_to.filter(|&front_door| self.log.as_ref().is_none_or(|log| !log.follows(front_door)))
    }

    pub(super) fn id(&self) -> RunId {
        self.job.id
    }

    fn next_attempt(&self) -> i32 {
        self.attempts.saturating_add(1)
    }
}

/// What a job takes of the byte budget: its text, near enough to what it takes of memory.
pub(super) fn weight(job: &Job) -> u64 {
    let request = &job.request;
    let text = request.user.len()
        + request.system.as_ref().map_or(0, String::len)
        + request.parameters.stop.iter().map(String::len).sum::<usize>()
        + request.output_schema.as_ref().map_or(0, value_weight)
        + job.prompt_name.len()
        + job.metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + job
            .targets
            .iter()
            .map(|target| target.model.len() + target.provider.len() + target.upstream.len())
            .sum::<usize>();
    (size_of::<Job>() + size_of::<Run>() + text) as u64
}

fn value_weight(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    size_of::<Value>()
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_weight).sum(),
            Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + value_weight(value)).sum(),
        }
}
