//! `POST /api/v1/batches`, `GET /api/v1/batches/{id}`, its `results` and its `cancel`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream::unfold;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde_json::json;
use tokio::time::timeout;

use super::{
    Door, after,
    auth::Caller,
    batch_body::{BatchBody, LineBody},
    body,
    error::ApiError,
    headers, idempotency,
};
use crate::batches::{BatchError, BatchId, BatchState, BatchView, Receiving, Results};

/// How long a body may be silent.
const SILENCE: Duration = Duration::from_secs(30);
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// Receives a batch, and answers once its last line is stored.
#[utoipa::path(
    post,
    path = "/api/v1/batches",
    operation_id = "startBatch",
    tag = "Batches",
    request_body(content((String = "application/x-ndjson"), (String = "application/jsonl")),
        description = "Newline-delimited JSON: every line is the body of a run"),
    responses(
        (status = 202, description = "The batch is stored, and runs", body = BatchBody, headers(("Location"))),
        (status = 400, description = "`invalid_request`: there is no line; `not_supported`: an `Idempotency-Key`; `body_incomplete`"),
        (status = 403, description = "`plan_required`, `subscription_expired`"),
        (status = 408, description = "`request_timeout`: the body took too long"),
        (status = 413, description = "`batch_too_large`, `body_too_large`: too many lines or bytes, or a line is too long"),
        (status = 415, description = "`unsupported_media_type`, `unsupported_content_encoding`"),
        (status = 503, description = "`draining`, `queue_unreachable`, `database_unreachable`, `database_full`"),
    ),
)]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, mut body) = request.into_parts();
    body::require_lines(&parts.headers)?;
    if idempotency::key(&parts.headers)?.is_some() {
        let sentence = "A batch cannot have an Idempotency-Key";
        let fields = json!({ "fields": ["Idempotency-Key"] });
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "not_supported", sentence).details(fields));
    }
    let receiving = door.batches.receive(&principal).await?;
    let view = match receive(receiving, &mut body).await {
        Ok(view) => view,
        Err(error) => {
            // Reading on would invite a caller to send who asked first.
            if !parts.headers.contains_key(header::EXPECT) {
                body::linger(body).await;
            }
            return Err(error);
        }
    };
    Ok(accepted(&view))
}

async fn receive(mut receiving: Receiving, body: &mut Body) -> Result<BatchView, ApiError> {
    receiving.expect(body.size_hint().lower())?;
    loop {
        match timeout(SILENCE, body.frame()).await {
            Ok(Some(frame)) => {
                let Ok(data) = frame.map_err(body::broken)?.into_data() else { continue };
                receiving.push(&data).await?;
            }
            Ok(None) => return Ok(receiving.finish().await?),
            Err(_) => return Err(body::too_slow()),
        }
    }
}

/// The progress of a batch of the caller's account.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}",
    operation_id = "getBatch",
    tag = "Batches",
    params(("id" = Uuid, Path, description = "The batch's id")),
    responses(
        (status = 200, description = "The batch, however far it is", body = BatchBody),
        (status = 404, description = "`batch_not_found`: the account has no such batch"),
    ),
)]
pub(super) async fn show(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let view = door.batches.find(principal.account.id, batch_id(id)?).await?;
    Ok(Json(BatchBody::new(&view)).into_response())
}

/// Cancels a batch of the caller's account: 200 once all of it has ended, 202 while it has not.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/cancel",
    operation_id = "cancelBatch",
    tag = "Batches",
    params(("id" = Uuid, Path, description = "The batch's id")),
    responses(
        (status = 200, description = "The batch is cancelled, and all of it has ended", body = BatchBody),
        (status = 202, description = "The batch is cancelled; some of its runs still have to end", body = BatchBody, headers(("Location"))),
        (status = 404, description = "`batch_not_found`: the account has no such batch"),
        (status = 409, description = "`batch_already_completed`: the batch completed before"),
    ),
)]
pub(super) async fn cancel(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let view = door.batches.cancel(principal.account.id, batch_id(id)?).await?;
    if view.state == BatchState::Cancelled && view.finished_at.is_none() {
        return Ok(accepted(&view));
    }
    Ok(Json(BatchBody::new(&view)).into_response())
}

