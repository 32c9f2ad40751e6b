//! Around every route: the request's id, the JSON shape of every error, and a panic that stays inside its request.

use std::panic::AssertUnwindSafe;

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use uuid::Uuid;

use super::{
    body::{self, Kept},
    error::ApiError,
};

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts routes inside the shell. Whatever no route answers is a 404.
pub(super) fn wrap(routes: Router) -> Router {
    routes.fallback(|| async { ApiError::plain(StatusCode::NOT_FOUND) }).layer(from_fn(shell))
}

async fn shell(mut request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    // For handlers that say it beyond their answer.
    request.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    // HTTP/2 resets the stream of a request that was answered and not read to its end (RFC 9113, section 8.1), and there are callers that lose the answer with it.
    let is_plain = request.version() == Version::HTTP_2 && request.method() != Method::CONNECT;
    let kept = if is_plain && !request.headers().contains_key(header::EXPECT) { Kept::of(&mut request) } else { None };
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        // The panic hook has written what happened; the payload may hold anything and goes nowhere.
        Err(_) => {
            tracing::error!(request_id = shown(&request_id), "a request handler panicked");
            ApiError::plain(StatusCode::INTERNAL_SERVER_ERROR).into_response()
        }
    };
    if let Some(kept) = kept {
        body::linger(kept.rest()).await;
    }
    let mut response = in_shape(response, &request_id);
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, request_id);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Writes errors: those of handlers, and those that the framework answered in its own words.
fn in_shape(mut response: Response, request_id: &HeaderValue) -> Response {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if response.status().is_client_error() || response.status().is_server_error() => {
            ApiError::plain(response.status())
        }
        None => return response,
    };
    let mut written = error.render(shown(request_id));
    // What was said beside the body stays said (`Allow`, `x-run-id`); what described the body does not.
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH && !written.headers().contains_key(name) {
            written.headers_mut().append(name, value.clone());
        }
    }
    written
}

/// The caller's own id if it is one word that can be logged and sent back; otherwise a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    const LONGEST: usize = 128;
    let sane = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        let safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
        (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(safe)
    };
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    match (values.next(), values.next()) {
        (Some(own), None) if sane(own) => own.clone(),
        _ => {
            let mut buffer = Uuid::encode_buffer();
            let text = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
            HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unknown"))
        }
    }
}

fn shown(request_id: &HeaderValue) -> &str {
    request_id.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use axum::{
        body::{Body, to_bytes},
        extract::Path,
        routing::{get, post},
    };
    use futures::{StreamExt, stream};
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;

    fn app() -> Router {
        async fn panics() -> &'static str {
            panic!("a secret")
        }
        async fn number(Path(number): Path<u32>) -> String {
            number.to_string()
        }
        let refuses = || async { ApiError::new(StatusCode::IM_A_TEAPOT, "teapot", "No").details(json!([1])) };
        let routes = Router::new()
            .route("/ok", get(|| async { "fine" }))
            .route("/panics", get(panics))
            .route("/numbers/{number}", get(number))
            .route("/teapot", post(refuses));
        wrap(routes)
    }

    async fn send(request: axum::http::request::Builder) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, to_bytes(body, usize::MAX).await.unwrap().to_vec())
    }

    async fn check(method: &str, path: &str, status: u16, code: &str) -> (HeaderMap, Value) {
        let request = Request::builder().method(method).uri(path).header("x-request-id", "mine-1");
        let (got, headers, body) = send(request).await;
        assert_eq!(got.as_u16(), status, "{method} {path}");
        assert_eq!(headers["x-request-id"], "mine-1");
        assert_eq!(headers["cache-control"], "no-store");
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&body["success"], &body["code"], &body["requestId"]),
            (&json!(false), &json!(code), &json!("mine-1"))
        );
        assert!(!body["error"].as_str().unwrap().is_empty());
        (headers, body)
    }

    #[tokio::test]
    async fn every_error_has_the_shape() {
        check("GET", "/nowhere", 404, "not_found").await;
        check("GET", "/ok/", 404, "not_found").await;
        check("GET", "/numbers/x", 400, "bad_request").await;
        check("GET", "/numbers/%ff", 400, "bad_request").await;
        let (headers, _) = check("DELETE", "/ok", 405, "method_not_allowed").await;
        assert_eq!(headers["allow"], "GET,HEAD");
        let (_, body) = check("POST", "/teapot", 418, "teapot").await;
        assert_eq!((&body["error"], &body["details"], &body["retryable"]), (&json!("No"), &json!([1]), &json!(false)));
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_leaks_nothing() {
        let (_, body) = check("GET", "/panics", 500, "internal_error").await;
        assert!(!body.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn head_has_the_headers_and_no_body() {
        let (status, headers, body) = send(Request::head("/ok")).await;
        assert_eq!((status, body.len()), (StatusCode::OK, 0));
        assert_eq!(headers["content-length"], "4");
        let (status, headers, body) = send(Request::head("/teapot")).await;
        assert_eq!((status, body.len()), (StatusCode::METHOD_NOT_ALLOWED, 0));
        assert_eq!(headers["allow"], "POST");
    }

    #[tokio::test]
    async fn success_is_left_alone() {
        let (status, headers, body) = send(Request::get("/ok")).await;
        assert_eq!((status, body.as_slice()), (StatusCode::OK, &b"fine"[..]));
        assert!(headers.contains_key("x-request-id"));
    }

    #[test]
    fn request_ids_are_kept_when_they_are_sane() {
        let check = |values: &[&[u8]], kept: bool| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            }
            let id = request_id(&headers);
            assert_eq!(values.first().is_some_and(|first| id.as_bytes() == *first), kept, "{values:?}");
            assert!(kept || shown(&id).parse::<Uuid>().is_ok_and(|id| id.get_version_num() == 7));
        };
        check(&[b"abc-123"], true);
        check(&[b"Root=1-67891233-abcdef012345678912345678"], true);
        check(&[&[b'a'; 128]], true);
        check(&[&[b'a'; 129]], false);
        check(&[b""], false);
        check(&[b"two words"], false);
        check(&[b"<script>"], false);
        check(&[b"caf\xe9"], false);
        check(&[b"one", b"two"], false);
        check(&[], false);
    }

    #[tokio::test]
    async fn what_nobody_read_of_a_body_is_read_on_http2() {
        for (version, expect) in [(Version::HTTP_2, 2), (Version::HTTP_11, 0)] {
            let read = Arc::new(AtomicUsize::new(0));
            let counting = read.clone();
            let parts = stream::iter(["one", "two"]).map(move |part| {
                counting.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(part)
            });
            let request = Request::builder().method("POST").uri("/nowhere").version(version);
            let response = app().oneshot(request.body(Body::from_stream(parts)).unwrap()).await.unwrap();
            assert_eq!(
                (response.status(), read.load(Ordering::Relaxed)),
                (StatusCode::NOT_FOUND, expect),
                "{version:?}"
            );
        }
    }
}
