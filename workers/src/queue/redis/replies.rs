//! Endings on their way to a front door: its stream is read over a connection of its own.

use std::{sync::Arc, time::Duration};

use redis::{RedisError, aio::MultiplexedConnection};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    clock::{Clock, Sample, Shown},
    connect::{Connections, unreachable},
    wire::parse,
};
use crate::{
    job::{Ending, Event, Logged},
    queue::{Reply, Unreachable},
};

/// Messages that the front door has not taken yet; beyond them they wait in Redis.
const CHANNEL: usize = 1024;
/// Entries of one read.
const BATCH: usize = 256;
/// One blocking read, so that a peer that is gone without a word is noticed.
const BLOCK: Duration = Duration::from_secs(5);
/// How much later than that its answer may come.
const GRACE: Duration = Duration::from_secs(2);
/// The stream's time to live, renewed by its reader (`REPLY_TTL` in `common.lua`).
const STREAM_TTL: Duration = Duration::from_secs(600);
/// How often: many times in that time.
const RENEW_EVERY: Duration = Duration::from_secs(30);
/// What was passed on is trimmed with the next read after so long, or so many bytes.
const TRIM_EVERY: Duration = Duration::from_millis(500);
const TRIM_BYTES: usize = 64 << 10;
/// When Redis has lost its memory, runs come back from the ledger without the address of who waits for them. So for this long the front door
/// is told again and again to ask the ledger.
const SWEEP_FOR: Duration = Duration::from_secs(60);
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// Connects, and starts to read. The reader ends with the token, or when nobody listens any more.
pub(super) async fn listen(
    connections: Connections,
    clock: Arc<Clock>,
    stream: String,
    epoch: String,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<Reply>, Unreachable> {
    let mut connection = connections.dedicated().await.map_err(unreachable)?;
    let seen = redis::cmd("GET").arg(&epoch).clone();
    let seen = timeout(GRACE, seen.query_async(&mut connection)).await.map_err(unreachable)?.map_err(unreachable)?;
    let memory = Memory { epoch: seen, sweep_until: None };
    let (send, receive) = mpsc::channel(CHANNEL);
    let (last, upkeep) = ("0-0".into(), Upkeep::default());
    let mut reader = Reader { connections, clock, stream, last, upkeep, epoch, memory, send };
    tokio::spawn(async move {
        let gone = reader.send.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = gone.closed() => {}
            () = reader.run(connection) => {}
        }
    });
    Ok(receive)
}

struct Reader {
    connections: Connections,
    clock: Arc<Clock>,
    stream: String,
    /// The last entry that was passed on.
    last: String,
    upkeep: Upkeep,
    /// The key that is there unless Redis has lost its memory.
    epoch: String,
    memory: Memory,
    send: mpsc::Sender<Reply>,
}

impl Reader {
    async fn run(&mut self, connection: MultiplexedConnection) {
        let mut connection = Some(connection);
        let mut backoff = Backoff::default();
        loop {
            let Some(open) = &mut connection else {
                backoff.pause().await;
                connection = self.connect().await.ok();
                if connection.is_some() && self.send.send(Reply::Resumed).await.is_err() {
                    return;
                }
                continue;
            };
            match self.read(open).await {
                Ok(replies) => {
                    backoff = Backoff::default();
                    for reply in replies {
                        if self.send.send(reply).await.is_err() {
                            return;
                        }
                    }
                    if self.memory.must_sweep(Instant::now()) && self.send.send(Reply::Resumed).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "lost the connection that brings endings; connecting again");
                    connection = None;
                }
            }
        }
    }

    /// Connects again. It may be another machine that answers now, with another clock.
    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self.connections.dedicated().await?;
        self.clock.learn(self.connections.time(&mut connection).await?);
        Ok(connection)
    }

    /// Waits for the next messages; now and then, those that were passed on are trimmed before.
    async fn read(&mut self, connection: &mut MultiplexedConnection) -> Result<Vec<Reply>, RedisError> {
        let block = if self.memory.is_sweeping() { SWEEP_EVERY } else { BLOCK };
        let asked = Instant::now();
        let mut read = redis::pipe();
        if self.upkeep.must_trim(asked) {
            read.cmd("XTRIM").arg(&self.stream).arg("MINID").arg(after(&self.last)).ignore();
        }
        if self.upkeep.must_renew(asked) {
            read.cmd("PEXPIRE").arg(&self.stream).arg(super::millis(STREAM_TTL)).ignore();
        }
        let looks_around = self.clock.is_stale(asked);
        if looks_around {
            // Told before the read blocks and after it, the time is known as well as if it had been asked for alone.
            read.cmd("TIME");
        }
        read.cmd("XREAD").arg("COUNT").arg(BATCH).arg("BLOCK").arg(super::millis(block));
        read.arg("STREAMS").arg(&self.stream).arg(&self.last);
        let late = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let streams: Option<Streams> = if looks_around {
            read.cmd("GET").arg(&self.epoch).cmd("TIME");
            let answer = timeout(block + GRACE, read.query_async(connection)).await;
            let (before, streams, epoch, after): (Shown, _, Option<String>, Shown) = answer.map_err(late)??;
            let answered = Instant::now();
            self.clock.learn(Sample { asked, before, after, answered });
            self.memory.saw(epoch, answered);
            streams
        } else {
            let (streams,) = timeout(block + GRACE, read.query_async(connection)).await.map_err(late)??;
            streams
        };

        let mut replies = Vec::new();
        for (id, fields) in streams.into_iter().flatten().flat_map(|(_, entries)| entries) {
            self.upkeep.passed(&fields);
            if add_replies(&fields, &mut replies).is_none() {
                tracing::warn!(stream = %self.stream, entry = %id, "a message was written by another version; who waits for it asks the ledger");
                self.memory.sweep(Instant::now());
            }
            self.last = id;
        }
        Ok(replies)
    }
}

