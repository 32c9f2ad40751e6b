//! A whole pool: its slots, its leases, its drain.

use super::*;
use crate::{
    job::{Outcome, RunState},
    tests::{Loss, Step},
};

/// A rig whose actors run.
struct Running {
    rig: Rig,
    pool: ExecutorPool,
}

impl Running {
    async fn start(mut rig: Rig) -> Self {
        let same = Rig::new(rig.shared.slots).await.shared;
        let shared = std::mem::replace(&mut rig.shared, same);
        let pool = ExecutorPool::start_with(shared).unwrap();
        Self { rig, pool }
    }

    async fn ended(&self, job: &Job) -> RunState {
        let look = async || {
            let run = self.rig.memory.ledger.find(job.account, job.id).await.unwrap()?;
            run.state.is_terminal().then_some(run.state)
        };
        eventually("the end of a run", look).await
    }

    async fn nothing_is_leased(&self) {
        let look = async || (self.rig.queue.stats().await.unwrap().leased == 0).then_some(());
        eventually("the end of all leases", look).await;
    }
}

fn test(slots: usize, case: impl AsyncFnOnce(Running)) {
    System::new().block_on(async { case(Running::start(Rig::new(slots).await).await).await });
}

#[test]
fn a_panic_ends_its_run_and_no_other_and_frees_its_slot() {
    test(1, async |running| {
        running.rig.provider.play(&[Play::Panic]);
        let unlucky = running.rig.submit(job()).await;
        assert_eq!(running.ended(&unlucky).await, RunState::Failed);
        let next = running.rig.submit(job()).await;
        assert_eq!(running.ended(&next).await, RunState::Succeeded);
        running.nothing_is_leased().await;
    });
}

#[test]
fn a_call_leaves_when_it_is_counted() {
    System::new().block_on(async {
        // Three calls a second: without a pace in the claim the last of these would be counted two seconds before it leaves.
        let mut rig = Rig::new(8).await;
        rig.shared.scopes[0].requests_per_minute = Some(30);
        let running = Running::start(rig).await;
        let mut jobs = Vec::new();
        for _ in 0..8 {
            jobs.push(running.rig.submit(job()).await);
        }
        let mut counted = Vec::new();
        for job in &jobs {
            running.ended(job).await;
            let run = running.rig.memory.ledger.find(job.account, job.id).await.unwrap().unwrap();
            counted.push(run.started_at.expect("it was claimed"));
        }
        counted.sort_unstable();
        let came = running.rig.provider.came.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert_eq!(came.len(), 8);
        assert!(came[7].since(came[0]) >= 1_500, "the calls are spread: {came:?}");
        for (counted, came) in counted.iter().zip(&came) {
            assert!(came.since(*counted) < 1_000, "counted at {counted:?}, came at {came:?}");
        }
    });
}

#[test]
fn a_drain_hands_back_what_hangs_and_ends_what_does_not() {
    test(2, async |running| {
        running.rig.provider.play(&[Play::Hang]);
        let hanging = running.rig.submit(job()).await;
        eventually("the call", async || (running.rig.provider.calls() == 1).then_some(())).await;
        let quick = running.rig.submit(job()).await;
        running.ended(&quick).await;
        let Running { rig, pool } = running;
        assert_eq!(pool.drain(Duration::from_millis(100)).await, 1);
        assert_eq!(rig.claim().await.job.id, hanging.id);
        assert_eq!(rig.attempts(&hanging).await.len(), 1);
    });
}

#[test]
fn an_ending_that_the_database_refuses_does_not_keep_its_lease_for_ever() {
    test(2, async |running| {
        running.rig.memory.refuse("gpt-4").await;
        let refused = running.rig.submit(job()).await;
        eventually("the call", async || (running.rig.provider.calls() == 1).then_some(())).await;
        eventually("the ending", async || running.rig.queue.locate(refused.id).await.unwrap().is_none().then_some(()))
            .await;
        let started = Instant::now();
        let Running { rig, pool } = running;
        // Nothing is handed back: the ending is left to whoever takes the lease over once it runs out.
        assert_eq!(pool.drain(Duration::from_secs(60)).await, 0);
        assert!(started.elapsed() < Duration::from_secs(30), "the drain waited for a lease that nobody needs");
        assert_eq!(rig.queue.stats().await.unwrap().leased, 1);
    });
}

#[test]
fn endings_wait_for_a_ledger_that_is_away() {
    test(1, async |running| {
        let job = Arc::new(job());
        running.rig.memory.go().await;
        running.rig.enqueue(&job).await;
        let health = running.pool.health();
        eventually("a failing write", async || health.is_ledger_failing().then_some(())).await;
        running.rig.memory.come_back().await;
        assert_eq!(running.ended(&job).await, RunState::Succeeded);
        assert!(!health.is_ledger_failing());
        assert_eq!(running.rig.provider.calls(), 1);
    });
}

#[test]
fn a_cancelled_call_ends_within_a_second() {
    test(1, async |running| {
        running.rig.provider.play(&[Play::Hang]);
        let job = running.rig.submit(job()).await;
        eventually("the call", async || (running.rig.provider.calls() == 1).then_some(())).await;
        let started = Instant::now();
        running.rig.queue.cancel(job.id, Outcome::Cancelled).await.unwrap();
        assert_eq!(running.ended(&job).await, RunState::Cancelled);
        // A heartbeat would have told it after five.
        assert!(started.elapsed() < Duration::from_secs(4));
    });
}

#[test]
fn a_pool_goes_on_when_the_queue_is_back() {
    test(1, async |running| {
        running.rig.queue.fail(&[Step::Claim, Step::Heartbeat], Loss::Question);
        let job = running.rig.submit(job()).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        running.rig.queue.heal();
        assert_eq!(running.ended(&job).await, RunState::Succeeded);
    });
}

#[test]
fn a_run_whose_executor_is_dead_goes_to_another_one() {
    System::new().block_on(async {
        let running = Running::start(Rig::with_lease(2, Duration::from_millis(900)).await).await;
        let health = running.pool.health();
        assert!(health.is_whole());
        // A panic in a run ends the run; one more while that is written down ends its executor.
        running.rig.provider.play(&[Play::Panic]);
        running.rig.queue.fail(&[Step::Stash], Loss::Asker);
        let job = running.rig.submit(job()).await;
        eventually("a dead executor", async || (!health.is_whole()).then_some(())).await;
        running.rig.queue.heal();
        assert_eq!(running.ended(&job).await, RunState::Succeeded);
        running.nothing_is_leased().await;
        assert_eq!(running.rig.provider.calls(), 2);
        assert_eq!(running.pool.drain(Duration::from_secs(1)).await, 0);
    });
}
