//! Server-sent events as a caller reads them: strictly, so that nothing comes that the documentation does not have.

use serde_json::Value;

use super::{
    app::{Answer, App, client},
    schema,
};

/// One event, or the `[DONE]` after the last one.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// 0 for `[DONE]`.
    pub seq: u64,
    pub name: String,
    pub data: Value,
}

impl Told {
    pub fn is_ending(&self) -> bool {
        matches!(self.name.as_str(), "run.completed" | "run.failed" | "run.cancelled")
    }
}

/// An answer that is read as it comes.
pub struct EventStream {
    response: reqwest::Response,
    buffer: Vec<u8>,
    pub headers: reqwest::header::HeaderMap,
}

impl EventStream {
    /// The stream, or the answer that came in its place.
    pub async fn of(response: reqwest::Response) -> Result<Self, Answer> {
        let headers = response.headers().clone();
        if headers["content-type"] != "text/event-stream" {
            return Err(Answer::of(response).await);
        }
        assert_eq!(response.status(), 200);
        Ok(Self { response, buffer: Vec::new(), headers })
    }

    pub fn run(&self) -> String {
        self.headers["x-run-id"].to_str().unwrap().to_owned()
    }

    /// The next event; `None` when the body has ended.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|bytes| bytes == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let block = String::from_utf8(block).unwrap();
                if block.starts_with(':') {
                    continue;
                }
                return Some(told(&block));
            }
            let Some(bytes) = self.response.chunk().await.expect("the body is whole") else {
                assert!(self.buffer.is_empty(), "half an event: {:?}", String::from_utf8_lossy(&self.buffer));
                return None;
            };
            self.buffer.extend_from_slice(&bytes);
        }
    }

    /// The events up to the first of this name.
    pub async fn until(&mut self, name: &str) -> Vec<Told> {
        let mut events = Vec::new();
        loop {
            let told = self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}: {events:#?}"));
            events.push(told);
            if events.last().is_some_and(|told| told.name == name) {
                return events;
            }
        }
    }

    /// All that comes until the body ends.
    pub async fn rest(&mut self) -> Vec<Told> {
        let mut events = Vec::new();
        while let Some(told) = self.next().await {
            events.push(told);
        }
        events
    }
}

/// One event, written as `id`, `event` and `data` and nothing else; or `[DONE]`.
fn told(block: &str) -> Told {
    if block == "data: [DONE]\n\n" {
        return Told { seq: 0, name: "[DONE]".to_owned(), data: Value::Null };
    }
    let lines: Vec<&str> = block.trim_end_matches('\n').split('\n').collect();
    let [id, event, data] = lines.as_slice() else { panic!("not an event: {block:?}") };
    let field = |line: &str, name: &str| {
        line.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(": "))
            .unwrap_or_else(|| panic!("{line:?}"))
            .to_owned()
    };
    let data = serde_json::from_str(&field(data, "data")).unwrap();
    schema::assert_is("RunEvent", &data);
    Told { seq: field(id, "id").parse().unwrap(), name: field(event, "event"), data }
}

/// Checks what holds for every stream that came to its end, from after an event on.
pub fn check_whole(events: &[Told], run: &str, after: u64) {
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done.name, "[DONE]", "{events:#?}");
    for (told, seq) in events.iter().zip(after + 1..) {
        assert_eq!(told.seq, seq, "{events:#?}");
        assert_eq!((&told.data["type"], &told.data["runId"]), (&told.name.clone().into(), &run.into()), "{told:?}");
        assert_eq!(told.data["seq"], seq);
    }
    let endings = events.iter().filter(|told| told.is_ending()).count();
    assert_eq!(endings, 1, "{events:#?}");
    let last = events.last().unwrap();
    assert!(last.is_ending());
    if last.name == "run.completed" && after == 0 {
        assert_eq!(last.data["output"], text(events).as_str(), "{events:#?}");
    }
}

/// What was streamed and counts.
pub fn text(events: &[Told]) -> String {
    let mut text = String::new();
    for told in events {
        match told.name.as_str() {
            "run.output_text.delta" => text.push_str(told.data["delta"].as_str().unwrap()),
            "run.retrying" => text.clear(),
            _ => {}
        }
    }
    text
}

pub fn names(events: &[Told]) -> Vec<&str> {
    events.iter().map(|told| told.name.as_str()).collect()
}

impl App {
    /// Posts a run that is to be streamed.
    pub async fn stream_with(
        &self,
        front_door: usize,
        key: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Result<EventStream, Answer> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let url = format!("{}/api/v1/run", self.urls()[front_door]);
        let mut request = client().post(url).header("x-api-key", key).json(&body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        EventStream::of(request.send().await.unwrap()).await
    }

    /// Streams a run of `acme` that is accepted.
    pub async fn stream(&self, front_door: usize, body: &Value) -> EventStream {
        self.stream_with(front_door, &self.key(), body, &[]).await.unwrap_or_else(|answer| panic!("{answer:?}"))
    }

    pub async fn follow_with(
        &self,
        front_door: usize,
        key: &str,
        run: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Result<EventStream, Answer> {
        let url = format!("{}/api/v1/runs/{run}/events{query}", self.urls()[front_door]);
        let mut request = client().get(url).header("x-api-key", key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        EventStream::of(request.send().await.unwrap()).await
    }

    /// The events of a run of `acme` from after an event on.
    pub async fn follow(&self, front_door: usize, run: &str, after: u64) -> EventStream {
        let answer = self.follow_with(front_door, &self.key(), run, &format!("?after={after}"), &[]).await;
        answer.unwrap_or_else(|answer| panic!("{answer:?}"))
    }
}
