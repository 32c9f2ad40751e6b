//! Waiting for runs: a worker that found too little to claim blocks on what is put for it, tokens that wake it and runs that are offered.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    RedisQueue,
    claim::FOREIGN_AFTER,
    connect::{query, unreachable},
    scripts,
    wire::{self, Offer, Read},
};
use crate::{
    job::WorkerId,
    queue::{Claim, ScopeLimits, Unreachable},
};

/// One blocking read, so that a peer that is gone without a word is noticed.
const BLOCK: Duration = Duration::from_secs(5);
/// How much later than that its answer may come.
const GRACE: Duration = Duration::from_secs(2);
/// A claim registers its worker as idle for 45 s (`IDLE_TTL` in `claiming.lua`): nobody waits longer without claiming again.
const LONGEST: Duration = Duration::from_secs(30);
/// So long a registration is not repeated: it lasts for the longest wait after that.
const REGISTERED: Duration = Duration::from_secs(10);
/// Offers that one read takes. Each is at most 256 KiB (`OFFERED_BYTES` in `enqueue.lua`).
const TAKEN_AT_ONCE: usize = 16;
/// An offer is taken at once or by a claim, which gives it a new fence. So no two workers have the same one: a Redis that was restarted, or replaced by its
/// replica, may have forgotten that an offer was taken, but it does not come back so soon.
pub(super) const OFFER_STANDS: Duration = Duration::from_millis(100);
/// How often a read that is to end is told so: once is too little if it had not begun.
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// Connections for those who wait, and what they wait for.
pub(super) struct Waiters {
    tag: String,
    claims: Mutex<HashMap<WorkerId, LastClaim>>,
    /// Connections that nobody blocks on now. One is taken out for the time of a read, and is dropped when the read is given up, so that no
    /// late answer is taken for another read's.
    resting: Mutex<Vec<Blocking>>,
}

/// A worker's last claim.
struct LastClaim {
    limits: Box<[ScopeLimits]>,
    /// The lists to wait for: tokens of these scopes, then offers of those without limits.
    lists: Arc<[String]>,
    /// Whether the worker has waited before. What does not wait is offered nothing.
    waits: bool,
    /// When a claim last registered the worker as idle in these scopes, if none has taken that back since.
    idle: Option<Instant>,
}

/// A connection for reads that block, and its id, if Redis tells it.
struct Blocking {
    connection: MultiplexedConnection,
    id: Option<i64>,
}

/// What a read brought.
enum Brought {
    Nothing,
    Token,
    Offers(Vec<Vec<u8>>),
}

impl Waiters {
    pub fn new(tag: String) -> Self {
        Self { tag, claims: Mutex::default(), resting: Mutex::default() }
    }

    /// Whether an earlier claim of these scopes has just registered the worker as idle; and whether the worker waits after its claims.
    pub fn is_registered(&self, worker: WorkerId, limits: &[ScopeLimits]) -> (bool, bool) {
        let mut claims = self.claims();
        match claims.get(&worker) {
            Some(last) if last.is_about(limits) => {
                (last.idle.is_some_and(|since| since.elapsed() < REGISTERED), last.waits)
            }
            last => {
                let waits = last.is_some_and(|last| last.waits);
                let tokens = limits.iter().map(|limits| format!("{}:wake:{}", self.tag, limits.scope));
                let open = limits.iter().filter(|limits| limits.is_unlimited());
                let offers = open.map(|limits| format!("{}:offers:{}", self.tag, limits.scope));
                let lists = tokens.chain(offers).collect();
                claims.insert(worker, LastClaim { limits: limits.into(), lists, waits, idle: None });
                (false, waits)
            }
        }
    }

    /// What a claim made of that.
    pub fn registered(&self, worker: WorkerId, before: bool, now: bool) {
        if before != now
            && let Some(last) = self.claims().get_mut(&worker)
        {
            last.idle = now.then(Instant::now);
        }
    }

