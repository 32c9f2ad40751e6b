//! A provider that does what a test tells it to: a real HTTP/1.1 server that speaks Chat Completions on a free loopback
//! port.
//!
//! It runs on a thread and a runtime of its own, so it works from any test and for any process. Every request is
//! answered by an [`Answer`], chosen in this order: the next one pushed for the model that the request names, the next
//! one pushed for all, the model's default, the default (an echo). It writes down every request, and whether its client
//! hung up before the answer's end.
//!
//! ```ignore
//! let provider = ScriptedProvider::start().await;
//! provider.push(Answer::error(500, "ill"));
//! provider.push(Answer::text("Bonjour"));
//! // … two calls to `provider.url()` …
//! provider.wait_for_requests(2).await;
//! ```

#![allow(dead_code, reason = "each suite uses its part")]

mod answer;
mod server;

use std::{
    net::TcpListener,
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::oneshot;

pub use answer::{Act, Answer, Gate};
use server::Shared;

/// How long a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct ScriptedProvider {
    url: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The number of its connection, from 1.
    pub connection: usize,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    /// `Null` when it was no JSON.
    pub body: Value,
    pub at: Instant,
    /// Tokens of input and output that its answer names, when it is a complete one.
    pub usage: Option<(u64, u64)>,
    /// How its answer ended; `None` while it has not.
    pub end: Option<End>,
    pub ended_at: Option<Instant>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was sent as the script says, broken as that may be.
    Sent,
    /// The client closed the connection first.
    HungUp,
}

impl Recorded {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub fn model(&self) -> &str {
        self.body["model"].as_str().unwrap_or_default()
    }

    pub fn is_stream(&self) -> bool {
        self.body["stream"] == true
    }

    /// The content of the last message.
    pub fn user_text(&self) -> &str {
        let last = self.body["messages"].as_array().and_then(|messages| messages.last());
        last.and_then(|message| message["content"].as_str()).unwrap_or_default()
    }

    pub fn hung_up(&self) -> bool {
        self.end == Some(End::HungUp)
    }
}

impl ScriptedProvider {
    /// Listens on a free port.
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Listens again where a provider was before, for tests that take it away for a while.
    pub async fn start_at(url: &str) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches("/v1");
        Self::on(TcpListener::bind(address).unwrap())
    }

    fn on(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let served = shared.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = server::serve(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { url, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// The base URL: `http://127.0.0.1:PORT/v1`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The answer to the next request that has none of its own.
    pub fn push(&self, answer: Answer) {
        self.state().queue.push_back(answer);
    }

    /// The answer to the next request for a model.
    pub fn push_for(&self, model: &str, answer: Answer) {
        self.state().queues.entry(model.to_owned()).or_default().push_back(answer);
    }

    /// The answer to every request for which nothing else is said.
    pub fn set_default(&self, answer: Answer) {
        self.state().default = answer;
    }

    /// The answer to every request for a model for which nothing is pushed.
    pub fn set_for_model(&self, model: &str, answer: Answer) {
        self.state().defaults.insert(model.to_owned(), answer);
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state().requests.clone()
    }

    /// Requests that are being answered now.
    pub fn concurrency(&self) -> usize {
        self.state().in_flight
    }

    /// The most requests that were being answered at a time.
    pub fn max_concurrency(&self) -> usize {
        self.state().max_in_flight
    }

    /// Connections that were ever opened.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Waits until this many requests have come.
    pub async fn wait_for_requests(&self, count: usize) {
        self.wait_until(&format!("{count} requests"), |requests| requests.len() >= count).await;
    }

    /// Waits until the requests are as they should be; panics with `what` when that takes too long.
    pub async fn wait_until(&self, what: &str, is_so: impl Fn(&[Recorded]) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !is_so(&self.state().requests) {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("waited in vain for {what}: {:#?}", self.requests());
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, server::State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ScriptedProvider {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the scripted provider panicked");
        }
    }
}
