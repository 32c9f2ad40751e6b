//! Text on its way from a streamed call to the log of its run.
//!
//! The call never waits: what it says is collected here, and written in one step with all that came since the last one. The first text
//! goes at once; after each step there is a pause, so that a fast model costs a step every [`WINDOW`] and not one a token. What a call that succeeded said
//! last needs no step of its own: it goes with the ending.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    executor::Shared,
    fail,
    providers::DeltaSink,
    queue::{Claim, Held, LogMark, NewText},
};

/// Text that comes within this time of the last step is written together.
const WINDOW: Duration = Duration::from_millis(15);
/// How soon text is offered again to a queue that does not answer.
const PAUSE: Duration = Duration::from_millis(60);
/// How long the last text of a call may hold up its ending while the queue does not answer. The ending has all of it.
const LAST_TEXT: Duration = Duration::from_secs(2);
/// Bytes of one event, at most: everybody who follows a run has room for a few events at least.
const MOST: usize = 16 * 1024;

/// Collects what a call says.
#[derive(Clone, Default)]
pub struct Collector(Arc<Collected>);

#[derive(Default)]
struct Collected {
    text: Mutex<Text>,
    came: Notify,
}

#[derive(Default)]
struct Text {
    new: String,
    ended: bool,
}

impl Collector {
    /// The call has ended: nothing more comes.
    pub fn end(&self) {
        self.lock().ended = true;
        self.0.came.notify_one();
    }

    /// What came since this was last asked, without waiting for more.
    fn rest(&self) -> String {
        std::mem::take(&mut self.lock().new)
    }

    /// What came since this was last asked; `None` when nothing more will. Waits for something to come.
    async fn next(&self) -> Option<String> {
        loop {
            {
                let mut text = self.lock();
                if !text.new.is_empty() {
                    return Some(std::mem::take(&mut text.new));
                }
                if text.ended {
                    return None;
                }
            }
            self.0.came.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.0.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeltaSink for Collector {
    fn delta(&mut self, text: &str) {
        self.lock().new.push_str(text);
        self.0.came.notify_one();
    }
}

/// Cuts text into events: most often it is one.
fn pieces(text: String) -> Vec<String> {
    if text.len() <= MOST {
        return vec![text];
    }
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(MOST));
        pieces.push(piece.to_owned());
        rest = after;
    }
    pieces
}

/// Writes text to the log of a claimed run.
pub struct Writer<'a> {
    shared: &'a Shared,
    claim: &'a Claim,
    collector: &'a Collector,
    /// Written, or perhaps written, and not confirmed.
    pending: NewText,
}

impl<'a> Writer<'a> {
    pub fn new(shared: &'a Shared, claim: &'a Claim, log: LogMark, collector: &'a Collector) -> Self {
        Self { shared, claim, collector, pending: NewText { first: log.next, ..NewText::default() } }
    }

    /// Writes until the call has ended and all is written, or the run is no longer ours. A call that is dropped may be repeated.
    pub async fn write(&mut self) {
        let (run, fence) = (self.claim.job.id, self.claim.fence);
        loop {
            if self.pending.deltas.is_empty() {
                match self.collector.next().await {
                    Some(text) => self.pending.deltas = pieces(text),
                    None => return,
                }
            }
            match fail::around("append", self.shared.queue.append(run, fence, &self.pending)).await {
                Ok(Held::Done) => {
                    self.pending.pass();
                    self.pause().await;
                }
                // Its heartbeat tells the same.
                Ok(Held::Elsewhere | Held::Unknown) => return,
                Err(error) => {
                    tracing::debug!(%run, %error, "streamed text waits for the queue");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// What is left when the call has ended.
    pub fn rest(mut self) -> NewText {
        let rest = self.collector.rest();
        if !rest.is_empty() {
            self.pending.deltas.extend(pieces(rest));
        }
        self.pending
    }

    /// Writes what is left when the call has ended without an ending of its run.
    pub async fn finish(&mut self) {
        if tokio::time::timeout(LAST_TEXT, self.write()).await.is_err() {
            tracing::warn!(run = %self.claim.job.id, "the last text of a stream is told with its ending only");
        }
    }

    /// Whether a caller may have seen text of this call.
    pub fn has_written(&self, log: LogMark) -> bool {
        self.pending.first > log.next || !self.pending.deltas.is_empty()
    }

    /// Lets more text come, unless there is none to come.
    async fn pause(&self) {
        let ended = async {
            while !self.collector.lock().ended {
                self.collector.0.came.notified().await;
            }
        };
        // Either way it goes on.
        let _ = tokio::time::timeout(WINDOW, ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lot_of_text_becomes_several_events() {
        let check = |text: &str, expect: &[usize]| {
            let pieces = pieces(text.to_owned());
            assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), expect);
            assert_eq!(pieces.concat(), text);
        };
        check("Bonjour", &[7]);
        check(&"x".repeat(MOST), &[MOST]);
        check(&"x".repeat(2 * MOST + 1), &[MOST, MOST, 1]);
        // No character is cut in two: this one has three bytes.
        check(&"€".repeat(MOST / 3 + 1), &[MOST / 3 * 3, 3]);
    }
}
