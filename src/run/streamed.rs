//! A run whose caller is told of everything as it happens.

use std::{collections::VecDeque, time::Duration};

use tokio::time::{Instant, sleep_until};
use workers::{
    Events, RunView,
    job::{CacheUse, Ending, Event, Fence, Logged, Outcome, RunId, UnixMillis, WIRE_VERSION},
    queue::RateLeft,
};

use super::{HangUp, told::Told};

/// How long after its deadline the ending of a run may come before its caller is told without it: whoever has the run ends it by then, or cannot be
/// reached.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// A run that was accepted, and whose caller follows it. Dropping it before its end is the caller hanging up.
pub struct Streamed {
    pub run: RunId,
    pub prompt_version: i32,
    /// What is left of the limits that the run was counted against.
    pub rates: Vec<RateLeft>,
    /// Whether there was a result for the run when it was accepted; `None` when it does not share.
    pub cache: Option<CacheUse>,
    pub created_at: UnixMillis,
    pub(super) deadline: Instant,
    pub(super) events: Events,
    pub(super) hang_up: HangUp,
    pub(super) progress: Progress,
    pub(super) told: Told,
    /// What comes next, whatever else happens.
    pub(super) next: VecDeque<Logged>,
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // A connection that was cut because this process ends is no caller that hung up, even when it could not be told anything more.
        self.hang_up.armed &= !self.hang_up.engine.is_dismissed();
    }
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The number of the last event that was told.
    Told(u64),
    /// The deadline has passed after that event, and whoever has the run was asked to end it.
    Overdue(u64),
    Over,
}

impl Streamed {
    /// The next event. `None` after the last one, and when this process can be waited for no longer: then the run goes on, and its events can
    /// be read from another one. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Option<Logged> {
        loop {
            if let Some(logged) = self.next.pop_front() {
                return Some(logged);
            }
            let give_up = match self.progress {
                Progress::Told(_) => self.deadline,
                Progress::Overdue(_) => self.deadline + LAST_WORDS,
                Progress::Over => return None,
            };
            tokio::select! {
                biased;
                logged = self.events.next() => return self.tell(logged),
                () = self.hang_up.engine.dismissed() => return self.tell(None),
                () = sleep_until(give_up) => match self.progress {
                    Progress::Told(seq) => {
                        self.progress = Progress::Overdue(seq);
                        self.hang_up.engine.expire(self.run);
                    }
                    Progress::Overdue(seq) => return self.tell(Some(self.without_word(seq + 1))),
                    Progress::Over => return None,
                },
            }
        }
    }

    /// The caller is sent away, which is no hanging up: the run goes on, and its events can be read from another process.
    pub fn release(mut self) {
        self.hang_up.armed = false;
    }

    fn tell(&mut self, logged: Option<Logged>) -> Option<Logged> {
        self.progress = match (&logged, self.progress) {
            (Some(Logged { event: Event::Ended(_), .. }) | None, _) => Progress::Over,
            (Some(logged), Progress::Overdue(_)) => Progress::Overdue(logged.seq),
            (Some(logged), _) => Progress::Told(logged.seq),
        };
        // A caller that was told the end, or has to look for it elsewhere, does not hang up.
        self.hang_up.armed &= self.progress != Progress::Over;
        self.next.extend(self.told.hear(logged?));
        self.next.pop_front()
    }

    /// Nobody said how the run ended, and its deadline has passed.
    fn without_word(&self, seq: u64) -> Logged {
        let ending = Ending {
            v: WIRE_VERSION,
            run: self.run,
            fence: Fence::default(),
            outcome: Outcome::Expired,
            model: String::new(),
            started_at: None,
            finished_at: self.hang_up.engine.now(),
            queue_ms: 0,
            attempt: None,
            cache: None,
        };
        Logged { seq, event: Event::Ended(Box::new(ending)) }
    }
}

/// The events of a run that somebody looks at: it goes on whatever becomes of them.
pub struct Followed {
    pub run: RunView,
    pub(super) events: Events,
    pub(super) engine: workers::Engine,
}

impl Followed {
    /// The next event; `None` after the last one, and when this process can be waited for no longer. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Option<Logged> {
        tokio::select! {
            biased;
            logged = self.events.next() => logged,
            () = self.engine.dismissed() => None,
        }
    }
}
