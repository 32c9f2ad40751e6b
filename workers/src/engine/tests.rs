//! The engine against a queue and a ledger that fail when told to.

use super::*;
use crate::{
    job::{Ending, Outcome, RunState, WIRE_VERSION, WorkerId},
    queue::{NewText, ScopeLimits},
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

/// Takes a run that is there, and ends it well.
async fn execute(rig: &Rig, text: &[String]) {
    let limits = ScopeLimits {
        scope: "one".into(),
        max_concurrency: None,
        requests_per_minute: None,
        tokens_per_minute: None,
        at_once: None,
    };
    let claim = rig.queue.claim(WorkerId::new(), 1, &[limits]).await.unwrap().claims.pop().unwrap();
    if let Some(log) = claim.log {
        let text = NewText { first: log.next, before: 0, deltas: text.to_vec() };
        rig.queue.append(claim.job.id, claim.fence, &text).await.unwrap();
    }
    let ending = Ending {
        v: WIRE_VERSION,
        run: claim.job.id,
        fence: claim.fence,
        outcome: Outcome::Succeeded { output: text.concat(), finish_reason: None },
        model: "gpt-4".into(),
        started_at: Some(claim.started_at),
        finished_at: UnixMillis::now(),
        queue_ms: 0,
        attempt: None,
        cache: None,
    };
    rig.queue.stash(&ending).await.unwrap();
}

#[tokio::test]
async fn who_waits_and_who_follows_in_one_process_are_both_told() {
    let rig = Rig::new().await;
    let job = job();
    let mut accepted = rig.engine.submit(job.clone(), Vec::new(), Promise::Wait).await.unwrap();
    let (_, mut events) = rig.engine.follow(job.account, job.id, 0).await.unwrap().unwrap();
    execute(&rig, &[]).await;
    assert_eq!(accepted.waiter.ending().await.outcome.state(), RunState::Succeeded);
    assert_eq!(events.ending().await.unwrap().outcome.state(), RunState::Succeeded);
    assert!(events.next().await.is_none(), "nothing comes after the ending");
}

#[tokio::test]
async fn a_run_gets_its_row_unless_it_ends_soon() {
    let rig = Rig::new().await;
    let mut quick = rig.engine.submit(job(), Vec::new(), Promise::Wait).await.unwrap();
    execute(&rig, &[]).await;
    quick.waiter.ending().await;
    let slow = job();
    let _caller = rig.engine.submit(slow.clone(), Vec::new(), Promise::Wait).await.unwrap();
    eventually("a row", async || rig.state(&slow).await).await;
    let (left, _caller) = (job(), rig.engine.submit(job(), Vec::new(), Promise::Wait).await.unwrap());
    drop(rig.engine.submit(left.clone(), Vec::new(), Promise::Wait).await.unwrap());
    rig.engine.settle(Duration::from_secs(10)).await;
    assert_eq!(rig.state(&left).await, Some(RunState::Queued), "also when its caller has gone, and the process ends");
    assert_eq!(rig.memory.ledger.stats().inserts, 3);
}

#[tokio::test]
async fn an_accepted_run_comes_into_a_queue_that_did_not_take_it_at_once() {
    let rig = Rig::new().await;
    rig.queue.fail(&[Step::Enqueue], Loss::Question);
    rig.engine.leave(job(), Vec::new(), Promise::Committed).await.unwrap();
    rig.engine.feed(job(), Vec::new()).await.unwrap();
    assert_eq!(rig.claimable().await, 0);
    rig.queue.heal();
    let mut claimed = 0;
    eventually("both runs", async || {
        claimed += rig.claimable().await;
        (claimed == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_comes_back_late_misses_nothing() {
    let rig = Rig::new().await;
    let job = Job { stream: true, ..job() };
    let mut events = rig.engine.submit_streamed(job.clone(), Vec::new(), Promise::Wait).await.unwrap().waiter;
    // More events than a page of the log has, and more text than the inbox.
    let text: Vec<String> = (0..600).map(|number| format!("{number:0>200} ")).collect();
    execute(&rig, &text).await;
    let (mut seqs, mut said) = (Vec::new(), String::new());
    while let Some(logged) = events.next().await {
        seqs.push(logged.seq);
        match logged.event {
            crate::job::Event::Delta(delta) => said.push_str(&delta),
            crate::job::Event::Ended(ending) => {
                assert_eq!(ending.outcome, Outcome::Succeeded { output: said.clone(), finish_reason: None });
            }
            _ => {}
        }
    }
    assert_eq!(seqs, (1..=603).collect::<Vec<u64>>());
    assert_eq!(said, text.concat());
}

#[tokio::test]
async fn a_stranger_follows_nothing() {
    let rig = Rig::new().await;
    let job = job();
    rig.engine.submit(job.clone(), Vec::new(), Promise::Committed).await.unwrap();
    assert!(rig.engine.follow(AccountId::new(), job.id, 0).await.unwrap().is_none());
    assert!(rig.engine.follow(job.account, RunId::new(), 0).await.unwrap().is_none());
    assert!(rig.engine.follow(job.account, job.id, u64::MAX).await.unwrap().is_some());
}
