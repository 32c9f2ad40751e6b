//! Closed loops of callers: each sends its next request when it has read its last answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::caller::{Caller, Endpoint};

/// What callers saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Of the requests that succeeded, in nanoseconds.
    latencies: Vec<u64>,
    pub errors: u64,
    /// One of the errors, to tell what went wrong.
    pub complaint: Option<String>,
    elapsed: Duration,
}

/// When callers stop.
#[derive(Clone, Debug)]
enum Until {
    Moment(Instant),
    /// All together have sent so many.
    Left(Arc<AtomicUsize>),
}

impl Until {
    /// Whether one more request is to be sent.
    fn goes_on(&self) -> bool {
        match self {
            Until::Moment(end) => Instant::now() < *end,
            Until::Left(left) => {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            }
        }
    }
}

/// Sends `body` from so many callers for so long.
pub async fn closed_loop(endpoint: &Endpoint, body: &Bytes, callers: usize, length: Duration) -> anyhow::Result<Seen> {
    let connections = connect(endpoint, callers).await?;
    call_all(connections, body, &Until::Moment(Instant::now() + length)).await
}

/// Sends `body` so many times, from all callers together.
pub async fn all_of(endpoint: &Endpoint, body: &Bytes, callers: usize, requests: usize) -> anyhow::Result<Seen> {
    let connections = connect(endpoint, callers).await?;
    call_all(connections, body, &Until::Left(Arc::new(AtomicUsize::new(requests)))).await
}

async fn connect(endpoint: &Endpoint, callers: usize) -> anyhow::Result<Vec<Caller>> {
    let mut connections = Vec::with_capacity(callers);
    for _ in 0..callers {
        connections.push(Caller::connect(endpoint.clone()).await?);
    }
    Ok(connections)
}

async fn call_all(callers: Vec<Caller>, body: &Bytes, until: &Until) -> anyhow::Result<Seen> {
    let start = Instant::now();
    let mut loops: JoinSet<Seen> =
        callers.into_iter().map(|caller| call_until(caller, body.clone(), until.clone())).collect();
    let mut seen = Seen::default();
    while let Some(joined) = loops.join_next().await {
        seen.add(joined?);
    }
    seen.elapsed = start.elapsed();
    Ok(seen)
}

async fn call_until(mut caller: Caller, body: Bytes, until: Until) -> Seen {
    let mut seen = Seen::default();
    while until.goes_on() {
        let start = Instant::now();
        match caller.post(&body).await {
            Ok((status, answer)) if status.is_success() && is_whole(&answer) => seen.took(start.elapsed()),
            Ok((status, answer)) => seen.complain(format!("{status} {}", String::from_utf8_lossy(&answer))),
            Err(error) => {
                seen.complain(format!("{error:#}"));
                // There are as many callers as the row says, for as long as somebody listens.
                match caller.again().await {
                    Ok(again) => caller = again,
                    Err(_) => break,
                }
            }
        }
    }
    seen
}

/// Whether an answer that succeeded by its status succeeded by what it says. A stream of ours tells of its run's failure by an event before its
/// last line; the provider's has no such event.
pub fn is_whole(answer: &[u8]) -> bool {
    let ends = |end: &[u8]| answer.ends_with(end);
    let has = |part: &[u8]| answer.windows(part.len()).any(|window| window == part);
    match answer.get(..3) {
        Some(b"id:") => ends(b"data: [DONE]\n\n") && has(b"\nevent: run.completed\n"),
        Some(b"dat") => ends(b"data: [DONE]\n\n"),
        _ => true,
    }
}

impl Seen {
    pub fn took(&mut self, latency: Duration) {
        self.latencies.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Says how long it all took, where no closed loop did.
    pub fn lasted(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    pub fn complain(&mut self, what: String) {
        self.errors += 1;
        self.complaint.get_or_insert(what);
    }

    pub fn add(&mut self, other: Seen) {
        self.latencies.extend(other.latencies);
        self.errors += other.errors;
        self.complaint = self.complaint.take().or(other.complaint);
    }

    /// Requests that succeeded.
    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    pub fn per_second(&self) -> f64 {
        self.count() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// What was to succeed as a whole, so that something else can be measured.
    pub fn clean(self) -> anyhow::Result<Self> {
        match &self.complaint {
            None => Ok(self),
            Some(complaint) => {
                bail!("{} of {} requests failed: {complaint}", self.errors, self.errors + self.count() as u64)
            }
        }
    }

    /// The latencies under which so many of a thousand lie, in milliseconds (nearest rank); `None` without a success.
    pub fn percentiles<const N: usize>(&self, of_a_thousand: [usize; N]) -> Option<[f64; N]> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = *sorted.last()?;
        Some(of_a_thousand.map(|share| {
            let rank = (sorted.len() * share).div_ceil(1000).saturating_sub(1);
            sorted.get(rank).copied().unwrap_or(last) as f64 / 1e6
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut seen = Seen::default();
        assert_eq!(seen.percentiles([500]), None);
        for millis in (1..=200).rev() {
            seen.took(Duration::from_millis(millis));
        }
        assert_eq!(seen.percentiles([500, 990, 1000]), Some([100.0, 198.0, 200.0]));
    }

    #[test]
    fn a_stream_is_whole_when_its_run_succeeded() {
        assert!(is_whole(
            b"id: 1\nevent: run.queued\ndata: {}\n\nid: 2\nevent: run.completed\ndata: {}\n\ndata: [DONE]\n\n"
        ));
        assert!(!is_whole(
            b"id: 1\nevent: run.queued\ndata: {}\n\nid: 2\nevent: run.failed\ndata: {}\n\ndata: [DONE]\n\n"
        ));
        assert!(!is_whole(b"id: 1\nevent: run.queued\ndata: {}\n\nid: 2\nevent: run.completed\ndata: {}\n\n"));
        assert!(is_whole(b"data: {}\n\ndata: [DONE]\n\n") && !is_whole(b"data: {}\n\n"));
        assert!(is_whole(br#"{"success":true}"#));
    }
}
