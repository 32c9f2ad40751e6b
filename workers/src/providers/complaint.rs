//! What a provider says went wrong, and what that means for the run.
//!
//! Nobody agrees on the form: `{"error": {"message", "type", "code"}}` (OpenAI, Groq, DeepSeek, OpenRouter), `{"error":
//! "…"}` (Ollama), `{"message", "type", "code"}` (Mistral, vLLM), `{"detail": …}` (FastAPI). All are read; what is not
//! understood is only less said.

use std::time::Duration;

use serde_json::Value;

use super::{Call, ErrorClass, Secret, retry_after};

/// The longest detail that is kept of a provider's own words, in characters.
const LONGEST_DETAIL: usize = 300;

/// 429 codes that no wait will cure: the account is out of money, or shut. Waiting would hold the run, and by its pause
/// every other run of the provider, until its deadline; a refusal lets it go to the next target and tells the operator
/// why.
const OUT_OF_MONEY: [&str; 4] =
    ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"];

/// An error as the provider words it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Complaint {
    message: String,
    /// `code` and `type`, those that are there.
    labels: Vec<String>,
    /// An HTTP status inside the body.
    status: Option<u16>,
    /// When to come back, as the body says.
    pub(super) after: Option<Duration>,
}

impl Complaint {
    /// Reads the body of an answer that is no success.
    pub(super) fn of_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::of_value(&value),
            Err(_) => Self::of_text(body),
        }
    }

    /// Reads a JSON value: a whole body, or an event of a stream.
    pub(super) fn of_value(value: &Value) -> Self {
        let inner = value.get("error").filter(|error| !error.is_null()).unwrap_or(value);
        let message = match inner {
            Value::String(text) => text.clone(),
            _ => ["message", "detail", "error_description"]
                .into_iter()
                .find_map(|name| inner.get(name))
                .map(|said| said.as_str().map_or_else(|| said.to_string(), str::to_owned))
                .unwrap_or_default(),
        };
        let after = [inner, value].into_iter().find_map(|object| {
            let number = |name| object.get(name).and_then(Value::as_f64);
            number("retry_after_ms")
                .map(|ms| ms / 1_000.0)
                .or_else(|| number("retry_after"))
                .and_then(retry_after::in_seconds)
        });
        Self {
            labels: ["code", "type"]
                .into_iter()
                .filter_map(|name| Some(inner.get(name)?.as_str()?.to_owned()))
                .collect(),
            status: ["code", "status"]
                .into_iter()
                .filter_map(|name| u16::try_from(inner.get(name)?.as_u64()?).ok())
                .find(|status| (400..600).contains(status)),
            after: after.or_else(|| retry_after::in_sentence(&message)),
            message,
        }
    }

    /// A body that is no JSON: short plain text is worth showing, a page is not.
    fn of_text(body: &[u8]) -> Self {
        let message = std::str::from_utf8(body).map(str::trim).unwrap_or_default();
        let message = if message.starts_with('<') { "" } else { message };
        Self { after: retry_after::in_sentence(message), message: message.to_owned(), ..Self::default() }
    }

    /// What to do after an answer with this status.
    pub(super) fn class_of(&self, status: u16, after: Option<Duration>) -> ErrorClass {
        match status {
            401 | 403 => ErrorClass::Unauthorized,
            429 if self.is_hopeless() => ErrorClass::Rejected,
            429 => ErrorClass::Limited { after },
            408 | 409 | 425 | 500.. => ErrorClass::Failing { after },
            _ => ErrorClass::Rejected,
        }
    }

    /// What to do after an error that came inside an answer which had begun as a success.
    pub(super) fn class(&self) -> ErrorClass {
        if let Some(status) = self.status {
            return self.class_of(status, self.after);
        }
        let says = |words: &[&str]| self.labels.iter().any(|label| words.iter().any(|word| label.contains(word)));
        if self.is_hopeless() || says(&["invalid_request", "context_length", "content_filter", "content_policy"]) {
            ErrorClass::Rejected
        } else if says(&["rate_limit", "too_many_requests"]) {
            ErrorClass::Limited { after: self.after }
        } else if says(&["authentication", "invalid_api_key", "permission"]) {
            ErrorClass::Unauthorized
        } else {
            ErrorClass::Failing { after: self.after }
        }
    }

    /// A limit that this request will never pass: no money, or more tokens in one request than a whole minute has.
    fn is_hopeless(&self) -> bool {
        self.labels.iter().any(|label| OUT_OF_MONEY.contains(&label.as_str()))
            || self.message.starts_with("Request too large")
    }

    /// The provider's words, fit for operators: no key, no prompt, no control characters, not too long.
    pub(super) fn words(&self, call: &Call<'_>, key: Option<&Secret>) -> String {
        let mut words = self.message.clone();
        for label in &self.labels {
            words = if words.is_empty() { label.clone() } else { format!("{words} ({label})") };
        }
        clean(&words, call, key)
    }
}

