//! `GET /api/v1/runs/{id}/deliveries` and `POST /api/v1/deliveries/{id}/redeliver`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use workers::{
    job::{DeliveryId, RunId},
    ledger::{Delivery, Redelivery, Try},
};

use super::{Door, auth::Caller, error::ApiError, run_body::rfc3339, runs::run_id};
use crate::run::RunError;

/// A run ends once, so that it is told once.
const MAX_DELIVERIES: u64 = 10;

#[derive(Serialize, ToSchema)]
#[schema(as = DeliveryList)]
struct ListBody<'a> {
    success: bool,
    deliveries: Vec<DeliveryBody<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Redelivery)]
struct RedeliveryBody<'a> {
    success: bool,
    #[serde(flatten)]
    delivery: DeliveryBody<'a>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
#[serde(rename_all = "camelCase")]
struct DeliveryBody<'a> {
    #[schema(value_type = Uuid)]
    id: DeliveryId,
    #[schema(value_type = Uuid)]
    run_id: RunId,
    event: &'a str,
    url: &'a str,
    state: &'static str,
    #[schema(format = DateTime)]
    created_at: String,
    /// When it is called next.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    next_attempt_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    finished_at: Option<String>,
    attempts: Vec<AttemptBody<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DeliveryAttempt)]
#[serde(rename_all = "camelCase")]
struct AttemptBody<'a> {
    #[schema(format = DateTime)]
    at: String,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<&'a str>,
}

impl<'a> DeliveryBody<'a> {
    fn new(delivery: &'a Delivery, attempts: &'a [Try]) -> Self {
        Self {
            id: delivery.id,
            run_id: delivery.run,
            event: &delivery.event,
            url: &delivery.url,
            state: delivery.state.as_str(),
            created_at: rfc3339(delivery.created_at),
            next_attempt_at: delivery.due_at.map(rfc3339),
            finished_at: delivery.finished_at.map(rfc3339),
            attempts: attempts.iter().map(attempt).collect(),
        }
    }
}

fn attempt(made: &Try) -> AttemptBody<'_> {
    let Try { at, duration_ms, status, error, .. } = made;
    AttemptBody { at: rfc3339(*at), duration_ms: *duration_ms, status: *status, error: error.as_deref() }
}

/// Who is told of the end of a run of the caller's account, and how that went.
#[utoipa::path(
    get,
    path = "/api/v1/runs/{id}/deliveries",
    operation_id = "listDeliveries",
    tag = "Webhooks",
    params(("id" = Uuid, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The deliveries of the run; none before its end, and for a run without a webhook", body = ListBody),
        (status = 404, description = "`run_not_found`: the account has no such run"),
    ),
)]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (account, run) = (principal.account.id, run_id(id)?);
    // An absent run and one that nobody is told of are different answers.
    door.runner.find(account, run).await?;
    let outbox = door.webhooks.outbox();
    let deliveries = outbox.of(account, Some(run), None, MAX_DELIVERIES).await.map_err(RunError::from)?;
    let mut told = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let tries = outbox.tries(delivery.id).await.map_err(RunError::from)?;
        told.push((delivery, tries));
    }
    let deliveries = told.iter().map(|(delivery, tries)| DeliveryBody::new(delivery, tries)).collect();
    Ok(Json(ListBody { success: true, deliveries }).into_response())
}

/// Calls a webhook of the caller's account again, whatever became of it before.
#[utoipa::path(
    post,
    path = "/api/v1/deliveries/{id}/redeliver",
    operation_id = "redeliver",
    tag = "Webhooks",
    params(("id" = Uuid, Path, description = "The delivery's id")),
    responses(
        (status = 202, description = "The webhook is called again, as soon as possible", body = RedeliveryBody),
        (status = 404, description = "`delivery_not_found`: the account has no such delivery"),
    ),
)]
pub(super) async fn redeliver(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::new(StatusCode::NOT_FOUND, "delivery_not_found", "The delivery was not found");
    let id: DeliveryId = id.ok().and_then(|Path(text)| text.parse().ok()).ok_or_else(unknown)?;
    let outbox = door.webhooks.outbox();
    let again = outbox.redeliver(Some(principal.account.id), id, door.runner.now()).await;
    let Redelivery::Queued(delivery) = again.map_err(RunError::from)? else { return Err(unknown()) };
    let tries = outbox.tries(id).await.map_err(RunError::from)?;
    let body = RedeliveryBody { success: true, delivery: DeliveryBody::new(&delivery, &tries) };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}
