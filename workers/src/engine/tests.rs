//! The engine against a queue and a ledger that fail when told to.

use super::*;
use crate::{
    job::{Outcome, RunState, WorkerId},
    queue::ScopeLimits,
    tests::{FaultyQueue, Loss, MemoryLedger, Step, eventually, job},
};

const LEASE: Duration = Duration::from_secs(3600);

struct Rig {
    memory: MemoryLedger,
    queue: Arc<FaultyQueue>,
    engine: Engine,
}

impl Rig {
    async fn new() -> Self {
        let (memory, queue) = (MemoryLedger::open().await, Arc::new(FaultyQueue::new(LEASE)));
        let settings = EngineSettings { max_depth: 100, max_bytes: 1 << 20 };
        let engine = Engine::start(memory.ledger.clone(), queue.clone(), settings).await.unwrap();
        Self { memory, queue, engine }
    }

    /// How many runs a worker would get now.
    async fn claimable(&self) -> usize {
        let limits = ScopeLimits::unlimited("one");
        self.queue.claim(WorkerId::new(), 10, &[limits]).await.unwrap().claims.len()
    }

    async fn state(&self, job: &Job) -> Option<RunState> {
        self.memory.ledger.find(job.account, job.id).await.unwrap().map(|run| run.state)
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_before_it_is_enqueued_is_never_executed() {
    let rig = Rig::new().await;
    let job = Arc::new(job());
    rig.memory.ledger.insert(job.clone()).await.unwrap();
    assert_eq!(rig.engine.cancel(job.account, job.id).await.unwrap(), CancelOutcome::Cancelled);
    // Its front door comes to the second half of accepting it.
    let submission = Submission { job: job.clone(), reply_to: None };
    rig.queue.enqueue(submission, None).await.unwrap();
    assert_eq!(rig.claimable().await, 0);
    assert_eq!(rig.state(&job).await, Some(RunState::Cancelled));
}

#[tokio::test]
async fn a_cancellation_that_is_not_recorded_yet_can_be_repeated() {
    let rig = Rig::new().await;
    let job = job();
    rig.engine.submit(job.clone(), Vec::new(), Promise::Committed).await.unwrap();
    // As another front door does it: the ending is stashed, and on its way to the ledger.
    rig.queue.cancel(job.id, Outcome::Cancelled).await.unwrap();
    assert_eq!(rig.engine.cancel(job.account, job.id).await.unwrap(), CancelOutcome::Cancelled);
}

#[tokio::test]
async fn a_run_whose_caller_was_refused_is_not_executed_when_it_got_in_all_the_same() {
    let rig = Rig::new().await;
    rig.queue.fail(&[Step::Enqueue], Loss::Answer);
    let refused = rig.engine.submit(job(), Vec::new(), Promise::Wait).await;
    assert!(matches!(refused, Err(SubmitError::Queue(_))));
    let empty = async || {
        let stats = rig.queue.stats().await.unwrap();
        (stats.leased == 0 && stats.bytes == 0).then_some(())
    };
    eventually("an empty queue", empty).await;
}