/// Text from outside, fit for operators.
pub(super) fn clean(text: &str, call: &Call<'_>, key: Option<&Secret>) -> String {
    let mut text = text.to_owned();
    if let Some(key) = key {
        text = text.replace(key.expose(), "[secret]");
    }
    // A text of a few characters would be found in every sentence.
    let prompts = call.request.system.iter().chain([&call.request.user]).filter(|prompt| prompt.len() >= 8);
    for prompt in prompts {
        text = text.replace(prompt.as_str(), "[prompt]");
    }
    shorten(&text, LONGEST_DETAIL)
}

/// At most this many characters, none of them a control character.
pub(super) fn shorten(text: &str, longest: usize) -> String {
    let mut characters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = characters.by_ref().take(longest).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ModelRequest;

    #[track_caller]
    fn check(status: u16, body: &str, expect: ErrorClass) {
        let complaint = Complaint::of_body(body.as_bytes());
        assert_eq!(complaint.class_of(status, complaint.after), expect, "{status} {body}");
    }

    #[test]
    fn a_status_says_what_to_do() {
        for status in [401, 403] {
            check(status, "", ErrorClass::Unauthorized);
        }
        for status in [400, 402, 404, 413, 418, 422] {
            check(status, "", ErrorClass::Rejected);
        }
        for status in [408, 409, 425, 500, 502, 503, 504, 529] {
            check(status, "", ErrorClass::Failing { after: None });
        }
        check(429, "", ErrorClass::Limited { after: None });
    }

    #[test]
    fn a_limit_that_waiting_does_not_cure_is_a_refusal() {
        check(
            429,
            r#"{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}"#,
            ErrorClass::Rejected,
        );
        check(429, r#"{"error":{"message":"…","type":"insufficient_quota","code":null}}"#, ErrorClass::Rejected);
        check(
            429,
            r#"{"error":{"message":"Request too large for gpt-4 in organization x on tokens per min"}}"#,
            ErrorClass::Rejected,
        );
        check(
            429,
            r#"{"error":{"message":"Rate limit reached. Please try again in 1.2s.","code":"rate_limit_exceeded"}}"#,
            ErrorClass::Limited { after: Some(Duration::from_millis(1_200)) },
        );
    }

    #[test]
    fn errors_inside_an_answer_are_classified_by_their_words() {
        let check = |json: &str, expect: ErrorClass| {
            assert_eq!(Complaint::of_value(&serde_json::from_str(json).unwrap()).class(), expect, "{json}");
        };
        check(r#"{"error":{"message":"Upstream is busy","code":502}}"#, ErrorClass::Failing { after: None });
        check(
            r#"{"error":{"message":"slow down","code":429,"retry_after":3}}"#,
            ErrorClass::Limited { after: Some(Duration::from_secs(3)) },
        );
        check(
            r#"{"error":{"message":"x","type":"rate_limit_error"},"retry_after_ms":250}"#,
            ErrorClass::Limited { after: Some(Duration::from_millis(250)) },
        );
        check(r#"{"error":{"message":"x","type":"server_error"}}"#, ErrorClass::Failing { after: None });
        check(r#"{"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}"#, ErrorClass::Rejected);
        check(r#"{"error":{"code":"invalid_api_key"}}"#, ErrorClass::Unauthorized);
        check(r#"{"error":{"code":"insufficient_quota"}}"#, ErrorClass::Rejected);
        check(r#"{"error":"model runner has stopped"}"#, ErrorClass::Failing { after: None });
        check(r#"{"error":{"code":70000,"retry_after":-5}}"#, ErrorClass::Failing { after: None });
    }

    #[test]
    fn words_name_no_key_and_no_prompt_and_are_short() {
        let key = Secret::new("sk-planted-key");
        let request = ModelRequest { user: "the whole prompt".to_owned(), ..ModelRequest::default() };
        let call = Call { upstream: "m", request: &request, stream: false, deadline: tokio::time::Instant::now() };
        let words = |body: &str| Complaint::of_body(body.as_bytes()).words(&call, Some(&key));

        assert_eq!(
            words(r#"{"error":{"message":"bad key sk-planted-key\nfor: the whole prompt","type":"t","code":"c"}}"#),
            "bad key [secret] for: [prompt] (c) (t)"
        );
        assert_eq!(words(r#"{"error":"plain sk-planted-key"}"#), "plain [secret]");
        assert_eq!(words(r#"{"detail":[{"msg":"no such field"}]}"#), r#"[{"msg":"no such field"}]"#);
        assert_eq!(words("upstream sk-planted-key gone\r\n"), "upstream [secret] gone");
        assert_eq!(words("<html>a page</html>"), "");
        assert_eq!(words("\u{fffd}").chars().count(), 1);
        // The key is taken out before the text is cut, so that no part of it is left at the cut.
        let long = format!("{}sk-planted-key", "é".repeat(LONGEST_DETAIL - 5));
        let long = words(&long);
        assert!(!long.contains("sk-"), "{long}");
        assert_eq!(long.chars().count(), LONGEST_DETAIL + 1);
    }
}
