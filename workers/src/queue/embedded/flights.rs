//! Flights: runs that would be the same call, and share one.

use std::collections::{HashMap, VecDeque};

use super::{
    line::End,
    run::{Now, Run},
    state::State,
};
use crate::job::{Outcome, RunId};

/// By the digest of the call.
pub(super) type Flights = HashMap<String, Flight>;

#[derive(Debug)]
pub(super) struct Flight {
    leader: RunId,
    /// In the order in which they came. An entry counts while its run waits, and says that it is behind.
    followers: VecDeque<RunId>,
}

impl State {
    /// Whether a run that comes in waits behind another one: a lane of less weight is less urgent. Otherwise it leads, if it has a flight.
    pub(super) fn waits_behind(&mut self, run: &Run) -> bool {
        let Some(digest) = run.job.flight() else { return false };
        let Some(flight) = self.flights.get_mut(digest) else {
            self.flights.insert(digest.to_owned(), Flight { leader: run.id(), followers: VecDeque::new() });
            return false;
        };
        let waits = self.runs.get(&flight.leader).is_some_and(|leader| {
            leader.attempts > 0 || leader.lease().is_some() || leader.job.lane.weight() >= run.job.lane.weight()
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
        let Some(digest) = run.job.flight() else { return };
        if self.flights.get(digest).is_none_or(|flight| flight.leader != run.id()) {
            return;
        }
        let Some(mut flight) = self.flights.remove(digest) else { return };
        let outcome = run.lease().and_then(|lease| lease.ending.as_ref()).map(|ending| &ending.outcome);
        while let Some(id) = flight.followers.pop_front() {
            let Some(follower) = self.runs.get_mut(&id).filter(|run| run.behind) else { continue };
            self.waiting.remove(follower);
            self.changes += 1;
            match outcome {
                Some(Outcome::Succeeded { .. }) => self.leases.leave_answered(follower, now),
                Some(Outcome::Failed(_)) => {
                    self.waiting.enter(follower, now.at, End::Back);
                }
                Some(Outcome::Cancelled | Outcome::Expired) | None => {
                    self.waiting.enter(follower, now.at, End::Back);
                    flight.leader = id;
                    self.flights.insert(digest.to_owned(), flight);
                    return;
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn check_flights(&self) {
        for run in self.runs.values().filter(|run| run.behind) {
            assert!(matches!(run.place, super::run::Place::Delayed { .. }));
            let flight = run.job.flight().and_then(|digest| self.flights.get(digest));
            assert!(flight.is_some_and(|flight| flight.followers.contains(&run.id())), "{} is behind nobody", run.id());
        }
        for flight in self.flights.values() {
            assert!(self.runs.contains_key(&flight.leader), "a flight is led by nobody");
        }
    }
}
