//! Connections: shared ones for commands, and connections of their own for reads that block.

use std::{collections::HashMap, sync::Arc, time::Duration};

use deadpool_redis::{Pool, Runtime, Timeouts};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, FromRedisValue, InfoDict, RedisError, ServerErrorKind,
    aio::{MultiplexedConnection, PubSub},
};
use tokio::time::{Instant, timeout};

use super::{
    RedisSettings,
    clock::{Sample, Shown},
    lines::{Lines, Step},
};
use crate::{providers::Secret, queue::Unreachable};

/// The whole of [`Connections::open`].
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// To make one connection.
const CONNECTION_WITHIN: Duration = Duration::from_secs(2);
/// One command, from its sending to its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The first version whose scripts can say what they do when memory is short.
const OLDEST_MAJOR_VERSION: u32 = 7;

/// Why there is no queue, for the operator. No message holds the URL, because it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "the Redis URL is malformed; it looks like redis://[user:password@]host:port[/database], or rediss:// for TLS"
    )]
    Malformed,
    #[error("Redis at {address} does not answer")]
    Unreachable {
        /// Host and port, or the path of the socket.
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("Redis at {address} refused the user or password of its URL")]
    Refused { address: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("Redis at {address} has version {version}; version 7 or newer is needed (or Valkey)")]
    TooOld { address: String, version: String },
}

/// The way to one Redis. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    client: Client,
    lines: Arc<Lines>,
}

impl Connections {
    /// Connects and checks what is there; returns what time it is there, and what the operator should know about it.
    pub async fn open(settings: &RedisSettings) -> Result<(Self, Sample, Vec<String>), ConnectError> {
        let client = client(&settings.url)?;
        let address = client.get_connection_info().addr().to_string();
        let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::Unreachable {
            address: address.clone(),
            source,
        };

        let pool = pool(&client, settings.max_connections).map_err(&unreachable)?;
        let lines = Arc::new(Lines::new(pool));
        let connections = Self { client, lines };
        let opened = timeout(CONNECT_WITHIN, async {
            let mut connection = connections.dedicated().await?;
            let time = connections.time(&mut connection).await?;
            let info = query(&mut connection, redis::cmd("INFO")).await;
            let mut settings = redis::cmd("CONFIG");
            settings.arg("GET").arg("maxmemory-policy").arg("appendonly").arg("save");
            let settings = query(&mut connection, settings).await;
            Ok((time, info, settings))
        });
        let (time, info, settings): (_, Result<InfoDict, _>, Result<HashMap<String, String>, _>) = match opened.await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => return Err(refusal(error, address)),
            Err(late) => return Err(unreachable(Box::new(late))),
        };
        let warnings = check(info, settings, address)?;
        Ok((connections, time, warnings))
    }

    /// Runs one step on a shared connection, within a bounded time. It may be made twice, when the first connection breaks.
    pub async fn ask<T: FromRedisValue + Send>(&self, step: &impl Step) -> Result<T, Unreachable> {
        self.lines.ask(step).await
    }

    /// A new connection whose reads may block. The caller bounds them, or it never notices that its peer is gone.
    pub async fn dedicated(&self) -> Result<MultiplexedConnection, RedisError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECTION_WITHIN)).set_response_timeout(None);
        // The timeout of the connection does not hold for the greeting that follows it.
        timeout(CONNECTION_WITHIN, self.client.get_multiplexed_async_connection_with_config(&config))
            .await
            .unwrap_or_else(|_| Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))))
    }

    /// What time it is there.
    pub async fn time(&self, connection: &mut MultiplexedConnection) -> Result<Sample, RedisError> {
        let asked = Instant::now();
        let shown: Shown = query(connection, redis::cmd("TIME")).await?;
        Ok(Sample { asked, shown, answered: Instant::now() })
    }

    /// A new connection that listens to channels.
    pub async fn pubsub(&self) -> Result<PubSub, RedisError> {
        timeout(CONNECTION_WITHIN, self.client.get_async_pubsub())
            .await
            .unwrap_or_else(|_| Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))))
    }
}

/// A command on a connection that has no response timeout of its own.
pub(super) async fn query<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    command: redis::Cmd,
) -> Result<T, RedisError> {
    timeout(ANSWER_WITHIN, command.query_async(connection))
        .await
        .unwrap_or_else(|_| Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))))
}

pub(super) fn unreachable(error: impl std::error::Error + Send + Sync + 'static) -> Unreachable {
    Unreachable(Box::new(error))
}

