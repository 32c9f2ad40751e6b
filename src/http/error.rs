//! The one shape of every error: `{success:false, error, code, requestId, runId?, retryable, details?}`.
//!
//! Handlers answer with an [`ApiError`]; the [`shell`](super::shell) writes it, because only the shell knows the request's id.

use std::{borrow::Cow, error::Error, sync::Arc, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use workers::{
    job::{Failure, RunId, RunState},
    queue::RateLeft,
};

use super::headers;
use crate::run::RunError;

/// An answer that is no success.
#[derive(Clone, Debug)]
pub(super) struct ApiError(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    status: StatusCode,
    code: Cow<'static, str>,
    sentence: Cow<'static, str>,
    retryable: bool,
    retry_after: Option<Duration>,
    run: Option<RunId>,
    details: Option<Value>,
    rates: Vec<RateLeft>,
    /// One more header of the answer.
    header: Option<(HeaderName, HeaderValue)>,
    /// For the log only.
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// The body of every answer that is no success.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
#[serde(rename_all = "camelCase")]
pub(super) struct ErrorBody<'a> {
    /// `false`.
    success: bool,
    /// One sentence for people, which may change.
    error: &'a str,
    /// For programs: it does not change.
    code: &'a str,
    /// The answer's `x-request-id`.
    request_id: &'a str,
    /// The run that it is about, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>, nullable = false)]
    run_id: Option<RunId>,
    /// Whether the very same request may succeed later.
    retryable: bool,
    /// The facts of the sentence, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    details: Option<&'a Value>,
}

/// An error as a socket tells it.
#[derive(Serialize, ToSchema)]
#[schema(as = SocketError)]
#[serde(rename_all = "camelCase")]
pub(super) struct ErrorMessage<'a> {
    #[serde(rename = "type")]
    #[schema(schema_with = super::openapi::schemas::error_type)]
    name: &'static str,
    /// What the client calls the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    id: Option<&'a str>,
    code: &'a str,
    error: &'a str,
    /// The status that HTTP would have answered.
    status: u16,
    /// That of the request which opened the socket.
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>, nullable = false)]
    run_id: Option<RunId>,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, nullable = false)]
    details: Option<&'a Value>,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        sentence: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Parts {
            status,
            code: code.into(),
            sentence: sentence.into(),
            retryable: false,
            retry_after: None,
            run: None,
            details: None,
            rates: Vec::new(),
            header: None,
            source: None,
        }))
    }

    /// The words for a status that came without any: an unknown route, a wrong method, a refusal by the framework.
    pub(super) fn plain(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(status, "not_found", "There is nothing at this address"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(status, "method_not_allowed", "This address does not take this method")
            }
            _ if status.is_client_error() => Self::new(status, "bad_request", "The request cannot be understood"),
            _ => Self::new(status, "internal_error", "The server failed").retryable(true),
        }
    }

    /// The answer to a caller whose run ended without success.
    pub(super) fn ended(run: RunId, state: RunState, failure: Failure) -> Self {
        let status = match state {
            RunState::Cancelled => StatusCode::CONFLICT,
            RunState::Expired => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let Failure { code, message, retryable } = failure;
        let mut error = Self::new(status, code, message).retryable(retryable);
        error.0.run = Some(run);
        error
    }

    pub(super) fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self.retryable(true)
    }

    pub(super) fn details(mut self, details: Value) -> Self {
        self.0.details = Some(details);
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    /// The response, and the only line that the log has about it.
    pub(super) fn render(&self, request_id: &str) -> Response {
        self.log(request_id);
        let Parts { status, code, sentence, retryable, retry_after, run, details, rates, header, source: _ } = &*self.0;
        let (run_id, details) = (*run, details.as_ref());
        let body =
            ErrorBody { success: false, error: sentence, code, request_id, run_id, retryable: *retryable, details };
        let mut response = (*status, Json(body)).into_response();
        let map = response.headers_mut();
        if let Some(after) = retry_after {
            map.insert(header::RETRY_AFTER, headers::whole_seconds(*after).into());
        }
        if *status == StatusCode::UNAUTHORIZED {
            map.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"prompt-manager\""));
        }
        headers::insert_rates(map, rates);
        if let Some((name, value)) = header {
            map.insert(name, value.clone());
        }
        response
    }
}

impl ApiError {
    /// The same as a message on a socket, with the id that its client chose for what it is about; and the line in the log.
    pub(super) fn message(&self, id: Option<&str>, request_id: &str) -> String {
        self.log(request_id);
        let Parts { status, code, sentence, retryable, retry_after, run, details, .. } = &*self.0;
        let body = ErrorMessage {
            name: "error",
            id,
            code,
            error: sentence,
            status: status.as_u16(),
            request_id,
            run_id: *run,
            retryable: *retryable,
            retry_after_ms: retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            details: details.as_ref(),
        };
        // Strings, numbers and JSON always serialise.
        serde_json::to_string(&body).unwrap_or_default()
    }

    pub(super) fn about(mut self, run: RunId) -> Self {
        self.0.run.get_or_insert(run);
        self
    }

    fn log(&self, request_id: &str) {
        let Parts { status, code, source: Some(source), .. } = &*self.0 else { return };
        let chain = chain(source.as_ref());
        if *status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(request_id, code = code.as_ref(), error = chain, "a request failed");
        } else {
            tracing::warn!(request_id, code = code.as_ref(), error = chain, "a request was refused");
        }
    }
}

impl From<RunError> for ApiError {
    fn from(error: RunError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // What a caller did wrong is told to the caller; in the log it would be noise that holds the caller's own words.
        let is_ours = status.is_server_error() && error.source().is_some();
        Self(Box::new(Parts {
            status,
            code: error.code().into(),
            sentence: error.to_string().into(),
            retryable: error.retryable(),
            retry_after: error.retry_after(),
            run: error.run(),
            details: error.details(),
            rates: error.rates().to_vec(),
            header: None,
            source: is_ours.then(|| Arc::new(error) as _),
        }))
    }
}

/// Carries the error to the shell, which writes it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
