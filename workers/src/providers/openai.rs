//! OpenAI's Chat Completions, as OpenAI, Azure OpenAI, Mistral, Groq, DeepSeek, OpenRouter, vLLM, Ollama and others
//! speak it.
//!
//! The protocol: <https://platform.openai.com/docs/api-reference/chat>. Where servers differ, their differences are in
//! one place, [`wire::Dialect`].

mod schema;
mod stream;
mod wire;

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{
    Client, Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    BuildError, Call, CallError, Completion, DeltaSink, ErrorClass, Provider, ProviderKind, ProviderSettings, Secret,
    complaint::{Complaint, clean, shorten},
    retry_after::retry_after,
    transport::{self, Patience},
};
use crate::job::UnixMillis;

/// How much of an error's body is read, and for how long: its status says already what to do.
const ERROR_BYTES: usize = 64 * 1024;
const ERROR_PATIENCE: Duration = Duration::from_secs(2);

const JSON: &str = "application/json";

/// A server that speaks Chat Completions.
pub struct OpenAi {
    settings: ProviderSettings,
    url: Url,
    dialect: wire::Dialect,
    /// How to call, or why every call is refused before any traffic.
    access: Result<Access, CallError>,
}

struct Access {
    client: Client,
    key: Option<(HeaderName, HeaderValue)>,
}

impl OpenAi {
    /// `settings.kind` decides between OpenAI's and Azure's way to send the key.
    pub fn new(settings: &ProviderSettings) -> Result<Self, BuildError> {
        let url = transport::endpoint(settings, &["chat", "completions"])?;
        let access = match key_header(settings) {
            Ok(key) => Ok(Access { client: transport::client(settings, &url)?, key }),
            Err(missing) => Err(missing),
        };
        let dialect = wire::Dialect::of(url.host_str().unwrap_or_default());
        let settings = ProviderSettings { api_key: trimmed_key(settings), ..settings.clone() };
        Ok(Self { settings, url, dialect, access })
    }

    /// Reads the answer to a call, whoever sent that: its clock starts now.
    pub async fn read_answer(
        &self,
        response: Response,
        call: &Call<'_>,
        sink: &mut dyn DeltaSink,
    ) -> Result<Completion, CallError> {
        self.read(response, call, &Patience::start(&self.settings, call)?, sink).await
    }

    async fn read(&self, response: Response, call: &Call<'_>, patience: &Patience, sink: &mut dyn DeltaSink) -> Read {
        if !response.status().is_success() {
            return Err(self.refusal(response, call, patience).await);
        }
        let context = Context { max_bytes: self.settings.max_response_bytes, key: self.key(), call, patience };
        let media_type = media_type(response.headers());
        match (call.stream, media_type.as_str()) {
            (true, "text/event-stream") => stream::read(response, &context, sink).await,
            // Some servers answer a request for a stream with the whole.
            (true, _) => {
                let mut completion = whole(response, &context, &media_type).await?;
                completion.first_token = Some(patience.elapsed());
                sink.delta(&completion.output);
                Ok(completion)
            }
            (false, _) => whole(response, &context, &media_type).await,
        }
    }

    /// The error of an answer that is no success.
    async fn refusal(&self, mut response: Response, call: &Call<'_>, patience: &Patience) -> CallError {
        let status = response.status();
        if status.is_redirection() {
            let detail = format!("{status}: redirects are not followed; check the provider's base_url");
            return CallError::new(ErrorClass::Rejected, detail);
        }
        let body = transport::beginning(&mut response, ERROR_BYTES, ERROR_PATIENCE, patience).await;
        let complaint = Complaint::of_body(&body);
        let after = retry_after(response.headers(), complaint.after, UnixMillis::now());
        let words = complaint.words(call, self.key());
        let mut detail = if words.is_empty() { status.to_string() } else { format!("{status}: {words}") };
        if let Some(id) = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()) {
            detail = format!("{detail} [request {}]", shorten(&clean(id, call, self.key()), 80));
        }
        CallError::new(complaint.class_of(status.as_u16(), after), detail)
    }

    fn key(&self) -> Option<&Secret> {
        self.settings.api_key.as_ref()
    }
}

