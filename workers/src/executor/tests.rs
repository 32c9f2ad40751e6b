//! The executors over a queue that fails when told to, a ledger in memory, and a provider that plays a script.

mod calls;
mod leases;
mod pools;
mod reconciling;
mod streams;

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use super::*;
use crate::{
    job::{Attempt, Job, UnixMillis, Usage},
    providers::{Call, CallError, Completion, DeltaSink, ErrorClass},
    queue::{Admitted, Claim, Submission},
    tests::{FaultyQueue, MemoryLedger, eventually, job},
};

/// Longer than any of these tests.
const LEASE: Duration = Duration::from_secs(300);

/// What the provider does with a call.
#[derive(Clone, Copy, Debug)]
enum Play {
    Answer,
    Fail,
    Panic,
    /// Nothing, until the call is stopped.
    Hang,
    /// Answers when the gate is opened.
    Wait,
    /// The answer, after it was said.
    Say,
    /// A beginning, and then nothing.
    SayAndHang,
    /// A beginning, and then an error that no other call would mend.
    SayAndRefuse,
}

/// A provider that answers when its script is over.
#[derive(Default)]
struct Scripted {
    script: Mutex<VecDeque<Play>>,
    calls: AtomicUsize,
    /// When each call came.
    came: Mutex<Vec<UnixMillis>>,
    gate: Notify,
}

impl Scripted {
    fn play(&self, script: &[Play]) {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).extend(script);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Provider for Scripted {
    async fn call(&self, _: Call<'_>, sink: &mut dyn DeltaSink) -> Result<Completion, CallError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.came.lock().unwrap_or_else(PoisonError::into_inner).push(UnixMillis::now());
        let play = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let play = play.unwrap_or(Play::Answer);
        match play {
            Play::Say => sink.delta("Bonjour"),
            Play::SayAndHang | Play::SayAndRefuse => sink.delta("Bon"),
            Play::Wait => self.gate.notified().await,
            _ => {}
        }
        match play {
            Play::Answer | Play::Say | Play::Wait => {
                let usage = Usage { input_tokens: Some(10), output_tokens: Some(5) };
                Ok(Completion { output: "Bonjour".into(), usage, ..Completion::default() })
            }
            Play::Fail => Err(CallError::new(ErrorClass::Failing { after: None }, "ill")),
            Play::SayAndRefuse => Err(CallError::new(ErrorClass::Rejected, "no")),
            Play::Panic => panic!("the script says so"),
            Play::Hang | Play::SayAndHang => std::future::pending().await,
        }
    }
}

/// Everything that executors share, and the other end of it.
struct Rig {
    memory: MemoryLedger,
    queue: Arc<FaultyQueue>,
    provider: Arc<Scripted>,
    shared: Shared,
}

impl Rig {
    async fn new(slots: usize) -> Self {
        Self::with_lease(slots, LEASE).await
    }

    async fn with_lease(slots: usize, lease: Duration) -> Self {
        let (memory, queue) = (MemoryLedger::open().await, Arc::new(FaultyQueue::new(lease)));
        let provider = Arc::new(Scripted::default());
        let retry = RetryPolicy { base: Duration::from_millis(1), ..RetryPolicy::default() };
        let settings = PoolSettings { slots, retry, providers: Vec::new() };
        let mut shared = Shared::new(memory.ledger.clone(), queue.clone(), &settings).unwrap();
        shared.providers.insert("one".into(), provider.clone());
        shared.scopes.push(ScopeLimits::unlimited("one"));
        Self { memory, queue, provider, shared }
    }

    /// Accepts a run as a front door does.
    async fn submit(&self, job: Job) -> Arc<Job> {
        let job = Arc::new(job);
        self.memory.ledger.insert(job.clone()).await.unwrap();
        self.enqueue(&job).await;
        job
    }

    async fn enqueue(&self, job: &Arc<Job>) {
        let admitted = self.queue.enqueue(Submission { job: job.clone(), reply_to: None }, None).await.unwrap();
        assert!(matches!(admitted, Admitted::Yes { .. }));
    }

    /// The next run, claimed for this worker.
    async fn claim(&self) -> Claim {
        let claim = async || self.queue.claim(self.shared.worker, 1, &self.shared.scopes).await.unwrap().claims.pop();
        eventually("a run to claim", claim).await
    }

    /// The attempts that the ledger knows of a run.
    async fn attempts(&self, job: &Job) -> Vec<Attempt> {
        self.memory.ledger.find(job.account, job.id).await.unwrap().unwrap().attempts
    }
}
