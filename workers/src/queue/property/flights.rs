//! Runs that would be the same call share one.

use std::collections::VecDeque;

use super::{
    driver::Driver,
    world::{Kind, Life, World},
};
use crate::job::{Outcome, RunId};

impl<D: Driver> World<D> {
    fn flight_of(&self, id: RunId) -> Option<String> {
        self.runs[&id].job.flight().map(str::to_owned)
    }

    /// A run comes into the queue: behind the one that leads, if there is one that is called already, or is as urgent.
    pub fn come_in(&mut self, id: RunId) {
        let Some(digest) = self.flight_of(id) else { return };
        let lane = self.runs[&id].job.lane;
        let (leader, followers) = self.flights.entry(digest).or_insert((id, VecDeque::new()));
        let behind = *leader != id && {
            let leader = &self.runs[leader];
            let called = leader.attempts > 0 || !matches!(leader.life, Life::Waiting { .. });
            called || leader.job.lane.weight() >= lane.weight()
        };
        if behind {
            followers.push_back(id);
        } else {
            *leader = id;
        }
        self.runs.get_mut(&id).unwrap().behind = behind;
    }

    /// A run has been finished. When it led, those behind it are answered, or go their own ways; or the first of them leads.
    pub fn land(&mut self, id: RunId, outcome: Option<&Outcome>) {
        let Some(digest) = self.flight_of(id) else { return };
        if self.flights.get(&digest).is_none_or(|(leader, _)| *leader != id) {
            return;
        }
        let (_, followers) = self.flights.remove(&digest).unwrap();
        let mut followers = followers.into_iter();
        while let Some(follower) = followers.next() {
            let known = self.runs.get_mut(&follower).unwrap();
            if !matches!(known.life, Life::Waiting { .. }) || !std::mem::take(&mut known.behind) {
                continue;
            }
            match outcome {
                Some(Outcome::Succeeded { .. }) => {
                    known.life = Life::Owned { fence: None, expires: self.now, work: Kind::Answer, asked: None };
                }
                Some(Outcome::Failed(_)) => {}
                Some(Outcome::Cancelled | Outcome::Expired) | None => {
                    self.flights.insert(digest, (follower, followers.collect()));
                    return;
                }
            }
        }
    }
}
