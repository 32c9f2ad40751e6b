//! What may happen to a queue, in any order.

use proptest::prelude::*;

use super::world::{SCOPES, WORKERS};
use crate::job::Outcome;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Submit {
        account: usize,
        lane: usize,
        scope: usize,
        tokens: u64,
        seconds: u64,
        /// Which of the calls it is, that others may be too.
        flight: Option<usize>,
        /// Somebody waits for the ending.
        waited_for: bool,
    },
    /// The same id again, as a late copy would come, or a front door that waits for a run which was restored.
    Repeat {
        run: usize,
        waited_for: bool,
    },
    /// The ledger brings back what the queue forgot, as the reconciler does.
    Reconcile,
    Claim {
        worker: usize,
        free: usize,
    },
    /// A worker that has claimed waits for what is offered.
    Wait {
        worker: usize,
        free: usize,
    },
    /// A worker that has little to do claims, waits, and claims again, so that runs may be offered to it. So many come, and it waits so often.
    Attend {
        worker: usize,
        free: usize,
        come: usize,
        seconds: u64,
        waits: usize,
    },
    Heartbeat {
        worker: usize,
    },
    Pass {
        millis: u64,
    },
    Stash {
        right: usize,
        tokens: Option<u64>,
    },
    Finish {
        right: usize,
    },
    Retry {
        right: usize,
        millis: u64,
        target: usize,
        limited: bool,
    },
    HandBack {
        right: usize,
    },
    Cancel {
        run: usize,
        outcome: Outcome,
    },
    Reap {
        worker: usize,
        limit: usize,
    },
    /// Workers claim, are lost, and whoever takes their calls over has them made again; so often.
    Lose {
        times: usize,
    },
    PauseScope {
        scope: usize,
        millis: u64,
    },
    Pause {
        paused: bool,
    },
    /// The queue loses its memory.
    Forget,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..160)
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..64_usize;
    let outcome = prop_oneof![Just(Outcome::Cancelled), Just(Outcome::Expired)];
    // The ends of leases, delays and minutes are met exactly, too.
    let millis = prop_oneof![
        6 => 0..20_000_u64,
        1 => Just(0),
        1 => 1..200_u64,
        1 => Just(5_000),
        2 => Just(15_000),
        1 => Just(60_000),
    ];
    let seconds = prop_oneof![3 => 1..180_u64, 1 => 180..900_u64];
    let flight = proptest::option::weighted(0.6, 0..2_usize);
    // Half of them may be offered.
    let scope = prop_oneof![1 => Just(0_usize), 1 => Just(1), 2 => Just(2)];
    let submit = (0..3_usize, 0..3_usize, scope, 0..6_u64, seconds, flight, any::<bool>());
    prop_oneof![
        12 => submit.prop_map(|(account, lane, scope, tokens, seconds, flight, waited_for)| {
            Step::Submit { account, lane, scope, tokens, seconds, flight, waited_for }
        }),
        2 => (index.clone(), any::<bool>()).prop_map(|(run, waited_for)| Step::Repeat { run, waited_for }),
        2 => Just(Step::Reconcile),
        12 => (0..WORKERS, 0..4_usize).prop_map(|(worker, free)| Step::Claim { worker, free }),
        8 => (0..WORKERS, 1..4_usize).prop_map(|(worker, free)| Step::Wait { worker, free }),
        6 => (0..WORKERS, 1..20_usize, 0..4_usize, 1..180_u64, 0..4_usize)
            .prop_map(|(worker, free, come, seconds, waits)| Step::Attend { worker, free, come, seconds, waits }),
        4 => (0..WORKERS).prop_map(|worker| Step::Heartbeat { worker }),
        8 => millis.clone().prop_map(|millis| Step::Pass { millis }),
        8 => (index.clone(), proptest::option::of(0..20_u64)).prop_map(|(right, tokens)| Step::Stash { right, tokens }),
        6 => index.clone().prop_map(|right| Step::Finish { right }),
        4 => (index.clone(), millis, 0..2_usize, any::<bool>())
            .prop_map(|(right, millis, target, limited)| Step::Retry { right, millis, target, limited }),
        3 => index.clone().prop_map(|right| Step::HandBack { right }),
        4 => (index, outcome).prop_map(|(run, outcome)| Step::Cancel { run, outcome }),
        6 => (0..WORKERS, 0..4_usize).prop_map(|(worker, limit)| Step::Reap { worker, limit }),
        2 => (1..6_usize).prop_map(|times| Step::Lose { times }),
        2 => (0..SCOPES.len(), 0..90_000_u64).prop_map(|(scope, millis)| Step::PauseScope { scope, millis }),
        2 => any::<bool>().prop_map(|paused| Step::Pause { paused }),
        1 => Just(Step::Forget),
    ]
}
