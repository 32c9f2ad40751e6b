//! The bodies of Chat Completions: what is sent, and what is read. Prompts are borrowed on the way out, text on the way
//! in.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor},
};
use serde_json::Value;

use super::schema;
use crate::{
    job::Usage,
    providers::{Call, Completion, complaint::shorten},
};

/// How a server deviates from the common form. Everything not known by its host gets the common form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dialect {
    /// OpenAI itself: its newer models refuse `max_tokens`, and all its models take `max_completion_tokens`.
    max_completion_tokens: bool,
    /// Mistral refuses unknown fields: it calls the seed `random_seed`, and sends usage in streams unasked.
    mistral: bool,
}

impl Dialect {
    pub(super) fn of(host: &str) -> Self {
        Self { max_completion_tokens: host == "api.openai.com", mistral: host == "api.mistral.ai" }
    }
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: &'a [Message<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    random_seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct ResponseFormat<'a> {
    r#type: &'static str,
    json_schema: JsonSchema<'a>,
}

#[derive(Serialize)]
struct JsonSchema<'a> {
    name: &'static str,
    schema: &'a Value,
    strict: bool,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// The body of a call.
pub(super) fn request(call: &Call<'_>, dialect: Dialect) -> Vec<u8> {
    let parameters = &call.request.parameters;
    let system = call.request.system.as_deref().map(|content| Message { role: "system", content });
    let user = Message { role: "user", content: &call.request.user };
    let messages: Vec<Message<'_>> = system.into_iter().chain([user]).collect();
    let body = Request {
        model: call.upstream,
        messages: &messages,
        temperature: parameters.temperature,
        top_p: parameters.top_p,
        max_tokens: parameters.max_tokens.filter(|_| !dialect.max_completion_tokens),
        max_completion_tokens: parameters.max_tokens.filter(|_| dialect.max_completion_tokens),
        stop: &parameters.stop,
        seed: parameters.seed.filter(|_| !dialect.mistral),
        random_seed: parameters.seed.filter(|_| dialect.mistral),
        response_format: call.request.output_schema.as_ref().map(|schema| ResponseFormat {
            r#type: "json_schema",
            json_schema: JsonSchema { name: "output", schema, strict: schema::can_be_strict(schema) },
        }),
        stream: call.stream,
        stream_options: (call.stream && !dialect.mistral).then_some(StreamOptions { include_usage: true }),
    };
    // Strings, numbers and maps with string keys always serialise.
    serde_json::to_vec(&body).unwrap_or_default()
}

/// A whole answer.
#[derive(Deserialize)]
pub(super) struct Answer<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default)]
    pub(super) error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Reply<'a>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
}

/// What the model said, whole or in part.
#[derive(Default, Deserialize)]
pub(super) struct Reply<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
    /// Said instead of content by a model that declines to follow an output schema.
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
}

impl<'a> Reply<'a> {
    /// The text, and whether it is a refusal.
    ///
    /// A refusal is the model's answer, not a failed call: another try would be paid for and refused again. The finish
    /// reason tells.
    pub(super) fn into_text(self) -> (Cow<'a, str>, bool) {
        let content = self.content.map(|text| text.0).filter(|text| !text.is_empty());
        let refusal = self.refusal.map(|text| text.0).filter(|text| !text.is_empty());
        match (content, refusal) {
            (None, Some(refusal)) => (refusal, true),
            (content, _) => (content.unwrap_or_default(), false),
        }
    }
}

impl Answer<'_> {
    /// `None` when there is no choice to take.
    pub(super) fn into_completion(self) -> Option<Completion> {
        let choice = self.choices?.into_iter().next()?;
        let (text, is_refusal) = choice.message.into_text();
        Some(Completion {
            output: text.into_owned(),
            finish_reason: finish_reason(choice.finish_reason.as_ref(), is_refusal),
            usage: self.usage.map(Usage::from).unwrap_or_default(),
            first_token: None,
        })
    }
}

/// The reason in the provider's words. `refusal` is not one of OpenAI's, which says `stop`; it is what the field calls
/// it.
pub(super) fn finish_reason(said: Option<&Text<'_>>, is_refusal: bool) -> Option<String> {
    if is_refusal {
        return Some("refusal".to_owned());
    }
    said.filter(|text| !text.0.is_empty()).map(|text| shorten(&text.0, 64))
}

/// An event of a stream.
#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default)]
    pub(super) choices: Option<Vec<ChunkChoice<'a>>>,
    #[serde(default)]
    pub(super) usage: Option<WireUsage>,
    #[serde(default)]
    pub(super) error: Option<Value>,
}

#[derive(Deserialize)]
pub(super) struct ChunkChoice<'a> {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(borrow, default)]
    pub(super) delta: Option<Reply<'a>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<Text<'a>>,
}

/// Counts as sent, which may be anything.
#[derive(Deserialize)]
pub(super) struct WireUsage {
    #[serde(default)]
    prompt_tokens: Value,
    #[serde(default)]
    completion_tokens: Value,
}

