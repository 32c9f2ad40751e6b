//! `GET /api/v1/ws`: many runs on one WebSocket (RFC 6455).
//!
//! [`upgrade::open`] turns the request into a socket, or answers with one of the usual errors. Then one task has the socket, its [`session`], and
//! with it every run that was started or is followed there: when the task ends, however it does, its runs lose their caller.
//!
//! Text messages hold one JSON object each. The client says `run.create`, `run.cancel` and `run.resume` ([`frame`]); the server answers
//! with the events of runs, the same as over server-sent events, and with errors ([`told`]). Nothing that a client says
//! closes the socket, except what is no WebSocket or too large.
//!
//! **Backpressure.** One message at a time is on its way out. Until the system has taken it, no run is asked for its next event and
//! nothing is read from the client. A run that is not asked keeps a bounded number of live events and finds the rest in its log, so that a slow
//! reader holds up nobody, and costs a bounded amount of memory.

mod frame;
mod live;
mod session;
mod sockets;
mod told;
pub(super) mod upgrade;
mod wire;

pub(super) use self::{sockets::Sockets, told::CancelAccepted};
