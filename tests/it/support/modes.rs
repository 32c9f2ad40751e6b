//! The same test in either mode.

/// Runs each of these functions of a [`Mode`](super::app::Mode) as two tests, in modules named for the mode.
macro_rules! in_both_modes {
    ($($test:ident $(,)?)+) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::support::app::Mode::Embedded).await;
            })+
        }

        mod distributed {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::support::app::Mode::Distributed).await;
            })+
        }
    };
}

pub(crate) use in_both_modes;
