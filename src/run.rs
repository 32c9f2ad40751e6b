//! The story of a run: resolve → render → admit → submit → wait.
//!
//! [`Runner::start`] takes a request that cannot be malformed any more and either refuses it with a [`RunError`], or
//! answers with a [`Started`] run; [`Started::reply`] waits for as long as the caller wants to. [`Runner::stream`] does the same for a caller
//! that is told of everything as it happens. It knows no wire format: HTTP, and whatever else accepts runs, translates to and from these
//! types.
//!
//! Decisions that callers can see:
//!
//! - The plan is asked for *new* runs only. An account whose subscription ended can still read and cancel the runs it has.
//! - A request that is wrong in several ways is refused for the first of these: it is malformed (400), it wants what this server cannot
//!   do (400), its account's plan (403), the server is draining (503), its timeout (400), its webhook's missing secret (400), its prompt (404), the prompt's model (403), the account's
//!   budget (402), the variables (400), the caller's rate (429), the depth of the queue (503).
//! - A caller that waits and hangs up cancels its run, unless it asked for `onDisconnect: "continue"`. A caller that was
//!   told the run's id (202) has nothing left to hang up. A caller whose stream this process ends because it shuts down has not hung up:
//!   its run goes on, and another process has its events.
//! - A request with an `Idempotency-Key` is sent again by callers whose connection broke: so its run goes on when its caller hangs up, unless the
//!   body says `onDisconnect: "cancel"`. A request that was sent before is not refused for anything but its key.
//! - A run that may outlive its caller's patience (`Prefer: wait=N`, `respond-async`) has the async default timeout, and is
//!   committed before anybody is told about it.

mod batched;
mod budget;
mod error;
mod joined;
mod json;
mod plan;
mod request;
mod started;
mod streamed;
mod told;

use std::{collections::VecDeque, fmt::Display, sync::Arc, time::Duration};

use tokio::time::Instant;
use workers::{
    Accepted, CancelOutcome, Engine, Page, Promise, RunView, SubmitError,
    job::{AccountId, Job, ModelRequest, RunId, UnixMillis, WIRE_VERSION},
    ledger::{IdempotencyKey, RunFilter},
    queue::RateRule,
};

pub(crate) use self::json::parse as parse_json;
use self::{budget::Budgets, streamed::Progress, told::Told};
pub use self::{
    error::{RunError, failure_of},
    joined::Joined,
    request::{Answer, InvalidRequest, OnDisconnect, PromptName, RunRequest},
    started::{Reply, Started},
    streamed::{Followed, Streamed},
};
use crate::{
    config::{Config, LimitsConfig},
    intake::Intake,
    keys::Principal,
    prompts::{Prompts, ResolvedPrompt},
    webhooks::{WebhookError, Webhooks},
};

/// Starts runs, and finds and cancels them. Cheap to clone.
#[derive(Clone)]
pub struct Runner {
    prompts: Prompts,
    engine: Engine,
    intake: Intake,
    budgets: Budgets,
    webhooks: Webhooks,
    config: Arc<Config>,
}

impl Runner {
    pub fn new(prompts: Prompts, engine: Engine, intake: Intake, webhooks: Webhooks, config: Arc<Config>) -> Self {
        Self { prompts, budgets: Budgets::new(engine.clone()), engine, intake, webhooks, config }
    }

    /// Accepts a run for `principal`, or says why not; a refused run leaves nothing behind.
    pub async fn start(&self, principal: &Principal, request: RunRequest) -> Result<Begun<Started>, RunError> {
        let answer = request.answer;
        let start = async |planned: Planned| {
            let Planned { job, key, timeout, on_disconnect, accepted_at } = planned;
            let (run, prompt_version, created_at) = (job.id, job.prompt_version, job.created_at);
            let queued = (answer != Answer::Wait).then(|| Box::new(RunView::waiting(&job)));
            let promise = match (key, answer) {
                (Some(key), _) => Promise::Keyed(key),
                (None, Answer::Wait) => Promise::Wait,
                (None, Answer::WaitAtMost(_) | Answer::Later) => Promise::Committed,
            };
            // Armed before the run exists: a caller can hang up between the enqueueing and its confirmation.
            let cancels = answer != Answer::Later && on_disconnect == OnDisconnect::Cancel;
            let mut hang_up = HangUp { engine: self.engine.clone(), run, armed: cancels };
            let rules = rules(principal, &self.config.limits);
            let accepted = if answer == Answer::Later {
                let left = self.engine.leave(job, rules, promise).await;
                left.map(|Accepted { rates, cache, .. }| Accepted { rates, cache, waiter: None })
            } else {
                let waited_for = self.engine.submit(job, rules, promise).await;
                waited_for.map(|Accepted { rates, cache, waiter }| Accepted { rates, cache, waiter: Some(waiter) })
            };
            let Accepted { rates, cache, waiter } = accepted.inspect_err(|_| hang_up.armed = false)?;
            Ok(Started {
                run,
                prompt_version,
                rates,
                cache,
                account: principal.account.id,
                created_at,
                accepted_at,
                deadline: later(accepted_at, timeout),
                answer,
                queued,
                waiter,
                hang_up,
            })
        };
        self.begin(principal, request, start).await
    }

