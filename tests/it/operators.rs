//! What operators can do and see, and what nobody notices of it: queue verbs, probes, drains, cancellation, fairness.

mod cancelling;
mod draining;
mod fairness;
mod health;
mod soak;
mod verbs;

/// Tests of both modes.
macro_rules! in_both_modes {
    ($($case:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(crate::support::app::Mode::Embedded).await;
            })*
        }

        mod distributed {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(crate::support::app::Mode::Distributed).await;
            })*
        }
    };
}

use in_both_modes;
