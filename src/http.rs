//! The front door's HTTP: it translates, and decides nothing.
//!
//! A request passes the shell (request id, panics, the shape of errors), then authentication (everywhere but on the health
//! routes), then one handler that parses, calls one function of [`crate::run`], and maps its answer. The connections under it are
//! [`serve`]'s.
//!
//! Only what hyper refuses before there is a request has no JSON body: a head that is malformed (400) or too large (431, 414).
//!
//! | Ending of a waited-for run | Status | `code` |
//! |---|---|---|
//! | succeeded | 200 | |
//! | failed | 500 | the failure's own |
//! | cancelled (through another request) | 409 | `run_cancelled` |
//! | expired, or its deadline came | 504 | `deadline_exceeded` |
//!
//! `success` says whether the *request* was answered. It is `true` in every 2xx body, so that the status of a failed run reads
//! `success: true, state: "failed"` with the run's `error` and `code`; it is `false` in every other body.

mod after;
mod auth;
mod batch_body;
mod batches;
mod body;
mod deliveries;
mod error;
mod event_body;
mod events;
mod headers;
mod health;
mod idempotency;
mod list;
mod openapi;
mod prefer;
mod run_body;
mod runs;
mod server;
mod shell;
mod sse;
mod ws;

use std::sync::Arc;

use axum::{Router, middleware::from_fn_with_state, routing::MethodRouter};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt},
    routes,
};

use self::{health::Probe, ws::Sockets};
pub use self::{health::Readiness, openapi::document, run_body::status_of, server::serve};
use crate::{batches::Batches, config::WebSocketConfig, keys::Keys, run::Runner, webhooks::Webhooks};

/// What the front door needs. Cheap to clone.
#[derive(Clone)]
pub struct FrontDoor {
    pub keys: Keys,
    pub runner: Runner,
    pub batches: Batches,
    pub webhooks: Webhooks,
    pub max_body_bytes: usize,
    pub websocket: WebSocketConfig,
    pub readiness: Readiness,
}

/// What handlers share.
struct Door {
    keys: Keys,
    runner: Runner,
    batches: Batches,
    webhooks: Webhooks,
    max_body_bytes: usize,
    sockets: Sockets,
    websocket: WebSocketConfig,
}

/// Every route of a front door. Each describes itself where its handler is, and so is in the document.
struct Routes {
    api: OpenApiRouter<Arc<Door>>,
    health: OpenApiRouter<Arc<Probe>>,
    reference: OpenApiRouter,
}

/// `guard` asks for a key before the handler is called.
fn routes(guard: impl Fn(MethodRouter<Arc<Door>>) -> MethodRouter<Arc<Door>>) -> Routes {
    let guarded = |routes: UtoipaMethodRouter<Arc<Door>>| routes.map(&guard);
    let api = OpenApiRouter::new()
        .routes(guarded(routes!(runs::create)))
        .routes(guarded(routes!(list::show)))
        .routes(guarded(routes!(runs::show)))
        .routes(guarded(routes!(events::show)))
        .routes(guarded(routes!(runs::cancel)))
        .routes(guarded(routes!(batches::create)))
        .routes(guarded(routes!(batches::show)))
        .routes(guarded(routes!(batches::results)))
        .routes(guarded(routes!(batches::cancel)))
        .routes(guarded(routes!(deliveries::list)))
        .routes(guarded(routes!(deliveries::redeliver)))
        // Browsers cannot set its headers, so it looks for the key itself.
        .routes(routes!(ws::upgrade::open));
    Routes { api, health: health::routes(), reference: openapi::routes() }
}

/// Serves every route of a front door.
pub fn router(front: FrontDoor) -> Router {
    let FrontDoor { keys, runner, batches, webhooks, max_body_bytes, websocket, readiness } = front;
    let sockets = Sockets::default();
    let door = Arc::new(Door { keys, runner, batches, webhooks, max_body_bytes, sockets, websocket });
    // A wrong method is answered before the key is asked for: it tells nothing about an account.
    let guard = |route: MethodRouter<Arc<Door>>| route.route_layer(from_fn_with_state(door.clone(), auth::require_key));
    let Routes { api, health, reference } = routes(guard);
    let all = api.with_state(door.clone()).merge(health.with_state(Probe::of(readiness))).merge(reference);
    shell::wrap(all.into())
}

/// `/healthz` and `/readyz` alone: for workers, and for listeners that only probes reach.
pub fn operations_router(readiness: Readiness) -> Router {
    shell::wrap(health::routes().with_state(Probe::of(readiness)).into())
}
