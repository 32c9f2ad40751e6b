//! `POST /api/v1/run`, `GET /api/v1/runs/{id}` and `POST /api/v1/runs/{id}/cancel`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use workers::{
    RunView,
    job::{Ending, Outcome, RunId, RunState},
};

use super::{
    Door, body,
    error::ApiError,
    events,
    headers::{self, RunFacts},
    idempotency::{self, IDEMPOTENT_REPLAYED},
    prefer::{PREFERENCE_APPLIED, Preferences},
    run_body::{ResultBody, RunBody, UsageBody},
};
use crate::{
    keys::Principal,
    run::{Answer, Begun, Reply, RunError, RunRequest, failure_of},
};

/// Starts a run and answers with its ending, or with where to look for it.
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Extension(principal): Extension<Arc<Principal>>,
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
            let facts = RunFacts::of(&mut started);
            respond(&facts, preferences, started.reply().await)
        }
        Begun::Before(joined) => {
            let facts = RunFacts::of_known(&joined.followed.run);
            replayed(respond(&facts, preferences, joined.reply().await))
        }
    })
}

fn respond(facts: &RunFacts, preferences: Preferences, reply: Reply) -> Response {
    let (run, version) = (facts.run, facts.prompt_version);
    let (mut response, queue_ms, went_async) = match reply {
        Reply::Ended { ending, duration_ms } => (ended(&ending, version, duration_ms), Some(ending.queue_ms), false),
        Reply::GoesOn(view) => (accepted(&view), None, true),
        Reply::SentAway => (ApiError::from(RunError::SentAway(run)).into_response(), None, false),
        Reply::Missed => (refusal(run, &Outcome::Expired), None, false),
    };
    let map = response.headers_mut();
    facts.insert(map, queue_ms);
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
pub(super) async fn show(
    State(door): State<Arc<Door>>,
    Extension(principal): Extension<Arc<Principal>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let view = door.runner.find(principal.account.id, run_id(id)?).await?;
    Ok(status(StatusCode::OK, &view))
}

/// Cancels a run of the caller's account: 200 once it is cancelled, 202 while its worker still has to end it.
pub(super) async fn cancel(
    State(door): State<Arc<Door>>,
    Extension(principal): Extension<Arc<Principal>>,
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
        cached: false,
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
