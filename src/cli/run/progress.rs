//! What somebody who waits at a terminal sees on stderr. It never mixes with data.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

/// A spinner with the time that has passed; hidden where it would be noise.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shown on a terminal only, and neither with `--json` nor where `NO_COLOR` asks for plain text (<https://no-color.org>).
    pub fn start(json: bool, environment: &HashMap<String, String>) -> Self {
        let plain = environment.get("NO_COLOR").is_some_and(|value| !value.is_empty());
        if json || plain || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    pub fn set(&self, state: &'static str) {
        self.0.set_message(state);
    }

    /// Leaves the line to what comes now.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }

    /// Says a sentence about the run, whether or not a spinner is shown.
    pub fn say(&self, sentence: &str) {
        // Nobody may be there to read it.
        self.0.suspend(|| drop(writeln!(io::stderr(), "{sentence}")));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
