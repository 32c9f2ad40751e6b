//! `/healthz` and `/readyz`: for probes, so without a key, and so without a word about addresses or causes.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use workers::{Engine, SubmitError};

use super::error::ApiError;

/// How long the stores have to answer.
const READY_TIME: Duration = Duration::from_secs(3);
/// How long an answer about the stores is good: anybody may ask, and every question would cost a round trip to each of them.
const FRESH: Duration = Duration::from_millis(500);
/// When a probe, or the caller behind it, should ask again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What stands between a process and its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    Database,
    Queue,
    Draining,
    /// A worker that is alive and no longer takes runs.
    Consuming,
}

impl NotReady {
    fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Queue => "queue",
            Self::Draining => "draining",
            Self::Consuming => "consuming",
        }
    }
}

/// What a process knows about itself.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// Whether it is any use to keep this process; asks nobody else. `Err`: restart it.
    fn alive(&self) -> Result<(), NotReady> {
        Ok(())
    }

    /// Whether it shuts down.
    fn is_draining(&self) -> bool;

    /// Asks its stores.
    async fn ready(&self) -> Result<(), NotReady>;
}

#[async_trait]
impl Health for Engine {
    fn is_draining(&self) -> bool {
        Engine::is_draining(self)
    }

    async fn ready(&self) -> Result<(), NotReady> {
        match Engine::ready(self).await {
            // A full queue answers, and is the callers' own 503.
            Ok(()) | Err(SubmitError::Full { .. } | SubmitError::Limited { .. }) => Ok(()),
            Err(SubmitError::Draining) => Err(NotReady::Draining),
            Err(SubmitError::Queue(_)) => Err(NotReady::Queue),
            Err(SubmitError::Ledger(_)) => Err(NotReady::Database),
        }
    }
}

pub(super) fn routes(health: Arc<dyn Health>) -> Router {
    let probe = Arc::new(Probe { health, last: Mutex::new(None) });
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(probe)
}

struct Probe {
    health: Arc<dyn Health>,
    /// Held while the stores are asked, so that they are asked once however many want to know.
    last: Mutex<Option<(Instant, Vec<NotReady>)>>,
}

async fn healthz(State(probe): State<Arc<Probe>>) -> Response {
    match probe.health.alive() {
        Ok(()) => ok(),
        Err(reason) => refuse("unhealthy", "This process is not healthy", &[reason]),
    }
}

async fn readyz(State(probe): State<Arc<Probe>>) -> Response {
    if probe.health.is_draining() {
        return refuse("draining", "This process is shutting down", &[NotReady::Draining]);
    }
    let not_ready = probe.stores().await;
    if not_ready.is_empty() { ok() } else { refuse("not_ready", "This process is not ready", &not_ready) }
}

impl Probe {
    async fn stores(&self) -> Vec<NotReady> {
        let mut last = self.last.lock().await;
        if let Some((asked, answer)) = &*last
            && asked.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = match timeout(READY_TIME, self.health.ready()).await {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(reason)) => vec![reason],
            // One of them is silent, and it is not known which.
            Err(_) => vec![NotReady::Database, NotReady::Queue],
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

fn ok() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

fn refuse(code: &'static str, sentence: &'static str, reasons: &[NotReady]) -> Response {
    let names: Vec<_> = reasons.iter().map(|reason| reason.as_str()).collect();
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, format!("{sentence}: {}", names.join(", ")))
        .retry_after(ASK_AGAIN)
        .details(json!({ "notReady": names }))
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use axum::{
        body::{Body, to_bytes},
        extract::Request,
    };
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    #[derive(Default)]
    struct Fake {
        dead: AtomicBool,
        draining: AtomicBool,
        silent: AtomicBool,
        queue_gone: AtomicBool,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Health for Arc<Fake> {
        fn alive(&self) -> Result<(), NotReady> {
            if self.dead.load(Ordering::Relaxed) { Err(NotReady::Consuming) } else { Ok(()) }
        }

        fn is_draining(&self) -> bool {
            self.draining.load(Ordering::Relaxed)
        }

        async fn ready(&self) -> Result<(), NotReady> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.queue_gone.load(Ordering::Relaxed) { Err(NotReady::Queue) } else { Ok(()) }
        }
    }

    async fn get(router: &Router, path: &str) -> (u16, Value) {
        let response = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        assert_eq!(response.headers().contains_key("retry-after"), status == 503);
        (status, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
    }

    fn not_ready(body: &Value) -> &Value {
        &body["details"]["notReady"]
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_told_what_is_missing() {
        let fake = Arc::new(Fake::default());
        let router = super::super::operations_router(Arc::new(fake.clone()));
        assert_eq!(get(&router, "/healthz").await, (200, json!({ "status": "ok" })));
        assert_eq!(get(&router, "/readyz").await, (200, json!({ "status": "ok" })));

        fake.queue_gone.store(true, Ordering::Relaxed);
        tokio::time::advance(FRESH).await;
        let (status, body) = get(&router, "/readyz").await;
        assert_eq!((status, not_ready(&body)), (503, &json!(["queue"])));
        assert_eq!(get(&router, "/healthz").await.0, 200, "a store that is gone is no reason to restart");

        fake.silent.store(true, Ordering::Relaxed);
        tokio::time::advance(FRESH).await;
        let (status, body) = get(&router, "/readyz").await;
        assert_eq!((status, not_ready(&body)), (503, &json!(["database", "queue"])));

        fake.draining.store(true, Ordering::Relaxed);
        let (status, body) = get(&router, "/readyz").await;
        assert_eq!((status, &body["code"]), (503, &json!("draining")));

        fake.dead.store(true, Ordering::Relaxed);
        let (status, body) = get(&router, "/healthz").await;
        assert_eq!((status, not_ready(&body)), (503, &json!(["consuming"])));
    }

    #[tokio::test(start_paused = true)]
    async fn many_probes_cost_the_stores_one_question() {
        let fake = Arc::new(Fake::default());
        let router = super::super::operations_router(Arc::new(fake.clone()));
        let many = (0..50).map(|_| get(&router, "/readyz"));
        futures::future::join_all(many).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
    }
}
