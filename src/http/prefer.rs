//! `Prefer` (RFC 7240): `respond-async` and `wait=N`. Everything else in it is somebody else's business and ignored.

use std::{str, time::Duration};

use axum::http::{HeaderMap, HeaderName};

use crate::run::Answer;

const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What the caller prefers, as far as it is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preferences {
    respond_async: bool,
    /// Seconds.
    wait: Option<u32>,
}

impl Preferences {
    /// Of several values of one preference the first counts (RFC 7240, section 2).
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut preferences = Self::default();
        let lines = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        for preference in lines.flat_map(|line| split(line, b',')) {
            let word = split(preference, b';').next().unwrap_or_default();
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("respond-async") {
                preferences.respond_async = true;
            } else if name.eq_ignore_ascii_case("wait") && preferences.wait.is_none() {
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                // More seconds than fit are as good as forever, and the run's deadline comes first.
                preferences.wait = digits.then(|| value.parse().unwrap_or(u32::MAX));
            }
        }
        preferences
    }

    /// With both, the caller waits for a while and leaves then (RFC 7240, section 4.3).
    pub(super) fn answer(self) -> Answer {
        match self.wait {
            Some(seconds) => Answer::WaitAtMost(Duration::from_secs(seconds.into())),
            None if self.respond_async => Answer::Later,
            None => Answer::Wait,
        }
    }

    /// What `Preference-Applied` says; `went_async` when the run goes on without its caller.
    pub(super) fn applied(self, went_async: bool) -> Option<String> {
        let wait = self.wait.map(|seconds| format!("wait={seconds}"));
        let respond_async = (self.respond_async && went_async).then(|| "respond-async".to_owned());
        let applied: Vec<_> = respond_async.into_iter().chain(wait).collect();
        (!applied.is_empty()).then(|| applied.join(", "))
    }
}

/// Splits at `separator` outside quotes.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let mut cut = move |byte: u8| {
        if escaped {
            escaped = false;
        } else if quoted && byte == b'\\' {
            escaped = true;
        } else if byte == b'"' {
            quoted = !quoted;
        }
        !quoted && byte == separator
    };
    // A separator is one ASCII byte, so that every part is whole characters.
    text.as_bytes().split(move |&byte| cut(byte)).map(|part| str::from_utf8(part).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn preferences(lines: &[&str]) -> Preferences {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, HeaderValue::from_str(line).unwrap());
        }
        Preferences::of(&headers)
    }

    #[test]
    fn answers_follow_preferences() {
        let check = |lines: &[&str], expect: Answer| assert_eq!(preferences(lines).answer(), expect, "{lines:?}");
        let at_most = |seconds| Answer::WaitAtMost(Duration::from_secs(seconds));
        check(&[], Answer::Wait);
        check(&["respond-async"], Answer::Later);
        check(&["Respond-Async"], Answer::Later);
        check(&["wait=5"], at_most(5));
        check(&["respond-async, wait=5"], at_most(5));
        check(&["respond-async", "wait = \"7\""], at_most(7));
        check(&["wait=5, wait=9"], at_most(5));
        check(&["wait=0"], at_most(0));
        check(&["wait=99999999999999999999"], at_most(u32::MAX.into()));
        check(&["handling=lenient; respond-async"], Answer::Wait);
        check(&["foo=\"a, respond-async\""], Answer::Wait);
        check(&["foo=\"a\\\", respond-async\", wait=3"], at_most(3));
        check(&["respond-async; foo=bar"], Answer::Later);
        check(&["wait", "wait=-1", "wait=1.5", "wait=soon"], Answer::Wait);
        check(&["", ",,", ";"], Answer::Wait);
    }

    #[test]
    fn what_was_applied_is_told() {
        let check = |line: &str, went_async, expect: Option<&str>| {
            assert_eq!(preferences(&[line]).applied(went_async).as_deref(), expect);
        };
        check("", false, None);
        check("respond-async", true, Some("respond-async"));
        check("wait=5", true, Some("wait=5"));
        check("wait=5", false, Some("wait=5"));
        check("respond-async, wait=5", true, Some("respond-async, wait=5"));
        check("respond-async, wait=5", false, Some("wait=5"));
    }
}
