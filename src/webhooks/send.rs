//! One call of a webhook: a client that connects to addresses which the guard admits, and to no other.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    header::CONTENT_TYPE,
    redirect,
};

use super::{Guard, schedule::Outcome};

const USER_AGENT: &str = concat!("prompt-manager/", env!("CARGO_PKG_VERSION"));
/// How much of an answer is read, so that its connection can be used again. Nobody looks at it.
const READ_AT_MOST: usize = 4 * 1024;
/// Characters of a reason that are kept.
const LONGEST_REASON: usize = 200;

/// Sends what is signed. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sender {
    client: Client,
    guard: Arc<Guard>,
    timeout: Duration,
}

/// What is sent, and its signature.
pub(super) struct Message {
    pub id: String,
    /// Unix seconds.
    pub timestamp: i64,
    pub signatures: String,
    pub body: String,
}

impl Sender {
    pub(super) fn new(guard: Arc<Guard>, timeout: Duration) -> Result<Self, reqwest::Error> {
        // The process has one TLS provider; whoever comes first installs it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            Client::builder()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
                // A proxy would look names up by itself, and connect to whatever they say.
                .no_proxy()
                .dns_resolver(Vetted { guard: guard.clone() })
                .timeout(timeout)
                .pool_idle_timeout(Duration::from_secs(30))
        };
        let client = builder().build().or_else(|error| {
            tracing::warn!(%error, "this machine has no certificates: webhooks cannot be called by https");
            builder().tls_certs_only([]).build()
        })?;
        Ok(Self { client, guard, timeout })
    }

    pub(super) async fn send(&self, url: &str, message: Message) -> Outcome {
        // What was allowed when the run was accepted may not be any more. An address in the URL is looked at here; a name by the resolver.
        let url = match self.guard.check(url) {
            Ok(url) => url,
            Err(problem) => return Outcome::Impossible(format!("the URL {problem}")),
        };
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", message.id)
            .header("webhook-timestamp", message.timestamp)
            .header("webhook-signature", message.signatures)
            .body(message.body);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Outcome::Unanswered(self.reason(&error)),
        };
        let mut read = 0;
        while read < READ_AT_MOST {
            match response.chunk().await {
                Ok(Some(bytes)) => read += bytes.len(),
                Ok(None) | Err(_) => break,
            }
        }
        Outcome::Answered(response.status().as_u16())
    }

    fn reason(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("no answer within {} ms", self.timeout.as_millis());
        }
        let mut cause: &dyn Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let what = if error.is_connect() { "no connection" } else { "no answer" };
        format!("{what}: {cause}").chars().take(LONGEST_REASON).collect()
    }
}

/// Looks a name up once, and answers with those of its addresses that may be called: the connection is made to one of them.
struct Vetted {
    guard: Arc<Guard>,
}

impl Resolve for Vetted {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        Box::pin(async move {
            // The port is the URL's; it is filled in by the client.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let known = !found.is_empty();
            let vetted: Vec<_> =
                found.into_iter().filter(|address| guard.admits(name.as_str(), address.ip())).collect();
            if known && vetted.is_empty() {
                let reason = "its name has no address on the public Internet";
                return Err(Box::new(io::Error::new(io::ErrorKind::PermissionDenied, reason)) as Box<_>);
            }
            Ok(Box::new(vetted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::AllowedHost;

    use super::*;

    async fn resolved(guard: Guard, name: &str) -> Result<Vec<SocketAddr>, String> {
        let vetted = Vetted { guard: Arc::new(guard) };
        vetted.resolve(name.parse().unwrap()).await.map(Iterator::collect).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_with_inner_addresses_only_is_not_connected_to() {
        let refused = "its name has no address on the public Internet".to_owned();
        assert_eq!(resolved(Guard::default(), "localhost").await, Err(refused));
        let network = Guard::new(vec![AllowedHost::Network("127.0.0.1/32".parse().unwrap())]);
        let vetted = resolved(network, "localhost").await.unwrap();
        assert!(
            !vetted.is_empty() && vetted.iter().all(|address| address.ip().to_string() == "127.0.0.1"),
            "{vetted:?}"
        );
        let named = Guard::new(vec![AllowedHost::Name("localhost".to_owned())]);
        assert!(!resolved(named, "localhost").await.unwrap().is_empty());
    }
}