fn client(url: &Secret) -> Result<Client, ConnectError> {
    // The parser's own words are dropped: they may repeat a part of the URL.
    let client = Client::open(url.expose()).map_err(|_| ConnectError::Malformed)?;
    if matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }) {
        // TLS needs a provider for the process; an error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Ok(client)
}

fn pool(client: &Client, max_connections: usize) -> Result<Pool, Box<dyn std::error::Error + Send + Sync>> {
    // Whoever makes a step bounds it.
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECTION_WITHIN)).set_response_timeout(None);
    let manager = deadpool_redis::Manager::new_with_config(client.get_connection_info().clone(), config)?;
    let within = Some(CONNECTION_WITHIN);
    Ok(Pool::builder(manager)
        .max_size(max_connections.max(1))
        .timeouts(Timeouts { wait: within, create: within, recycle: within })
        .runtime(Runtime::Tokio1)
        .build()?)
}

fn refusal(error: RedisError, address: String) -> ConnectError {
    let refused = error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
    let source = Box::new(error);
    if refused { ConnectError::Refused { address, source } } else { ConnectError::Unreachable { address, source } }
}

/// Judges what Redis says about itself. A user that may not ask is not an error: it may be allowed all that the queue needs.
fn check(
    info: Result<InfoDict, RedisError>,
    settings: Result<HashMap<String, String>, RedisError>,
    address: String,
) -> Result<Vec<String>, ConnectError> {
    let mut warnings = Vec::new();
    let forbidden = |error: &RedisError| error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm);
    let info = match info {
        Ok(info) => Some(info),
        Err(error) if forbidden(&error) => {
            warnings.push(
                "Redis does not let this user run INFO, so its version could not be checked; version 7 or newer is needed"
                    .to_owned(),
            );
            None
        }
        Err(error) => return Err(refusal(error, address)),
    };
    let said = |name: &str| info.as_ref().and_then(|info| info.get::<String>(name));

    if let Some(version) = said("redis_version") {
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < OLDEST_MAJOR_VERSION) {
            return Err(ConnectError::TooOld { address, version });
        }
    }
    let settings = settings.unwrap_or_default();
    let setting = |name: &str| settings.get(name).map(String::as_str);
    if setting("appendonly") == Some("no") && setting("save").is_some_and(|save| !save.is_empty()) {
        warnings.push(
            "Redis keeps snapshots and no log (appendonly no): one that comes back with an old snapshot has runs called again that have ended since; set \
             appendonly yes"
                .to_owned(),
        );
    }
    match setting("maxmemory-policy").map(str::to_owned).or_else(|| said("maxmemory_policy")).as_deref() {
        Some("noeviction") => {}
        Some(other) => warnings.push(format!(
            "Redis has maxmemory-policy {other}, so it may drop queued runs when its memory is full; set maxmemory-policy noeviction"
        )),
        None => warnings.push(
            "Redis does not say its maxmemory-policy; it must be noeviction, or queued runs may be dropped when its memory is full"
                .to_owned(),
        ),
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(info: &str) -> Result<Vec<String>, ConnectError> {
        check(Ok(InfoDict::new(info)), Ok(HashMap::new()), "host:6379".into())
    }

    #[test]
    fn snapshots_without_a_log_are_warned_of() {
        for (appendonly, save, warned) in [("no", "3600 1", true), ("no", "", false), ("yes", "3600 1", false)] {
            let settings = [("maxmemory-policy", "noeviction"), ("appendonly", appendonly), ("save", save)];
            let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let warnings =
                check(Ok(InfoDict::new("redis_version:7.0.15\r\n")), Ok(settings), "host:6379".into()).unwrap();
            assert_eq!(!warnings.is_empty(), warned, "{appendonly} {save:?}: {warnings:?}");
        }
    }

    #[test]
    fn versions_before_seven_are_refused() {
        for (version, accepted) in
            [("6.2.14", false), ("7.0.15", true), ("7.2.4", true), ("10.0.0", true), ("x", false)]
        {
            let judged = judge(&format!("redis_version:{version}\r\nmaxmemory_policy:noeviction\r\n"));
            match judged {
                Ok(warnings) => assert!(accepted && warnings.is_empty(), "{version}: {warnings:?}"),
                Err(error) => {
                    assert!(!accepted);
                    let told =
                        format!("Redis at host:6379 has version {version}; version 7 or newer is needed (or Valkey)");
                    assert_eq!(error.to_string(), told);
                }
            }
        }
    }
}
