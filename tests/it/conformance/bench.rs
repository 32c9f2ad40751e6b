//! A queue under test, with what the cases do to it in one line.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use workers::{
    job::{
        AccountId, Attempt, AttemptOutcome, Caching, Ending, FrontDoorId, Job, Lane, Logged, ModelRequest, Outcome,
        PromptId, RunId, Target, UnixMillis, Usage, WIRE_VERSION, WorkerId,
    },
    queue::{
        Admitted, Cancelled, Claim, Claimed, Held, Queue, Release, Reply, ScopeLimits, Submission, Work,
        embedded::{EmbeddedQueue, EmbeddedSettings},
    },
};

/// A lease that does not run out during a case.
pub const LONG: Duration = Duration::from_secs(60);
/// A lease that a case waits out.
pub const SHORT: Duration = Duration::from_millis(800);
/// How long a case waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The scope of runs that name no other; without limits.
pub const OPEN: &str = "open";

/// Where queues come from.
pub trait Store {
    /// A new, empty queue.
    async fn open(lease: Duration) -> Bench;
}

pub struct Embedded;

impl Store for Embedded {
    async fn open(lease: Duration) -> Bench {
        Bench::new(Arc::new(EmbeddedQueue::new(EmbeddedSettings { lease })), ())
    }
}

/// A queue, two workers, and whatever must live as long as it.
pub struct Bench {
    pub queue: Arc<dyn Queue>,
    pub worker: WorkerId,
    pub other: WorkerId,
    /// What was offered to the first worker while it waited.
    offered: Arc<Mutex<Vec<Claim>>>,
    _store: Box<dyn Any + Send + Sync>,
}

impl Bench {
    pub fn new(queue: Arc<dyn Queue>, store: impl Any + Send + Sync) -> Self {
        let (worker, other, offered) = (WorkerId::new(), WorkerId::new(), Arc::default());
        Self { queue, worker, other, offered, _store: Box::new(store) }
    }

    pub async fn enqueue(&self, job: &Arc<Job>) {
        let submission = Submission { job: Arc::clone(job), reply_to: None };
        let admitted = self.queue.enqueue(submission, None).await.unwrap();
        assert!(matches!(admitted, Admitted::Yes { .. }), "{admitted:?}");
    }

    /// Enqueues a run that a front door waits for.
    pub async fn enqueue_for(&self, front_door: FrontDoorId, job: &Arc<Job>) {
        let submission = Submission { job: Arc::clone(job), reply_to: Some(front_door) };
        self.queue.enqueue(submission, None).await.unwrap();
    }

    /// Enqueues many equal runs.
    pub async fn flood(&self, spec: &Spec, count: usize) -> Vec<Arc<Job>> {
        let jobs = (0..count).map(|_| spec.job()).collect::<Vec<_>>();
        for job in &jobs {
            self.enqueue(job).await;
        }
        jobs
    }

    /// Claims for the first worker, from [`OPEN`].
    pub async fn claim(&self, free: usize) -> Vec<Claim> {
        self.claim_in(free, &[unlimited(OPEN)]).await.claims
    }

    pub async fn claim_in(&self, free: usize, scopes: &[ScopeLimits]) -> Claimed {
        let mut offered = self.offered.lock().unwrap().split_off(0);
        let mut claimed = self.queue.claim(self.worker, free - offered.len(), scopes).await.unwrap();
        offered.append(&mut claimed.claims);
        assert!(offered.len() <= free);
        Claimed { claims: offered, ..claimed }
    }

    /// Claims the one run that must be there, for a call.
    pub async fn take(&self) -> Claim {
        let mut claims = self.claim(10).await;
        assert_eq!(claims.len(), 1, "{claims:?}");
        let claim = claims.remove(0);
        assert_eq!(claim.work, Work::Call);
        claim
    }

    pub async fn claims_nothing(&self) {
        let claims = self.claim(10).await;
        assert!(claims.is_empty(), "{claims:?}");
    }

    pub async fn stash(&self, ending: &Ending) -> Held {
        self.queue.stash(ending).await.unwrap()
    }

    /// Stashes a success and finishes the run, as a worker does.
    pub async fn end(&self, claim: &Claim) {
        assert_eq!(self.stash(&succeeded(claim)).await, Held::Done);
        self.queue.finish(&[(claim.job.id, claim.fence)]).await.unwrap();
    }

    pub async fn retry(&self, claim: &Claim, after: Duration) -> Held {
        let how = Release::Retry { after, target: claim.target };
        self.queue.release(claim.job.id, claim.fence, how).await.unwrap()
    }

    pub async fn hand_back(&self, claim: &Claim) -> Held {
        self.queue.release(claim.job.id, claim.fence, Release::HandBack).await.unwrap()
    }

    pub async fn cancel(&self, run: RunId) -> Cancelled {
        self.queue.cancel(run, Outcome::Cancelled).await.unwrap()
    }

    /// What the other worker reaps next.
    pub async fn reap(&self) -> Claim {
        eventually("something to reap", async || {
            let mut claims = self.queue.reap(self.other, 1).await.unwrap();
            assert!(claims.len() <= 1);
            claims.pop()
        })
        .await
    }

    pub async fn reaps_nothing(&self) {
        let claims = self.queue.reap(self.other, 10).await.unwrap();
        assert!(claims.is_empty(), "{claims:?}");
    }

