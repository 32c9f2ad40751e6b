//! `prompt-manager healthcheck`: asks the process with this configuration whether it is well.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::Url;
use serde_json::json;

use super::{
    client::{client, root_cause},
    error::CliError,
    output::Output,
};
use crate::config::ServerConfig;

/// How long the whole answer may take. Container engines call often and kill slow checks.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Exit code 0 when `/healthz` answers with success and 1 when it does not, for whatever reason: container engines know no other.
pub async fn run(server: &ServerConfig, output: Output) -> Result<(), CliError> {
    let address = reachable(server.metrics_listen.unwrap_or(server.listen));
    let url = format!("http://{address}/healthz");
    let parsed = Url::parse(&url).map_err(|error| CliError::Software(format!("{url} is not a URL: {error}")))?;
    let answer = client(&parsed, |builder| builder.timeout(TIMEOUT).no_proxy())?.get(parsed).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => {
            output.emit(&json!({ "healthy": true, "url": url }), || format!("{url} is healthy"))
        }
        Ok(answer) => Err(CliError::Refused(format!("{url} is not healthy: it answered {}", answer.status()))),
        Err(error) if error.is_timeout() => {
            Err(CliError::Refused(format!("{url} did not answer within {} s", TIMEOUT.as_secs())))
        }
        Err(error) => Err(CliError::Refused(format!("{url} cannot be reached: {}", root_cause(&error)))),
    }
}

/// An address to connect to: a server that listens on all of them is asked on the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
