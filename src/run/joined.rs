//! A request that was sent before: it is answered with the run that it made then.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use workers::ledger::KnownRun;

use super::{Answer, Followed, Reply, RunError, Runner, later, streamed::LAST_WORDS};
use crate::keys::Principal;

/// A run that somebody else started, and that this caller waits for as well. Hanging up changes nothing about it.
pub struct Joined {
    pub followed: Followed,
    answer: Answer,
    came: Instant,
}

impl Runner {
    pub(super) async fn join(
        &self,
        principal: &Principal,
        known: KnownRun,
        answer: Answer,
    ) -> Result<Joined, RunError> {
        if !known.same_request {
            return Err(RunError::KeyReused(known.run));
        }
        let followed = self.follow(principal.account.id, known.run, 0).await?;
        Ok(Joined { followed, answer, came: Instant::now() })
    }
}

impl Joined {
    /// The run's ending as its own caller was told it, as soon as there is one; where to look for it, for a caller that leaves before.
    pub async fn reply(mut self) -> Reply {
        let run = &self.followed.run;
        let left = Duration::from_millis(run.deadline.since(self.followed.engine.now()));
        let until = match self.answer {
            Answer::Later => return Reply::GoesOn(Box::new(self.followed.run)),
            Answer::WaitAtMost(wait) => later(self.came, wait.min(left)),
            Answer::Wait => later(self.came, left + LAST_WORDS),
        };
        let (id, created_at) = (run.id, run.created_at);
        let ending = tokio::select! {
            biased;
            ending = timeout_at(until, self.followed.events.ending()) => ending,
            () = self.followed.engine.dismissed() => return Reply::SentAway,
        };
        match ending {
            Ok(Some(ending)) => Reply::Ended { duration_ms: ending.finished_at.since(created_at), ending },
            _ if self.answer == Answer::Wait => Reply::Missed,
            _ => {
                let account = self.followed.run.account;
                match self.followed.engine.find(account, id).await {
                    Ok(Some(view)) => Reply::GoesOn(Box::new(view)),
                    Ok(None) | Err(_) => Reply::GoesOn(Box::new(self.followed.run)),
                }
            }
        }
    }
}
