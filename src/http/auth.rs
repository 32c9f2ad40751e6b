//! Who calls: `x-api-key`, or `Authorization: Bearer`. Asked before anything of the body is read.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
};

use super::{Door, error::ApiError};
use crate::{
    keys::{KeyError, Keys, Principal},
    run::RunError,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who makes a request. A handler that asks for it, before anything else of the request, is called for those with a good key only.
pub(super) struct Caller(pub Arc<Principal>);

impl FromRequestParts<Arc<Door>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, door: &Arc<Door>) -> Result<Self, ApiError> {
        let key = credentials(&parts.headers)?;
        authenticate(&door.keys, key).await.map(Self)
    }
}

pub(super) async fn authenticate(keys: &Keys, key: &str) -> Result<Arc<Principal>, ApiError> {
    keys.authenticate(key).await.map_err(|error| match error {
        KeyError::Invalid => invalid(),
        KeyError::Store(error) => RunError::from(error).into(),
    })
}

/// The key of a request that may bring it another way, as `offered`.
pub(super) fn credentials_or<'a>(headers: &'a HeaderMap, offered: &[&'a str]) -> Result<&'a str, ApiError> {
    if offered.is_empty() {
        return credentials(headers);
    }
    let named = headers.contains_key(X_API_KEY) || single(headers, header::AUTHORIZATION)?.and_then(bearer).is_some();
    let mut all = offered.iter().copied().chain(if named { Some(credentials(headers)?) } else { None });
    let key = all.next().ok_or_else(missing)?;
    if all.all(|other| other == key) { Ok(key) } else { Err(invalid()) }
}

/// The one key of a request. Two that differ, or a header that occurs twice, are refused: a proxy in front may have looked at the other one.
fn credentials(headers: &HeaderMap) -> Result<&str, ApiError> {
    let own = single(headers, X_API_KEY)?;
    let bearer = single(headers, header::AUTHORIZATION)?.and_then(bearer);
    match (own, bearer) {
        (None, None) => Err(missing()),
        (Some(own), Some(bearer)) if own != bearer => Err(invalid()),
        (Some(key), _) | (None, Some(key)) => std::str::from_utf8(key).map_err(|_| invalid()),
    }
}

fn single(headers: &HeaderMap, name: HeaderName) -> Result<Option<&[u8]>, ApiError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(value.as_bytes().trim_ascii())),
        (Some(_), Some(_)) => Err(invalid()),
    }
}

/// The token of a `Bearer` credential (RFC 6750). Another scheme is meant for somebody in between.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn missing() -> ApiError {
    let sentence = "The API key is missing; send it in the 'x-api-key' header";
    ApiError::new(StatusCode::UNAUTHORIZED, "missing_api_key", sentence)
}

fn invalid() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "The API key is invalid")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(headers: &[(&'static str, &[u8])], expect: Result<&str, &str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let result = credentials(&map).map_err(|error| format!("{error:?}"));
        match (result, expect) {
            (Ok(key), Ok(expect)) => assert_eq!(key, expect),
            (Err(error), Err(code)) => assert!(error.contains(code), "{headers:?}: {error}"),
            (got, _) => panic!("{headers:?}: {got:?}"),
        }
    }

    #[test]
    fn a_key_is_found_in_either_header() {
        check(&[("x-api-key", b"sk_1")], Ok("sk_1"));
        check(&[("x-api-key", b"  sk_1 ")], Ok("sk_1"));
        check(&[("authorization", b"Bearer sk_1")], Ok("sk_1"));
        check(&[("authorization", b"bearer   sk_1")], Ok("sk_1"));
        check(&[("authorization", b"Bearer sk_1"), ("x-api-key", b"sk_1")], Ok("sk_1"));
        // A proxy's own credential beside ours.
        check(&[("authorization", b"Basic dTpw"), ("x-api-key", b"sk_1")], Ok("sk_1"));
    }

    #[test]
    fn anything_else_is_refused() {
        check(&[], Err("missing_api_key"));
        check(&[("authorization", b"Basic dTpw")], Err("missing_api_key"));
        check(&[("authorization", b"Bearer")], Err("missing_api_key"));
        check(&[("authorization", b"sk_1")], Err("missing_api_key"));
        check(&[("x-api-key", b"sk_1"), ("x-api-key", b"sk_1")], Err("invalid_api_key"));
        check(&[("authorization", b"Bearer sk_1"), ("authorization", b"Basic dTpw")], Err("invalid_api_key"));
        check(&[("authorization", b"Bearer sk_1"), ("x-api-key", b"sk_2")], Err("invalid_api_key"));
        check(&[("x-api-key", b"sk_\xff")], Err("invalid_api_key"));
    }
}