    /// Has the next claim register the worker again: Redis may have forgotten it.
    pub fn forget(&self, worker: WorkerId) {
        if let Some(last) = self.claims().get_mut(&worker) {
            last.idle = None;
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<WorkerId, LastClaim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker waits for that has claimed.
    fn lists(&self, worker: WorkerId) -> Option<Arc<[String]>> {
        let mut claims = self.claims();
        let last = claims.get_mut(&worker).filter(|last| !last.lists.is_empty())?;
        last.waits = true;
        Some(last.lists.clone())
    }

    fn rest(&self, connection: Blocking) {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

impl LastClaim {
    /// How much may leave at once changes from claim to claim, and whether that is limited does not.
    fn is_about(&self, limits: &[ScopeLimits]) -> bool {
        let same = |(last, now): (&ScopeLimits, &ScopeLimits)| {
            last.scope == now.scope && last.is_unlimited() == now.is_unlimited()
        };
        self.limits.len() == limits.len() && self.limits.iter().zip(limits).all(same)
    }
}

impl RedisQueue {
    pub(super) async fn wait_for_runs(
        &self,
        worker: WorkerId,
        free: usize,
        at_most: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Claim>, Unreachable> {
        let until = Instant::now() + at_most.min(LONGEST);
        let lists = match self.waiters.lists(worker) {
            Some(lists) => lists,
            None => {
                if self.run(self.step(scripts::IDLE).arg(worker.to_string())).await? {
                    return Ok(Vec::new());
                }
                Arc::from([self.key("wake:*")])
            }
        };
        // A connection that rested may have been cut meanwhile: that is found out here, and no reason to give up.
        let resting = self.waiters.resting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let brought = match resting {
            Some(connection) => self.block(connection, &lists, free, until, stop).await.ok(),
            None => None,
        };
        let brought = match brought {
            Some(brought) => brought,
            None => {
                let connection = Blocking::open(self).await.map_err(unreachable)?;
                self.block(connection, &lists, free, until, stop).await?
            }
        };
        match brought {
            Brought::Token => Ok(Vec::new()),
            Brought::Offers(offers) => Ok(self.take(offers).await),
            Brought::Nothing => {
                self.waiters.forget(worker);
                Ok(Vec::new())
            }
        }
    }

    /// Blocks until there is something, the time is over, or it is told to stop.
    async fn block(
        &self,
        mut blocking: Blocking,
        lists: &[String],
        free: usize,
        until: Instant,
        stop: &CancellationToken,
    ) -> Result<Brought, Unreachable> {
        let mut brought = Brought::Nothing;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let block = left.min(BLOCK);
            // Zero would mean for ever.
            if block >= Duration::from_millis(1) && !stop.is_cancelled() {
                let mut pop = redis::cmd("BLMPOP");
                pop.arg(format!("{:.3}", block.as_secs_f64())).arg(lists.len()).arg(lists);
                // An offer is two entries. Of tokens, one is as good as two.
                pop.arg("LEFT").arg("COUNT").arg(2 * free.clamp(1, TAKEN_AT_ONCE));
                let popped: Option<(String, Vec<Vec<u8>>)> = {
                    let read = async { timeout(block + GRACE, pop.query_async(&mut blocking.connection)).await };
                    self.stopped_early(read, blocking.id, stop).await.map_err(unreachable)?.map_err(unreachable)?
                };
                brought = match popped {
                    None if left > block && !stop.is_cancelled() => continue,
                    None => Brought::Nothing,
                    Some((list, _)) if list.starts_with(&self.key("wake:")) => Brought::Token,
                    Some((_, offers)) => Brought::Offers(offers),
                };
            }
            self.waiters.rest(blocking);
            return Ok(brought);
        }
    }

    /// Ends a read that blocks when it is told to stop, without losing what it may have brought in this moment.
    async fn stopped_early<T>(&self, read: impl Future<Output = T>, id: Option<i64>, stop: &CancellationToken) -> T {
        let mut read = pin!(read);
        tokio::select! {
            biased;
            answer = &mut read => return answer,
            () = stop.cancelled() => {}
        }
        let Some(id) = id else { return read.await };
        let mut unblock = redis::cmd("CLIENT");
        unblock.arg("UNBLOCK").arg(id);
        loop {
            // If it cannot be told, it ends by itself.
            let told: Result<i64, Unreachable> = self.connections.ask(&unblock).await;
            if told.is_err() {
                return read.await;
            }
            tokio::select! {
                biased;
                answer = &mut read => return answer,
                () = sleep(TELL_AGAIN) => {}
            }
        }
    }

    /// Reads offers. Those that are not ours to take are put back.
    async fn take(&self, offers: Vec<Vec<u8>>) -> Vec<Claim> {
        let mut claims = Vec::with_capacity(offers.len() / 2);
        for offer in offers.chunks(2) {
            let Offer { offered, read } = match wire::offer(offer) {
                Ok(offer) => offer,
                // The others are ours, and must not be lost over this.
                Err(error) => {
                    tracing::error!(%error, "an offer cannot be read; its run goes to the reaper");
                    continue;
                }
            };
            let (run, fence, after) = match read {
                Read::Foreign { run, fence } => (run, fence, FOREIGN_AFTER),
                Read::Claim(claim) if self.clock.now().since(offered) > super::millis(OFFER_STANDS) => {
                    (claim.job.id, claim.fence, Duration::ZERO)
                }
                Read::Claim(claim) => {
                    claims.push(*claim);
                    continue;
                }
            };
            // Should this fail, its lease runs out and the reaper finds it.
            let _ = self.give_back(run, fence, after, None, "uncounted").await;
        }
        claims
    }
}

impl Blocking {
    async fn open(queue: &RedisQueue) -> Result<Self, RedisError> {
        let mut connection = queue.connections.dedicated().await?;
        let id = query(&mut connection, redis::cmd("CLIENT").arg("ID").clone()).await.ok();
        Ok(Self { connection, id })
    }
}
