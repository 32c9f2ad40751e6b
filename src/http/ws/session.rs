//! One socket, from its first message to its last: one task that has the socket and all of its runs.

use std::{pin::pin, sync::Arc};

use axum::http::StatusCode;
use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use hyper::upgrade::Upgraded;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::sync::CancellationToken;
use workers::{
    job::{AccountId, Event, RunId},
    providers::Secret,
};

use super::{
    frame::{self, ClientId, Frame, Refused},
    live::{self, Heard, Lives, Slot, Source},
    told,
    wire::{Close, Moved, Wire},
};
use crate::{
    http::{Door, auth::authenticate, error::ApiError},
    run::{Begun, RunError, RunRequest},
};

/// Orders of one client that are being carried out at a time. Beyond them its messages wait where they are.
const MAX_ORDERS: usize = 8;

/// Who is at the other end.
pub(super) struct Caller {
    pub door: Arc<Door>,
    pub key: Secret,
    pub account: AccountId,
    /// Of the request that became the socket.
    pub request_id: Box<str>,
}

/// Serves a socket until either side ends it. `stop` is the server's.
pub(super) async fn run(io: Upgraded, caller: Arc<Caller>, stop: CancellationToken) {
    let wire = Wire::new(io, caller.door.websocket.max_message_bytes).await;
    let mut session = Session {
        caller,
        wire,
        stop,
        lives: Lives::default(),
        orders: FuturesUnordered::new(),
        runs: FuturesUnordered::new(),
        pulse: Pulse::default(),
    };
    let close = session.serve().await;
    if close == Close::Draining {
        // Each sees that the server stops, and lets its run go on.
        while session.runs.next().await.is_some() {}
    }
    let Session { wire, orders, runs, .. } = session;
    // The runs that are left lose their caller now, however long the goodbye takes.
    drop((orders, runs));
    Box::pin(wire.close(close)).await;
}

struct Session {
    caller: Arc<Caller>,
    wire: Wire,
    stop: CancellationToken,
    lives: Lives,
    /// What the client asked for and has not been answered.
    orders: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Every run that is followed, waiting for its next event. They take turns in the order in which they have something to tell.
    runs: FuturesUnordered<BoxFuture<'static, Option<Heard>>>,
    pulse: Pulse,
}

/// What became of an order.
enum Done {
    Started { slot: Slot, source: Result<Source, ApiError> },
    Cancelled { id: Option<ClientId>, run: RunId, cancelled: Result<bool, ApiError> },
}

/// What happens to a socket.
enum Happened {
    Moved(Moved),
    Done(Done),
    Heard(Option<Heard>),
    Beat,
    Over(Close),
}

