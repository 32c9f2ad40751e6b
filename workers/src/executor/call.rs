//! What an executor does with a claim, from the call to the ending. Knows no actor.

use std::{pin::pin, time::Duration};

use tokio::time::Instant;

use crate::{
    executor::{
        Shared, settling, sharing,
        stop::{Stop, StopReason},
        streaming::{Collector, Writer},
    },
    fail,
    job::{Attempt, AttemptOutcome, Ending, Failure, Outcome, Target, UnixMillis, Usage, WIRE_VERSION},
    ledger::{CachedResult, LedgerError},
    providers::{Call, CallError, Completion, ErrorClass},
    queue::{Claim, Held, NewText, Release, Work},
    retry::{Situation, Step, next_step},
};

/// How often a write that must not be lost is tried again while its store is away.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// The longest that a provider's `Retry-After` holds all of its runs back.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// By how much two processes may read the queue's clock differently without being wrong: the front door that gives a run up at its deadline
/// must not seem to be early.
const AGREEMENT: u64 = 100;

/// What is left to do after a claim was executed.
#[derive(Debug)]
pub enum Done {
    /// The ending is stashed (or the queue cannot take it): the ledger comes next.
    Record(Box<Ending>),
    /// The run is somebody else's now, or waits for its next attempt.
    Gone,
}

/// Executes a claim. Ends early, in the way its reason asks for, when `stop` says so.
pub async fn execute(shared: &Shared, claim: &Claim, stop: &Stop) -> Done {
    match &claim.work {
        Work::Call => match sharing::look_up(shared, claim).await {
            Ok(Some(result)) => end_shared(shared, claim, result).await,
            Ok(None) => call(shared, claim, stop).await,
            Err(error) => {
                tracing::debug!(run = %claim.job.id, %error, "a run is called without a look at the results of others");
                call(shared, claim, stop).await
            }
        },
        _ => settling::settle(shared, claim).await,
    }
}

/// The ending of a claim whose execution panicked.
pub async fn end_panicked(shared: &Shared, claim: &Claim) -> Done {
    let failure = Failure {
        code: "internal_error".into(),
        message: "The engine failed while it executed the run".into(),
        retryable: true,
    };
    let clock = Clock::start(shared, claim);
    let attempt = target(claim).map(|target| Attempt {
        outcome: AttemptOutcome::Internal,
        ..clock.attempt(shared, claim, target, Usage::default())
    });
    end(shared, claim, Outcome::Failed(failure), attempt).await
}

async fn call(shared: &Shared, claim: &Claim, stop: &Stop) -> Done {
    let Some(target) = target(claim) else {
        return end(shared, claim, Outcome::Failed(no_target()), None).await;
    };
    let Some(provider) = shared.providers.get(&target.provider) else {
        // The claim names only scopes that this process has a provider for.
        return end(shared, claim, Outcome::Failed(no_target()), None).await;
    };
    let clock = Clock::start(shared, claim);
    let remaining = Duration::from_millis(claim.job.deadline.since(clock.started_at));
    let deadline = clock.started + remaining;
    let request = Call { upstream: &target.upstream, request: &claim.job.request, stream: claim.job.stream, deadline };
    tracing::debug!(run = %claim.job.id, attempt = claim.attempt, provider = target.provider, "calling");
    let collector = Collector::default();
    let log = claim.log.filter(|_| claim.job.stream);
    let mut writer = log.map(|log| Writer::new(shared, claim, log, &collector));
    let answer = async {
        fail::point("call.before").await;
        if let Some(reason) = stop.reason() {
            return Err(reason);
        }
        let answer = provider.call(request, &mut collector.clone()).await;
        collector.end();
        fail::point("call.after").await;
        Ok(answer)
    };
    let answer = async {
        let Some(writer) = &mut writer else { return answer.await };
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            () = writer.write() => answer.await,
        }
    };
    let answer = tokio::select! {
        biased;
        // An answer that is there has been paid for: it comes first.
        answer = tokio::time::timeout_at(deadline, answer) => answer.unwrap_or_else(|_| Ok(Err(past_deadline()))),
        // Leaving this block drops the call, which closes its connection to the provider.
        reason = stop.stopped() => Err(reason),
    };
    tracing::debug!(run = %claim.job.id, took = ?clock.started.elapsed(), "called");
    if let (Some(writer), Ok(Err(_))) = (&mut writer, &answer) {
        writer.finish().await;
    }
    // What was streamed to a caller cannot be taken back, and calling again bills twice. That a worker goes away is no reason for it, unless the prompt says so; that the
    // provider failed is one, and the caller is told.
    let has_written = log.zip(writer.as_ref()).is_some_and(|(log, writer)| writer.has_written(log));
    let streamed = has_written && !claim.job.repeat_streamed;
    match answer {
        Ok(Ok(completion)) => {
            let text = writer.map(Writer::rest).unwrap_or_default();
            succeed(shared, claim, target, &clock, completion, &text).await
        }
        Ok(Err(error)) => fail(shared, claim, target, &clock, error).await,
        Err(StopReason::Cancelled) => {
            let overdue = shared.queue.now().plus(AGREEMENT) >= claim.job.deadline;
            let (outcome, class) = if overdue {
                (Outcome::Expired, AttemptOutcome::Expired)
            } else {
                (Outcome::Cancelled, AttemptOutcome::Cancelled)
            };
            let attempt = Attempt { outcome: class, ..clock.attempt(shared, claim, target, Usage::default()) };
            end(shared, claim, outcome, Some(attempt)).await
        }
        Err(StopReason::Drain) => {
            let attempt = Attempt {
                outcome: AttemptOutcome::WorkerLost,
                detail: Some("the worker shut down and handed the run back".into()),
                ..clock.attempt(shared, claim, target, Usage::default())
            };
            if streamed {
                return end(shared, claim, streamed_and_lost(), Some(attempt)).await;
            }
            // A ledger that is away must not keep the run from the next worker.
            tokio::join!(give_back(shared, claim, Release::HandBack), record_attempt(shared, claim, attempt)).0
        }
        Err(StopReason::LeaseLost) => {
            // The reaper that takes the run over records the same. A queue that lost its memory has nothing for a reaper to find.
            let attempt = Attempt {
                outcome: AttemptOutcome::WorkerLost,
                detail: Some("the lease was lost during the call".into()),
                ..clock.attempt(shared, claim, target, Usage::default())
            };
            if streamed {
                return end(shared, claim, streamed_and_lost(), Some(attempt)).await;
            }
            record_attempt(shared, claim, attempt).await;
            Done::Gone
        }
    }
}

