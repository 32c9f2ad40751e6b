//! Connections: accepted, bounded in time and size, and brought to an end.
//!
//! axum's own `serve` sets no timer and waits for ever when it stops, so this is the loop around hyper-util's
//! connections. Every connection, every HTTP/2 stream on one, and whatever a connection is upgraded to is a task of one tracker: when
//! [`serve`] returns, none is left.

mod deadline;

use std::{io, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, StatusCode, header::CONNECTION},
    response::Response,
};
use futures::FutureExt;
use hyper::rt::Executor;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    pin, select,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::util::MapResponse;

use self::deadline::{FirstRequest, HeadTimer, Watched};
use crate::config::ServerConfig;

/// How long a connection may be silent between two requests. Longer than the minute after which the usual load balancers drop theirs:
/// whoever closes first must be the side that never sends a request into a closed connection.
const IDLE: Duration = Duration::from_secs(75);
/// The request line and all headers together; beyond that hyper answers 431. A multiple of what browsers and proxies send.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;
const MAX_STREAMS: u32 = 250;
/// HTTP/2 has no idle time: a peer that is gone is found by asking it.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIME: Duration = Duration::from_secs(20);
/// A connection that was made, or answered, a moment before the server stops has a request on its way: it is not closed before that had the time to arrive. Each answer since
/// then says that it is the last one.
const ON_ITS_WAY: Duration = Duration::from_millis(500);
/// Accepting fails for a while when the process has no descriptor left; trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves `router` on `listener` until `stop`; then closes what is idle, lets what is in flight end within
/// [`ServerConfig::drain_timeout`], and cuts off the rest.
pub async fn serve(listener: TcpListener, router: Router, config: ServerConfig, stop: CancellationToken) {
    let Cut(cut) = serve_and_count(listener, router, &config, stop).await;
    if cut > 0 {
        tracing::warn!(cut, "requests in flight outlived the drain timeout and were cut off");
    }
}

/// How many connections and requests took longer than the drain timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut(usize);

async fn serve_and_count(listener: TcpListener, router: Router, config: &ServerConfig, stop: CancellationToken) -> Cut {
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let connections = Connections {
        router,
        header_read_timeout: config.header_read_timeout,
        tasks: tasks.clone(),
        stop: stop.clone(),
        cut: cut.clone(),
    };
    loop {
        let accepted = select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(connections.clone().serve(stream));
            }
            Err(error) if is_one_connection_s(&error) => tracing::debug!(%error, "a connection ended before it began"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                select! {
                    () = stop.cancelled() => break,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    // Those that the system has made already are ours: dropped with the listener, they would be reset.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        tasks.spawn(connections.clone().serve(stream));
    }
    // From here on new connections are refused instead of waiting in a backlog that nobody looks at.
    drop(listener);
    tasks.close();
    if timeout(config.drain_timeout, tasks.wait()).await.is_ok() {
        return Cut(0);
    }
    let left = Cut(tasks.len());
    cut.cancel();
    tasks.wait().await;
    left
}

/// Errors of the connection that was being accepted, not of the listener (accept(2)).
fn is_one_connection_s(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NetworkUnreachable | TimedOut
    )
}

/// What every connection is made of.
#[derive(Clone)]
struct Connections {
    router: Router,
    header_read_timeout: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Connections {
    async fn serve(self, stream: TcpStream) {
        // Nagle's algorithm would hold small answers back for the peer's delayed acknowledgement. A peer that is gone already is found below.
        let _ = stream.set_nodelay(true);
        let first_request = FirstRequest::default();
        let timer = HeadTimer::new(self.header_read_timeout);
        let io = Watched::new(TokioIo::new(stream), first_request.clone(), timer.clone());
        let upgrades = Upgrades { tasks: self.tasks.clone(), stop: self.stop.clone(), cut: self.cut.clone() };
        let (stop, first) = (self.stop.clone(), first_request.clone());
        let last = move |mut response: Response| {
            if stop.is_cancelled() && first.is_http1() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        };
        let service = MapResponse::new(first_request.noticed_by(self.router, upgrades), last);
        let service = TowerToHyperService::new(service);
        let mut builder = Builder::new(TrackedExecutor { tasks: self.tasks, cut: self.cut.clone() });
        builder
            .http1()
            .timer(timer)
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
        let connection = builder.serve_connection_with_upgrades(io, service);
        pin!(connection);
        let stop = async {
            self.stop.cancelled().await;
            sleep(ON_ITS_WAY).await;
        };
        pin!(stop);
        let mut stopping = false;
        loop {
            select! {
                ended = connection.as_mut() => {
                    // Timeouts, resets and garbage are the peer's doing, and what callers should know they were answered.
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return;
                }
                () = stop.as_mut(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.cut.cancelled() => return,
            }
        }
    }
}

/// What a request that stops to be HTTP takes along from its server. Requests that ask for an upgrade have it as an extension.
#[derive(Clone)]
pub(super) struct Upgrades {
    tasks: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Upgrades {
    /// Runs what the connection becomes. The server waits for it when it stops, and cuts it off like a request.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Boxed, because what waits for the cut is three times as large as what it is given, and most connections stay for long.
        self.tasks.spawn(self.cut.clone().run_until_cancelled_owned(Box::pin(task)));
    }

    /// Cancelled when the server stops: what does not end by itself has to see to it then.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

/// Runs HTTP/2 streams as tasks of the server's tracker.
#[derive(Clone)]
struct TrackedExecutor {
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl<F> Executor<F> for TrackedExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.tasks.spawn(self.cut.clone().run_until_cancelled_owned(stream));
    }
}

#[cfg(test)]
mod tests;
