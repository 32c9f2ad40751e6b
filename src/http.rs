//! The front door's HTTP: it translates, and decides nothing.
//!
//! A request passes the shell (request id, panics, the shape of errors), then one handler that asks who calls (everywhere but on the health
//! routes), parses, calls one function of [`crate::run`], and maps its answer. The connections under it are [`serve`]'s.
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

use axum::Router;
use utoipa_axum::{router::OpenApiRouter, routes};

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

/// Those of the API ask for a key by asking who calls ([`auth::Caller`]).
fn routes() -> Routes {
    let api = OpenApiRouter::new()
        .routes(routes!(runs::create))
        .routes(routes!(list::show))
        .routes(routes!(runs::show))
        .routes(routes!(events::show))
        .routes(routes!(runs::cancel))
        .routes(routes!(batches::create))
        .routes(routes!(batches::show))
        .routes(routes!(batches::results))
        .routes(routes!(batches::cancel))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::redeliver))
        // Browsers cannot set its headers, so it looks for the key itself.
        .routes(routes!(ws::upgrade::open));
    Routes { api, health: health::routes(), reference: openapi::routes() }
}

/// Serves every route of a front door.
pub fn router(front: FrontDoor) -> Router {
    let FrontDoor { keys, runner, batches, webhooks, max_body_bytes, websocket, readiness } = front;
    let sockets = Sockets::default();
    let door = Arc::new(Door { keys, runner, batches, webhooks, max_body_bytes, sockets, websocket });
    let Routes { api, health, reference } = routes();
    let all = api.with_state(door).merge(health.with_state(Probe::of(readiness))).merge(reference);
    shell::wrap(all.into())
}

/// `/healthz` and `/readyz` alone: for workers, and for listeners that only probes reach.
pub fn operations_router(readiness: Readiness) -> Router {
    shell::wrap(health::routes().with_state(Probe::of(readiness)).into())
}
