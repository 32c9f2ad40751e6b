//! Fail points as debug builds have them: told what to do by the environment.
//!
//! `FAIL_POINTS` is a list of `point=action`, separated by `;`. Actions: `abort` (ends the process as SIGKILL does, without a
//! destructor), `stop` (SIGSTOP), `delay:MS`, `panic`, and `error` (the step's store is unreachable; only where the step can
//! fail). `action@N` acts at the Nth passage alone, counted from 1; otherwise every passage does.

use std::{
    env,
    error::Error,
    process::{self, Command},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{DbErr, RuntimeErr};

use crate::{ledger::LedgerError, queue::Unreachable};

const VARIABLE: &str = "FAIL_POINTS";

/// What the environment said, once.
static ARMED: LazyLock<Vec<Armed>> = LazyLock::new(|| {
    let text = env::var(VARIABLE).unwrap_or_default();
    parse(&text).unwrap_or_else(|wrong| {
        // A test must not pass because its fault never came.
        tracing::error!("{VARIABLE} has a part that means nothing: {wrong:?}");
        process::abort()
    })
});

struct Armed {
    point: String,
    action: Action,
    /// Only this passage acts.
    only: Option<u64>,
    passages: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Stop,
    Delay(Duration),
    Panic,
    Error,
}

/// An error that a step can be made to answer with.
pub(crate) trait Injected {
    fn injected(point: String) -> Self;
}

impl Injected for Unreachable {
    fn injected(point: String) -> Self {
        Unreachable(Box::<dyn Error + Send + Sync>::from(format!("the fail point {point}")))
    }
}

impl Injected for LedgerError {
    fn injected(point: String) -> Self {
        let error = DbErr::Conn(RuntimeErr::Internal(format!("the fail point {point}")));
        LedgerError::Unreachable(Arc::new(error))
    }
}

/// Passes a point where nothing can be answered with an error.
pub(crate) async fn point(name: &'static str) {
    if pass(name, "").await {
        tracing::error!(name, "this fail point cannot answer with an error");
        process::abort();
    }
}

/// Passes a point that may be made to answer with an error.
pub(crate) async fn fallible<E: Injected>(name: &'static str) -> Result<(), E> {
    if pass(name, "").await { Err(E::injected(name.to_owned())) } else { Ok(()) }
}

/// Makes a step between its points `before` and `after`. An error `before` is a step that was not made, an error `after` a step whose
/// answer was lost.
pub(crate) async fn around<T, E: Injected>(
    step: &'static str,
    made: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    if pass(step, ".before").await {
        return Err(E::injected(format!("{step}.before")));
    }
    let answer = made.await?;
    if pass(step, ".after").await {
        return Err(E::injected(format!("{step}.after")));
    }
    Ok(answer)
}

/// Whether the point is to answer with an error.
async fn pass(step: &str, side: &str) -> bool {
    let mut error = false;
    for armed in ARMED.iter().filter(|armed| armed.point.strip_prefix(step) == Some(side)) {
        let passage = armed.passages.fetch_add(1, Ordering::Relaxed) + 1;
        if armed.only.is_none_or(|only| only == passage) {
            tracing::warn!(point = armed.point, passage, action = ?armed.action, "a fail point acts");
            error |= act(armed.action).await;
        }
    }
    error
}

async fn act(action: Action) -> bool {
    match action {
        Action::Abort => process::abort(),
        Action::Stop => {
            // Goes on where it was stopped, when SIGCONT comes.
            let stopped = Command::new("kill").args(["-STOP", &process::id().to_string()]).status();
            if !stopped.is_ok_and(|status| status.success()) {
                tracing::error!("a fail point could not stop its process");
                process::abort();
            }
        }
        Action::Delay(delay) => tokio::time::sleep(delay).await,
        Action::Panic => {
            #[expect(clippy::panic, reason = "that is what the test asks for")]
            {
                panic!("a fail point panics")
            }
        }
        Action::Error => return true,
    }
    false
}

fn parse(text: &str) -> Result<Vec<Armed>, String> {
    let parts = text.split(';').filter(|part| !part.is_empty());
    parts.map(|part| armed(part).ok_or_else(|| part.to_owned())).collect()
}

fn armed(part: &str) -> Option<Armed> {
    let (point, action) = part.split_once('=')?;
    let (action, only) = match action.split_once('@') {
        Some((action, only)) => (action, Some(only.parse().ok().filter(|only| *only > 0)?)),
        None => (action, None),
    };
    let action = match action.split_once(':') {
        Some(("delay", ms)) => Action::Delay(Duration::from_millis(ms.parse().ok()?)),
        None if action == "abort" => Action::Abort,
        None if action == "stop" => Action::Stop,
        None if action == "panic" => Action::Panic,
        None if action == "error" => Action::Error,
        _ => return None,
    };
    (!point.is_empty()).then(|| Armed { point: point.to_owned(), action, only, passages: AtomicU64::new(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_with_their_actions_and_passages() {
        let read = |text: &str| -> Vec<(String, Action, Option<u64>)> {
            let armed = parse(text).unwrap_or_default();
            armed.into_iter().map(|armed| (armed.point, armed.action, armed.only)).collect()
        };
        assert_eq!(
            read("stash.after=abort@3;claim.after=stop;call.before=delay:200"),
            [
                ("stash.after".to_owned(), Action::Abort, Some(3)),
                ("claim.after".to_owned(), Action::Stop, None),
                ("call.before".to_owned(), Action::Delay(Duration::from_millis(200)), None),
            ]
        );
        assert_eq!(read(""), []);
        for wrong in ["stash.after", "=abort", "x=abort@0", "x=abort@y", "x=delay", "x=delay:y", "x=abort:1", "x=die"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
