//! Whether a new run may come in.

use std::time::Duration;

/// Limits that a new run must meet.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Requests a minute; all must have room, and all are charged together.
    pub rules: Vec<RateRule>,
    /// Runs that wait, at most.
    pub max_depth: u64,
    /// Bytes of waiting jobs, at most.
    pub max_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateRule {
    /// What the limit is called in the `RateLimit` header: `account` or `key`.
    pub name: &'static str,
    /// Whose requests are counted: the id of the account or key.
    pub subject: String,
    pub per_minute: u32,
}

/// What is left of a [`RateRule`] after this request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLeft {
    pub name: &'static str,
    pub per_minute: u32,
    pub remaining: u32,
    /// Until the oldest request counted leaves the minute; zero when none is counted.
    pub reset: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// The run may go on (and is in the queue, when it was enqueued).
    Yes { rates: Vec<RateLeft> },
    /// A rule has no request left; nothing was charged.
    Limited { rule: &'static str, after: Duration, rates: Vec<RateLeft> },
    /// Too many runs, or bytes, wait already; nothing was charged.
    Full { after: Duration },
}