    /// The same for a caller that follows the run.
    pub async fn stream(&self, principal: &Principal, request: RunRequest) -> Result<Begun<Streamed>, RunError> {
        let start = async |planned: Planned| {
            let Planned { job, key, timeout, on_disconnect, accepted_at } = planned;
            let (run, prompt_version, created_at) = (job.id, job.prompt_version, job.created_at);
            // A run that goes on without its caller was promised to it with its first event.
            let promise = match (key, on_disconnect) {
                (Some(key), _) => Promise::Keyed(key),
                (None, OnDisconnect::Cancel) => Promise::Wait,
                (None, OnDisconnect::Continue) => Promise::Committed,
            };
            let cancels = on_disconnect == OnDisconnect::Cancel;
            let mut hang_up = HangUp { engine: self.engine.clone(), run, armed: cancels };
            let accepted = self.engine.submit_streamed(job, rules(principal, &self.config.limits), promise).await;
            let Accepted { rates, cache, waiter } = accepted.inspect_err(|_| hang_up.armed = false)?;
            Ok(Streamed {
                run,
                prompt_version,
                rates,
                cache,
                created_at,
                deadline: later(accepted_at, timeout),
                events: waiter,
                hang_up,
                progress: Progress::Told(0),
                told: Told::default(),
                next: VecDeque::new(),
            })
        };
        self.begin(principal, request, start).await
    }

    /// Starts a run, unless the request was sent before: then its caller joins the run that it made.
    async fn begin<T>(
        &self,
        principal: &Principal,
        request: RunRequest,
        start: impl AsyncFnOnce(Planned) -> Result<T, SubmitError>,
    ) -> Result<Begun<T>, RunError> {
        let answer = request.answer;
        let before = match &request.key {
            Some(key) => Box::pin(self.engine.keyed(principal.account.id, key)).await?,
            None => None,
        };
        let known = match before {
            Some(known) => known,
            None => match start(self.plan(principal, request).await?).await {
                // The same request came elsewhere in this moment.
                Err(SubmitError::Known(known)) => known,
                started => return Ok(Begun::Now(started?)),
            },
        };
        Ok(Begun::Before(Box::new(Box::pin(self.join(principal, known, answer)).await?)))
    }

