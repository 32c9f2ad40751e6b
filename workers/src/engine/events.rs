//! The events of one run, in their order, each of them once: live ones as they come, missed ones from the log.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    inbox::{Inbox, News},
    waiters::{Registration, Waiters},
};
use crate::{
    job::{Ending, Event, FrontDoorId, Logged, RunId},
    ledger::Ledger,
    queue::{Followed, Queue, Unreachable},
};

/// The pause before a log that cannot be reached is asked again.
const PAUSE: Duration = Duration::from_millis(250);

/// A reader of a run's events. Dropping it stops reading, and changes nothing about the run.
pub struct Events {
    run: RunId,
    /// The number of the last event that was read.
    read: u64,
    /// What the log's numbers are behind those that were read: above 0 once a log was lost and began anew.
    behind: u64,
    /// Which log it reads ([`Followed::Log`]), once that is known.
    began: Option<u64>,
    found: VecDeque<Logged>,
    inbox: Inbox,
    /// Events were missed: the log has them.
    must_look: bool,
    /// The run has ended, and no event said so yet.
    heard: Option<Box<Ending>>,
    ended: bool,
    queue: Arc<dyn Queue>,
    ledger: Ledger,
    front_door: FrontDoorId,
    _registration: Registration,
}

impl Events {
    /// Follows a run from after the event `after`.
    pub(super) fn new(
        run: RunId,
        after: u64,
        waiters: &Arc<Waiters>,
        queue: Arc<dyn Queue>,
        ledger: Ledger,
        front_door: FrontDoorId,
    ) -> Self {
        let inbox = Inbox::default();
        let registration = waiters.follow(run, inbox.clone());
        Self {
            run,
            read: after,
            behind: 0,
            began: None,
            found: VecDeque::new(),
            inbox,
            must_look: false,
            heard: None,
            ended: false,
            queue,
            ledger,
            front_door,
            _registration: registration,
        }
    }

    /// The first event of a run that is about to be enqueued: nobody has to be asked for it.
    pub(super) fn begin(mut self) -> Self {
        self.found.push_back(Logged { seq: 1, event: Event::Queued });
        self.began = Some(0);
        self
    }

    /// The last event of a run that has ended before anything else happened to it.
    pub(super) fn end_with(mut self, ending: Box<Ending>) -> Self {
        self.append(ending);
        self
    }

    /// The next event; `None` after the last one. Waits for as long as nothing happens. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Option<Logged> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(logged) = self.found.pop_front() {
                self.read = logged.seq;
                self.ended = matches!(logged.event, Event::Ended(_));
                return Some(logged);
            }
            // What news asks for is kept until it is done, because this call may be dropped at any time. Looking is boxed, so that those who read
            // live events, which are nearly all, do not carry the room that a look into the ledger needs.
            if self.heard.is_some() {
                Box::pin(self.end()).await;
            } else if self.must_look {
                if let Err(error) = Box::pin(self.look()).await {
                    tracing::debug!(run = %self.run, %error, "the log of a run cannot be read yet");
                    sleep(PAUSE).await;
                }
            } else {
                match self.inbox.next().await {
                    News::Event(Logged { seq, event }) => {
                        let seq = seq + self.behind;
                        match event {
                            event if seq == self.read + 1 => self.found.push_back(Logged { seq, event }),
                            // Out of its turn, because events were missed or the log began anew. Nothing comes after it.
                            Event::Ended(ending) => self.heard = Some(ending),
                            _ if seq > self.read => self.must_look = true,
                            _ => {}
                        }
                    }
                    News::Missed => self.must_look = true,
                    News::Ended(ending) => self.heard = Some(ending),
                }
            }
        }
    }

    /// The run has ended. What its log holds comes first, if there is one and it can be read.
    async fn end(&mut self) {
        let _ = self.look().await;
        if self.must_look && !self.found.is_empty() {
            // There is more to read before the end.
            return;
        }
        let Some(ending) = self.heard.take() else { return };
        if !self.found.iter().any(|logged| matches!(logged.event, Event::Ended(_))) {
            self.append(ending);
        }
    }

    fn append(&mut self, ending: Box<Ending>) {
        let seq = self.found.back().map_or(self.read, |last| last.seq) + 1;
        self.found.push_back(Logged { seq, event: Event::Ended(ending) });
    }

    /// The ending, whatever else happens before it; `None` when it has been read already.
    pub async fn ending(&mut self) -> Option<Box<Ending>> {
        while let Some(logged) = self.next().await {
            if let Event::Ended(ending) = logged.event {
                return Some(ending);
            }
        }
        None
    }

    /// Reads what the log has after the last event that was read, and follows the run from there.
    pub(super) async fn look(&mut self) -> Result<(), Unreachable> {
        let after = self.read.saturating_sub(self.behind);
        let (events, length, began) = match self.queue.follow(self.run, self.front_door, after).await? {
            Followed::Log { events, length, began } => (events, length, began),
            Followed::Unknown => return self.look_in_ledger().await,
        };
        let is_another = self.began.replace(began).is_some_and(|known| known != began);
        if is_another || length < after {
            // It was lost and began anew: what was read of the old one does not count, and the new one comes next.
            self.read += 1;
            self.behind = self.read;
            self.found.push_back(Logged { seq: self.read, event: Event::Retrying });
            self.must_look = true;
            return Ok(());
        }
        let got = events.len() as u64;
        let events = events.into_iter().map(|Logged { seq, event }| Logged { seq: seq + self.behind, event });
        self.found.extend(events);
        // What is left is worth another page when this one has been read.
        self.must_look = after + got < length;
        Ok(())
    }

    /// A reader that has read the ending already is told it again, under its number, instead of waiting for what never comes.
    pub(super) async fn look_back(&mut self) -> Result<(), Unreachable> {
        if !self.found.is_empty() || self.must_look || self.read == 0 {
            return Ok(());
        }
        let before = self.read - 1;
        if let Followed::Log { events, .. } = self.queue.follow(self.run, self.front_door, before).await? {
            self.found.extend(events.into_iter().filter(|logged| matches!(logged.event, Event::Ended(_))));
        }
        Ok(())
    }

    /// A run without a log has ended some time ago. Or it was accepted, and whoever did so was lost before the queue heard of it: then it goes
    /// there now, instead of waiting for the reconciler.
    async fn look_in_ledger(&mut self) -> Result<(), Unreachable> {
        let lost = |error| Unreachable(Box::new(error));
        let endings = self.ledger.endings(&[self.run]).await.map_err(lost)?;
        let Some(ending) = endings.into_iter().next() else {
            if let Some(restored) = self.ledger.unfinished_one(self.run).await.map_err(lost)? {
                self.queue.restore(&[restored]).await?;
                let after = self.read.saturating_sub(self.behind);
                self.must_look = matches!(
                    self.queue.follow(self.run, self.front_door, after).await?,
                    Followed::Log { length, .. } if length > after
                );
            } else {
                self.must_look = false;
            }
            return Ok(());
        };
        self.must_look = false;
        let started = ending.attempt.as_ref().map(|attempt| Event::Started { attempt: attempt.number });
        let events = [Some(Event::Queued), started].into_iter().flatten().chain([Event::Ended(Box::new(ending))]);
        let mut found: VecDeque<_> = (1..).zip(events).map(|(seq, event)| Logged { seq, event }).collect();
        // Whoever has read more of a log that is gone by now is told the end.
        let read = self.read;
        if let Some(last) = found.back_mut() {
            last.seq = last.seq.max(read + 1);
        }
        found.retain(|logged| logged.seq > read);
        self.found = found;
        Ok(())
    }
}