impl Session {
    async fn serve(&mut self) -> Close {
        let caller = self.caller.clone();
        let ping = caller.door.websocket.ping;
        let mut lost = pin!(caller.door.keys.lost(caller.key.expose()));
        let mut beats = interval_at(Instant::now() + ping, ping);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let Self { wire, stop, orders, runs, .. } = self;
            let is_flushed = wire.is_flushed();
            let may_read = orders.len() < MAX_ORDERS;
            let happened = tokio::select! {
                () = stop.cancelled() => Happened::Over(Close::Draining),
                () = &mut lost => Happened::Over(Close::KeyLost),
                _ = beats.tick() => Happened::Beat,
                moved = wire.moved(may_read) => Happened::Moved(moved),
                Some(done) = orders.next(), if is_flushed => Happened::Done(done),
                Some(heard) = runs.next(), if is_flushed => Happened::Heard(heard),
            };
            let so_far = match happened {
                Happened::Over(close) => Err(close),
                Happened::Beat => self.beat().await,
                Happened::Moved(moved) => self.moved(moved).await,
                Happened::Done(done) => self.done(done).await,
                Happened::Heard(heard) => self.heard(heard).await,
            };
            if let Err(close) = so_far {
                return close;
            }
        }
    }

    async fn moved(&mut self, moved: Moved) -> Result<(), Close> {
        let message = match moved {
            Moved::Out => return Ok(()),
            Moved::Ended(close) => return Err(close),
            Moved::In(message) => message,
        };
        self.pulse.heard = true;
        match message {
            Message::Text(text) => match frame::parse(&text) {
                Ok(frame) => self.obey(frame).await,
                Err(refused) => self.refuse(refused).await,
            },
            Message::Binary(_) => self.refuse(frame::binary()).await,
            // The library has answered a ping, and a pong says no more than that the peer is there.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(()),
        }
    }

    async fn obey(&mut self, frame: Frame) -> Result<(), Close> {
        let refused = match frame {
            Frame::Create { id, request } => match self.place(Some(&id), None) {
                Ok(slot) => {
                    self.orders.push(create(self.caller.clone(), slot, *request).boxed());
                    return Ok(());
                }
                Err(error) => Refused { id: Some(id), error },
            },
            Frame::Resume { id, run, after } => match self.place(id.as_ref(), Some(run)) {
                Ok(slot) => {
                    self.orders.push(resume(self.caller.clone(), slot, run, after).boxed());
                    return Ok(());
                }
                Err(error) => Refused { id, error: error.about(run) },
            },
            Frame::Cancel { id, run: Some(run) } => {
                self.orders.push(cancel(self.caller.clone(), id, run).boxed());
                return Ok(());
            }
            Frame::Cancel { id, run: None } => match id.as_deref().and_then(|id| self.lives.called(id)) {
                Some(live) => {
                    match live.run {
                        Some(run) => self.orders.push(cancel(self.caller.clone(), id, run).boxed()),
                        None => live.unwanted = true,
                    }
                    return Ok(());
                }
                None => Refused { id, error: RunError::RunNotFound.into() },
            },
        };
        self.refuse(refused).await
    }

    /// A place for one more run, if its names are free.
    fn place(&mut self, id: Option<&ClientId>, run: Option<RunId>) -> Result<Slot, ApiError> {
        let conflict = |code, sentence: &'static str| Err(ApiError::new(StatusCode::CONFLICT, code, sentence));
        if id.is_some_and(|id| self.lives.called(id).is_some()) {
            return conflict("duplicate_id", "'id' is the name of another run on this socket that has not ended");
        }
        if run.is_some_and(|run| self.lives.follows(run)) {
            return conflict("already_followed", "This socket follows the run already");
        }
        let most = self.caller.door.websocket.max_runs;
        if self.lives.len() >= most {
            let sentence = format!("This socket follows {most} runs already; wait until one has ended");
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_runs", sentence);
            return Err(error.retryable(true).details(serde_json::json!({ "maxRuns": most })));
        }
        Ok(self.lives.add(id.cloned(), run))
    }

    async fn done(&mut self, done: Done) -> Result<(), Close> {
        match done {
            Done::Started { slot, source: Ok(source) } => {
                let run = source.subject().run;
                if let Some(live) = self.lives.at(slot) {
                    live.run = Some(run);
                    if live.unwanted {
                        self.orders.push(cancel(self.caller.clone(), live.id.clone(), run).boxed());
                    }
                }
                self.follow(slot, source);
                Ok(())
            }
            Done::Started { slot, source: Err(error) } => {
                let id = self.lives.remove(slot).and_then(|live| live.id);
                self.refuse(Refused { id, error }).await
            }
            // A run that is followed here tells of its end itself.
            Done::Cancelled { run, cancelled: Ok(_), .. } if self.lives.follows(run) => Ok(()),
            Done::Cancelled { id, run, cancelled: Ok(cancelled) } => {
                self.tell(told::cancel_accepted(id.as_deref(), run, cancelled)).await
            }
            Done::Cancelled { id, run, cancelled: Err(error) } => {
                self.refuse(Refused { id, error: error.about(run) }).await
            }
        }
    }

    async fn heard(&mut self, heard: Option<Heard>) -> Result<(), Close> {
        let Some(Heard { slot, source, logged }) = heard else { return Err(Close::Draining) };
        let Some(logged) = logged else {
            // This process can wait for it no longer.
            return Err(Close::Draining);
        };
        let subject = source.subject();
        let id = if matches!(logged.event, Event::Ended(_)) {
            self.lives.remove(slot).and_then(|live| live.id)
        } else {
            let id = self.lives.at(slot).and_then(|live| live.id.clone());
            self.follow(slot, source);
            id
        };
        match told::event(id.as_deref(), subject, &logged) {
            Some(text) => self.tell(text).await,
            None => Ok(()),
        }
    }

    fn follow(&mut self, slot: Slot, source: Source) {
        self.runs.push(live::hear(slot, source, self.stop.clone()).boxed());
    }

    async fn refuse(&mut self, refused: Refused) -> Result<(), Close> {
        let Refused { id, error } = refused;
        self.tell(error.message(id.as_deref(), &self.caller.request_id)).await
    }

    async fn tell(&mut self, text: String) -> Result<(), Close> {
        self.wire.send(Message::text(text)).await
    }

    async fn beat(&mut self) -> Result<(), Close> {
        let reads = self.orders.len() < MAX_ORDERS;
        self.pulse.beat(self.wire.is_flushed(), reads, self.wire.written())?;
        if self.wire.is_flushed() { self.wire.send(Message::Ping(Bytes::new())).await } else { Ok(()) }
    }
}

