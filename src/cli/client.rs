//! What the commands that speak HTTP share.

use std::{error::Error, net::IpAddr, time::Duration};

use reqwest::{Client, ClientBuilder, Url};

use super::error::CliError;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for one server. A server on this machine is never asked for through a proxy.
pub(super) fn client(server: &Url, configure: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<Client, CliError> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("prompt-manager/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none());
    if is_local(server) {
        builder = builder.no_proxy();
    }
    configure(builder)
        .build()
        .map_err(|error| CliError::Software(format!("the HTTP client cannot be made: {}", root_cause(&error))))
}

/// The innermost reason: the outer ones repeat that a request failed.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn is_local(server: &Url) -> bool {
    let host = server.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
