//! The runs that nobody has: ready ones in lines, delayed ones by their moment, all of them by deadline.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::{
    lanes::PerLane,
    line::{End, Line},
    run::{Now, Place, Run},
};
use crate::job::{Lane, RunId};

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// By limit scope: one whose provider is throttled stands in nobody else's way.
    lines: HashMap<String, PerLane<Line>>,
    delayed: BTreeSet<(Instant, RunId)>,
    deadlines: BTreeSet<(Instant, RunId)>,
    bytes: u64,
}

impl Waiting {
    /// How many runs wait.
    pub(super) fn len(&self) -> u64 {
        self.deadlines.len() as u64
    }

    pub(super) fn delayed(&self) -> u64 {
        self.delayed.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ready runs of a lane, and when the oldest of them became so.
    pub(super) fn ready(&self, lane: Lane) -> (u64, Option<Instant>) {
        let lines = || self.lines.values().map(|lines| lines.get(lane));
        (lines().map(|line| line.len() as u64).sum(), lines().filter_map(Line::oldest).min())
    }

    pub(super) fn line(&self, scope: &str, lane: Lane) -> Option<&Line> {
        self.lines.get(scope).map(|lines| lines.get(lane))
    }

    pub(super) fn line_mut(&mut self, scope: &str, lane: Lane) -> Option<&mut Line> {
        self.lines.get_mut(scope).map(|lines| lines.get_mut(lane))
    }

    /// Puts a run that is nowhere into its line.
    pub(super) fn enter(&mut self, run: &mut Run, since: Instant, end: End) {
        let line = self.lines.entry(run.scope().to_owned()).or_default().get_mut(run.job.lane);
        let order = line.insert(run.job.account, run.id(), since, end);
        run.place = Place::Ready { since, order };
        self.count(run);
    }

    /// Lets a run that is nowhere wait for a moment.
    pub(super) fn delay(&mut self, run: &mut Run, until: Instant) {
        self.delayed.insert((until, run.id()));
        run.place = Place::Delayed { until };
        self.count(run);
    }

    /// Takes a run out, and returns since when it was ready.
    pub(super) fn remove(&mut self, run: &mut Run) -> Option<Instant> {
        let since = match run.place {
            Place::Ready { since, order } => {
                if let Some(line) = self.line_mut(run.scope(), run.job.lane) {
                    line.remove(run.job.account, order, run.id(), since);
                }
                Some(since)
            }
            Place::Delayed { until } => {
                self.delayed.remove(&(until, run.id()));
                None
            }
            Place::Nowhere | Place::Leased(_) => return None,
        };
        self.deadlines.remove(&(run.deadline, run.id()));
        self.bytes -= run.bytes;
        run.place = Place::Nowhere;
        run.behind = false;
        since
    }

    /// The delayed run that is due first, and when.
    pub(super) fn first_due(&self) -> Option<(Instant, RunId)> {
        self.delayed.first().copied()
    }

    /// A run whose deadline has passed.
    pub(super) fn expired(&self, now: Now) -> Option<RunId> {
        self.deadlines.first().filter(|&&(deadline, _)| deadline <= now.at).map(|&(_, run)| run)
    }

    fn count(&mut self, run: &Run) {
        self.deadlines.insert((run.deadline, run.id()));
        self.bytes += run.bytes;
    }

    #[cfg(test)]
    pub(super) fn check<'a>(&self, runs: impl Iterator<Item = &'a Run>) {
        let (mut ready, mut bytes) = (0, 0);
        let (mut delayed, mut deadlines) = (BTreeSet::new(), BTreeSet::new());
        for run in runs {
            match run.place {
                Place::Ready { .. } => ready += 1,
                Place::Delayed { until } => assert!(delayed.insert((until, run.id()))),
                Place::Leased(_) => continue,
                Place::Nowhere => panic!("{} is nowhere", run.id()),
            }
            deadlines.insert((run.deadline, run.id()));
            bytes += run.bytes;
        }
        assert_eq!(self.delayed, delayed);
        assert_eq!(self.deadlines, deadlines);
        assert_eq!(self.bytes, bytes);
        assert_eq!(Lane::ALL.map(|lane| self.ready(lane).0).iter().sum::<u64>(), ready);
    }
}