async fn create(caller: Arc<Caller>, slot: Slot, request: RunRequest) -> Done {
    let start = async {
        // Asked each time: its account's plan may have changed, and the key counts as used.
        let principal = authenticate(&caller.door.keys, caller.key.expose()).await?;
        Ok(match caller.door.runner.stream(&principal, request).await? {
            Begun::Now(streamed) => Source::Started(Box::new(streamed)),
            Begun::Before(joined) => Source::Resumed(Box::new(joined.followed)),
        })
    };
    Done::Started { slot, source: start.await }
}

async fn resume(caller: Arc<Caller>, slot: Slot, run: RunId, after: u64) -> Done {
    let followed = caller.door.runner.follow(caller.account, run, after).await;
    let source = followed.map(|followed| Source::Resumed(Box::new(followed)));
    Done::Started { slot, source: source.map_err(|error| ApiError::from(error).about(run)) }
}

async fn cancel(caller: Arc<Caller>, id: Option<ClientId>, run: RunId) -> Done {
    let cancelled = caller.door.runner.cancel(caller.account, run).await;
    Done::Cancelled { id, run, cancelled: cancelled.map_err(ApiError::from) }
}

/// Signs of life of the peer, looked at once a beat.
#[derive(Default)]
struct Pulse {
    /// Something came since the last beat.
    heard: bool,
    /// A ping was sent at the last beat.
    asked: bool,
    /// What had been written at the last beat, if something was still to be taken then.
    stuck_at: Option<u64>,
}

impl Pulse {
    /// Whether the peer is there. Next, it is asked again, unless something is still on its way out.
    fn beat(&mut self, is_flushed: bool, reads: bool, written: u64) -> Result<(), Close> {
        let before = std::mem::take(self);
        if !is_flushed {
            self.stuck_at = Some(written);
            return if before.stuck_at == Some(written) { Err(Close::Overloaded) } else { Ok(()) };
        }
        // What is not read cannot be an answer.
        self.asked = reads;
        if before.asked && !before.heard { Err(Close::Silent) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_answers_stays() {
        let mut pulse = Pulse::default();
        for _ in 0..3 {
            assert_eq!(pulse.beat(true, true, 0), Ok(()));
            pulse.heard = true;
        }
        assert_eq!(pulse.beat(true, true, 0), Ok(()));
        assert_eq!(pulse.beat(true, true, 0), Err(Close::Silent));
    }

    #[test]
    fn a_peer_is_not_silent_while_it_is_not_listened_to() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.beat(true, false, 0), Ok(()));
        assert_eq!(pulse.beat(true, true, 0), Ok(()));
        assert_eq!(pulse.beat(true, true, 0), Err(Close::Silent));
    }

    #[test]
    fn a_slow_peer_stays_and_one_that_takes_nothing_does_not() {
        let mut pulse = Pulse::default();
        for written in [10, 20, 30] {
            assert_eq!(pulse.beat(false, true, written), Ok(()));
        }
        assert_eq!(pulse.beat(true, true, 30), Ok(()), "it has caught up, and was not asked");
        pulse.heard = true;
        assert_eq!(pulse.beat(false, true, 40), Ok(()));
        assert_eq!(pulse.beat(false, true, 40), Err(Close::Overloaded));
    }
}
