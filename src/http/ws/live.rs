//! The runs of one socket: those that are being started, and those whose events it tells.

use tokio_util::sync::CancellationToken;
use workers::{
    RunView,
    job::{Logged, RunId},
};

use super::frame::ClientId;
use crate::{
    http::event_body::Subject,
    run::{Followed, Streamed},
};

/// Where the events of a run come from.
pub(super) enum Source {
    /// The run was started here, and loses its caller with this socket.
    Started(Box<Streamed>),
    /// The run goes on whatever becomes of this socket.
    Resumed(Box<Followed>),
}

impl Source {
    pub(super) fn subject(&self) -> Subject {
        match self {
            Self::Started(streamed) => {
                let Streamed { run, prompt_version, created_at, .. } = **streamed;
                Subject { run, prompt_version, created_at }
            }
            Self::Resumed(followed) => {
                let RunView { id, prompt_version, created_at, .. } = followed.run;
                Subject { run: id, prompt_version, created_at }
            }
        }
    }

    async fn next(&mut self) -> Option<Logged> {
        match self {
            Self::Started(streamed) => streamed.next().await,
            Self::Resumed(followed) => followed.next().await,
        }
    }
}

/// A run's place on a socket.
pub(super) type Slot = u64;

/// What a run had to tell.
pub(super) struct Heard {
    pub slot: Slot,
    pub source: Source,
    /// `None`: nothing more comes from here, and the run goes on.
    pub logged: Option<Logged>,
}

/// Waits for the next event. When the server stops first, the run is released: it goes on without this socket.
pub(super) async fn hear(slot: Slot, mut source: Source, stop: CancellationToken) -> Option<Heard> {
    let logged = tokio::select! {
        biased;
        () = stop.cancelled() => {
            if let Source::Started(streamed) = source {
                streamed.release();
            }
            return None;
        }
        logged = source.next() => logged,
    };
    Some(Heard { slot, source, logged })
}

/// A run as its client knows it.
pub(super) struct Live {
    pub slot: Slot,
    pub id: Option<ClientId>,
    /// Absent while it is being started.
    pub run: Option<RunId>,
    /// Its client wants it cancelled as soon as it has started.
    pub unwanted: bool,
}

/// The runs of a socket. They are few, so that looking through them is the fastest way.
#[derive(Default)]
pub(super) struct Lives {
    lives: Vec<Live>,
    slots: Slot,
}

impl Lives {
    pub(super) fn len(&self) -> usize {
        self.lives.len()
    }

    pub(super) fn add(&mut self, id: Option<ClientId>, run: Option<RunId>) -> Slot {
        let slot = self.slots;
        self.slots += 1;
        self.lives.push(Live { slot, id, run, unwanted: false });
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Live> {
        let at = self.lives.iter().position(|live| live.slot == slot)?;
        Some(self.lives.swap_remove(at))
    }

    pub(super) fn at(&mut self, slot: Slot) -> Option<&mut Live> {
        self.lives.iter_mut().find(|live| live.slot == slot)
    }

    pub(super) fn called(&mut self, id: &str) -> Option<&mut Live> {
        self.lives.iter_mut().find(|live| live.id.as_deref() == Some(id))
    }

    pub(super) fn follows(&self, run: RunId) -> bool {
        self.lives.iter().any(|live| live.run == Some(run))
    }
}
