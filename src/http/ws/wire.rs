//! The socket itself: what travels, in which order it ends, and whether the peer takes anything.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{CloseFrame, Role, WebSocketConfig as Settings, frame::coding::CloseCode},
    },
};

/// What is read at a time. Every socket has a buffer of this size, and most sockets are idle.
const READ_BYTES: usize = 1024;
/// How long a peer has to take the last words and to say goodbye.
const PARTING: Duration = Duration::from_secs(3);

/// A WebSocket that knows whether what it sent has left.
pub(super) struct Wire {
    socket: WebSocketStream<Counted<TokioIo<Upgraded>>>,
    flushed: bool,
}

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// The peer closes it.
    ByPeer,
    /// It broke: there is nobody to tell.
    Broken,
    Draining,
    KeyLost,
    TooBig,
    /// What came is no WebSocket.
    NoWebSocket,
    NotUtf8,
    /// The peer does not answer.
    Silent,
    /// The peer takes nothing.
    Overloaded,
}

/// What there was to do on the wire.
pub(super) enum Moved {
    /// What was sent has left.
    Out,
    In(Message),
    Ended(Close),
}

impl Wire {
    pub(super) async fn new(io: Upgraded, max_message_bytes: usize) -> Self {
        let settings = Settings::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(max_message_bytes))
            .max_frame_size(Some(max_message_bytes));
        let io = Counted { io: TokioIo::new(io), written: 0 };
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(settings)).await;
        Self { socket, flushed: true }
    }

    /// Whether all that was sent has left.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed
    }

    /// Bytes that have left so far.
    pub(super) fn written(&self) -> u64 {
        self.socket.get_ref().written
    }

    /// Takes a message, which leaves as the system takes it. Called when everything before it has left.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), Close> {
        self.flushed = false;
        self.socket.feed(message).await.map_err(|error| why(&error))
    }

    /// Lets leave what was sent; when that is done, reads if `may_read`. A call that is dropped loses nothing.
    pub(super) async fn moved(&mut self, may_read: bool) -> Moved {
        if !self.flushed {
            return match self.socket.flush().await {
                Ok(()) => {
                    self.flushed = true;
                    Moved::Out
                }
                Err(error) => Moved::Ended(why(&error)),
            };
        }
        if !may_read {
            return std::future::pending().await;
        }
        match self.socket.next().await {
            Some(Ok(Message::Close(_))) | None => Moved::Ended(Close::ByPeer),
            Some(Ok(message)) => Moved::In(message),
            Some(Err(error)) => Moved::Ended(why(&error)),
        }
    }

    /// Says goodbye and waits a moment for the peer to do the same, so that it can read the reason: a connection that is closed while there is
    /// something to read is reset.
    pub(super) async fn close(mut self, close: Close) {
        if close == Close::Broken {
            return;
        }
        let parting = async {
            if let Some((code, reason)) = close.words() {
                let _ = self.socket.close(Some(CloseFrame { code, reason: reason.into() })).await;
            }
            // The peer's own goodbye ends this, and so does an error. Reading is also what answers a peer that closes.
            while let Some(Ok(_)) = self.socket.next().await {}
            let io = self.socket.get_mut();
            let _ = io.shutdown().await;
            let mut rest = [0; 512];
            while io.read(&mut rest).await.is_ok_and(|count| count > 0) {}
        };
        let _ = timeout(PARTING, parting).await;
    }
}

impl Close {
    /// What the peer is told (RFC 6455, section 7.4, and IANA's list of close codes).
    fn words(self) -> Option<(CloseCode, &'static str)> {
        match self {
            Self::ByPeer | Self::Broken => None,
            Self::Draining => Some((CloseCode::Away, "the server is shutting down; resume your runs elsewhere")),
            Self::KeyLost => Some((CloseCode::Policy, "the API key was revoked or has expired")),
            Self::TooBig => Some((CloseCode::Size, "the message is too large")),
            Self::NoWebSocket => Some((CloseCode::Protocol, "this is not the WebSocket protocol")),
            Self::NotUtf8 => Some((CloseCode::Invalid, "the text is not UTF-8")),
            Self::Silent => Some((CloseCode::Error, "no answer to a ping")),
            Self::Overloaded => Some((CloseCode::Again, "messages are not taken fast enough")),
        }
    }
}

fn why(error: &Error) -> Close {
    match error {
        Error::Capacity(_) => Close::TooBig,
        Error::Utf8(_) => Close::NotUtf8,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Close::Broken,
        Error::Protocol(_) | Error::AttackAttempt => Close::NoWebSocket,
        _ => Close::Broken,
    }
}

/// Counts what is written: a peer that takes a large message slowly is not one that takes nothing.
struct Counted<I> {
    io: I,
    written: u64,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.written = self.written.wrapping_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
