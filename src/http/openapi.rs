//! The OpenAPI document of the front door, and the page that shows it.
//!
//! Handlers describe themselves (`#[utoipa::path]`) and are routed by that description, so that there is no route that the document does
//! not know. They say what is their own: parameters, bodies, the statuses that they answer with codes of their own, and the names of headers. What holds for
//! all is put in here: the shape of errors, the statuses that anything with a key may answer, what each header means.
//!
//! A new route: `#[utoipa::path(…)]` above its handler, whose bodies derive `ToSchema`; `.routes(routes!(…))` in
//! [`routes`](super::routes); a line in `headers.rs` for a header that is new; then `cargo run -- openapi > docs/openapi.json`. A status from 400 on needs
//! no body here, and 401, 500 and 503 need not be written when they have no codes of their own. A handler that asks for no
//! [`Caller`](super::auth::Caller), and so for no key, says `security(())`.

mod headers;
mod html;
mod page;
pub(super) mod schemas;

use std::sync::LazyLock;

use axum::{
    body::Bytes,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::{
        Content, Ref, RefOr, Response as Answer,
        path::{Operation, PathItem},
        security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    error::{ApiError, ErrorBody, ErrorMessage},
    ws::CancelAccepted,
};

/// Where pages look for what they are made of: here, and no script at all.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const STYLE: &str = include_str!("openapi/style.css");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Prompt Manager",
        description = "Runs managed prompts by name: at once, later, as a stream or over a WebSocket.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    components(schemas(
        ErrorBody<'static>,
        ErrorMessage<'static>,
        CancelAccepted<'static>,
        schemas::RunEventBody,
        schemas::SocketCreateBody,
        schemas::SocketCancelBody,
        schemas::SocketResumeBody,
        schemas::SocketEventBody,
    )),
    modifiers(&Keys),
    security(("x-api-key" = []), ("bearer" = [])),
    tags(
        (name = "Runs", description = "Run prompts, and look after their runs"),
        (name = "WebSocket", description = "Many runs on one connection"),
        (name = "Batches", description = "Many runs in the background, in one request"),
        (name = "Webhooks", description = "Who was told of the end of a run"),
        (name = "Health", description = "For probes; without a key"),
        (name = "Reference", description = "This document; without a key"),
    ),
)]
struct Frame;

/// The two places of a key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let key = ApiKeyValue::with_description("x-api-key", "An API key: `sk_…`");
        let bearer =
            Http::builder().scheme(HttpAuthScheme::Bearer).description(Some("The same key (RFC 6750)")).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("x-api-key", SecurityScheme::ApiKey(ApiKey::Header(key)));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// The document of every route of a front door.
pub fn document() -> utoipa::openapi::OpenApi {
    let super::Routes { api, health, reference } = super::routes();
    let mut document = Frame::openapi();
    for routes in [api.into_openapi(), health.into_openapi(), reference.into_openapi()] {
        document.merge(routes);
    }
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        complete(operation);
    }
    let components = document.components.get_or_insert_default();
    headers::describe(components);
    document
}

pub(super) fn routes() -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(show)).routes(routes!(page)).routes(routes!(style))
}

/// This document.
#[utoipa::path(
    get,
    path = "/api/openapi.json",
    operation_id = "getOpenApi",
    tag = "Reference",
    security(()),
    responses((status = 200, description = "The OpenAPI document", body = Document)),
)]
async fn show() -> Response {
    static JSON: LazyLock<Bytes> = LazyLock::new(|| document().to_json().unwrap_or_default().into());
    asset("application/json", JSON.clone())
}

/// An OpenAPI 3.1 document.
#[derive(ToSchema)]
#[schema(as = OpenApi, value_type = Object)]
struct Document(#[expect(dead_code, reason = "only the document's generator reads it")] serde_json::Value);

/// This document as a page.
#[utoipa::path(
    get,
    path = "/api/docs",
    operation_id = "getReference",
    tag = "Reference",
    security(()),
    responses((status = 200, description = "The page", body = String, content_type = "text/html",
        headers(("Content-Security-Policy")))),
)]
async fn page() -> Response {
    static PAGE: LazyLock<Option<Bytes>> = LazyLock::new(|| match page::render(&document()) {
        Ok(html) => Some(html.into()),
        Err(error) => {
            tracing::error!(%error, "the reference page cannot be made");
            None
        }
    });
    match &*PAGE {
        Some(html) => asset("text/html; charset=utf-8", html.clone()),
        None => ApiError::plain(StatusCode::INTERNAL_SERVER_ERROR).into_response(),
    }
}

/// How the page looks.
#[utoipa::path(
    get,
    path = "/api/docs/style.css",
    operation_id = "getReferenceStyle",
    tag = "Reference",
    security(()),
    responses((status = 200, description = "The style sheet", body = String, content_type = "text/css",
        headers(("Content-Security-Policy")))),
)]
async fn style() -> Response {
    asset("text/css; charset=utf-8", Bytes::from_static(STYLE.as_bytes()))
}

fn asset(content_type: &'static str, bytes: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), bytes).into_response()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().flatten()
}

/// Adds what an operation does not say because it holds for many.
fn complete(operation: &mut Operation) {
    // Who needs no key says so.
    let needs_key = operation.security.is_none();
    let answers = &mut operation.responses.responses;
    if needs_key {
        for (status, description) in [
            ("401", "`missing_api_key`, `invalid_api_key`"),
            ("500", "`internal_error`: the server failed"),
            ("503", "`queue_unreachable`, `database_unreachable`"),
        ] {
            answers.entry(status.to_owned()).or_insert_with(|| RefOr::T(Answer::new(description)));
        }
    }
    for (status, answer) in answers {
        let RefOr::T(answer) = answer else { continue };
        if status.as_str() >= "400" && answer.content.is_empty() {
            let schema = Ref::from_schema_name(ErrorBody::name());
            answer.content.insert("application/json".to_owned(), RefOr::T(Content::new(Some(schema))));
        }
        headers::complete(status, answer);
    }
}
