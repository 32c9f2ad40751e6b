//! Whose turn it is: lanes share by weight, and a run that waited long gets a turn now and then.

use std::time::Duration;

use crate::job::Lane;

/// One of something for each lane.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PerLane<T> {
    interactive: T,
    default: T,
    batch: T,
}

impl<T> PerLane<T> {
    pub(super) fn from_fn(mut make: impl FnMut(Lane) -> T) -> Self {
        Self { interactive: make(Lane::Interactive), default: make(Lane::Default), batch: make(Lane::Batch) }
    }

    pub(super) fn get(&self, lane: Lane) -> &T {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Default => &self.default,
            Lane::Batch => &self.batch,
        }
    }

    pub(super) fn get_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Default => &mut self.default,
            Lane::Batch => &mut self.batch,
        }
    }
}

/// How far a lane of weight 1 moves with a turn: a multiple of every weight.
const STRIDE: u64 = 24;
/// While a run waits longer than its lane's patience, one turn in so many is its lane's.
const AGED_TURN: u32 = 4;

/// How long runs of a lane wait before they get turns beyond their lane's share. The first lane has none to gain.
fn patience(lane: Lane) -> Option<Duration> {
    match lane {
        Lane::Interactive => None,
        Lane::Default => Some(Duration::from_secs(30)),
        Lane::Batch => Some(Duration::from_secs(60)),
    }
}

/// Stride scheduling: the lane that is least far goes, and moves by the inverse of its weight.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    passes: PerLane<u64>,
    /// Turns since the last one that was given for age.
    since_aged: u32,
}

/// A lane's turn, to be confirmed with [`Lanes::took`] when a run was found for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) lane: Lane,
    /// Given for age, beyond the lane's share.
    pub(super) aged: bool,
    waits: PerLane<Option<Duration>>,
}

impl Lanes {
    /// The next turn, by how long the oldest run of each lane has waited; `None` for a lane without a run.
    pub(super) fn next(&self, waits: PerLane<Option<Duration>>) -> Option<Turn> {
        let aged = || {
            let overdue = |lane| {
                let over = waits.get(lane).as_ref()?.checked_sub(patience(lane)?)?;
                (!over.is_zero()).then_some((over, lane))
            };
            Lane::ALL.into_iter().filter_map(overdue).max_by_key(|&(over, _)| over).map(|(_, lane)| lane)
        };
        if self.since_aged + 1 >= AGED_TURN
            && let Some(lane) = aged()
        {
            return Some(Turn { lane, aged: true, waits });
        }
        let lane = Lane::ALL
            .into_iter()
            .filter(|&lane| waits.get(lane).is_some())
            .min_by_key(|&lane| *self.passes.get(lane))?;
        Some(Turn { lane, aged: false, waits })
    }

    /// Counts a turn. One for age does not use up the lane's share.
    pub(super) fn took(&mut self, turn: Turn) {
        if turn.aged {
            self.since_aged = 0;
            return;
        }
        self.since_aged = self.since_aged.saturating_add(1);
        let here = *self.passes.get(turn.lane);
        *self.passes.get_mut(turn.lane) = here + STRIDE / u64::from(turn.lane.weight());
        // A lane saves no turns up while it has nothing to run.
        for lane in Lane::ALL {
            if turn.waits.get(lane).is_none() {
                let pass = self.passes.get_mut(lane);
                *pass = here.max(*pass);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_turns(lanes: &mut Lanes, waits: PerLane<Option<Duration>>, turns: u32) -> [u32; 3] {
        let mut counts = PerLane::<u32>::default();
        for _ in 0..turns {
            let turn = lanes.next(waits).unwrap();
            lanes.took(turn);
            *counts.get_mut(turn.lane) += 1;
        }
        Lane::ALL.map(|lane| *counts.get(lane))
    }

    fn waiting(seconds: [Option<u64>; 3]) -> PerLane<Option<Duration>> {
        PerLane { interactive: seconds[0], default: seconds[1], batch: seconds[2] }.map(Duration::from_secs)
    }

    impl PerLane<Option<u64>> {
        fn map(self, change: impl Fn(u64) -> Duration) -> PerLane<Option<Duration>> {
            PerLane::from_fn(|lane| self.get(lane).map(&change))
        }
    }

    #[test]
    fn lanes_share_by_weight() {
        let check = |seconds, expect| {
            assert_eq!(run_turns(&mut Lanes::default(), waiting(seconds), 120), expect);
        };
        check([Some(1), Some(1), Some(1)], [80, 30, 10]);
        check([None, Some(1), Some(1)], [0, 90, 30]);
        check([None, None, Some(1)], [0, 0, 120]);
    }

    #[test]
    fn an_idle_lane_saves_no_turns_up() {
        let mut lanes = Lanes::default();
        run_turns(&mut lanes, waiting([None, None, Some(1)]), 1_000);
        let [_, default, batch] = run_turns(&mut lanes, waiting([Some(1), Some(1), Some(1)]), 120);
        assert!((29..=31).contains(&default) && (9..=11).contains(&batch), "{default} and {batch} turns of 120");
    }

    #[test]
    fn a_run_that_waited_long_gets_its_lane_one_turn_in_four_beside_its_share() {
        let fresh = run_turns(&mut Lanes::default(), waiting([Some(1), None, Some(60)]), 90);
        assert_eq!(fresh, [80, 0, 10]);
        let aged = run_turns(&mut Lanes::default(), waiting([Some(1), None, Some(61)]), 120);
        assert_eq!(aged, [80, 0, 40]);
        let both = run_turns(&mut Lanes::default(), waiting([Some(1), Some(31), Some(70)]), 4);
        assert!(both[2] >= 1, "the lane that is longest beyond its patience goes first: {both:?}");
    }
}
