//! From a request to a socket: who asks, from where, in which protocol, and whether there is room.
//!
//! Programs send their key in a header, like any request. A page in a browser cannot: it offers two subprotocols, ours and its key
//! (`new WebSocket(url, ["prompt-manager.v1", key])`), and is answered with ours.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    response::Response,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use workers::providers::Secret;

use super::{
    session::{self, Caller},
    sockets::Full,
};
use crate::{
    http::{
        Door,
        auth::{authenticate, credentials_or},
        error::ApiError,
        server::Upgrades,
        shell::X_REQUEST_ID,
    },
    run::RunError,
};

/// What sockets speak here.
const PROTOCOL: &str = "prompt-manager.v1";
/// What every key begins with, and no subprotocol that is none.
const KEY_PREFIX: &str = "sk_";
/// The only version of the protocol (RFC 6455, section 4.1).
const VERSION: &str = "13";
/// When a client without a place may find one: sockets have no end that could be foreseen.
const COME_BACK: Duration = Duration::from_secs(10);

/// Opens a socket for many runs.
///
/// Every message is text and holds one JSON object. The client's are a `SocketCreate`, a `SocketCancel` or a `SocketResume`; the server's are a
/// `SocketEvent`, a `SocketError` or a `SocketCancelAccepted`. Programs send their key like with any request; a page in a browser
/// offers it as a second subprotocol.
#[utoipa::path(
    get,
    path = "/api/v1/ws",
    operation_id = "openSocket",
    tag = "WebSocket",
    params(
        ("Upgrade" = String, Header, example = "websocket", description = "`websocket`"),
        ("Connection" = String, Header, example = "Upgrade", description = "`Upgrade`"),
        ("Sec-WebSocket-Version" = String, Header, example = "13", description = "`13`"),
        ("Sec-WebSocket-Key" = String, Header, example = "dGhlIHNhbXBsZSBub25jZQ==", description = "16 bytes in base 64"),
        ("Sec-WebSocket-Protocol" = Option<String>, Header, description = "`prompt-manager.v1`, and the key of a page in a browser"),
        ("Origin" = Option<String>, Header, description = "The page's origin: the server's own, or one of `websocket.allowed_origins`"),
    ),
    responses(
        (status = 101, description = "The connection is a WebSocket (RFC 6455) from here on. It is closed with 1001 (the server shuts \
            down), 1002 or 1007 (what came is no WebSocket, or no UTF-8), 1008 (the key was revoked or has expired), 1009 (a message is too \
            large), 1011 (no answer to a ping) or 1013 (nothing is taken)", headers(("Upgrade"), ("Sec-WebSocket-Accept"),
            ("Sec-WebSocket-Protocol"))),
        (status = 400, description = "`upgrade_required`, `invalid_handshake`, `unsupported_subprotocol`"),
        (status = 403, description = "`origin_not_allowed`"),
        (status = 426, description = "`unsupported_websocket_version`", headers(("Sec-WebSocket-Version"))),
        (status = 429, description = "`too_many_sockets`: the key has no socket left"),
        (status = 503, description = "`too_many_sockets`: the server has no socket left. `draining`, `database_unreachable`"),
    ),
)]
pub(in crate::http) async fn open(State(door): State<Arc<Door>>, mut request: Request) -> Result<Response, ApiError> {
    let headers = request.headers();
    let offered = Offered::of(headers)?;
    let key = Secret::new(credentials_or(headers, &offered.keys)?);
    let principal = authenticate(&door.keys, key.expose()).await?;
    let accept = handshake(&request)?;
    if !offered.keys.is_empty() && !offered.ours {
        // A browser drops a connection whose answer names none of the protocols that it offered, and the key is never named.
        return Err(refuse("unsupported_subprotocol", format!("Offer the subprotocol '{PROTOCOL}' beside the key")));
    }
    let protocol = offered.ours.then_some(PROTOCOL);
    same_or_allowed_origin(headers, &door.websocket.allowed_origins)?;
    let upgrades = request.extensions_mut().remove::<Upgrades>();
    let upgrades = upgrades.filter(|upgrades| !upgrades.stop().is_cancelled());
    let upgrades = upgrades.ok_or_else(|| ApiError::from(RunError::Draining))?;
    let seat = door.sockets.take(principal.key, &door.websocket).map_err(full)?;

    let request_id = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().into();
    let caller = Arc::new(Caller { door, key, account: principal.account.id, request_id });
    let stop = upgrades.stop().clone();
    let upgraded = hyper::upgrade::on(&mut request);
    upgrades.spawn(async move {
        match upgraded.await {
            Ok(io) => session::run(io, caller, stop).await,
            Err(error) => tracing::debug!(%error, "a connection ended before it became a socket"),
        }
        drop(seat);
    });
    Ok(switching(&accept, protocol))
}

fn switching(accept: &str, protocol: Option<&'static str>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    crate::http::headers::insert(headers, header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

/// What the client offers in `Sec-WebSocket-Protocol`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Offered<'a> {
    ours: bool,
    keys: Vec<&'a str>,
}

impl<'a> Offered<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, ApiError> {
        let mut offered = Self::default();
        for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
            let text = value.to_str().map_err(|_| no_handshake("Sec-WebSocket-Protocol"))?;
            for protocol in text.split(',').map(str::trim) {
                if protocol.starts_with(KEY_PREFIX) {
                    offered.keys.push(protocol);
                }
                offered.ours |= protocol == PROTOCOL;
            }
        }
        Ok(offered)
    }
}

