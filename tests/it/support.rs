//! What the suites share: throw-away services, the binary under test, a scripted provider.

pub mod app;
pub mod events;
pub mod invariants;
pub mod load;
mod modes;
pub mod postgres;
pub mod process;
pub mod provider;
pub mod proxy;
pub mod receiver;
pub mod redis;
pub mod schema;

use std::time::Duration;

use tokio::time::{Instant, sleep};

pub(crate) use self::modes::in_both_modes;

/// Waits for a condition, for a minute at most.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
