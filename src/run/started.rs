//! A run that was accepted, and whose caller waits, or may leave.

use tokio::time::{Instant, timeout_at};
use workers::{
    RunView, Waiter,
    job::{AccountId, CacheUse, Ending, RunId, UnixMillis},
    queue::RateLeft,
};

use super::{Answer, HangUp, later};

/// A run that was accepted, and whose caller has not been answered yet. Dropping it is the caller hanging up.
pub struct Started {
    pub run: RunId,
    pub prompt_version: i32,
    /// What is left of the limits that the run was counted against.
    pub rates: Vec<RateLeft>,
    /// Whether there was a result for the run when it was accepted; `None` when it does not share.
    pub cache: Option<CacheUse>,
    pub(super) account: AccountId,
    pub(super) created_at: UnixMillis,
    pub(super) accepted_at: Instant,
    pub(super) deadline: Instant,
    pub(super) answer: Answer,
    /// The run as its caller sees it before it ends; only for callers that may leave before that.
    pub(super) queued: Option<Box<RunView>>,
    /// `None` for a caller that does not wait.
    pub(super) waiter: Option<Waiter>,
    pub(super) hang_up: HangUp,
}

/// What the caller of a run is told.
#[derive(Debug)]
pub enum Reply {
    Ended {
        ending: Box<Ending>,
        /// From the acceptance of the run to its end.
        duration_ms: u64,
    },
    /// The run goes on without its caller.
    GoesOn(Box<RunView>),
    /// The process ends and can wait no longer. The run ends as if the caller had hung up, or goes on if that is what it asked for.
    SentAway,
    /// The deadline came first; the run ends as expired.
    Missed,
}

impl Started {
    /// Waits for the ending: no longer than the deadline, and no longer than the caller wanted to.
    pub async fn reply(mut self) -> Reply {
        let patience = match self.answer {
            Answer::Later => Some(self.accepted_at),
            Answer::WaitAtMost(wait) => Some(later(self.accepted_at, wait)),
            Answer::Wait => None,
        };
        let until = patience.map_or(self.deadline, |patience| patience.min(self.deadline));
        let mut sent_away = false;
        if let Some(waiter) = &mut self.waiter {
            let ending = tokio::select! {
                biased;
                ending = timeout_at(until, waiter.ending()) => ending.ok(),
                () = self.hang_up.engine.dismissed() => {
                    sent_away = true;
                    None
                }
            };
            if let Some(ending) = ending {
                self.hang_up.armed = false;
                let duration_ms = ending.finished_at.since(self.created_at);
                return Reply::Ended { ending, duration_ms };
            }
        }
        match self.queued.take() {
            Some(queued) if sent_away || until < self.deadline => {
                let has_ended = self.cache == Some(CacheUse::Hit);
                let is_current = self.answer == Answer::Later && !has_ended;
                let view = if is_current { queued } else { Box::pin(self.look(queued)).await };
                self.hang_up.armed = false;
                Reply::GoesOn(view)
            }
            None if sent_away => Reply::SentAway,
            _ => {
                self.hang_up.engine.expire(self.run);
                self.hang_up.armed = false;
                Reply::Missed
            }
        }
    }

    /// The run as it is by now. The caller gets its id in any case, so a database that does not answer is no reason to fail.
    async fn look(&self, queued: Box<RunView>) -> Box<RunView> {
        match self.hang_up.engine.find(self.account, self.run).await {
            Ok(Some(view)) => Box::new(view),
            Ok(None) | Err(_) => queued,
        }
    }
}
