//! What the scripted provider can be told to do: good answers in both forms, and everything that goes wrong with
//! providers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::Recorded;

/// Holds answers back until it is opened. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets all pass, now and from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Answers that are held now.
    pub fn holds(&self) -> usize {
        self.0.receiver_count()
    }

    pub async fn opened(&self) {
        let mut gate = self.0.subscribe();
        // The sender lives as long as `self`.
        gate.wait_for(|is_open| *is_open).await.unwrap();
    }
}

/// One thing to do on the connection. After the last one it is kept alive.
#[derive(Clone, Debug)]
pub enum Act {
    Send(Vec<u8>),
    Wait(Duration),
    Hold(Gate),
    /// The same bytes, again and again, until the client goes.
    Drip {
        bytes: Vec<u8>,
        every: Duration,
    },
    /// Nothing, until the client goes.
    Hang,
    Close,
    /// Closes the connection with RST.
    Reset,
}

impl Act {
    /// Whether what comes after it is sent, sooner or later.
    fn goes_on(&self) -> bool {
        matches!(self, Act::Send(_) | Act::Wait(_) | Act::Hold(_))
    }
}

/// What a request is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    before: Vec<Act>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A chat completion, streamed if the request asks for that.
    Completion(Completion),
    /// An answer in one piece.
    Whole {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    Acts(Vec<Act>),
}

#[derive(Clone, Debug)]
struct Completion {
    /// Absent: the text of the last message.
    pieces: Option<Vec<String>>,
    finish_reason: Option<String>,
    usage: Option<(u64, u64)>,
    piece_delay: Duration,
    /// After so many pieces of a stream.
    then: Vec<(usize, Act)>,
    done: bool,
}

impl Answer {
    /// A text, with 10 tokens of input and 5 of output. Streamed, each word is a piece.
    pub fn text(text: &str) -> Self {
        Self::pieces(text.split_inclusive(' '))
    }

    /// A text whose pieces in a stream are given.
    pub fn pieces<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Self {
        Self::completion(Some(pieces.into_iter().map(str::to_owned).collect()))
    }

    /// The text of the request's last message.
    pub fn echo() -> Self {
        Self::completion(None)
    }

    fn completion(pieces: Option<Vec<String>>) -> Self {
        let finish_reason = Some("stop".to_owned());
        let usage = Some((10, 5));
        let kind =
            Completion { pieces, finish_reason, usage, piece_delay: Duration::ZERO, then: Vec::new(), done: true };
        Self { before: Vec::new(), kind: Kind::Completion(kind) }
    }

    pub fn usage(self, input: u64, output: u64) -> Self {
        self.with(|completion| completion.usage = Some((input, output)))
    }

    pub fn without_usage(self) -> Self {
        self.with(|completion| completion.usage = None)
    }

    pub fn finish(self, reason: &str) -> Self {
        self.with(|completion| completion.finish_reason = Some(reason.to_owned()))
    }

    pub fn without_finish(self) -> Self {
        self.with(|completion| completion.finish_reason = None)
    }

    /// A stream without its `[DONE]`.
    pub fn without_done(self) -> Self {
        self.with(|completion| completion.done = false)
    }

    /// A pause before each piece of a stream.
    pub fn piece_delay(self, delay: Duration) -> Self {
        self.with(|completion| completion.piece_delay = delay)
    }

    /// A stream that is held after so many pieces.
    pub fn held_after(self, pieces: usize, gate: &Gate) -> Self {
        self.then_after(pieces, Act::Hold(gate.clone()))
    }

    /// A stream that does something else (breaks, hangs, …) after so many pieces.
    pub fn then_after(self, pieces: usize, act: Act) -> Self {
        self.with(|completion| completion.then.push((pieces, act)))
    }

