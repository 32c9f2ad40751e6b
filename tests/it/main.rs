//! Black-box suites: the real binary, real Redis and PostgreSQL, a scripted provider. One binary, so that it links once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod accounts;
mod architecture;
mod batches;
mod budget;
mod caching;
mod cli;
mod client;
mod config;
mod conformance;
mod contract;
mod costs;
mod faults;
mod hunting;
mod idempotency;
mod ledger;
mod limits;
mod listing;
mod openai;
mod openapi;
mod operating;
mod operators;
mod prompts;
mod retries;
mod server;
mod streaming;
mod support;
mod webhooks;
mod websocket;
