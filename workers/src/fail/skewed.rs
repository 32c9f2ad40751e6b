//! A wall clock that is wrong, as debug builds can have it.
//!
//! `CLOCK_SKEW_FILE` names a file that says by how many milliseconds the process's wall clock is ahead; negative when it is behind. It is
//! read again at every look at the clock, so that a test can set the clock of a process that runs.

use std::{env, fs, process, sync::LazyLock};

const VARIABLE: &str = "CLOCK_SKEW_FILE";

static FILE: LazyLock<Option<String>> = LazyLock::new(|| env::var(VARIABLE).ok());

pub(crate) fn clock_skew_micros() -> i64 {
    let Some(file) = &*FILE else { return 0 };
    let said = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i64>().ok());
    said.map(|millis| millis.saturating_mul(1_000)).unwrap_or_else(|| {
        // A test must not pass because its fault never came.
        tracing::error!("{VARIABLE} does not lead to a number: {file}");
        process::abort()
    })
}
