//! The log of a run's events, as every queue keeps it: how much, for how long, and what its readers are answered.

use std::time::Duration;

use crate::job::Logged;

/// How long the log of a run can be read after its end.
pub const LOG_RETENTION: Duration = Duration::from_secs(600);
/// Text of one call that a log keeps, in bytes: more than any model writes. What comes after that reaches those who follow live, and is in the output.
pub const LOG_BYTES: usize = 4 << 20;
/// Events that one look into a log returns, at most.
pub const LOG_PAGE: usize = 256;

/// Where the log of a run stands for the owner of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMark {
    /// The number that the next event gets.
    pub next: u64,
    /// Text of an earlier call was streamed, and nobody was told to forget it.
    pub streamed: bool,
}

/// Text of a call that the log of its run may not have yet.
#[derive(Clone, Debug, Default)]
pub struct NewText {
    /// The place of the first delta. Those whose places are taken are in the log already: they came with a step whose answer was lost.
    pub first: u64,
    /// Bytes of text that the call has said before the first delta.
    pub before: u64,
    pub deltas: Vec<String>,
}

impl NewText {
    /// The log has it: what comes next is said after it.
    pub fn pass(&mut self) {
        self.first += self.deltas.len() as u64;
        self.before += self.deltas.iter().map(|delta| delta.len() as u64).sum::<u64>();
        self.deltas.clear();
    }
}

/// What [`Queue::follow`](super::Queue::follow) found.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    Log {
        /// The events after the asked one, up to a page of them.
        events: Vec<Logged>,
        /// How many the log has in all.
        length: u64,
        /// Tells the logs of one run apart: 0 for that of its submission. One that began later (somebody followed then, or the run was restored
        /// after its log was lost) has its moment, by the queue's clock.
        began: u64,
    },
    /// The queue has no log of the run and knows none: it never did, or the log's retention is over.
    Unknown,
}
