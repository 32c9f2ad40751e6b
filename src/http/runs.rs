//! `POST /api/v1/run`, `GET /api/v1/runs/{id}` and `POST /api/v1/runs/{id}/cancel`.

use std::{mem, sync::Arc};

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use workers::{
    RunView,
    job::{CacheUse, Ending, Outcome, RunId, RunState},
};

use super::{
    Door,
    auth::Caller,
    body,
    error::ApiError,
    events,
    headers::{self, RunFacts},
    idempotency::{self, IDEMPOTENT_REPLAYED},
    openapi::schemas::{RunRequestBody, StreamedEvent},
    prefer::{PREFERENCE_APPLIED, Preferences},
    run_body::{ResultBody, RunBody, UsageBody},
};
use crate::run::{Answer, Begun, Reply, RunError, RunRequest, failure_of};

/// Starts a run and answers with its ending, or with where to look for it.
///
/// With `stream`, the answer is a stream of server-sent events, whose `data` is a `RunEvent` each, and `[DONE]` after the last one. A caller that
/// hangs up while it waits or reads cancels the run, unless `onDisconnect` says otherwise.
#[utoipa::path(
    post,
    path = "/api/v1/run",
    operation_id = "startRun",
    tag = "Runs",
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, description = "The caller's name for this request, \
            for 24 hours: sent again with the same body, it joins the run or gets its ending"),
        ("Prefer" = Option<String>, Header, example = "respond-async", description = "`respond-async`: 202 at once. `wait=N`: 202 when the run \
            has not ended after `N` seconds"),
    ),
    request_body = RunRequestBody,
    responses(
        (status = 200, description = "The run has succeeded; or the stream of what happens to it", content(
            (ResultBody = "application/json"),
            (StreamedEvent = "text/event-stream"),
        ), headers(("x-run-id"), ("x-prompt-version"), ("x-queue-ms"), ("x-cache"), ("RateLimit"), ("RateLimit-Policy"),
            ("Idempotent-Replayed"), ("Preference-Applied"))),
        (status = 202, description = "The run is committed, and goes on", body = RunBody, headers(("Location"), ("x-run-id"),
            ("x-prompt-version"), ("x-queue-ms"), ("x-cache"), ("RateLimit"), ("RateLimit-Policy"), ("Idempotent-Replayed"),
            ("Preference-Applied"))),
        (status = 400, description = "`invalid_json`, `invalid_request`, `missing_variables`, `template_failed`, `input_too_large`, \
            `not_supported`, `webhook_secret_missing`, `invalid_idempotency_key`, `body_incomplete`"),
        (status = 402, description = "`budget_spent`: the monthly budget of the account"),
        (status = 403, description = "`plan_required`, `subscription_expired`, `model_not_allowed`"),
        (status = 404, description = "`prompt_not_found`, `version_not_found`"),
        (status = 408, description = "`request_timeout`: the body took too long to arrive"),
        (status = 409, description = "`run_cancelled`: somebody cancelled the run that this request waits for", headers(("x-run-id"),
            ("x-prompt-version"), ("x-queue-ms"), ("RateLimit"), ("RateLimit-Policy"), ("Idempotent-Replayed"), ("Preference-Applied"))),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`, `unsupported_content_encoding`"),
        (status = 422, description = "`idempotency_key_reused`: with another body"),
        (status = 429, description = "`rate_limited`: the account or the key has used up its limit", headers(("RateLimit"),
            ("RateLimit-Policy"))),
        (status = 500, description = "The run failed, after all tries: `provider_error`, `provider_unreachable`, `provider_timeout`, \
            `provider_truncated`, `provider_garbage`, `provider_unauthorized`, `provider_rejected`, `poison`, `worker_lost`, `output_not_kept`. Or \
            the server did: `model_not_configured`, `internal_error`", headers(("x-run-id"), ("x-prompt-version"), ("x-queue-ms"),
            ("RateLimit"), ("RateLimit-Policy"), ("Idempotent-Replayed"), ("Preference-Applied"))),
        (status = 503, description = "`queue_full`, `draining`, `queue_unreachable`, `database_unreachable`, `database_full`",
            headers(("x-run-id"), ("x-prompt-version"), ("RateLimit"), ("RateLimit-Policy"))),
        (status = 504, description = "`deadline_exceeded`: the run missed its deadline", headers(("x-run-id"), ("x-prompt-version"),
            ("x-queue-ms"), ("RateLimit"), ("RateLimit-Policy"), ("Idempotent-Replayed"), ("Preference-Applied"))),
    ),
)]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let preferences = Preferences::of(&parts.headers);
    let bytes = body::read_json(&parts.headers, body, door.max_body_bytes).await?;
    let answer = preferences.answer();
    let request = match idempotency::key(&parts.headers)? {
        Some(key) => RunRequest::parse_keyed(&bytes, answer, key),
        None => RunRequest::parse(&bytes, answer),
    }
    .map_err(RunError::from)?;
    drop(bytes);
    if request.stream && answer != Answer::Later {
        return Ok(match door.runner.stream(&principal, request).await? {
            Begun::Now(streamed) => events::of_new(streamed),
            Begun::Before(joined) => replayed(events::of_known(joined.followed)),
        });
    }
    Ok(match door.runner.start(&principal, request).await? {
        Begun::Now(mut started) => {
            let facts = RunFacts::new(started.run, started.prompt_version, mem::take(&mut started.rates));
            let accepted = started.cache;
            respond(&facts, accepted, preferences, started.reply().await)
        }
        Begun::Before(joined) => {
            let run = &joined.followed.run;
            let facts = RunFacts::new(run.id, run.prompt_version, Vec::new());
            replayed(respond(&facts, None, preferences, Box::pin(joined.reply()).await))
        }
    })
}

/// `cache`: what was known of the result when the run was accepted.
fn respond(facts: &RunFacts, cache: Option<CacheUse>, preferences: Preferences, reply: Reply) -> Response {
    let (run, version) = (facts.run, facts.prompt_version);
    let cache = match &reply {
        Reply::Ended { ending, .. } => ending.cache,
        Reply::GoesOn(view) => view.cache.or(cache),
        Reply::SentAway | Reply::Missed => None,
    };
    let (mut response, queue_ms, went_async) = match reply {
        Reply::Ended { ending, duration_ms } => (ended(&ending, version, duration_ms), Some(ending.queue_ms), false),
        Reply::GoesOn(view) => (accepted(&view), None, true),
        Reply::SentAway => (ApiError::from(RunError::SentAway(run)).into_response(), None, false),
        Reply::Missed => (refusal(run, &Outcome::Expired), None, false),
    };
    let map = response.headers_mut();
    facts.insert(map, queue_ms);
    headers::insert_cache(map, cache);
    if let Some(applied) = preferences.applied(went_async) {
        headers::insert(map, PREFERENCE_APPLIED, &applied);
    }
    response
}

/// Says that an earlier request made the run.
fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    response
}

/// The state of a run of the caller's account.
#[utoipa::path(
    get,
    path = "/api/v1/runs/{id}",
    operation_id = "getRun",
    tag = "Runs",
    params(("id" = Uuid, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The run, however it ended", body = RunBody,
            headers(("x-run-id"), ("x-prompt-version"), ("x-queue-ms"))),
        (status = 404, description = "`run_not_found`: the account has no such run"),
    ),
)]
pub(super) async fn show(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let view = door.runner.find(principal.account.id, run_id(id)?).await?;
    Ok(status(StatusCode::OK, &view))
}

/// Cancels a run of the caller's account: 200 once it is cancelled, 202 while its worker still has to end it.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{id}/cancel",
    operation_id = "cancelRun",
    tag = "Runs",
    params(("id" = Uuid, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The run is cancelled, now or since before", body = RunBody,
            headers(("x-run-id"), ("x-prompt-version"), ("x-queue-ms"))),
        (status = 202, description = "A worker has the run and was told", body = RunBody,
            headers(("Location"), ("x-run-id"), ("x-prompt-version"), ("x-queue-ms"))),
        (status = 404, description = "`run_not_found`: the account has no such run"),
        (status = 409, description = "`run_already_ended`: the run succeeded, failed or expired before"),
    ),
)]
pub(super) async fn cancel(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (account, run) = (principal.account.id, run_id(id)?);
    let cancelled = door.runner.cancel(account, run).await?;
    let view = door.runner.find(account, run).await?;
    if cancelled || view.state == RunState::Cancelled { Ok(status(StatusCode::OK, &view)) } else { Ok(accepted(&view)) }
}

/// An id that is none names no run, like any other id that is not the account's.
pub(super) fn run_id(path: Result<Path<String>, PathRejection>) -> Result<RunId, ApiError> {
    path.ok().and_then(|Path(text)| text.parse().ok()).ok_or_else(|| RunError::RunNotFound.into())
}

fn ended(ending: &Ending, prompt_version: i32, duration_ms: u64) -> Response {
    let Outcome::Succeeded { output, finish_reason } = &ending.outcome else {
        return refusal(ending.run, &ending.outcome);
    };
    let body = ResultBody {
        success: true,
        output,
        prompt_version,
        duration_ms,
        model: &ending.model,
        run_id: Some(ending.run),
        usage: UsageBody::new(ending.usage(), ending.cost_nano_usd()),
        cached: ending.is_cached(),
        finish_reason: finish_reason.as_deref(),
    };
    Json(body).into_response()
}

fn refusal(run: RunId, outcome: &Outcome) -> Response {
    match failure_of(outcome) {
        Some(failure) => ApiError::ended(run, outcome.state(), failure),
        None => ApiError::plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
    .into_response()
}

fn accepted(view: &RunView) -> Response {
    let mut response = status(StatusCode::ACCEPTED, view);
    headers::insert(response.headers_mut(), header::LOCATION, &format!("/api/v1/runs/{}", view.id));
    response
}

fn status(status: StatusCode, view: &RunView) -> Response {
    let mut response = (status, Json(RunBody::new(view))).into_response();
    headers::insert_run(response.headers_mut(), view.id, view.prompt_version, view.queue_ms);
    response
}
