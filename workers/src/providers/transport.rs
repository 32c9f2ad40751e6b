//! What all HTTP adapters share: the client, the limits of one call, and reading a body that may be anything.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use reqwest::{Client, Response, Url, redirect};
use tokio::time::{Instant, timeout_at};

use super::{BuildError, Call, CallError, ErrorClass, ProviderSettings};

const USER_AGENT: &str = concat!("prompt-manager/", env!("CARGO_PKG_VERSION"));

/// Connections that wait for the next call, when the provider has no limit of its own.
const IDLE_CONNECTIONS: usize = 256;

/// The base URL of a provider, with a path added and its query kept (Azure puts its version there).
pub(super) fn endpoint(settings: &ProviderSettings, path: &[&str]) -> Result<Url, BuildError> {
    let wrong = || BuildError::BaseUrl { provider: settings.name.clone() };
    let mut url = Url::parse(settings.base_url.trim()).map_err(|_| wrong())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong());
    }
    url.set_fragment(None);
    url.path_segments_mut().map_err(|()| wrong())?.pop_if_empty().extend(path);
    Ok(url)
}

/// A client with its own pool of connections. HTTP/2 is negotiated by ALPN.
pub(super) fn client(settings: &ProviderSettings, url: &Url) -> Result<Client, BuildError> {
    // The process has one TLS provider; whoever comes first installs it.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let idle =
        settings.max_concurrency.map_or(IDLE_CONNECTIONS, |max| usize::try_from(max).unwrap_or(IDLE_CONNECTIONS));
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .connect_timeout(settings.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(idle);
    if is_loopback(url) {
        // A proxy of the environment is for the world outside; it cannot see this machine's own ports.
        builder = builder.no_proxy();
    }
    if url.scheme() == "http" {
        // Plain HTTP needs no certificates, so a machine without any can still call a local model.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|source| BuildError::Client { provider: settings.name.clone(), source })
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// How long one call may wait: whichever of its limits comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    started: Instant,
    attempt_ends: Instant,
    attempt_timeout: Duration,
    idle: Duration,
    deadline: Instant,
}

impl Patience {
    /// Starts the clock of a call, unless its time is over already.
    pub(super) fn start(settings: &ProviderSettings, call: &Call<'_>) -> Result<Self, CallError> {
        let started = Instant::now();
        if call.deadline <= started {
            return Err(CallError::new(ErrorClass::Expired, "the run's deadline had passed before the call"));
        }
        Ok(Self {
            started,
            attempt_ends: started.checked_add(settings.attempt_timeout).unwrap_or(call.deadline),
            attempt_timeout: settings.attempt_timeout,
            idle: settings.idle_timeout,
            deadline: call.deadline,
        })
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the start of an answer. Models think before they speak, so silence is allowed here.
    pub(super) async fn answer<F: Future>(&self, answer: F) -> Result<F::Output, CallError> {
        self.until(self.attempt_ends, answer).await.ok_or_else(|| self.attempt_over())
    }

    /// Waits for the next bytes of an answer.
    pub(super) async fn read<F: Future>(&self, read: F) -> Result<F::Output, CallError> {
        let silent = Instant::now().checked_add(self.idle).unwrap_or(self.attempt_ends);
        if silent >= self.attempt_ends {
            return self.answer(read).await;
        }
        self.until(silent, read).await.ok_or_else(|| {
            self.expired().unwrap_or_else(|| {
                CallError::new(ErrorClass::Timeout, format!("the answer stopped for {:?}", self.idle))
            })
        })
    }

    /// Waits until a moment of the call's own choosing.
    pub(super) async fn sleep_until(&self, moment: Instant) -> Result<(), CallError> {
        self.answer(tokio::time::sleep_until(moment)).await
    }

    /// Waits for something that the call can do without; `None` when it did not come.
    async fn briefly<F: Future>(&self, within: Duration, future: F) -> Option<F::Output> {
        let moment = Instant::now().checked_add(within).unwrap_or(self.attempt_ends);
        self.until(moment.min(self.attempt_ends), future).await
    }

    async fn until<F: Future>(&self, moment: Instant, future: F) -> Option<F::Output> {
        timeout_at(moment.min(self.deadline), future).await.ok()
    }

    fn attempt_over(&self) -> CallError {
        let timeout = || format!("no complete answer within {:?}", self.attempt_timeout);
        self.expired().unwrap_or_else(|| CallError::new(ErrorClass::Timeout, timeout()))
    }

    fn expired(&self) -> Option<CallError> {
        let over = self.deadline <= Instant::now();
        over.then(|| CallError::new(ErrorClass::Expired, "the run's deadline came before the answer's end"))
    }
}

/// The error of a request that got no answer.
pub(super) fn no_answer(error: &reqwest::Error, settings: &ProviderSettings) -> CallError {
    // A server that speaks, but no HTTP, is another illness than one that hangs up.
    let is_nonsense = chain(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()).any(hyper::Error::is_parse);
    let cause = root(error);
    if is_nonsense {
        CallError::new(ErrorClass::Garbage, format!("the answer is no HTTP: {cause}"))
    } else if error.is_connect() && error.is_timeout() {
        CallError::new(ErrorClass::Unreachable, format!("no connection within {:?}", settings.connect_timeout))
    } else if error.is_connect() {
        CallError::new(ErrorClass::Unreachable, format!("no connection: {cause}"))
    } else {
        CallError::new(ErrorClass::Unreachable, format!("the connection broke before an answer: {cause}"))
    }
}

/// The next bytes of a body, while they are not too many; `None` at its clean end.
pub(super) async fn next_chunk(
    response: &mut Response,
    seen: &mut usize,
    max: usize,
    patience: &Patience,
) -> Result<Option<Bytes>, CallError> {
    let chunk = patience.read(response.chunk()).await?.map_err(|error| {
        CallError::new(ErrorClass::Truncated, format!("the connection broke inside the answer: {}", root(&error)))
    })?;
    *seen = seen.saturating_add(chunk.as_ref().map_or(0, Bytes::len));
    if *seen > max { Err(too_large(max)) } else { Ok(chunk) }
}

/// A whole body.
pub(super) async fn whole_body(response: &mut Response, max: usize, patience: &Patience) -> Result<Vec<u8>, CallError> {
    let announced = response.content_length().map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced > max {
        return Err(too_large(max));
    }
    let mut body = Vec::with_capacity(announced);
    let mut seen = 0;
    while let Some(chunk) = next_chunk(response, &mut seen, max, patience).await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What comes of a body within a short time: for errors, whose status is known and whose words are only nice to have.
pub(super) async fn beginning(response: &mut Response, max: usize, within: Duration, patience: &Patience) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let left = max.saturating_sub(body.len());
            body.extend(chunk.iter().take(left));
            if chunk.len() > left {
                break;
            }
        }
    };
    let _in_time = patience.briefly(within, read).await;
    body
}

fn too_large(max: usize) -> CallError {
    CallError::new(ErrorClass::Garbage, format!("the answer has more than {max} bytes"))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The innermost cause: it names no URL, and the outer ones only say that something went wrong.
fn root(error: &reqwest::Error) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::{ProviderKind, build};

    fn settings(base_url: &str) -> ProviderSettings {
        ProviderSettings {
            name: "local".to_owned(),
            kind: ProviderKind::OpenAi,
            base_url: base_url.to_owned(),
            api_key: None,
            api_key_env: None,
            attempt_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_response_bytes: 1 << 20,
            demo_delay: Duration::ZERO,
            requests_per_minute: None,
            tokens_per_minute: None,
            max_concurrency: None,
        }
    }

    #[test]
    fn the_path_is_added_and_the_query_kept() {
        let check = |base: &str, expect: &str| {
            assert_eq!(endpoint(&settings(base), &["chat", "completions"]).unwrap().as_str(), expect);
        };
        check("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions");
        check("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions");
        check("http://127.0.0.1:11434", "http://127.0.0.1:11434/chat/completions");
        check(
            "https://x.openai.azure.com/openai/deployments/gpt?api-version=2024-10-21",
            "https://x.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        );
    }

    #[test]
    fn a_base_url_that_cannot_be_called_is_an_error_of_the_configuration() {
        for bad in ["", "api.openai.com/v1", "ftp://host/v1", "file:///etc/passwd", "http://", "mailto:a@b"] {
            let error = build(&settings(bad)).err().unwrap();
            assert!(matches!(error, BuildError::BaseUrl { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_provider_behind_tls_can_be_built() {
        assert!(build(&settings("https://api.openai.com/v1")).is_ok());
    }

    #[test]
    fn this_machine_is_recognised() {
        for (url, expect) in [
            ("http://127.0.0.1:1/", true),
            ("http://127.9.9.9/", true),
            ("http://[::1]:8080/", true),
            ("http://localhost/", true),
            ("http://models.localhost/", true),
            ("http://10.0.0.1/", false),
            ("https://api.openai.com/", false),
            ("https://localhost.example/", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expect, "{url}");
        }
    }
}
