//! What the suites share: throw-away services, the binary under test, a scripted provider.

pub mod app;
pub mod postgres;
pub mod process;
pub mod provider;
pub mod redis;
