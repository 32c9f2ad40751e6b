//! The time that a peer has to send the head of a request.
//!
//! hyper counts from the moment it *waits* for a head, so that one number would have to be both the time a kept-alive connection may
//! be idle (long) and the time a head may take (short). Here they are two: the timer that hyper asks for runs for the idle time,
//! and is shortened when the first byte of a head arrives. What comes before hyper looks at heads at all (telling HTTP/1 from HTTP/2) is covered
//! by [`FirstRequest`]: a new connection must bring a whole request in the time of one head.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::Request,
    http::{Version, header},
    response::Response,
};
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use tower::Service;

use super::Upgrades;

/// Whether the connection has brought a request yet, and by which version of HTTP.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstRequest(Arc<OnceLock<Version>>);

impl FirstRequest {
    pub(super) fn noticed_by(self, router: Router, upgrades: Upgrades) -> Noticing {
        Noticing { router, first: self, upgrades }
    }

    fn has_come(&self) -> bool {
        self.0.get().is_some()
    }

    /// Whether it came by HTTP/1, in which an answer can say that it is the last one.
    pub(super) fn is_http1(&self) -> bool {
        self.0.get().is_some_and(|version| *version <= Version::HTTP_11)
    }
}

/// The router, telling the connection that a request has come, and a request for an upgrade what it needs.
#[derive(Clone)]
pub(super) struct Noticing {
    router: Router,
    first: FirstRequest,
    upgrades: Upgrades,
}

impl<B> Service<Request<B>> for Noticing
where
    Router: Service<Request<B>, Response = Response>,
{
    type Response = Response;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<B>>::poll_ready(&mut self.router, cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        self.first.0.get_or_init(|| request.version());
        if request.headers().contains_key(header::UPGRADE) {
            request.extensions_mut().insert(self.upgrades.clone());
        }
        self.router.call(request)
    }
}

/// One connection's bytes, with an eye on when they come.
pub(super) struct Watched<I> {
    io: I,
    first: FirstRequest,
    /// Until the first request; `None` after it.
    opening: Option<Pin<Box<tokio::time::Sleep>>>,
    timer: HeadTimer,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, first: FirstRequest, timer: HeadTimer) -> Self {
        let opening = Some(Box::pin(tokio::time::sleep(timer.head)));
        Self { io, first, opening, timer }
    }
}

impl<I: Read + Unpin> Read for Watched<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.opening.is_some() && this.first.has_come() {
            this.opening = None;
        }
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        if read.is_ready() {
            // Between heads nobody looks at this mark: it is cleared when hyper starts to wait for the next one.
            this.timer.head_began.store(true, Ordering::Relaxed);
        } else if let Some(opening) = &mut this.opening
            && opening.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<I: Write + Unpin> Write for Watched<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }
}

/// hyper's HTTP/1 timer of one connection: every sleep it hands out ends early when a head takes too long.
#[derive(Clone, Debug)]
pub(super) struct HeadTimer {
    head: Duration,
    head_began: Arc<AtomicBool>,
}

impl HeadTimer {
    pub(super) fn new(head: Duration) -> Self {
        Self { head, head_began: Arc::default() }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    /// hyper calls this when it starts to wait for a head. What it had read before (the start of a pipelined one) is not counted: such a
    /// head has the idle time.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.head_began.store(false, Ordering::Relaxed);
        let inner = Box::pin(tokio::time::sleep_until(deadline.into()));
        Box::pin(HeadSleep { inner, head: self.head, head_began: self.head_began.clone(), shortened: false })
    }

    /// tokio's clock, which tests can pause.
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

struct HeadSleep {
    inner: Pin<Box<tokio::time::Sleep>>,
    head: Duration,
    head_began: Arc<AtomicBool>,
    shortened: bool,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // hyper reads before it looks at its timer, in the same poll, so that the first byte is known here at once.
        if !this.shortened && this.head_began.load(Ordering::Relaxed) {
            this.shortened = true;
            let deadline = tokio::time::Instant::now() + this.head;
            if deadline < this.inner.deadline() {
                this.inner.as_mut().reset(deadline);
            }
        }
        this.inner.as_mut().poll(cx)
    }
}