/// The lines of a batch of the caller's account that have ended, as NDJSON.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/results",
    operation_id = "getBatchResults",
    tag = "Batches",
    params(
        ("id" = Uuid, Path, description = "The batch's id"),
        ("after" = Option<u32>, Query, nullable = false, description = "Begins after the line with this index"),
    ),
    responses(
        (status = 200, description = "A line of JSON for every line that has ended, in the order of the input", content(
            (LineBody = "application/x-ndjson"),
        )),
        (status = 400, description = "`invalid_request`: `after` is no index, or there is another parameter"),
        (status = 404, description = "`batch_not_found`: the account has no such batch"),
    ),
)]
pub(super) async fn results(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let (id, after) = (batch_id(id)?, after(query.as_deref())?);
    let results = door.batches.results(principal.account.id, id, after).await?;
    let mut response = Response::new(Body::from_stream(unfold(Some(results), page)));
    response.headers_mut().insert(header::CONTENT_TYPE, NDJSON);
    Ok(response)
}

/// One page of the body. An error breaks the body off, so that nobody takes what came before it for everything.
async fn page(results: Option<Results>) -> Option<(Result<Bytes, BatchError>, Option<Results>)> {
    let mut results = results?;
    match results.page().await {
        Ok(lines) if lines.is_empty() => None,
        Ok(lines) => {
            let mut bytes = Vec::new();
            for line in &lines {
                // Strings, numbers and maps with string keys always serialise.
                let _ = serde_json::to_writer(&mut bytes, &LineBody::new(line));
                bytes.push(b'\n');
            }
            Some((Ok(bytes.into()), Some(results)))
        }
        Err(error) => {
            tracing::warn!(%error, "the results of a batch broke off");
            Some((Err(error), None))
        }
    }
}

fn after(query: Option<&str>) -> Result<Option<u32>, ApiError> {
    after::after(query, |text| {
        // No batch has more lines than a column can count.
        let index = text.parse::<i32>().ok().and_then(|index| u32::try_from(index).ok());
        index.ok_or_else(|| after::refused("'after' must be the index of a line"))
    })
}

/// An id that is none names no batch, like any other id that is not the account's.
fn batch_id(path: Result<Path<String>, PathRejection>) -> Result<BatchId, ApiError> {
    path.ok().and_then(|Path(text)| text.parse().ok()).ok_or_else(|| BatchError::NotFound.into())
}

fn accepted(view: &BatchView) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(BatchBody::new(view))).into_response();
    headers::insert(response.headers_mut(), header::LOCATION, &format!("/api/v1/batches/{}", view.id));
    response
}

impl From<BatchError> for ApiError {
    fn from(error: BatchError) -> Self {
        let sentence = error.to_string();
        let too_large = |code, sentence: String| Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, sentence);
        match error {
            BatchError::Run(error) => error.into(),
            BatchError::NotFound => Self::new(StatusCode::NOT_FOUND, "batch_not_found", sentence),
            BatchError::AlreadyCompleted => Self::new(StatusCode::CONFLICT, "batch_already_completed", sentence),
            BatchError::Empty => Self::new(StatusCode::BAD_REQUEST, "invalid_request", sentence),
            BatchError::TooManyLines { max } => {
                too_large("batch_too_large", sentence).details(json!({ "maxLines": max }))
            }
            BatchError::LineTooLong { number, max_bytes } => {
                too_large("body_too_large", sentence).details(json!({ "line": number, "maxBytes": max_bytes }))
            }
            BatchError::TooLarge { max_bytes } => {
                too_large("batch_too_large", sentence).details(json!({ "maxBytes": max_bytes }))
            }
            BatchError::GivenUp => Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", sentence).retryable(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_go_on_after() {
        let check = |query: Option<&str>, expect: Option<Option<u32>>| {
            assert_eq!(after(query).ok(), expect, "{query:?}");
        };
        check(None, Some(None));
        check(Some(""), Some(None));
        check(Some("after=0"), Some(Some(0)));
        check(Some("after=17"), Some(Some(17)));
        check(Some("after=-1"), None);
        check(Some("after=2147483648"), None);
        check(Some("after="), None);
        check(Some("after=1&after=2"), None);
        check(Some("since=1"), None);
    }
}
