//! `/healthz` and `/readyz`: for probes, so without a key, and so without a word about addresses or causes.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use workers::{Engine, executor};

use super::error::ApiError;

/// How long the stores have to answer.
const READY_TIME: Duration = Duration::from_secs(3);
/// How long an answer about the stores is good: anybody may ask, and every question would cost a round trip to each of them.
const FRESH: Duration = Duration::from_millis(500);
/// When a probe, or the caller behind it, should ask again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a process's probes are answered from. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    pub engine: Engine,
    /// Absent on a front door without executors.
    pub executors: Option<Arc<executor::Health>>,
}

/// What stands between a process and its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    Database,
    Queue,
    Draining,
    /// The executors are alive and no longer take runs.
    Consuming,
    /// An executor, or what it works with, is dead.
    Executors,
}

impl Obstacle {
    fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Queue => "queue",
            Self::Draining => "draining",
            Self::Consuming => "consuming",
            Self::Executors => "executors",
        }
    }
}

/// What a process knows about itself.
#[async_trait]
trait Health: Send + Sync + 'static {
    /// What makes this process useless, so that it should be started again. Asks nobody else.
    fn ill(&self) -> Option<Obstacle>;

    /// Whether it shuts down.
    fn is_draining(&self) -> bool;

    /// Asks the stores.
    async fn unreachable(&self) -> Vec<Obstacle>;
}

#[async_trait]
impl Health for Readiness {
    fn ill(&self) -> Option<Obstacle> {
        // A pool that drains takes no runs because it should not, and its actors end.
        let health = self.executors.as_ref().filter(|health| !health.is_draining())?;
        match (health.is_whole(), health.is_consuming()) {
            (false, _) => Some(Obstacle::Executors),
            (true, false) => Some(Obstacle::Consuming),
            (true, true) => None,
        }
    }

    fn is_draining(&self) -> bool {
        self.engine.is_draining() || self.executors.as_ref().is_some_and(|health| health.is_draining())
    }

    async fn unreachable(&self) -> Vec<Obstacle> {
        let silent = |_| ();
        let (database, queue) = tokio::join!(
            async { timeout(READY_TIME, self.engine.ledger_ready()).await.map_err(silent)?.map_err(|_| ()) },
            async { timeout(READY_TIME, self.engine.queue_ready()).await.map_err(silent)?.map_err(|_| ()) },
        );
        let database = database.is_err().then_some(Obstacle::Database);
        database.into_iter().chain(queue.is_err().then_some(Obstacle::Queue)).collect()
    }
}

pub(super) fn routes() -> OpenApiRouter<Arc<Probe>> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz))
}

pub(super) struct Probe {
    health: Box<dyn Health>,
    /// Held while the stores are asked, so that they are asked once however many want to know.
    last: Mutex<Option<(Instant, Vec<Obstacle>)>>,
}

/// The answer of a process that is well.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthBody {
    /// `ok`.
    status: &'static str,
}

/// Whether this process is of use, or should be started again.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getHealth",
    tag = "Health",
    security(()),
    responses(
        (status = 200, description = "The process is well", body = HealthBody),
        (status = 503, description = "`unhealthy`: `details.notReady` names what is missing"),
    ),
)]
async fn healthz(State(probe): State<Arc<Probe>>) -> Response {
    match probe.health.ill() {
        None => ok(),
        Some(obstacle) => refuse("unhealthy", "This process is not healthy", &[obstacle]),
    }
}

/// Whether this process should get requests now.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "Health",
    security(()),
    responses(
        (status = 200, description = "The process is ready", body = HealthBody),
        (status = 503, description = "`not_ready`, `draining`: `details.notReady` names what is missing"),
    ),
)]
async fn readyz(State(probe): State<Arc<Probe>>) -> Response {
    if probe.health.is_draining() {
        return refuse("draining", "This process is shutting down", &[Obstacle::Draining]);
    }
    let unreachable = probe.stores().await;
    if unreachable.is_empty() { ok() } else { refuse("not_ready", "This process is not ready", &unreachable) }
}

impl Probe {
    pub(super) fn of(readiness: Readiness) -> Arc<Self> {
        Self::new(readiness)
    }

    fn new(health: impl Health) -> Arc<Self> {
        Arc::new(Self { health: Box::new(health), last: Mutex::new(None) })
    }

    async fn stores(&self) -> Vec<Obstacle> {
        let mut last = self.last.lock().await;
        if let Some((asked, answer)) = &*last
            && asked.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = self.health.unreachable().await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

fn ok() -> Response {
    Json(HealthBody { status: "ok" }).into_response()
}

fn refuse(code: &'static str, sentence: &'static str, obstacles: &[Obstacle]) -> Response {
    let names: Vec<_> = obstacles.iter().map(|obstacle| obstacle.as_str()).collect();
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, format!("{sentence}: {}", names.join(", ")))
        .retry_after(ASK_AGAIN)
        .details(json!({ "notReady": names }))
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use axum::{
        Router,
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
        queue_gone: AtomicBool,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Health for Arc<Fake> {
        fn ill(&self) -> Option<Obstacle> {
            self.dead.load(Ordering::Relaxed).then_some(Obstacle::Consuming)
        }

        fn is_draining(&self) -> bool {
            self.draining.load(Ordering::Relaxed)
        }

        async fn unreachable(&self) -> Vec<Obstacle> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.queue_gone.load(Ordering::Relaxed).then_some(Obstacle::Queue).into_iter().collect()
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
        let router = super::super::shell::wrap(routes().with_state(Probe::new(fake.clone())).into());
        assert_eq!(get(&router, "/healthz").await, (200, json!({ "status": "ok" })));
        assert_eq!(get(&router, "/readyz").await, (200, json!({ "status": "ok" })));

        fake.queue_gone.store(true, Ordering::Relaxed);
        tokio::time::advance(FRESH).await;
        let (status, body) = get(&router, "/readyz").await;
        assert_eq!((status, not_ready(&body)), (503, &json!(["queue"])));
        assert_eq!(get(&router, "/healthz").await.0, 200, "a store that is gone is no reason to restart");

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
        let router = super::super::shell::wrap(routes().with_state(Probe::new(fake.clone())).into());
        let many = (0..50).map(|_| get(&router, "/readyz"));
        futures::future::join_all(many).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
    }
}
