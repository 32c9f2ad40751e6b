//! What operators can do and see, and what nobody notices of it: queue verbs, probes, drains, cancellation, fairness.

mod cancelling;
mod draining;
mod fairness;
mod health;
mod soak;
mod verbs;