    /// Waits before anything is sent.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.before.push(Act::Wait(delay));
        self
    }

    /// Held before anything is sent.
    pub fn held(mut self, gate: &Gate) -> Self {
        self.before.push(Act::Hold(gate.clone()));
        self
    }

    /// An empty answer with a status.
    pub fn status(status: u16) -> Self {
        Self { before: Vec::new(), kind: Kind::Whole { status, headers: Vec::new(), body: Vec::new() } }
    }

    /// An error in OpenAI's form.
    pub fn error(status: u16, message: &str) -> Self {
        Self::status(status).json(&json!({"error": {"message": message, "type": "error", "code": null}}))
    }

    /// A 429 that names a number of seconds.
    pub fn limited(seconds: u64) -> Self {
        Self::error(429, "Rate limit reached").header("retry-after", &seconds.to_string())
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self.kind {
            Kind::Whole { headers, .. } => headers.push((name.to_owned(), value.to_owned())),
            _ => panic!("only an answer in one piece has headers of its own"),
        }
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub fn body(mut self, content_type: &str, content: impl Into<Vec<u8>>) -> Self {
        match &mut self.kind {
            Kind::Whole { body, .. } => *body = content.into(),
            _ => panic!("only an answer in one piece has a body of its own"),
        }
        self.header("content-type", content_type)
    }

    /// Anything at all.
    pub fn acts(acts: impl Into<Vec<Act>>) -> Self {
        Self { before: Vec::new(), kind: Kind::Acts(acts.into()) }
    }

    /// No answer, until the client goes.
    pub fn hang() -> Self {
        Self::acts([Act::Hang])
    }

    /// The beginning of an answer, and then silence.
    pub fn hang_mid_body() -> Self {
        Self::acts([begun_json(), Act::Hang])
    }

    /// The beginning of an answer of known length, and then the end of the connection.
    pub fn cut_short() -> Self {
        Self::acts([begun_json(), Act::Close])
    }

    /// As [`Answer::cut_short`], with RST.
    pub fn reset_mid_body() -> Self {
        // A reset destroys bytes that the client has not read yet, so it gets time to read them.
        Self::acts([begun_json(), Act::Wait(Duration::from_millis(300)), Act::Reset])
    }

    /// A chunked answer without its last chunk.
    pub fn cut_chunks() -> Self {
        Self::acts([chunked_head("application/json"), chunk(br#"{"choices": ["#), Act::Close])
    }

    /// The connection is reset before any byte is sent.
    pub fn reset() -> Self {
        Self::acts([Act::Reset])
    }

    /// A success that is no JSON.
    pub fn garbage() -> Self {
        Self::status(200).body("application/json", "}{ not json")
    }

    /// A page, as a wrong address or a captive portal sends it.
    pub fn html() -> Self {
        Self::status(200).body("text/html; charset=utf-8", "<html><body>Welcome</body></html>")
    }

    /// Bytes that are no HTTP.
    pub fn not_http() -> Self {
        Self::acts([Act::Send(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n".to_vec()), Act::Close])
    }

    /// A good answer with this many bytes of text; chunked, so that its size is not known before.
    pub fn huge(bytes: usize) -> Self {
        let body =
            json!({"choices": [{"message": {"content": "x".repeat(bytes)}, "finish_reason": "stop"}]}).to_string();
        let chunks = body.as_bytes().chunks(16 * 1024).map(chunk);
        let acts: Vec<Act> =
            std::iter::once(chunked_head("application/json")).chain(chunks).chain([last_chunk()]).collect();
        Self::acts(acts)
    }

    /// An answer that never ends and never falls silent.
    pub fn drip(every: Duration) -> Self {
        let bytes = b"f\r\n: still there\n\n\r\n".to_vec();
        Self::acts([chunked_head("text/event-stream"), Act::Drip { bytes, every }])
    }

    /// An event stream whose chunks are given byte by byte, ended cleanly.
    pub fn event_stream<B: AsRef<[u8]>>(chunks: impl IntoIterator<Item = B>) -> Self {
        let chunks = chunks.into_iter().map(|bytes| chunk(bytes.as_ref()));
        let acts: Vec<Act> =
            std::iter::once(chunked_head("text/event-stream")).chain(chunks).chain([last_chunk()]).collect();
        Self::acts(acts)
    }

    fn with(mut self, change: impl FnOnce(&mut Completion)) -> Self {
        match &mut self.kind {
            Kind::Completion(completion) => change(completion),
            _ => panic!("only a completion can be changed like this"),
        }
        self
    }

    /// What the answer says that it used, if it is a complete one.
    pub(super) fn told_usage(&self) -> Option<(u64, u64)> {
        match &self.kind {
            Kind::Completion(completion) if completion.then.iter().all(|(_, act)| act.goes_on()) => completion.usage,
            _ => None,
        }
    }

    pub(super) fn acts_for(&self, request: &Recorded) -> Vec<Act> {
        let mut acts = self.before.clone();
        match &self.kind {
            Kind::Completion(completion) if request.is_stream() => acts.extend(completion.streamed(request)),
            Kind::Completion(completion) => acts.push(whole(200, &[], &completion.json(request).to_string())),
            Kind::Whole { status, headers, body } => acts.push(whole(*status, headers, body)),
            Kind::Acts(more) => acts.extend(more.iter().cloned()),
        }
        acts
    }
}

impl Completion {
    fn texts(&self, request: &Recorded) -> Vec<String> {
        let echo = || request.user_text().split_inclusive(' ').map(str::to_owned).collect();
        self.pieces.clone().unwrap_or_else(echo)
    }

    fn usage_json(&self) -> Option<Value> {
        self.usage.map(|(input, output)| {
            json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
        })
    }

    fn json(&self, request: &Recorded) -> Value {
        let message = json!({"role": "assistant", "content": self.texts(request).concat()});
        let choice = json!({"index": 0, "message": message, "finish_reason": self.finish_reason});
        let mut body = json!({
            "id": "chatcmpl-scripted",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": request.model(),
            "choices": [choice],
        });
        if let Some(usage) = self.usage_json() {
            body["usage"] = usage;
        }
        body
    }

    fn streamed(&self, request: &Recorded) -> Vec<Act> {
        let event = |choices: Value, usage: Option<Value>| {
            let mut body = json!({
                "id": "chatcmpl-scripted",
                "object": "chat.completion.chunk",
                "created": 1_700_000_000,
                "model": request.model(),
                "choices": choices,
            });
            if let Some(usage) = usage {
                body["usage"] = usage;
            }
            chunk(format!("data: {body}\n\n").as_bytes())
        };
        let delta =
            |delta: Value, finish_reason: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish_reason}]);
        let mut acts = vec![
            chunked_head("text/event-stream"),
            event(delta(json!({"role": "assistant", "content": ""}), Value::Null), None),
        ];
        let then = |sent: usize| {
            let due = self.then.iter().filter(move |(after, _)| *after == sent);
            due.map(|(_, act)| act.clone())
        };
        acts.extend(then(0));
        for (number, text) in (1..).zip(self.texts(request)) {
            if !self.piece_delay.is_zero() {
                acts.push(Act::Wait(self.piece_delay));
            }
            acts.push(event(delta(json!({"content": text}), Value::Null), None));
            acts.extend(then(number));
        }
        if let Some(reason) = &self.finish_reason {
            acts.push(event(delta(json!({}), json!(reason)), None));
        }
        if request.body["stream_options"]["include_usage"] == true && self.usage.is_some() {
            acts.push(event(json!([]), self.usage_json()));
        }
        if self.done {
            acts.push(chunk(b"data: [DONE]\n\n"));
        }
        acts.push(last_chunk());
        acts
    }
}

fn whole(status: u16, headers: &[(String, String)], body: &(impl AsRef<[u8]> + ?Sized)) -> Act {
    let body = body.as_ref();
    let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
    if headers.is_empty() {
        head.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    Act::Send([head.as_bytes(), body].concat())
}

fn begun_json() -> Act {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    Act::Send(format!("{head}{{\"choices\": [").into_bytes())
}

fn chunked_head(content_type: &str) -> Act {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n");
    Act::Send(head.into_bytes())
}

fn chunk(bytes: &[u8]) -> Act {
    Act::Send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}

fn last_chunk() -> Act {
    Act::Send(b"0\r\n\r\n".to_vec())
}
