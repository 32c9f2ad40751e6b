//! Fail points: places in the story of a run where a test may make the process die, stop, stall or err; and a wall clock that a test may
//! set ([`clock_skew_micros`]).
//!
//! They exist in builds with debug assertions only; in a release build each is an empty function and the text of this protocol
//! is not in the program. Points lie before and after every step that another process can see, and are called after it:
//! `stash.before`, `stash.after`.

#[cfg(debug_assertions)]
mod armed;
#[cfg(debug_assertions)]
mod skewed;

#[cfg(debug_assertions)]
pub(crate) use self::armed::{around, fallible, point};
#[cfg(not(debug_assertions))]
pub(crate) use self::disarmed::{around, clock_skew_micros, fallible, point};
#[cfg(debug_assertions)]
pub(crate) use self::skewed::clock_skew_micros;

#[cfg(not(debug_assertions))]
mod disarmed {
    use std::future::{Ready, ready};

    pub(crate) fn point(_: &'static str) -> Ready<()> {
        ready(())
    }

    pub(crate) fn clock_skew_micros() -> i64 {
        0
    }

    pub(crate) fn fallible<E>(_: &'static str) -> Ready<Result<(), E>> {
        ready(Ok(()))
    }

    pub(crate) fn around<F: Future>(_: &'static str, step: F) -> F {
        step
    }
}