/// What the client's key is answered with, if the request is a good opening handshake (RFC 6455, section 4.2.1).
fn handshake(request: &Request) -> Result<String, ApiError> {
    let headers = request.headers();
    // axum answers HEAD with what is meant for GET.
    if request.version() != Version::HTTP_11 || request.method() != Method::GET {
        return Err(refuse("upgrade_required", "A WebSocket is opened by GET over HTTP/1.1"));
    }
    if !has_word(headers, header::CONNECTION, "upgrade") || !has_word(headers, header::UPGRADE, "websocket") {
        return Err(refuse("upgrade_required", "This address takes WebSocket clients only"));
    }
    if single(headers, header::SEC_WEBSOCKET_VERSION) != Some(VERSION) {
        let sentence = format!("Only version {VERSION} of the WebSocket protocol is spoken here");
        let versions = HeaderValue::from_static(VERSION);
        let error = ApiError::new(StatusCode::UPGRADE_REQUIRED, "unsupported_websocket_version", sentence);
        return Err(error.header(header::SEC_WEBSOCKET_VERSION, versions));
    }
    // 16 bytes in base 64; what they are does not matter to anybody.
    let key = single(headers, header::SEC_WEBSOCKET_KEY);
    let is_key = |key: &&str| {
        let body = key.strip_suffix("==");
        body.is_some_and(|body| {
            body.len() == 22 && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b))
        })
    };
    let key = key.filter(is_key).ok_or_else(|| no_handshake("Sec-WebSocket-Key"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// A browser says in `Origin` which page asks, and pages cannot change it (RFC 6454). Without it there is no browser.
///
/// The scheme of a page of our own is not compared: behind a proxy that speaks TLS, only the host tells.
fn same_or_allowed_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    if !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let origin = single(headers, header::ORIGIN);
    let host = single(headers, header::HOST);
    let is_own = |origin: &str| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    let is_allowed = |origin: &str| allowed.iter().any(|other| other == "*" || other.eq_ignore_ascii_case(origin));
    if origin.is_some_and(|origin| is_own(origin) || is_allowed(origin)) {
        return Ok(());
    }
    let sentence = "Pages of this origin may not open sockets here";
    Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", sentence))
}

fn full(full: Full) -> ApiError {
    match full {
        Full::OfThisKey => {
            let sentence = "This API key has no socket left; close one first";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_sockets", sentence)
        }
        Full::OfAll => {
            let sentence = "The server has no socket left; try again later or elsewhere";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_sockets", sentence)
        }
    }
    .retry_after(COME_BACK)
}

fn no_handshake(header: &str) -> ApiError {
    refuse("invalid_handshake", format!("The header '{header}' is missing or is no good"))
}

fn refuse(code: &'static str, sentence: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in all {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn keys_and_our_protocol_are_found_among_the_offers() {
        let check = |lines: &[&str], ours: bool, keys: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("sec-websocket-protocol", *line)).collect();
            let headers = headers(&lines);
            assert_eq!(Offered::of(&headers).unwrap(), Offered { ours, keys: keys.to_vec() }, "{lines:?}");
        };
        check(&[], false, &[]);
        check(&["prompt-manager.v1"], true, &[]);
        check(&["prompt-manager.v1, sk_1"], true, &["sk_1"]);
        check(&["sk_1", "prompt-manager.v1"], true, &["sk_1"]);
        check(&["graphql-ws,sk_1,sk_2"], false, &["sk_1", "sk_2"]);
    }

    #[test]
    fn origins() {
        let allowed = ["https://chat.example".to_owned()];
        let check = |origins: &[&str], host: &str, expect: bool| {
            let mut all = vec![("host", host)];
            all.extend(origins.iter().map(|origin| ("origin", *origin)));
            assert_eq!(same_or_allowed_origin(&headers(&all), &allowed).is_ok(), expect, "{origins:?} {host}");
        };
        check(&[], "api.example", true);
        check(&["https://chat.example"], "api.example", true);
        check(&["https://api.example"], "api.example", true);
        check(&["http://127.0.0.1:8080"], "127.0.0.1:8080", true);
        check(&["http://127.0.0.1:8081"], "127.0.0.1:8080", false);
        check(&["https://chat.example.evil"], "api.example", false);
        check(&["https://evil.example"], "api.example", false);
        check(&["http://chat.example"], "api.example", false);
        check(&["null"], "api.example", false);
        check(&[""], "", false);
        check(&["https://chat.example", "https://evil.example"], "api.example", false);
        let anybody = ["*".to_owned()];
        let evil = headers(&[("origin", "https://evil.example"), ("host", "api.example")]);
        assert!(same_or_allowed_origin(&evil, &anybody).is_ok());
    }

    #[test]
    fn handshakes() {
        const GOOD: &[(&str, &str)] = &[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let check = |changed: Option<(&'static str, &str)>, expect: Result<&str, &str>| {
            let mut map = headers(GOOD);
            if let Some((name, value)) = changed {
                map.insert(name, HeaderValue::from_str(value).unwrap());
            }
            let mut request = Request::new(Body::empty());
            *request.headers_mut() = map;
            match (handshake(&request), expect) {
                (Ok(accept), Ok(expect)) => assert_eq!(accept, expect),
                (Err(error), Err(code)) => assert!(format!("{error:?}").contains(code), "{error:?}"),
                (got, expect) => panic!("{got:?}, not {expect:?}"),
            }
        };
        // The example of RFC 6455, section 1.3.
        check(None, Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        check(Some(("connection", "keep-alive")), Err("upgrade_required"));
        check(Some(("upgrade", "h2c")), Err("upgrade_required"));
        check(Some(("sec-websocket-version", "8")), Err("unsupported_websocket_version"));
        check(Some(("sec-websocket-key", "short")), Err("invalid_handshake"));
        check(Some(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZ!==")), Err("invalid_handshake"));
    }
}