    /// The run that becomes claimable in a while.
    pub async fn take_later(&self) -> Claim {
        eventually("something to claim", async || self.claim(1).await.pop()).await
    }

    pub async fn front_door(&self) -> FrontDoor {
        let (id, stop) = (FrontDoorId::new(), CancellationToken::new());
        let replies = self.queue.replies(id, stop.clone()).await.unwrap();
        FrontDoor { id, replies, _stop: stop }
    }

    /// Starts to wait in the background; answers with how long that took.
    pub fn wait(&self, at_most: Duration) -> JoinHandle<Duration> {
        let (queue, worker, offered) = (Arc::clone(&self.queue), self.worker, Arc::clone(&self.offered));
        tokio::spawn(async move {
            let since = Instant::now();
            let claims = queue.wait(worker, 1, at_most, &CancellationToken::new()).await.unwrap();
            offered.lock().unwrap().extend(claims);
            since.elapsed()
        })
    }
}

/// A front door's end of the reply channel.
pub struct FrontDoor {
    pub id: FrontDoorId,
    replies: mpsc::Receiver<Reply>,
    _stop: CancellationToken,
}

impl FrontDoor {
    pub async fn next(&mut self) -> Ending {
        match self.message().await {
            Reply::Ended(ending) => *ending,
            other => panic!("an ending should come: {other:?}"),
        }
    }

    /// The next event of a run, and no other message.
    pub async fn event(&mut self, run: RunId) -> Logged {
        match self.message().await {
            Reply::Event(of, logged) if of == run => logged,
            other => panic!("an event of {run} should come: {other:?}"),
        }
    }

    async fn message(&mut self) -> Reply {
        loop {
            match timeout(PATIENCE, self.replies.recv()).await.expect("a message").expect("an open channel") {
                Reply::Resumed => {}
                message => return message,
            }
        }
    }
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < give_up, "there should be {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Runs of a kind.
#[derive(Clone)]
pub struct Spec {
    pub account: AccountId,
    pub lane: Lane,
    pub scopes: Vec<&'static str>,
    pub tokens: u64,
    /// From now, in milliseconds; negative has passed.
    pub deadline: i64,
    pub text: String,
    pub stream: bool,
    /// The digest of the call, if others may share it.
    pub flight: Option<&'static str>,
}

/// An interactive run of a new account in [`OPEN`], for one token, that has an hour.
pub fn run() -> Spec {
    Spec {
        account: AccountId::new(),
        lane: Lane::Interactive,
        scopes: vec![OPEN],
        tokens: 1,
        deadline: 3_600_000,
        text: "Bonjour".into(),
        stream: false,
        flight: None,
    }
}

impl Spec {
    pub fn job(&self) -> Arc<Job> {
        let target = |scope: &&str| Target {
            model: format!("model of {scope}"),
            provider: (*scope).into(),
            upstream: "upstream".into(),
            price: None,
        };
        let now = UnixMillis::now();
        Arc::new(Job {
            v: WIRE_VERSION,
            id: RunId::new(),
            account: self.account,
            key: None,
            prompt: PromptId::new(),
            prompt_name: "conformance".into(),
            prompt_version: 1,
            lane: self.lane,
            targets: self.scopes.iter().map(target).collect(),
            request: ModelRequest { user: self.text.clone(), ..ModelRequest::default() },
            stream: self.stream,
            metadata: BTreeMap::new(),
            created_at: now,
            deadline: UnixMillis(now.0 + self.deadline),
            keep_content: true,
            tokens: self.tokens,
            repeat_streamed: false,
            webhook_url: None,
            caching: self.flight.map(|digest| Caching { digest: digest.into(), ttl_ms: 60_000 }),
        })
    }
}

pub fn unlimited(scope: &str) -> ScopeLimits {
    ScopeLimits::unlimited(scope)
}

pub fn slots(scope: &str, slots: u32) -> ScopeLimits {
    ScopeLimits { max_concurrency: Some(slots), ..unlimited(scope) }
}

/// The ending of a claimed run after a call that used so many tokens.
pub fn succeeded_with(claim: &Claim, tokens: Option<u64>) -> Ending {
    let target = &claim.job.targets[claim.target];
    Ending {
        v: WIRE_VERSION,
        run: claim.job.id,
        fence: claim.fence,
        outcome: Outcome::Succeeded {
            output: format!("output under {}", claim.fence.0),
            finish_reason: Some("stop".into()),
        },
        model: target.model.clone(),
        started_at: Some(claim.started_at),
        finished_at: UnixMillis::now(),
        queue_ms: claim.queue_ms,
        attempt: Some(Attempt {
            number: claim.attempt,
            fence: claim.fence,
            provider: target.provider.clone(),
            model: target.model.clone(),
            worker: WorkerId::new(),
            started_at: claim.started_at,
            duration_ms: 5,
            first_token_ms: None,
            outcome: AttemptOutcome::Succeeded,
            status: Some(200),
            detail: None,
            usage: Usage { input_tokens: tokens, output_tokens: tokens.map(|_| 0) },
            cost_nano_usd: None,
        }),
        cache: None,
    }
}

pub fn succeeded(claim: &Claim) -> Ending {
    succeeded_with(claim, None)
}

pub fn ids(claims: &[Claim]) -> Vec<RunId> {
    claims.iter().map(|claim| claim.job.id).collect()
}
