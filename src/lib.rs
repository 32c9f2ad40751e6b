//! Prompt Manager: the front door and the command line around the run engine of `workers`.

pub mod accounts;
pub mod audit;
pub mod batches;
pub mod changes;
pub mod cli;
pub mod config;
pub mod db;
pub mod http;
pub mod intake;
pub mod keys;
pub mod money;
pub mod node;
pub mod prompts;
#[cfg(test)]
mod property;
pub mod run;
#[cfg(test)]
#[path = "../tests/it/support/schema.rs"]
mod schema;
pub mod sealing;
pub mod webhooks;
