//! The provider of all measurements: OpenAI's Chat Completions, in one piece and as server-sent events.
//!
//! What it does is in the name of the model that is asked for, so that one server serves every scenario:
//! `mock-delay-50` answers after 50 ms, `mock-chunks-20` streams 20 pieces, `mock-every-5` pauses 5 ms before each of them,
//! `mock-status-500` fails. They can be put together: `mock-delay-50-chunks-20`.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::time::sleep;

/// What every answer says: a sentence of a usual length.
const TEXT: &str =
    "Bonjour Steph, bienvenue chez Prompt Manager. Votre compte est prêt, et vos prompts vous attendent.";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The provider, which serves until the program ends.
#[derive(Clone, Debug)]
pub struct Mock {
    address: SocketAddr,
    last_heard: Arc<Mutex<Option<Instant>>>,
}

impl Mock {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// When the head of the last request had been read.
    pub fn last_heard(&self) -> Option<Instant> {
        *self.last_heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves on a free port, on a thread and a runtime of its own.
pub fn start() -> anyhow::Result<Mock> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port for the provider")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mock = Mock { address, last_heard: Arc::default() };
    let heard = Arc::clone(&mock.last_heard);
    thread::spawn(move || runtime.block_on(serve(listener, heard)));
    Ok(mock)
}

async fn serve(listener: TcpListener, heard: Arc<Mutex<Option<Instant>>>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        let _ = connection.set_nodelay(true);
        let heard = Arc::clone(&heard);
        let service = service_fn(move |request| {
            heard.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
            answer(request)
        });
        let served = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(connection), service);
        // A caller that goes away in the middle is its own business.
        tokio::spawn(async move { drop(served.await) });
    }
}

#[derive(Deserialize)]
struct Asked<'a> {
    model: &'a str,
    #[serde(default)]
    stream: bool,
}

/// What the name of a model tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behaviour {
    delay: Duration,
    chunks: u64,
    every: Duration,
    status: u16,
}

impl Behaviour {
    fn of(model: &str) -> Self {
        let mut behaviour = Self { delay: Duration::ZERO, chunks: 20, every: Duration::ZERO, status: 200 };
        let mut words = model.split('-').skip(1);
        while let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse::<u64>)) {
            match name {
                "delay" => behaviour.delay = Duration::from_millis(value),
                "chunks" => behaviour.chunks = value,
                "every" => behaviour.every = Duration::from_millis(value),
                "status" => behaviour.status = u16::try_from(value).unwrap_or(500),
                _ => {}
            }
        }
        behaviour
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let Ok(body) = request.into_body().collect().await else { return Ok(whole(400, "{}")) };
    let body = body.to_bytes();
    let Ok(asked) = serde_json::from_slice::<Asked<'_>>(&body) else { return Ok(whole(400, "{}")) };
    let behaviour = Behaviour::of(asked.model);
    if !behaviour.delay.is_zero() {
        sleep(behaviour.delay).await;
    }
    Ok(match (behaviour.status, asked.stream) {
        (200, true) => events(behaviour),
        (200, false) => whole(200, &completion()),
        (status, _) => whole(status, r#"{"error":{"message":"as asked for","type":"error","code":null}}"#),
    })
}

fn completion() -> String {
    format!(
        r#"{{"id":"chatcmpl-mock","object":"chat.completion","created":1,"model":"mock","choices":[{{"index":0,"message":{{"role":"assistant","content":"{TEXT}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":40,"completion_tokens":25,"total_tokens":65}}}}"#
    )
}

fn whole(status: u16, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed_unsync();
    response(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), "application/json", body)
}

/// One piece of text an event, then usage, then the end. With a pause before them, each is a write of its own, as models do it; without, the server
/// writes what is ready together.
fn events(behaviour: Behaviour) -> Response<Body> {
    let pieces = stream::unfold(0, move |piece| async move {
        let data = match piece {
            piece if piece < behaviour.chunks => {
                if !behaviour.every.is_zero() {
                    sleep(behaviour.every).await;
                }
                r#"{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":"mock","choices":[{"index":0,"delta":{"content":"mot "},"finish_reason":null}]}"#
            }
            piece if piece == behaviour.chunks => {
                r#"{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":"mock","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#
            }
            piece if piece == behaviour.chunks + 1 => {
                r#"{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":"mock","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":25,"total_tokens":65}}"#
            }
            piece if piece == behaviour.chunks + 2 => "[DONE]",
            _ => return None,
        };
        Some((Ok(Frame::data(Bytes::from(format!("data: {data}\n\n")))), piece + 1))
    });
    response(StatusCode::OK, "text/event-stream", BodyExt::boxed_unsync(StreamBody::new(pieces)))
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_model_tells_what_it_does() {
        let plain = Behaviour { delay: Duration::ZERO, chunks: 20, every: Duration::ZERO, status: 200 };
        assert_eq!(Behaviour::of("mock"), plain);
        let slow = Behaviour { delay: Duration::from_millis(50), chunks: 3, ..plain };
        assert_eq!(Behaviour::of("mock-delay-50-chunks-3"), slow);
        assert_eq!(Behaviour::of("mock-status-429-every-5").status, 429);
    }
}
