//! The logs of runs: their events, and who is told of them.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::{
    run::{Now, Task, far},
    state::State,
};
use crate::{
    job::{Ending, Event, Fence, FrontDoorId, Logged, RunId},
    queue::{Followed, Held, LOG_BYTES, LOG_PAGE, LOG_RETENTION, LogMark, NewText, Reply},
};

/// What logs of ended runs may take of the memory; the oldest ones go first.
const KEPT_BYTES: usize = 64 << 20;

/// The events of one run.
#[derive(Debug, Default)]
pub(super) struct Log {
    events: Vec<Event>,
    /// As [`Followed::Log`] has it.
    began: u64,
    followers: Vec<FrontDoorId>,
    streamed: bool,
}

/// Messages that a step leaves for front doors.
pub(super) type Outbox = Vec<(FrontDoorId, Reply)>;

impl Log {
    /// The log of a run that has just come in.
    pub(super) fn begin(follower: Option<FrontDoorId>, began: u64) -> Self {
        Self { events: vec![Event::Queued], began, followers: follower.into_iter().collect(), ..Self::default() }
    }

    pub(super) fn note(&mut self, run: RunId, event: Event, outbox: &mut Outbox) {
        self.events.push(event.clone());
        self.tell(run, event, outbox);
    }

    /// Adds the deltas from the place `first` on that are not there yet.
    pub(super) fn append(&mut self, run: RunId, text: &NewText, outbox: &mut Outbox) {
        let mut said = text.before;
        for (place, delta) in (text.first..).zip(&text.deltas) {
            said = said.saturating_add(delta.len() as u64);
            if place > self.length() {
                let event = Event::Delta(delta.clone());
                self.events.push(if said <= LOG_BYTES as u64 { event.clone() } else { Event::Skipped });
                self.tell(run, event, outbox);
            }
        }
        self.streamed = true;
    }

    /// A call is made again; what it streamed does not count.
    pub(super) fn retrying(&mut self, run: RunId, outbox: &mut Outbox) {
        self.streamed = false;
        self.note(run, Event::Retrying, outbox);
    }

    /// Whether text is in it that counts.
    pub(super) fn streamed(&self) -> bool {
        self.streamed
    }

    pub(super) fn mark(&self) -> LogMark {
        LogMark { next: self.length() + 1, streamed: self.streamed }
    }

    pub(super) fn follow(&mut self, front_door: FrontDoorId) {
        if !self.follows(front_door) {
            self.followers.push(front_door);
        }
    }

    pub(super) fn follows(&self, front_door: FrontDoorId) -> bool {
        self.followers.contains(&front_door)
    }

    fn length(&self) -> u64 {
        self.events.len() as u64
    }

    pub(super) fn after(&self, after: u64) -> Followed {
        let events = (after.saturating_add(1)..)
            .zip(self.events.iter().skip(usize::try_from(after).unwrap_or(usize::MAX)))
            .take(LOG_PAGE)
            .map(|(seq, event)| Logged { seq, event: event.clone() });
        Followed::Log { events: events.collect(), length: self.length(), began: self.began }
    }

    fn tell(&self, run: RunId, event: Event, outbox: &mut Outbox) {
        let logged = Logged { seq: self.length(), event };
        outbox.extend(self.followers.iter().map(|front_door| (*front_door, Reply::Event(run, logged.clone()))));
    }

    fn size(&self) -> usize {
        self.events.iter().map(Event::size).sum()
    }
}

/// The logs of runs that have ended, for as long as they can be read.
#[derive(Debug, Default)]
pub(super) struct KeptLogs {
    logs: HashMap<RunId, Log>,
    by_age: VecDeque<(Instant, RunId, usize)>,
    bytes: usize,
}

impl KeptLogs {
    pub(super) fn keep(&mut self, run: RunId, log: Log, now: Now) {
        let size = log.size();
        if self.logs.insert(run, log).is_none() {
            self.by_age.push_back((far(now.at, LOG_RETENTION), run, size));
            self.bytes += size;
        }
        self.prune(now);
    }

    pub(super) fn after(&self, run: RunId, after: u64) -> Followed {
        self.logs.get(&run).map_or(Followed::Unknown, |log| log.after(after))
    }

    pub(super) fn prune(&mut self, now: Now) {
        while let Some(&(until, run, size)) = self.by_age.front() {
            if until > now.at && self.bytes <= KEPT_BYTES {
                break;
            }
            self.by_age.pop_front();
            self.logs.remove(&run);
            self.bytes -= size;
        }
    }
}

impl State {
    pub(super) fn append(&mut self, id: RunId, fence: Fence, text: &NewText) -> Held {
        let Some(run) = self.runs.get_mut(&id) else {
            return if self.tombstones.contains(id) { Held::Elsewhere } else { Held::Unknown };
        };
        if run.held(fence).is_none_or(|lease| lease.ending.is_some()) {
            return Held::Elsewhere;
        }
        if let Some(log) = &mut run.log {
            log.append(id, text, &mut self.outbox);
        }
        Held::Done
    }

    pub(super) fn follow(&mut self, id: RunId, front_door: FrontDoorId, after: u64, now: Now) -> Followed {
        let Some(run) = self.runs.get_mut(&id) else { return self.logs.after(id, after) };
        let attempts = run.attempts;
        let (call, ending) = match run.lease() {
            Some(lease) => (matches!(lease.task, Task::Call).then_some(attempts), lease.ending.as_deref()),
            None => (None, None),
        };
        let begun = run.log.is_none().then(|| Box::new(so_far(call, ending, now)));
        let log = run.log.get_or_insert_with(|| begun.unwrap_or_default());
        log.follow(front_door);
        log.after(after)
    }
}

/// The events of a run that nobody followed so far.
fn so_far(call: Option<i32>, ending: Option<&Ending>, now: Now) -> Log {
    let started = call.map(|attempt| Event::Started { attempt });
    let ended = ending.map(|ending| Event::Ended(Box::new(ending.clone())));
    let events = [Some(Event::Queued), started, ended].into_iter().flatten().collect();
    Log { events, began: now.beginning(), ..Log::default() }
}
