//! Any order of steps keeps the promises: a queue against a model that only knows what it was told.
//!
//! Each queue has its own test, with a [`Driver`] that gives the model its clock. A failure prints the steps, made as few as possible,
//! and the seed that repeats it. `PROPTEST_CASES` asks for more cases.

mod driver;
mod entering;
mod flights;
mod offering;
mod owning;
mod step;
mod world;

use std::{cell::Cell, sync::Arc, time::Duration};

use proptest::test_runner::{Config, RngSeed, TestRunner};

pub(in crate::queue) use self::{
    driver::{Driver, Ways, wall},
    world::FRONT_DOOR,
};
use self::{
    step::Step,
    world::{Life, OPEN, SCOPES, World, limits},
};
use crate::{
    job::Lane,
    queue::{Release, Submission},
};

/// So long after the last run has ended, nothing that expires is left.
const LATER: u64 = 11 * 60_000;

/// Takes a new queue through each of `cases` orders of steps, and all runs to their ends.
pub(in crate::queue) fn check<D: Driver>(cases: u32, new: impl Fn() -> D) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(rand::random());
    }
    let (cases, seed) = (config.cases, config.rng_seed);
    let (made, offered, taken) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let checked = TestRunner::new(config).run(&step::steps(), |steps| {
        let mut world = World::new(new());
        for step in steps {
            world.apply(step);
        }
        world.drain();
        made.set(made.get() + world.steps);
        offered.set(offered.get() + world.offered);
        taken.set(taken.get() + world.taken_offers);
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("{failure}\nPROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} repeats this");
    }
    let (made, offered, taken) = (made.get(), offered.get(), taken.get());
    println!("{cases} cases, {made} steps, {offered} offers, {taken} of them taken by who waited");
}

impl<D: Driver> World<D> {
    fn apply(&mut self, step: Step) {
        self.steps += 1;
        match step {
            Step::Submit { account, lane, scope, tokens, seconds, flight, waited_for } => {
                let job = self.job(account, Lane::ALL[lane], scope, tokens, seconds, flight);
                self.submit(job, waited_for);
            }
            Step::Repeat { run, waited_for } => {
                if let Some(id) = self.pick(run) {
                    self.repeat(id, waited_for);
                }
            }
            Step::Reconcile => self.reconcile(),
            Step::Claim { worker, free } => self.claim(worker, free),
            Step::Wait { worker, free } => self.wait(worker, free),
            Step::Reap { worker, limit } => self.reap(worker, limit),
            Step::Lose { times } => {
                for _ in 0..times {
                    self.lose();
                }
            }
            Step::Attend { worker, free, come, seconds, waits } => self.attend(worker, free, come, seconds, waits),
            Step::Heartbeat { worker } => self.heartbeat(worker),
            Step::Pass { millis } => self.pass(millis),
            Step::Stash { right, tokens } => {
                if let Some(right) = self.pick_right(right) {
                    self.stash(right, tokens);
                }
            }
            Step::Finish { right } => {
                if let Some(right) = self.pick_right(right) {
                    self.finish(right);
                }
            }
            Step::Retry { right, millis, target, limited } => {
                let after = Duration::from_millis(millis);
                let how = if limited { Release::Limited { after, target } } else { Release::Retry { after, target } };
                if let Some(right) = self.pick_right(right) {
                    self.release(right, how);
                }
            }
            Step::HandBack { right } => {
                if let Some(right) = self.pick_right(right) {
                    self.release(right, Release::HandBack);
                }
            }
            Step::Cancel { run, outcome } => {
                if let Some(id) = self.pick(run) {
                    self.cancel(id, outcome);
                }
            }
            Step::PauseScope { scope, millis } => {
                self.queue.pause_scope(SCOPES[scope], millis);
                let paused = self.paused_scopes.entry(SCOPES[scope]).or_default();
                *paused = (self.now + millis).max(*paused);
                if scope == SCOPES.len() - 1 && self.is_paused(OPEN) {
                    self.withdraw_all();
                }
            }
            Step::Pause { paused } => {
                self.queue.set_paused(paused);
                self.paused = paused;
                if paused {
                    self.withdraw_all();
                }
            }
            Step::Forget => self.forget(),
        }
        self.check(D::WAYS.looks);
    }

    /// Whatever happened: workers that do their duty bring every run to its end, and nothing is left of it.
    fn drain(&mut self) {
        self.apply(Step::Pause { paused: false });
        for _ in 0..self.runs.len() * 2 + 20 {
            if self.runs.values().all(|known| known.life == Life::Finished) {
                return self.rest();
            }
            self.apply(Step::Pass { millis: 61_000 });
            self.apply(Step::Reconcile);
            self.apply(Step::Reap { worker: 0, limit: 1_000 });
            self.apply(Step::Claim { worker: 0, free: 1_000 });
            for right in std::mem::take(&mut self.rights) {
                self.stash(right, None);
                self.finish(right);
            }
        }
        let lost = self.runs.iter().filter(|(_, known)| known.life != Life::Finished).collect::<Vec<_>>();
        panic!("these runs did not end: {lost:?}");
    }

    fn rest(&mut self) {
        self.apply(Step::Reconcile);
        // Entries of runs that left a line in another way are swept out by a claim.
        self.apply(Step::Claim { worker: 0, free: 1 });
        self.check(usize::MAX);
        self.pass(LATER);
        assert_eq!(self.queue.left_over(), Vec::<String>::new());
        let job = self.job(0, Lane::Batch, 0, 1, 60, None);
        let submission = Submission { job: Arc::clone(&job), reply_to: None };
        self.queue.enqueue(submission, None);
        let claims = self.queue.claim(self.workers[0], 1, &limits()).claims;
        assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [job.id], "the next run goes at once");
        let known = self.offered;
        self.attend(1, 9, 1, 60, 0);
        assert_eq!(self.offered - known, u64::from(D::WAYS.offers), "a worker that waits is offered what comes");
    }
}
