//! An answer that comes token by token, as server-sent events.
//!
//! A stream has ended well when it said `[DONE]`, or when it gave a finish reason and the connection then ended
//! cleanly. Anything else broke off, however complete its text may look.

use std::time::Duration;

use futures::{Stream, StreamExt, stream::try_unfold};
use reqwest::Response;
use sse_stream::SseByteStream;

use super::{
    Context, Read,
    wire::{self, Chunk},
};
use crate::{
    job::Usage,
    providers::{CallError, Completion, DeltaSink, ErrorClass, transport::next_chunk},
};

/// How long the end of the connection's part may be waited for after `[DONE]`, so that the connection can be used
/// again.
const DRAIN: Duration = Duration::from_millis(20);

/// Reads a stream to its end, and passes text on as it comes.
pub(super) async fn read(response: Response, context: &Context<'_>, sink: &mut dyn DeltaSink) -> Read {
    let mut events = std::pin::pin!(SseByteStream::new(bytes(response, context)));
    let mut progress = Progress::default();
    let end = async {
        while let Some(event) = events.next().await {
            let Some(data) = event.map_err(of_parser)?.data else { continue };
            if data.trim() == "[DONE]" {
                let _drained = tokio::time::timeout(DRAIN, events.next()).await;
                return Ok(End::Said);
            }
            progress.take(&data, context, sink)?;
        }
        Ok(End::Closed)
    };
    let end = end.await;
    match end.and_then(|end| progress.check(end)) {
        Ok(()) => Ok(progress.into_completion()),
        Err(error) => Err(CallError { usage: progress.usage, first_token: progress.first_token, ..error }),
    }
}

/// How a stream came to its end.
enum End {
    /// By `[DONE]`.
    Said,
    /// By a clean end of the body.
    Closed,
}

/// What has come so far.
#[derive(Default)]
struct Progress {
    output: String,
    finish_reason: Option<String>,
    has_choice: bool,
    is_refusal: bool,
    usage: Usage,
    first_token: Option<Duration>,
}

impl Progress {
    fn take(&mut self, data: &str, context: &Context<'_>, sink: &mut dyn DeltaSink) -> Result<(), CallError> {
        let chunk = serde_json::from_str::<Chunk<'_>>(data)
            .map_err(|error| context.garbage("an event of the stream is no part of a chat completion", &error))?;
        if let Some(error) = &chunk.error {
            return Err(context.complaint(error));
        }
        if let Some(usage) = chunk.usage {
            self.usage = usage.into();
        }
        // One answer is asked for; a server that sends more has its first one read.
        for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
            self.has_choice = true;
            let (text, is_refusal) = choice.delta.unwrap_or_default().into_text();
            self.is_refusal |= is_refusal;
            if !text.is_empty() {
                self.first_token.get_or_insert_with(|| context.patience.elapsed());
                self.output.push_str(&text);
                sink.delta(&text);
            }
            if let Some(reason) = wire::finish_reason(choice.finish_reason.as_ref(), false) {
                self.finish_reason = Some(reason);
            }
        }
        Ok(())
    }

    /// Whether the end is one.
    fn check(&self, end: End) -> Result<(), CallError> {
        match end {
            End::Closed if self.finish_reason.is_none() => {
                Err(CallError::new(ErrorClass::Truncated, "the stream ended without a finish reason or [DONE]"))
            }
            _ if !self.has_choice => Err(CallError::new(ErrorClass::Garbage, "the stream has no choices")),
            _ => Ok(()),
        }
    }

    fn into_completion(self) -> Completion {
        Completion {
            finish_reason: if self.is_refusal { wire::finish_reason(None, true) } else { self.finish_reason },
            output: self.output,
            usage: self.usage,
            first_token: self.first_token,
        }
    }
}

/// The body's bytes, bounded in number and in silence. Comments keep a stream alive, so silence is measured here, below
/// the events.
fn bytes(response: Response, context: &Context<'_>) -> impl Stream<Item = Result<bytes::Bytes, Broken>> {
    try_unfold((response, 0), async |(mut response, mut seen)| {
        let chunk = next_chunk(&mut response, &mut seen, context.max_bytes, context.patience).await.map_err(Broken)?;
        Ok(chunk.map(|chunk| (chunk, (response, seen))))
    })
}

/// A broken body on its way through the parser.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.detail)]
struct Broken(CallError);

fn of_parser(error: sse_stream::Error) -> CallError {
    match error {
        sse_stream::Error::Body(error) => match error.downcast::<Broken>() {
            Ok(broken) => broken.0,
            Err(other) => CallError::new(ErrorClass::Truncated, other.to_string()),
        },
        other => CallError::new(ErrorClass::Garbage, format!("the stream is no text: {other}")),
    }
}

#[cfg(test)]
mod tests;