async fn succeed(
    shared: &Shared,
    claim: &Claim,
    target: &Target,
    clock: &Clock,
    completion: Completion,
    text: &NewText,
) -> Done {
    let attempt = Attempt {
        first_token_ms: completion.first_token.map(millis),
        ..clock.attempt(shared, claim, target, completion.usage)
    };
    let outcome = Outcome::Succeeded { output: completion.output, finish_reason: completion.finish_reason };
    stash(shared, claim, ending(shared, claim, outcome, Some(attempt)), text).await
}

async fn fail(shared: &Shared, claim: &Claim, target: &Target, clock: &Clock, error: CallError) -> Done {
    let attempt = Attempt {
        outcome: error.class.outcome(),
        status: error.status,
        detail: Some(error.detail.clone()),
        first_token_ms: error.first_token.map(millis),
        ..clock.attempt(shared, claim, target, error.usage)
    };
    let situation = Situation {
        attempt: claim.attempt,
        limited: claim.limited,
        target: claim.target,
        targets: claim.job.targets.len(),
        now: shared.queue.now(),
        deadline: claim.job.deadline,
        roll: rand::random(),
    };
    let step = next_step(&shared.retry, &error, situation);
    tracing::info!(
        run = %claim.job.id, attempt = claim.attempt, provider = target.provider, class = ?error.class,
        status = error.status, detail = error.detail, next = ?step, "a call failed"
    );
    if let ErrorClass::Limited { after } = error.class {
        let pause = match (&step, after) {
            (_, Some(after)) => after,
            (Step::Retry { after, .. }, None) => *after,
            (_, None) => shared.retry.base,
        };
        // Best effort: a run that is claimed all the same hears it from the provider again.
        if let Err(error) = shared.queue.pause_scope(&target.provider, pause.min(MAX_PAUSE)).await {
            tracing::warn!(%error, provider = target.provider, "cannot pause a provider that asked for it");
        }
    }
    match step {
        Step::Retry { after, target } => {
            record_attempt(shared, claim, attempt).await;
            let how = match error.class {
                ErrorClass::Limited { .. } => Release::Limited { after, target },
                _ => Release::Retry { after, target },
            };
            give_back(shared, claim, how).await
        }
        Step::Fail(failure) => end(shared, claim, Outcome::Failed(failure), Some(attempt)).await,
        Step::Expire => end(shared, claim, Outcome::Expired, Some(attempt)).await,
    }
}

/// Ends a run with the result of another one.
pub(super) async fn end_shared(shared: &Shared, claim: &Claim, result: CachedResult) -> Done {
    stash(shared, claim, sharing::ending(claim, result, shared.queue.now()), &NewText::default()).await
}

pub(super) async fn end(shared: &Shared, claim: &Claim, outcome: Outcome, attempt: Option<Attempt>) -> Done {
    stash(shared, claim, ending(shared, claim, outcome, attempt), &NewText::default()).await
}

