//! Reads the JSON body of a request: the right type, in time, and no larger than allowed.

use std::{
    error::Error,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use serde_json::json;
use tokio::time::timeout;

use super::error::ApiError;

/// How long a body may take from its first byte that is waited for to its last.
const READ_TIME: Duration = Duration::from_secs(30);
/// How much, and for how long, is read on of a body that is too large. A connection that is closed while its caller still
/// sends is reset, and the caller would never read why.
const LINGER_BYTES: usize = 32 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);

/// The bytes of a body whose headers say that it is JSON.
pub(super) async fn read_json(headers: &HeaderMap, body: Body, max_bytes: usize) -> Result<Bytes, ApiError> {
    require_json(headers)?;
    require_plain(headers)?;
    timeout(READ_TIME, read(headers, body, max_bytes)).await.map_err(|_| too_slow())?
}

/// Refuses a body whose headers do not say that it is newline-delimited JSON.
pub(super) fn require_lines(headers: &HeaderMap) -> Result<(), ApiError> {
    const TYPES: [&str; 3] = ["application/x-ndjson", "application/jsonl", "application/ndjson"];
    let sentence = "The Content-Type must be application/x-ndjson or application/jsonl";
    require_type(headers, &TYPES, sentence)?;
    require_plain(headers)
}

pub(super) fn too_slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The body took too long to arrive").retryable(true)
}

async fn read(headers: &HeaderMap, mut body: Body, max_bytes: usize) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > u64::try_from(max_bytes).unwrap_or(u64::MAX) {
        // Reading on would invite a caller to send who asked first.
        if !headers.contains_key(header::EXPECT) {
            linger(body).await;
        }
        return Err(too_large(max_bytes));
    }
    // Most bodies are one frame, and that is the whole of them.
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > max_bytes {
            linger(body).await;
            return Err(too_large(max_bytes));
        }
        match &first {
            None => first = Some(data),
            Some(_) => rest.extend_from_slice(&data),
        }
    }
    let first = first.unwrap_or_default();
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

/// A body of which its request has one half, and whoever keeps the other half can read what the request leaves of it.
#[derive(Clone)]
pub(super) struct Kept(Arc<Mutex<Body>>);

impl Kept {
    /// Takes a request's body into care, unless it has none.
    pub fn of(request: &mut Request) -> Option<Self> {
        if request.body().is_end_stream() {
            return None;
        }
        let kept = Self(Arc::new(Mutex::new(mem::take(request.body_mut()))));
        *request.body_mut() = Body::new(kept.clone());
        Some(kept)
    }

    pub fn rest(self) -> Body {
        Body::new(self)
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        // Should a reader panic, there is nothing left to read.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// Reads on for a while, so that the caller reads its answer.
pub(super) async fn linger(mut body: Body) {
    let drain = async {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // A caller that is slow beyond that is cut off, and had its chance.
    let _ = timeout(LINGER_TIME, drain).await;
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    require_type(
        headers,
        &["application/json"],
        "The Content-Type must be application/json, and its charset UTF-8 if it names one",
    )
}

fn require_type(headers: &HeaderMap, types: &[&str], sentence: &'static str) -> Result<(), ApiError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) if is_one_of(types, value) => Ok(()),
        _ => Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", sentence)),
    }
}

/// One of these types, in UTF-8 if it names a charset at all (RFC 8259 knows no other).
fn is_one_of(types: &[&str], content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let is_known = |essence: &str| types.iter().any(|known| essence.eq_ignore_ascii_case(known));
    parts.next().is_some_and(is_known)
        && parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
            !name.trim().eq_ignore_ascii_case("charset") || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
}

fn require_plain(headers: &HeaderMap) -> Result<(), ApiError> {
    let identity = |value: &axum::http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(identity) {
        return Ok(());
    }
    let sentence = "The body must not be compressed";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding", sentence))
}

fn too_large(max_bytes: usize) -> ApiError {
    let sentence = format!("The body is larger than {max_bytes} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", sentence).details(json!({ "maxBytes": max_bytes }))
}

/// The caller broke off, or sent chunks that are none; hyper's words are for the log.
pub(super) fn broken(error: impl Error) -> ApiError {
    tracing::debug!(error = %error, "a body broke off");
    ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", "The body could not be read to its end")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures::stream;

    use super::*;

    fn json_headers(content_type: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap())])
    }

    fn chunks(parts: &[&'static str]) -> Body {
        Body::from_stream(stream::iter(parts.iter().map(|&part| Ok::<_, std::io::Error>(part)).collect::<Vec<_>>()))
    }

    async fn check(headers: HeaderMap, body: Body, expect: Result<&str, &str>) {
        match (read_json(&headers, body, 4).await, expect) {
            (Ok(bytes), Ok(expect)) => assert_eq!(bytes, expect),
            (Err(error), Err(code)) => assert!(format!("{error:?}").contains(code), "{error:?}"),
            (got, expect) => panic!("{got:?}, not {expect:?}"),
        }
    }

    #[tokio::test]
    async fn bodies_are_read_up_to_the_limit() {
        let json = || json_headers("application/json");
        check(json(), Body::from("1234"), Ok("1234")).await;
        check(json(), Body::empty(), Ok("")).await;
        check(json(), chunks(&["1", "23", "4"]), Ok("1234")).await;
        check(json(), Body::from("12345"), Err("body_too_large")).await;
        check(json(), chunks(&["123", "45", "6"]), Err("body_too_large")).await;
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told_so() {
        let parts = [Ok("1"), Err(std::io::Error::other("gone"))];
        let body = Body::from_stream(stream::iter(parts));
        check(json_headers("application/json"), body, Err("body_incomplete")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_its_time() {
        let body = Body::from_stream(stream::pending::<Result<&str, std::io::Error>>());
        check(json_headers("application/json"), body, Err("request_timeout")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_body_is_left_alone_after_a_while() {
        let body = Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(1 << 16))));
        check(json_headers("application/json"), body, Err("body_too_large")).await;
    }

    #[test]
    fn content_types() {
        let check = |value: &str, expect: bool| {
            assert_eq!(require_json(&json_headers(value)).is_ok(), expect, "{value}");
        };
        check("application/json", true);
        check("Application/JSON", true);
        check("application/json; charset=utf-8", true);
        check("application/json;charset=\"UTF-8\"", true);
        check("application/json; charset=latin1", false);
        check("application/problem+json", false);
        check("text/plain", false);
        check("application/x-www-form-urlencoded", false);
        check("", false);
        assert!(require_json(&HeaderMap::new()).is_err());
    }

    #[test]
    fn compressed_bodies_are_refused() {
        let check = |value: &'static str, expect: bool| {
            let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(require_plain(&headers).is_ok(), expect, "{value}");
        };
        check("gzip", false);
        check("identity", true);
        assert!(require_plain(&HeaderMap::new()).is_ok());
    }
}
