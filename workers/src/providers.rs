//! Models over HTTP: one adapter a wire protocol. An adapter makes one call and says how it ended; it never retries.

mod complaint;
pub mod demo;
pub mod openai;
mod retry_after;
mod transport;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::job::{AttemptOutcome, ModelRequest, Usage};

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where a provider is and how it is called.
#[derive(Clone, Debug)]
pub struct ProviderSettings {
    pub name: String,
    pub kind: ProviderKind,
    /// Empty for `demo`.
    pub base_url: String,
    /// Absent when the provider wants none (a local server).
    pub api_key: Option<Secret>,
    /// Where the key was looked for, for the error that says it is missing: `OPENAI_API_KEY`.
    pub api_key_env: Option<String>,
    /// From the start of a call to its last byte.
    pub attempt_timeout: Duration,
    /// Between two reads of an answer.
    pub idle_timeout: Duration,
    pub connect_timeout: Duration,
    /// An answer with more bytes than this ends as garbage.
    pub max_response_bytes: usize,
    /// Extra delay of each answer of the `demo` model.
    pub demo_delay: Duration,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u64>,
    pub max_concurrency: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderKind {
    OpenAi,
    AzureOpenAi,
    Demo,
}

/// A provider whose configuration cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("provider {provider}: base_url is not an http or https URL")]
    BaseUrl { provider: String },
    #[error(
        "provider {provider}: the HTTP client cannot be set up; https needs the system's CA certificates (package ca-certificates)"
    )]
    Client {
        provider: String,
        #[source]
        source: reqwest::Error,
    },
}

/// The adapter for a provider, with its own connections. Makes no traffic.
///
/// A key that is missing is no error here: other providers can work without it. Each call then ends as
/// [`ErrorClass::Unauthorized`], with a detail that names the variable.
pub fn build(settings: &ProviderSettings) -> Result<Arc<dyn Provider>, BuildError> {
    Ok(match settings.kind {
        ProviderKind::OpenAi | ProviderKind::AzureOpenAi => Arc::new(openai::OpenAi::new(settings)?),
        ProviderKind::Demo => Arc::new(demo::Demo::new(settings)),
    })
}

/// One call to make.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The model as the provider names it.
    pub upstream: &'a str,
    pub request: &'a ModelRequest,
    /// Read the provider's own stream, and pass text on as it comes.
    pub stream: bool,
    /// When the run ends: no call outlives it.
    pub deadline: Instant,
}

/// A model's whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    pub output: String,
    /// The provider's word, in the field's terms: `stop`, `length`, `content_filter`, …
    pub finish_reason: Option<String>,
    pub usage: Usage,
    /// From the start of the call to the first text; known for streamed calls.
    pub first_token: Option<Duration>,
}

/// A call that did not give an answer, shaped by what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    pub class: ErrorClass,
    /// What happened, for operators: names the provider's status or words, never a key or a prompt.
    pub detail: String,
    pub status: Option<u16>,
    /// What was counted before it broke.
    pub usage: Usage,
    pub first_token: Option<Duration>,
}

/// What the caller of a failed call should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Wait, and hold the whole provider back: 429, with what it said about when.
    Limited { after: Option<Duration> },
    /// The provider is ill (5xx, 408, 409, 425, overloaded): try again, after what it said, if it did.
    Failing { after: Option<Duration> },
    /// No connection, or it broke before the answer's end was due.
    Unreachable,
    /// Silence for too long.
    Timeout,
    /// The answer ended too early.
    Truncated,
    /// The answer makes no sense, or is too large.
    Garbage,
    /// Our credentials were refused: no retry helps, another target may.
    Unauthorized,
    /// This request was refused: no retry helps, another target may.
    Rejected,
    /// The run's deadline came.
    Expired,
}

impl CallError {
    /// An error about which nothing else is known yet.
    pub fn new(class: ErrorClass, detail: impl Into<String>) -> Self {
        Self { class, detail: detail.into(), status: None, usage: Usage::default(), first_token: None }
    }

    /// The same error, of a call that the provider answered with this HTTP status.
    fn answered(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }
}

impl ErrorClass {
    /// How the attempt is recorded.
    pub fn outcome(&self) -> AttemptOutcome {
        match self {
            ErrorClass::Limited { .. } => AttemptOutcome::RateLimited,
            ErrorClass::Failing { .. } => AttemptOutcome::ProviderError,
            ErrorClass::Unreachable => AttemptOutcome::Unreachable,
            ErrorClass::Timeout => AttemptOutcome::Timeout,
            ErrorClass::Truncated => AttemptOutcome::Truncated,
            ErrorClass::Garbage => AttemptOutcome::Garbage,
            ErrorClass::Unauthorized => AttemptOutcome::Unauthorized,
            ErrorClass::Rejected => AttemptOutcome::Rejected,
            ErrorClass::Expired => AttemptOutcome::Expired,
        }
    }
}

/// Takes text as a streamed call produces it. Never blocks: a reader that is slow is the sink's affair.
pub trait DeltaSink: Send {
    fn delta(&mut self, text: &str);
}

/// A sink for calls that nobody watches.
pub struct Unwatched;

impl DeltaSink for Unwatched {
    fn delta(&mut self, _text: &str) {}
}

/// One wire protocol at one provider.
///
/// Dropping the future of a call closes its upstream connection: that is how a call is cancelled.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    async fn call(&self, call: Call<'_>, sink: &mut dyn DeltaSink) -> Result<Completion, CallError>;
}