type Read = Result<Completion, CallError>;

/// What reading an answer needs to know.
struct Context<'a> {
    max_bytes: usize,
    key: Option<&'a Secret>,
    call: &'a Call<'a>,
    patience: &'a Patience,
}

impl Context<'_> {
    /// The error of an answer that cannot be understood. The parser's words may quote it.
    fn garbage(&self, what: &str, error: &serde_json::Error) -> CallError {
        CallError::new(ErrorClass::Garbage, clean(&format!("{what}: {error}"), self.call, self.key))
    }

    /// The error of an answer that began as a success and then turned out to be none.
    fn complaint(&self, error: &serde_json::Value) -> CallError {
        let complaint = Complaint::of_value(error);
        CallError::new(complaint.class(), format!("error in the answer: {}", complaint.words(self.call, self.key)))
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn call(&self, call: Call<'_>, sink: &mut dyn DeltaSink) -> Result<Completion, CallError> {
        let access = self.access.as_ref().map_err(Clone::clone)?;
        let patience = Patience::start(&self.settings, &call)?;
        let accept = if call.stream { "text/event-stream" } else { JSON };
        let mut request = access
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static(JSON))
            .header(ACCEPT, HeaderValue::from_static(accept))
            .body(wire::request(&call, self.dialect));
        if let Some((name, value)) = &access.key {
            request = request.header(name, value);
        }
        let sent = patience.answer(request.send()).await?;
        let response = sent.map_err(|error| transport::no_answer(&error, &self.settings))?;
        let status = response.status().as_u16();
        self.read(response, &call, &patience, sink).await.map_err(|error| error.answered(status))
    }
}

async fn whole(mut response: Response, context: &Context<'_>, media_type: &str) -> Read {
    let body = transport::whole_body(&mut response, context.max_bytes, context.patience).await?;
    let answer = serde_json::from_slice::<wire::Answer<'_>>(&body).map_err(|error| {
        // Without a length, a connection that closes early looks like a whole body; only the JSON tells.
        if error.is_eof() {
            CallError::new(ErrorClass::Truncated, "the answer ended inside its JSON")
        } else {
            context.garbage(&format!("the answer ({}) is no chat completion", shorten(media_type, 80)), &error)
        }
    })?;
    if let Some(error) = &answer.error {
        return Err(context.complaint(error));
    }
    answer.into_completion().ok_or_else(|| CallError::new(ErrorClass::Garbage, "the answer has no choices"))
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Keys that were read from files end in a line break.
fn trimmed_key(settings: &ProviderSettings) -> Option<Secret> {
    let key = settings.api_key.as_ref()?.expose().trim();
    (!key.is_empty()).then(|| Secret::new(key))
}

fn key_header(settings: &ProviderSettings) -> Result<Option<(HeaderName, HeaderValue)>, CallError> {
    let unauthorized = |detail| Err(CallError::new(ErrorClass::Unauthorized, detail));
    let Some(key) = trimmed_key(settings) else {
        return match &settings.api_key_env {
            Some(variable) => unauthorized(format!("no API key: set {variable}")),
            None => Ok(None),
        };
    };
    let (name, value) = match settings.kind {
        ProviderKind::AzureOpenAi => (HeaderName::from_static("api-key"), key.expose().to_owned()),
        _ => (AUTHORIZATION, format!("Bearer {}", key.expose())),
    };
    match HeaderValue::try_from(value) {
        Ok(mut value) => {
            value.set_sensitive(true);
            Ok(Some((name, value)))
        }
        Err(_) => unauthorized("the API key has characters that no HTTP header can carry".to_owned()),
    }
}
