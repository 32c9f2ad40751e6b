//! What happens to a run, as server-sent events: `POST /api/v1/run` with `stream: true`, and `GET /api/v1/runs/{id}/events`.

use std::{mem, sync::Arc};

use axum::{
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName},
    response::Response,
};
use workers::{
    RunView,
    job::{Event, Logged},
};

use super::{
    Door, after,
    auth::Caller,
    error::ApiError,
    event_body::{EventBody, Subject},
    headers::{self, RunFacts},
    openapi::schemas::StreamedEvent,
    runs::run_id,
    sse::{self, Frame, Source},
};
use crate::run::{Followed, Streamed};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Tells the caller of a new run everything.
pub(super) fn of_new(mut streamed: Streamed) -> Response {
    let facts = RunFacts::new(streamed.run, streamed.prompt_version, mem::take(&mut streamed.rates));
    let cache = streamed.cache;
    let mut response = sse::response(streamed);
    facts.insert(response.headers_mut(), None);
    headers::insert_cache(response.headers_mut(), cache);
    response
}

/// Tells what happened, and happens, to a run of the caller's account.
///
/// From its beginning, or after the event that `Last-Event-ID` or `after` names. Each event's `data` is a `RunEvent`; `[DONE]` comes after the last one.
#[utoipa::path(
    get,
    path = "/api/v1/runs/{id}/events",
    operation_id = "followRun",
    tag = "Runs",
    params(
        ("id" = Uuid, Path, description = "The run's id"),
        ("after" = Option<u64>, Query, description = "Begin after the event with this number"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same, as browsers send it; it counts more than `after`"),
    ),
    responses(
        (status = 200, description = "What happens to the run, as it happens", body = StreamedEvent, content_type = "text/event-stream",
            headers(("x-run-id"), ("x-prompt-version"), ("x-queue-ms"))),
        (status = 400, description = "`invalid_request`: the number is none, or the parameter is unknown"),
        (status = 404, description = "`run_not_found`: the account has no such run"),
    ),
)]
pub(super) async fn show(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run = run_id(id)?;
    let after = after(query.as_deref(), &headers)?;
    let followed = door.runner.follow(principal.account.id, run, after).await?;
    Ok(of_known(followed))
}

/// Tells what happened, and happens, to a run that was there before.
pub(super) fn of_known(followed: Followed) -> Response {
    let (run, version, queue_ms) = (followed.run.id, followed.run.prompt_version, followed.run.queue_ms);
    let mut response = sse::response(followed);
    headers::insert_run(response.headers_mut(), run, version, queue_ms);
    response
}

/// The header is what a browser sends when it connects again, so it counts more than the address that it connects to.
fn after(query: Option<&str>, headers: &HeaderMap) -> Result<u64, ApiError> {
    let number = |name: &str, text: &str| {
        text.parse().map_err(|_| after::refused(format!("'{name}' must be the number of an event")))
    };
    if let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) {
        return number("Last-Event-ID", value.to_str().unwrap_or_default());
    }
    Ok(after::after(query, |text| number("after", text))?.unwrap_or_default())
}

impl Source for Streamed {
    async fn next(&mut self) -> Option<Frame> {
        let subject = Subject { run: self.run, prompt_version: self.prompt_version, created_at: self.created_at };
        loop {
            let logged = Streamed::next(self).await?;
            if let Some(frame) = frame(subject, &logged) {
                return Some(frame);
            }
        }
    }
}

impl Source for Followed {
    async fn next(&mut self) -> Option<Frame> {
        let RunView { id, prompt_version, created_at, .. } = self.run;
        let subject = Subject { run: id, prompt_version, created_at };
        loop {
            let logged = Followed::next(self).await?;
            if let Some(frame) = frame(subject, &logged) {
                return Some(frame);
            }
        }
    }
}

/// `None` for an event that callers are not told of.
fn frame(subject: Subject, logged: &Logged) -> Option<Frame> {
    let body = EventBody::new(subject, logged)?;
    Some(Frame { bytes: sse::event(logged.seq, body.name(), &body), last: matches!(logged.event, Event::Ended(_)) })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_place_to_go_on_from() {
        let check = |query: Option<&str>, header: Option<&'static str>, expect: Option<u64>| {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(LAST_EVENT_ID, HeaderValue::from_static(header));
            }
            assert_eq!(after(query, &headers).ok(), expect, "{query:?} {header:?}");
        };
        check(None, None, Some(0));
        check(Some(""), Some(""), Some(0));
        check(Some("after=7"), None, Some(7));
        check(Some("after=7"), Some("9"), Some(9));
        check(None, Some("soon"), None);
        check(Some("after=-1"), None, None);
        check(Some("after="), None, None);
        check(Some("after=7&after=8"), None, None);
        check(Some("since=1"), None, None);
    }
}
