//! Headers of answers: what is left of the caller's limits, and the facts of a run.

use std::{fmt::Write, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use workers::{
    job::{CacheUse, RunId},
    queue::RateLeft,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_RUN_ID: HeaderName = HeaderName::from_static("x-run-id");
const X_PROMPT_VERSION: HeaderName = HeaderName::from_static("x-prompt-version");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const X_QUEUE_MS: HeaderName = HeaderName::from_static("x-queue-ms");

/// All limits of requests count one minute.
const WINDOW_SECONDS: u32 = 60;

/// What every answer about a started run says beside its body.
pub(super) struct RunFacts {
    pub run: RunId,
    pub prompt_version: i32,
    rates: Vec<RateLeft>,
}

impl RunFacts {
    /// `rates`: none for a request that was sent before, which is counted against no limit.
    pub(super) fn new(run: RunId, prompt_version: i32, rates: Vec<RateLeft>) -> Self {
        Self { run, prompt_version, rates }
    }

    /// `queue_ms`: how long the run waited, once it is known.
    pub(super) fn insert(&self, headers: &mut HeaderMap, queue_ms: Option<u64>) {
        insert_run(headers, self.run, self.prompt_version, queue_ms);
        insert_rates(headers, &self.rates);
    }
}

/// Where the result came from, for runs that may share theirs.
pub(super) fn insert_cache(headers: &mut HeaderMap, cache: Option<CacheUse>) {
    if let Some(cache) = cache {
        headers.insert(X_CACHE, HeaderValue::from_static(cache.as_str()));
    }
}

pub(super) fn insert_run(headers: &mut HeaderMap, run: RunId, prompt_version: i32, queue_ms: Option<u64>) {
    insert(headers, X_RUN_ID, &run.to_string());
    headers.insert(X_PROMPT_VERSION, prompt_version.into());
    if let Some(queue_ms) = queue_ms {
        headers.insert(X_QUEUE_MS, queue_ms.into());
    }
}

/// `RateLimit` and `RateLimit-Policy` as lists of structured fields (draft-ietf-httpapi-ratelimit-headers, RFC 9651):
/// `"account";r=99;t=60` and `"account";q=100;w=60`.
pub(super) fn insert_rates(headers: &mut HeaderMap, rates: &[RateLeft]) {
    if rates.is_empty() {
        return;
    }
    let (mut left, mut policy) = (String::new(), String::new());
    for (index, rate) in rates.iter().enumerate() {
        let RateLeft { name, per_minute, remaining, reset } = rate;
        let comma = if index == 0 { "" } else { ", " };
        let reset = reset.as_secs().saturating_add(u64::from(reset.subsec_nanos() > 0));
        // Writing to a string cannot fail.
        let _ = write!(left, "{comma}\"{name}\";r={remaining};t={reset}");
        let _ = write!(policy, "{comma}\"{name}\";q={per_minute};w={WINDOW_SECONDS}");
    }
    insert(headers, RATE_LIMIT, &left);
    insert(headers, RATE_LIMIT_POLICY, &policy);
}

/// `Retry-After` in seconds: rounded up, and never 0, which would be an invitation to come back at once.
pub(super) fn whole_seconds(after: Duration) -> u64 {
    after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1)
}

/// Leaves a value out that is no header value; none of ours is.
pub(super) fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_lists_of_structured_fields() {
        let rate = |name, per_minute, remaining, millis| RateLeft {
            name,
            per_minute,
            remaining,
            reset: Duration::from_millis(millis),
        };
        let mut headers = HeaderMap::new();
        insert_rates(&mut headers, &[rate("account", 100, 99, 59_001), rate("key", 10, 0, 0)]);
        assert_eq!(headers["ratelimit"], r#""account";r=99;t=60, "key";r=0;t=0"#);
        assert_eq!(headers["ratelimit-policy"], r#""account";q=100;w=60, "key";q=10;w=60"#);
    }

    #[test]
    fn no_limit_has_no_header() {
        let mut headers = HeaderMap::new();
        insert_rates(&mut headers, &[]);
        assert!(headers.is_empty());
    }

    #[test]
    fn retry_after_is_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1_000)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1_001)), 2);
    }
}
