//! Waiting for work: a worker that found too little to claim blocks on the wake-up tokens of its scopes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout};

use super::{RedisQueue, connect::unreachable, scripts};
use crate::{
    job::WorkerId,
    queue::{ScopeLimits, Unreachable},
};

/// One blocking read, so that a peer that is gone without a word is noticed.
const BLOCK: Duration = Duration::from_secs(5);
/// How much later than that its answer may come.
const GRACE: Duration = Duration::from_secs(2);
/// A claim registers its worker as idle for 45 s (`IDLE_TTL` in `claim.lua`): nobody waits longer without claiming again.
const LONGEST: Duration = Duration::from_secs(30);
/// So long a registration is not repeated: it lasts for the longest wait after that.
const REGISTERED: Duration = Duration::from_secs(10);

/// Connections for those who wait, and what they wait for.
#[derive(Default)]
pub(super) struct Waiters {
    claims: Mutex<HashMap<WorkerId, LastClaim>>,
    /// Connections that nobody blocks on now. One is taken out for the time of a read, and is dropped when the read is given up, so that no
    /// late answer is taken for another read's.
    resting: Mutex<Vec<MultiplexedConnection>>,
}

/// A worker's last claim.
struct LastClaim {
    /// What it asked for.
    scopes: Arc<[String]>,
    /// When a claim last registered the worker as idle in these scopes, if none has taken that back since.
    idle: Option<Instant>,
}

impl Waiters {
    /// Whether an earlier claim of these scopes has just registered the worker as idle.
    pub fn is_registered(&self, worker: WorkerId, limits: &[ScopeLimits]) -> bool {
        let mut claims = self.claims();
        match claims.get(&worker) {
            Some(last) if last.scopes.iter().eq(limits.iter().map(|limit| &limit.scope)) => {
                last.idle.is_some_and(|since| since.elapsed() < REGISTERED)
            }
            _ => {
                let scopes = limits.iter().map(|limit| limit.scope.clone()).collect();
                claims.insert(worker, LastClaim { scopes, idle: None });
                false
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

    pub async fn wait(&self, queue: &RedisQueue, worker: WorkerId, at_most: Duration) -> Result<(), Unreachable> {
        let until = Instant::now() + at_most.min(LONGEST);
        let scopes = self.claims().get(&worker).map(|last| last.scopes.clone());
        let tokens: Vec<String> = match scopes {
            Some(scopes) if !scopes.is_empty() => {
                scopes.iter().map(|scope| queue.key(&format!("wake:{scope}"))).collect()
            }
            _ => {
                if queue.run(queue.step(&scripts::IDLE).arg(worker.to_string())).await? {
                    return Ok(());
                }
                vec![queue.key("wake:*")]
            }
        };
        // A connection that rested may have been cut meanwhile: that is found out here, and no reason to give up.
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let woken = match resting {
            Some(connection) => self.block(connection, &tokens, until).await.ok(),
            None => None,
        };
        let woken = match woken {
            Some(woken) => woken,
            None => {
                let connection = queue.connections.dedicated().await.map_err(unreachable)?;
                self.block(connection, &tokens, until).await?
            }
        };
        if !woken {
            self.forget(worker);
        }
        Ok(())
    }

    /// Blocks until there is a token or the time is over; says whether there was one.
    async fn block(
        &self,
        mut connection: MultiplexedConnection,
        tokens: &[String],
        until: Instant,
    ) -> Result<bool, Unreachable> {
        let mut woken = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let block = left.min(BLOCK);
            // Zero would mean for ever.
            if block >= Duration::from_millis(1) {
                let mut pop = redis::cmd("BLPOP");
                pop.arg(tokens).arg(format!("{:.3}", block.as_secs_f64()));
                let popped: Result<Option<(String, String)>, RedisError> =
                    timeout(block + GRACE, pop.query_async(&mut connection)).await.map_err(unreachable)?;
                woken = popped.map_err(unreachable)?.is_some();
                if !woken && left > block {
                    continue;
                }
            }
            self.resting.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            return Ok(woken);
        }
    }
}
