//! `after`, the one parameter of addresses whose answers can be taken up again.

use std::borrow::Cow;

use axum::http::StatusCode;

use super::error::ApiError;

/// What `parse` makes of it; `None` when it is not given.
pub(super) fn after<T>(
    query: Option<&str>,
    parse: impl Fn(&str) -> Result<T, ApiError>,
) -> Result<Option<T>, ApiError> {
    let mut after = None;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("after", text) if after.is_none() => after = Some(parse(text)?),
            ("after", _) => return Err(refused("'after' must be given once")),
            _ => return Err(refused("The only parameter of this address is 'after'")),
        }
    }
    Ok(after)
}

/// It is given, and wrong.
pub(super) fn refused(sentence: impl Into<Cow<'static, str>>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", sentence)
}