impl From<WireUsage> for Usage {
    /// A count that is no plausible number is unknown; it must not spoil an answer that is paid for.
    fn from(usage: WireUsage) -> Self {
        let count = |value: &Value| value.as_u64().filter(|&tokens| tokens <= u64::from(u32::MAX));
        Usage { input_tokens: count(&usage.prompt_tokens), output_tokens: count(&usage.completion_tokens) }
    }
}

/// Text, borrowed from the body where it holds no escapes. Some servers send a list of parts instead; those that are
/// text count.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Text)
    }
}

struct TextVisitor;

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
}

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of parts")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut all = String::new();
        while let Some(part) = parts.next_element::<Part<'de>>()? {
            all.push_str(part.text.as_ref().map_or("", |text| &text.0));
        }
        Ok(Cow::Owned(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::job::{ModelRequest, Parameters};

    fn sent(request: &ModelRequest, stream: bool, host: &str) -> Value {
        let call = Call { upstream: "gpt-x", request, stream, deadline: Instant::now() };
        serde_json::from_slice(&super::request(&call, Dialect::of(host))).unwrap()
    }

    fn everything() -> ModelRequest {
        ModelRequest {
            system: Some("Sois bref.".to_owned()),
            user: "Bonjour \"toi\"".to_owned(),
            parameters: Parameters {
                temperature: Some(0.5),
                top_p: Some(0.25),
                max_tokens: Some(40),
                stop: vec!["FIN".to_owned()],
                seed: Some(-7),
            },
            output_schema: Some(json!({"type": "object"})),
        }
    }

    #[test]
    fn a_bare_request_says_nothing_it_does_not_know() {
        let request = ModelRequest { user: "Bonjour".to_owned(), ..ModelRequest::default() };
        let expect = json!({"model": "gpt-x", "messages": [{"role": "user", "content": "Bonjour"}]});
        assert_eq!(sent(&request, false, "127.0.0.1"), expect);
    }

    #[test]
    fn a_full_request_says_everything() {
        let expect = json!({
            "model": "gpt-x",
            "messages": [{"role": "system", "content": "Sois bref."}, {"role": "user", "content": "Bonjour \"toi\""}],
            "temperature": 0.5,
            "top_p": 0.25,
            "max_tokens": 40,
            "stop": ["FIN"],
            "seed": -7,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": false},
            },
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        assert_eq!(sent(&everything(), true, "127.0.0.1"), expect);
    }

    #[test]
    fn openai_and_mistral_are_spoken_to_in_their_words() {
        let openai = sent(&everything(), true, "api.openai.com");
        assert_eq!((&openai["max_completion_tokens"], openai.get("max_tokens")), (&json!(40), None));
        let mistral = sent(&everything(), true, "api.mistral.ai");
        assert_eq!((&mistral["random_seed"], mistral.get("seed")), (&json!(-7), None));
        assert_eq!((&mistral["max_tokens"], mistral.get("stream_options")), (&json!(40), None));
    }

    #[track_caller]
    fn check(body: Value, output: &str, finish_reason: Option<&str>, usage: (Option<u64>, Option<u64>)) {
        let body = body.to_string();
        let completion = serde_json::from_str::<Answer<'_>>(&body).unwrap().into_completion().unwrap();
        assert_eq!(completion.output, output);
        assert_eq!(completion.finish_reason.as_deref(), finish_reason);
        assert_eq!((completion.usage.input_tokens, completion.usage.output_tokens), usage);
    }

    #[test]
    fn answers_are_read_as_servers_write_them() {
        check(
            json!({"choices": [{"message": {"role": "assistant", "content": "Salut\né"}, "finish_reason": "stop"}],
                   "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}),
            "Salut\né",
            Some("stop"),
            (Some(3), Some(2)),
        );
        check(json!({"choices": [{"message": {"content": "x"}}], "usage": null}), "x", None, (None, None));
        check(
            json!({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -1, "completion_tokens": 1e30}}),
            "x",
            None,
            (None, None),
        );
        check(
            json!({"choices": [{"message": {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}),
            "ab",
            None,
            (None, None),
        );
        check(
            json!({"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}),
            "",
            Some("content_filter"),
            (None, None),
        );
        check(
            json!({"choices": [{"message": {"content": null, "refusal": "I can't."}, "finish_reason": "stop"}]}),
            "I can't.",
            Some("refusal"),
            (None, None),
        );
    }

    #[test]
    fn an_answer_without_choices_has_no_completion() {
        for body in ["{}", r#"{"choices": []}"#, r#"{"choices": null}"#] {
            assert!(serde_json::from_str::<Answer<'_>>(body).unwrap().into_completion().is_none(), "{body}");
        }
    }

    #[test]
    fn text_without_escapes_is_not_copied() {
        let text: Text<'_> = serde_json::from_str(r#""plain""#).unwrap();
        assert!(matches!(text.0, Cow::Borrowed("plain")));
    }
}