fn ending(shared: &Shared, claim: &Claim, outcome: Outcome, attempt: Option<Attempt>) -> Ending {
    let began = attempt.as_ref().map_or(claim.started_at, |attempt| attempt.started_at.max(claim.started_at));
    let cache = sharing::made(claim, &outcome);
    Ending {
        v: WIRE_VERSION,
        run: claim.job.id,
        fence: claim.fence,
        outcome,
        model: target(claim).map(|target| target.model.clone()).unwrap_or_default(),
        started_at: attempt.as_ref().map(|_| claim.started_at),
        finished_at: shared.queue.now().max(began),
        queue_ms: claim.queue_ms,
        attempt,
        cache,
    }
}

/// Stashes an ending, behind the last text of its call, before anything else happens to it.
async fn stash(shared: &Shared, claim: &Claim, ending: Ending, text: &NewText) -> Done {
    let ending = Box::new(ending);
    match fail::around("stash", shared.queue.stash_after(text, &ending)).await {
        // A queue that forgot the run, or is away, cannot say who owns it; the ledger's fence decides.
        Ok(Held::Done | Held::Unknown) => Done::Record(ending),
        Err(error) => {
            tracing::warn!(run = %claim.job.id, %error, "an ending goes to the ledger without the queue");
            Done::Record(ending)
        }
        Ok(Held::Elsewhere) => {
            tracing::warn!(run = %claim.job.id, "a late ending is discarded: the run has another owner");
            if let Some(attempt) = ending.attempt {
                record_attempt(shared, claim, attempt).await;
            }
            Done::Gone
        }
    }
}

pub(super) async fn give_back(shared: &Shared, claim: &Claim, how: Release) -> Done {
    match fail::around("release", shared.queue.release(claim.job.id, claim.fence, how)).await {
        Ok(Held::Done | Held::Elsewhere | Held::Unknown) => {}
        // The lease runs out and the reaper does it.
        Err(error) => tracing::warn!(run = %claim.job.id, %error, "a run could not be given back"),
    }
    Done::Gone
}

/// Records the attempt of a run that goes on. Waits for a ledger that is away, up to the run's deadline: an attempt
/// that is not recorded is money that no report shows.
pub(super) async fn record_attempt(shared: &Shared, claim: &Claim, attempt: Attempt) {
    let batch = [(claim.job.id, attempt)];
    loop {
        // Boxed: the attempts of most runs are recorded with their endings, and their tasks have no use for this room.
        match fail::around("attempt", Box::pin(shared.ledger.record_attempts(&batch))).await {
            Ok(()) => return,
            Err(error @ (LedgerError::Unreachable(_) | LedgerError::Full(_)))
                if shared.queue.now() < claim.job.deadline =>
            {
                tracing::warn!(run = %claim.job.id, %error, "an attempt waits for the ledger");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                tracing::error!(run = %claim.job.id, %error, attempt = ?batch[0].1.outcome, "an attempt is not recorded");
                return;
            }
        }
    }
}

pub(super) fn target(claim: &Claim) -> Option<&Target> {
    claim.job.targets.get(claim.target)
}

pub(super) fn streamed_and_lost() -> Outcome {
    Outcome::Failed(Failure {
        code: "worker_lost".into(),
        message: "The worker that streamed this run was lost".into(),
        retryable: true,
    })
}

fn no_target() -> Failure {
    Failure {
        code: "model_not_configured".into(),
        message: "No worker has a provider for the model of this run".into(),
        retryable: false,
    }
}

fn past_deadline() -> CallError {
    CallError {
        class: ErrorClass::Expired,
        detail: "the deadline came during the call".into(),
        status: None,
        usage: Usage::default(),
        first_token: None,
    }
}

/// When an attempt began, by the queue's clock and by the monotonic one.
struct Clock {
    started_at: UnixMillis,
    started: Instant,
}

impl Clock {
    fn start(shared: &Shared, claim: &Claim) -> Self {
        // The queue itself says when the run was taken, and its clock is read here with the error of a message's way.
        Self { started_at: shared.queue.now().max(claim.started_at), started: Instant::now() }
    }

    /// An attempt that ends now, with success unless the caller says otherwise.
    fn attempt(&self, shared: &Shared, claim: &Claim, target: &Target, usage: Usage) -> Attempt {
        Attempt {
            number: claim.attempt,
            fence: claim.fence,
            provider: target.provider.clone(),
            model: target.model.clone(),
            worker: shared.worker,
            started_at: self.started_at,
            duration_ms: millis(self.started.elapsed()),
            first_token_ms: None,
            outcome: AttemptOutcome::Succeeded,
            status: None,
            detail: None,
            usage,
            cost_nano_usd: target.price.and_then(|price| price.of(usage)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
