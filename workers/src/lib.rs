//! The run engine: what stands between an accepted request and a model.
//!
//! A front door talks to the [`Engine`]: it submits a [`Job`](job::Job), waits for its [`Ending`](job::Ending), looks runs up and
//! cancels them. A worker runs an [`ExecutorPool`](executor::ExecutorPool): it claims jobs from the [`Queue`](queue::Queue), calls
//! [`Provider`](providers::Provider)s and writes endings to the [`Ledger`](ledger::Ledger). Both meet in the queue and the ledger
//! only, so they may be one process or many.
//!
//! The ledger is the truth. The queue only dispatches, and can be rebuilt from the ledger at any time.

mod clock;
pub mod engine;
pub mod executor;
mod fail;
pub mod job;
pub mod ledger;
pub mod providers;
pub mod queue;
pub mod retry;
#[cfg(test)]
mod tests;

pub use engine::{
    Accepted, CancelOutcome, Engine, EngineSettings, Events, Page, Promise, RunView, SubmitError, Waiter,
};
