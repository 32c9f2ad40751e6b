//! Flights: runs that would be the same call, and share one.

use std::collections::{HashMap, VecDeque};

use super::{
    line::End,
    run::{Now, Run},
    state::State,
};
use crate::job::{Lane, Outcome, RunId};

/// By the digest of the call.
pub(super) type Flights = HashMap<String, Flight>;

#[derive(Debug)]
pub(super) struct Flight {
    leader: RunId,
    /// In the order in which they came. An entry counts while its run waits, and says that it is behind.
    followers: VecDeque<RunId>,
}

/// What becomes of those that wait behind a run which has been finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Landing {
    Answered,
    Failed,
    Gone,
}

impl State {
    /// Whether a run that comes in waits behind another one. Otherwise it leads, if it has a flight.
    pub(super) fn waits_behind(&mut self, run: &Run) -> bool {
        let Some(digest) = run.flight() else { return false };
        let Some(flight) = self.flights.get_mut(digest) else {
            self.flights.insert(digest.to_owned(), Flight { leader: run.id(), followers: VecDeque::new() });
            return false;
        };
        let waits = self.runs.get(&flight.leader).is_some_and(|leader| {
            leader.attempts > 0 || leader.lease().is_some() || urgency(leader.job.lane) >= urgency(run.job.lane)
        });
        if waits {
            flight.followers.push_back(run.id());
        } else {
            flight.leader = run.id();
        }
        waits
    }

    /// A run has been finished; those behind it go on.
    pub(super) fn land(&mut self, run: &Run, now: Now) {
        let Some(digest) =
            run.flight().filter(|digest| self.flights.get(*digest).is_some_and(|flight| flight.leader == run.id()))
        else {
            return;
        };
        let Some(mut flight) = self.flights.remove(digest) else { return };
        let landing = match run.lease().and_then(|lease| lease.ending.as_ref()).map(|ending| &ending.outcome) {
            Some(Outcome::Succeeded { .. }) => Landing::Answered,
            Some(Outcome::Failed(_)) => Landing::Failed,
            Some(Outcome::Cancelled | Outcome::Expired) | None => Landing::Gone,
        };
        while let Some(id) = flight.followers.pop_front() {
            let Some(follower) = self.runs.get_mut(&id).filter(|run| run.behind) else { continue };
            self.waiting.remove(follower);
            self.changes += 1;
            if landing == Landing::Answered {
                self.leases.leave_answered(follower, now);
                continue;
            }
            self.waiting.enter(follower, now.at, End::Back);
            if landing == Landing::Gone {
                flight.leader = id;
                self.flights.insert(digest.to_owned(), flight);
                return;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn check_flights(&self) {
        for run in self.runs.values().filter(|run| run.behind) {
            assert!(matches!(run.place, super::run::Place::Delayed { .. }));
            let flight = run.flight().and_then(|digest| self.flights.get(digest));
            assert!(flight.is_some_and(|flight| flight.followers.contains(&run.id())), "{} is behind nobody", run.id());
        }
        for flight in self.flights.values() {
            assert!(self.runs.contains_key(&flight.leader), "a flight is led by nobody");
        }
    }
}

/// The greater, the more urgent.
fn urgency(lane: Lane) -> u32 {
    lane.weight()
}
