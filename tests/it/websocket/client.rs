//! A client of the tests.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue, Response},
        protocol::CloseFrame,
    },
};

use crate::support::{
    app::{Answer, App},
    schema,
};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Opens a socket with the key of `acme`.
    pub async fn open(app: &App, front_door: usize) -> Self {
        Self::open_as(app, front_door, &app.key()).await
    }

    pub async fn open_as(app: &App, front_door: usize, key: &str) -> Self {
        Self::open_with(app, front_door, &[("x-api-key", key)]).await.0
    }

    pub async fn open_with(
        app: &App,
        front_door: usize,
        headers: &[(&str, &str)],
    ) -> (Self, Response<Option<Vec<u8>>>) {
        Self::try_open(app, front_door, headers).await.unwrap()
    }

    /// The same, for a client that may be refused.
    pub async fn try_open(
        app: &App,
        front_door: usize,
        headers: &[(&str, &str)],
    ) -> tokio_tungstenite::tungstenite::Result<(Self, Response<Option<Vec<u8>>>)> {
        let url = format!("{}/api/v1/ws", app.urls()[front_door].replace("http:", "ws:"));
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        let (stream, response) = timeout(PATIENCE, connect_async(request)).await.unwrap()?;
        Ok((Self(stream), response))
    }

    pub async fn say(&mut self, message: &Value) {
        self.send(Message::text(message.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        timeout(PATIENCE, self.0.send(message)).await.unwrap().unwrap();
    }

    /// The next message that is no ping.
    pub async fn hear(&mut self) -> Value {
        // Pings are no reason to wait for longer.
        let give_up = Instant::now() + PATIENCE;
        loop {
            match timeout_at(give_up, self.0.next()).await.expect("a message comes") {
                Some(Ok(Message::Text(text))) => return message(&text),
                Some(Ok(Message::Ping(_))) => {}
                other => panic!("no message but {other:?}"),
            }
        }
    }

    /// What comes up to the first message of a type, with it.
    pub async fn until(&mut self, name: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let message = self.hear().await;
            let found = message["type"] == name;
            all.push(message);
            if found {
                return all;
            }
        }
    }

    /// How the server closes the socket, whatever it says before that.
    pub async fn closed(&mut self) -> Option<CloseFrame> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("the socket is closed") {
                Some(Ok(Message::Close(frame))) => {
                    // The answer to it leaves with the next reading.
                    let _ = timeout(PATIENCE, self.0.next()).await.expect("the connection ends");
                    return frame;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    pub async fn closed_with(&mut self) -> u16 {
        self.closed().await.map_or(0, |frame| frame.code.into())
    }

    /// Closes it as one should.
    pub async fn close(mut self) {
        timeout(PATIENCE, self.0.close(None)).await.unwrap().unwrap();
        while timeout(PATIENCE, self.0.next()).await.expect("the connection ends").is_some() {}
    }

    /// Bytes as they are, whatever the protocol says.
    pub async fn send_raw(&mut self, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt;
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    /// Reads for a while, which is what answers pings.
    pub async fn pings_answered(&mut self, time: Duration) {
        let _ = timeout(time, self.0.next()).await;
    }

    /// Ends the connection without a word.
    pub async fn break_off(self) {
        drop(self);
    }
}

/// A message of the server, which is one that the OpenAPI document describes.
fn message(text: &str) -> Value {
    let message: Value = serde_json::from_str(text).unwrap();
    let name = match message["type"].as_str() {
        Some("error") => "SocketError",
        Some("run.cancel.accepted") => "SocketCancelAccepted",
        _ => "SocketEvent",
    };
    schema::assert_is(name, &message);
    message
}

/// The answer to a request for a socket that is refused. `None` leaves a header out.
pub async fn refused(app: &App, headers: &[(&str, Option<&str>)]) -> Answer {
    let mut all = vec![
        ("connection", Some("Upgrade")),
        ("upgrade", Some("websocket")),
        ("sec-websocket-version", Some("13")),
        ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZQ==")),
    ];
    for (name, value) in headers {
        all.retain(|(other, _)| other != name);
        all.push((name, *value));
    }
    let mut request = app.client().get(format!("{}/api/v1/ws", app.url()));
    for (name, value) in all {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    Answer::of(request.send().await.unwrap()).await
}
