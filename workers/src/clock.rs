//! The wall clock of this machine, read in one place.
//!
//! It may be wrong, and it may be set at any moment. So nothing that a run is given comes from it: a run's moments are those of its queue
//! ([`Queue::now`](crate::queue::Queue::now)), which every process reads by its own monotonic clock.

use crate::fail;

/// Microseconds since 1970, as far as this machine knows.
pub(crate) fn wall_micros() -> i64 {
    chrono::Utc::now().timestamp_micros().saturating_add(fail::clock_skew_micros())
}
