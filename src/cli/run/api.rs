//! The requests that the client sends.

use std::{collections::HashMap, time::Duration};

use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{HeaderValue, InvalidHeaderValue},
};
use uuid::Uuid;

use super::request::Call;
use crate::cli::{
    client::{client, root_cause},
    error::CliError,
};

const DEFAULT_BASE_URL: &str = "http://127.0.0.1:8080";
const ENV_BASE_URL: &str = "PROMPT_MANAGER_BASE_URL";
const ENV_API_KEY: &str = "PROMPT_MANAGER_API_KEY";
/// Probes of a silent connection: a server that went away without a word is noticed by the third one that is not answered.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How much later than its run's deadline an answer may come.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// A server and the key to it.
pub(super) struct Api {
    client: Client,
    base: String,
    key: HeaderValue,
    /// The server's name for people.
    pub server: String,
}

impl Api {
    pub fn of(environment: &HashMap<String, String>) -> Result<Self, CliError> {
        let key = api_key(environment)?;
        let base = environment.get(ENV_BASE_URL).map_or(DEFAULT_BASE_URL, String::as_str).trim_end_matches('/');
        let wrong = || CliError::Usage(format!("{ENV_BASE_URL} must be a URL such as {DEFAULT_BASE_URL}"));
        let url = Url::parse(base).map_err(|_| wrong())?;
        if !["http", "https"].contains(&url.scheme()) || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong());
        }
        let configure = |builder: reqwest::ClientBuilder| {
            builder.tcp_keepalive(KEEP_ALIVE).tcp_keepalive_interval(KEEP_ALIVE).tcp_keepalive_retries(3)
        };
        let client = client(&url, configure)?;
        Ok(Self { client, base: base.to_owned(), key, server: url.origin().ascii_serialization() })
    }

    /// Starts the run of a call.
    pub fn start(&self, call: &Call) -> RequestBuilder {
        let request = self.authorized(self.client.post(format!("{}/api/v1/run", self.base))).json(&call.body);
        match &call.key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        }
    }

    /// The same, without waiting for its end.
    pub fn start_async(&self, call: &Call) -> RequestBuilder {
        self.start(call).header("prefer", "respond-async")
    }

    /// The same, waiting for its end, which comes by its deadline if there is one.
    pub fn start_and_wait(&self, call: &Call) -> RequestBuilder {
        let request = self.start(call);
        match call.timeout {
            Some(timeout) => request.timeout(timeout.saturating_add(LAST_WORDS)),
            None => request,
        }
    }

    /// What happens to a run after an event.
    pub fn events(&self, run: Uuid, after: u64) -> RequestBuilder {
        let request = self.authorized(self.client.get(format!("{}/api/v1/runs/{run}/events", self.base)));
        if after > 0 { request.header("last-event-id", after.to_string()) } else { request }
    }

    pub fn cancel(&self, run: Uuid) -> RequestBuilder {
        self.authorized(self.client.post(format!("{}/api/v1/runs/{run}/cancel", self.base)))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request.header("x-api-key", self.key.clone())
    }

    /// A request that was not answered.
    pub fn unanswered(&self, error: &reqwest::Error) -> CliError {
        if error.is_timeout() && !error.is_connect() {
            return CliError::TimedOut(format!("the server at {} did not answer in time", self.server));
        }
        CliError::Unavailable(format!("the server at {} cannot be reached: {}", self.server, root_cause(error)))
    }
}

/// The run that an answer is about.
pub(super) fn run_of(response: &Response) -> Option<Uuid> {
    header(response, "x-run-id")?.parse().ok()
}

pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn api_key(environment: &HashMap<String, String>) -> Result<HeaderValue, CliError> {
    let key = environment.get(ENV_API_KEY).map(|key| key.trim()).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| CliError::Usage(format!("{ENV_API_KEY} must be set to an API key (sk_…)")))?;
    let mut key = HeaderValue::from_str(key).map_err(|_: InvalidHeaderValue| {
        CliError::Usage(format!("{ENV_API_KEY} holds characters that no API key has"))
    })?;
    key.set_sensitive(true);
    Ok(key)
}
