//! `Idempotency-Key`: the caller's name for one request, so that it can be sent again.

use axum::http::{HeaderMap, HeaderName, StatusCode};

use super::error::ApiError;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that the answer is about a run that an earlier request made.
pub(super) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const MAX_CHARACTERS: usize = 255;

/// The request's key, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let refused = |sentence: &'static str| ApiError::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", sentence);
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refused("A request has one Idempotency-Key"));
    }
    // Characters of one byte only: a header cannot say which encoding others are in.
    match value.to_str() {
        Ok(key) if (1..=MAX_CHARACTERS).contains(&key.len()) => Ok(Some(key)),
        _ => Err(refused("'Idempotency-Key' must be 1 to 255 visible ASCII characters")),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_one_short_word() {
        let check = |values: &[&[u8]], expect: Result<Option<&str>, ()>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(key(&headers).map_err(|_| ()), expect, "{values:?}");
        };
        check(&[], Ok(None));
        check(&[b"order-17"], Ok(Some("order-17")));
        check(&[b"two words"], Ok(Some("two words")));
        check(&[&[b'a'; 255]], Ok(Some(&"a".repeat(255))));
        check(&[&[b'a'; 256]], Err(()));
        check(&[b""], Err(()));
        check(&[b"caf\xc3\xa9"], Err(()));
        check(&[b"one", b"one"], Err(()));
    }
}