    /// Resolve, render, and all that can be refused before the queue is asked.
    async fn plan(&self, principal: &Principal, request: RunRequest) -> Result<Planned, RunError> {
        let accepted_at = Instant::now();
        let created_at = self.engine.now();
        let account = &principal.account;
        let limits = &self.config.limits;

        let on_disconnect = request.on_disconnect();
        if request.cache == Some(true) && !self.config.keep_content {
            // Results are outputs that are stored.
            return Err(RunError::NotSupported(vec!["cache"]));
        }
        let webhook_url = request.webhook_url.as_deref().map(|url| self.webhooks.check(url)).transpose();
        let webhook_url = webhook_url.map_err(RunError::WebhookUrl)?;
        self.admit(principal).await?;
        let timeout = plan::timeout(&request, limits)?;
        if webhook_url.is_some() {
            self.webhooks.admit(account.id).await.map_err(|error| match error {
                WebhookError::NoSecret => RunError::WebhookSecretMissing,
                WebhookError::Store(error) => error.into(),
            })?;
        }
        let version = request.version.map(i32::from);
        let Some(prompt) = self.prompts.resolve(account.id, request.prompt.as_str(), version).await? else {
            return Err(match version {
                None => RunError::PromptNotFound(request.prompt),
                Some(version) => RunError::VersionNotFound { prompt: request.prompt, version },
            });
        };
        let targets = plan::targets(account, &prompt.model, &prompt.fallbacks, |name| self.config.model(name))?;
        self.budgets.admit(account, created_at).await?;
        let rendered = prompt.render(&request.variables, limits.max_rendered_bytes)?;
        let tokens = plan::tokens(&rendered, prompt.parameters.max_tokens);
        let model_request = ModelRequest {
            system: rendered.system,
            user: rendered.user,
            parameters: prompt.parameters.clone(),
            output_schema: prompt.output_schema.clone(),
        };
        let caching = self
            .cache_ttl(&request, &prompt)
            .map(|ttl| plan::caching(account.id, &prompt, &targets, &model_request, ttl));

        let job = Job {
            v: WIRE_VERSION,
            id: RunId::at(created_at),
            account: account.id,
            key: Some(principal.key),
            prompt: prompt.prompt,
            prompt_name: prompt.name.clone(),
            prompt_version: prompt.version,
            lane: request.lane,
            targets,
            tokens,
            request: model_request,
            stream: request.stream,
            metadata: request.metadata,
            created_at,
            deadline: created_at.plus(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            keep_content: self.config.keep_content,
            repeat_streamed: prompt.repeat_streamed,
            webhook_url,
            caching,
        };
        Ok(Planned { job, key: request.key, timeout, on_disconnect, accepted_at })
    }

    /// How long the result of a run stands for others; `None` when it is its own.
    fn cache_ttl(&self, request: &RunRequest, prompt: &ResolvedPrompt) -> Option<Duration> {
        let wanted = request.cache.unwrap_or(prompt.cache_ttl.is_some()) && self.config.keep_content;
        wanted.then(|| prompt.cache_ttl.unwrap_or(self.config.cache_ttl))
    }

    /// The clock that runs go by.
    pub fn now(&self) -> UnixMillis {
        self.engine.now()
    }

    /// A run of the account, with its attempts.
    pub async fn find(&self, account: AccountId, run: RunId) -> Result<RunView, RunError> {
        self.engine.find(account, run).await?.ok_or(RunError::RunNotFound)
    }

    /// Runs of the account before `before`, newest first, without their outputs.
    pub async fn list(
        &self,
        account: AccountId,
        filter: &RunFilter,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Page, RunError> {
        Ok(self.engine.list(account, filter, before, limit).await?)
    }

    /// What happens to a run of the account from after the event `after`, live or from its log.
    pub async fn follow(&self, account: AccountId, run: RunId, after: u64) -> Result<Followed, RunError> {
        let (run, events) = self.engine.follow(account, run, after).await?.ok_or(RunError::RunNotFound)?;
        Ok(Followed { run, events, engine: self.engine.clone() })
    }

    /// Cancels a run of the account. `true`: it is cancelled; `false`: its worker was told, and ends it.
    pub async fn cancel(&self, account: AccountId, run: RunId) -> Result<bool, RunError> {
        match self.engine.cancel(account, run).await? {
            CancelOutcome::Cancelled => Ok(true),
            CancelOutcome::Requested => Ok(false),
            CancelOutcome::AlreadyEnded => Err(RunError::AlreadyEnded(run)),
            CancelOutcome::NotFound => Err(RunError::RunNotFound),
        }
    }
}

/// What came of a request for a run.
pub enum Begun<T> {
    /// A new run.
    Now(T),
    /// It was sent before, with the same `Idempotency-Key`.
    Before(Box<Joined>),
}

/// A run that was not refused so far.
struct Planned {
    job: Job,
    key: Option<IdempotencyKey>,
    timeout: Duration,
    on_disconnect: OnDisconnect,
    accepted_at: Instant,
}

/// Ends the run of a caller that hung up: armed until the caller is answered.
struct HangUp {
    engine: Engine,
    run: RunId,
    armed: bool,
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if self.armed {
            self.engine.abandon(self.run);
        }
    }
}

/// A moment that far off that the clock cannot say it is a year away: nobody waits for it.
fn later(from: Instant, by: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    from.checked_add(by).unwrap_or(from + YEAR)
}

fn rules(principal: &Principal, limits: &LimitsConfig) -> Vec<RateRule> {
    let rule = |name, subject: &dyn Display, per_minute: Option<u32>| {
        per_minute.map(|per_minute| RateRule { name, subject: subject.to_string(), per_minute })
    };
    [
        rule("account", &principal.account.id, limits.account_requests_per_minute),
        rule("key", &principal.key, limits.key_requests_per_minute),
    ]
    .into_iter()
    .flatten()
    .collect()
}
