//! Server-sent events (the HTML standard, section 9.2), written to a response body.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use futures::stream::unfold;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

/// A silent stream says this often that it is alive, so that no proxy closes it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: &[u8] = b": keep-alive\n\n";
/// What ends a stream after its terminal event.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Where the events of a stream come from.
pub(super) trait Source: Send + 'static {
    /// The next event, written by [`event`]; `None` when nothing more comes from here.
    fn next(&mut self) -> impl Future<Output = Option<Frame>> + Send;
}

/// One event, written down.
pub(super) struct Frame {
    pub bytes: Vec<u8>,
    /// Nothing comes after it.
    pub last: bool,
}

/// Writes one event. Its data is one line: JSON has no line breaks of its own.
pub(super) fn event(seq: u64, name: &str, data: &impl Serialize) -> Vec<u8> {
    let mut event = format!("id: {seq}\nevent: {name}\ndata: ").into_bytes();
    // Strings, numbers and maps with string keys always serialise, and memory takes all bytes.
    let _ = serde_json::to_writer(&mut event, data);
    event.extend_from_slice(b"\n\n");
    event
}

/// A response whose body is what `source` has to tell. A client that leaves drops it.
pub(super) fn response(source: impl Source) -> Response {
    let state = Writing { source, quiet_since: Instant::now(), over: false };
    let mut response = Response::new(Body::from_stream(unfold(state, Writing::next)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Reverse proxies that buffer answers are told not to (nginx's X-Accel-Buffering).
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Writing<S> {
    source: S,
    quiet_since: Instant,
    over: bool,
}

impl<S: Source> Writing<S> {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.over {
            return None;
        }
        let bytes = tokio::select! {
            biased;
            frame = self.source.next() => {
                let Frame { mut bytes, last } = frame?;
                if last {
                    bytes.extend_from_slice(DONE);
                    self.over = true;
                }
                Bytes::from(bytes)
            }
            () = sleep_until(self.quiet_since + KEEP_ALIVE) => Bytes::from_static(COMMENT),
        };
        self.quiet_since = Instant::now();
        Some((Ok(bytes), self))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use serde_json::json;

    use super::*;

    /// Tells one event after a minute.
    struct Slow(bool);

    impl Source for Slow {
        async fn next(&mut self) -> Option<Frame> {
            tokio::time::sleep_until(Instant::now() + Duration::from_secs(40)).await;
            self.0 = true;
            Some(Frame { bytes: event(1, "run.cancelled", &json!({})), last: true })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_with_done() {
        let mut body =
            response(Told(vec![event(1, "a", &json!({})), event(2, "b", &json!({}))])).into_body().into_data_stream();
        let mut text = Vec::new();
        while let Some(bytes) = body.next().await {
            text.extend_from_slice(&bytes.unwrap());
        }
        let expect = "id: 1\nevent: a\ndata: {}\n\nid: 2\nevent: b\ndata: {}\n\ndata: [DONE]\n\n";
        assert_eq!(String::from_utf8(text).unwrap(), expect);
    }

    /// Tells its events at once.
    struct Told(Vec<Vec<u8>>);

    impl Source for Told {
        async fn next(&mut self) -> Option<Frame> {
            let bytes = self.0.remove(0);
            Some(Frame { bytes, last: self.0.is_empty() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let mut body = response(Slow(false)).into_body().into_data_stream();
        let began = Instant::now();
        assert_eq!(body.next().await.unwrap().unwrap(), COMMENT);
        assert_eq!(began.elapsed(), KEEP_ALIVE);
    }
}