/// What `XREAD` answers: of each stream its name and its entries, of each entry its id and its fields with their values.
type Streams = Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>;

/// When the stream is next looked after.
#[derive(Default)]
struct Upkeep {
    trimmed: Option<Instant>,
    /// Bytes that were passed on since.
    passed: usize,
    renewed: Option<Instant>,
}

impl Upkeep {
    fn passed(&mut self, fields: &[Vec<u8>]) {
        // The entry itself counts for something, too.
        self.passed += fields.iter().map(Vec::len).sum::<usize>() + 64;
    }

    fn must_trim(&mut self, now: Instant) -> bool {
        let due = self.passed >= TRIM_BYTES || (self.passed > 0 && is_over(self.trimmed, TRIM_EVERY, now));
        if due {
            (self.trimmed, self.passed) = (Some(now), 0);
        }
        due
    }

    fn must_renew(&mut self, now: Instant) -> bool {
        let due = is_over(self.renewed, RENEW_EVERY, now);
        if due {
            self.renewed = Some(now);
        }
        due
    }
}

fn is_over(since: Option<Instant>, after: Duration, now: Instant) -> bool {
    since.is_none_or(|since| now.saturating_duration_since(since) >= after)
}

/// Reads a message: endings, and events with their runs and places. `None` when a part of it cannot be read.
fn add_replies(fields: &[Vec<u8>], replies: &mut Vec<Reply>) -> Option<()> {
    let mut all = Some(());
    let mut rest = fields;
    while !rest.is_empty() {
        let (reply, after) = match rest {
            [name, ending, after @ ..] if name == b"ending" => {
                (Ending::decode(ending).ok().map(|ending| Reply::Ended(Box::new(ending))), after)
            }
            [name, run, _, seq, _, event, after @ ..] if name == b"run" => (event_of(run, seq, event), after),
            _ => return None,
        };
        match reply {
            Some(reply) => replies.push(reply),
            None => all = None,
        }
        rest = after;
    }
    all
}

fn event_of(run: &[u8], seq: &[u8], event: &[u8]) -> Option<Reply> {
    let logged = Logged { seq: parse(seq).ok()?, event: Event::decode(event).ok()? };
    Some(Reply::Event(parse(run).ok()?, logged))
}

/// The first id after `id`.
fn after(id: &str) -> String {
    let next = id.rsplit_once('-').and_then(|(time, number)| {
        let number: u64 = number.parse().ok()?;
        Some(format!("{time}-{}", number.checked_add(1)?))
    });
    // An id that cannot be counted up trims one entry less, which is harmless.
    next.unwrap_or_else(|| id.to_owned())
}

/// Whether Redis still knows what it knew, by its epoch.
#[derive(Debug, Default)]
struct Memory {
    epoch: Option<String>,
    sweep_until: Option<Instant>,
}

impl Memory {
    fn saw(&mut self, epoch: Option<String>, now: Instant) {
        if self.epoch.is_some() && self.epoch != epoch {
            self.sweep(now);
        }
        self.epoch = epoch;
    }

    fn sweep(&mut self, now: Instant) {
        self.sweep_until = Some(now + SWEEP_FOR);
    }

    fn is_sweeping(&self) -> bool {
        self.sweep_until.is_some()
    }

    fn must_sweep(&mut self, now: Instant) -> bool {
        let sweeping = self.is_sweeping();
        self.sweep_until = self.sweep_until.filter(|until| *until > now);
        sweeping
    }
}

/// Pauses between attempts to connect: from 50 ms up to 2 s.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub async fn pause(&mut self) {
        let doubled = 50_u64.saturating_mul(1 << self.failures.min(6));
        self.failures += 1;
        sleep(Duration::from_millis(doubled.min(2_000))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_id_counts_its_second_part_up() {
        assert_eq!(after("0-0"), "0-1");
        assert_eq!(after("1732373900000-9"), "1732373900000-10");
    }

    #[test]
    fn a_changed_epoch_is_a_lost_memory_and_a_first_one_is_not() {
        let now = Instant::now();
        let mut memory = Memory::default();
        memory.saw(None, now);
        memory.saw(Some("a".into()), now);
        memory.saw(Some("a".into()), now);
        assert!(!memory.must_sweep(now));
        memory.saw(None, now);
        assert!(memory.must_sweep(now));
        memory.saw(Some("b".into()), now);
        assert!(memory.must_sweep(now + SWEEP_FOR), "the last sweep comes after the time");
        assert!(!memory.must_sweep(now + SWEEP_FOR));
    }
}
