//! Waiting for work: a worker that found too little to claim blocks on the wake-up tokens of its scopes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
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

/// Connections for those who wait, and what they wait for.
#[derive(Default)]
pub(super) struct Waiters {
    /// What a worker's last claim asked for. The claim registered the worker as idle in these scopes.
    scopes: Mutex<HashMap<WorkerId, Arc<[String]>>>,
    /// Connections that nobody blocks on now. One is taken out for the time of a read, and is dropped when the read is given up, so that no
    /// late answer is taken for another read's.
    resting: Mutex<Vec<MultiplexedConnection>>,
}

impl Waiters {
    pub fn remember(&self, worker: WorkerId, limits: &[ScopeLimits]) {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = scopes.get(&worker).is_some_and(|known| known.iter().eq(limits.iter().map(|limit| &limit.scope)));
        if !known {
            scopes.insert(worker, limits.iter().map(|limit| limit.scope.clone()).collect());
        }
    }

    pub async fn wait(&self, queue: &RedisQueue, worker: WorkerId, at_most: Duration) -> Result<(), Unreachable> {
        let until = Instant::now() + at_most.min(LONGEST);
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).get(&worker).cloned();
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
        if let Some(connection) = resting
            && self.block(connection, &tokens, until).await.is_ok()
        {
            return Ok(());
        }
        let connection = queue.connections.dedicated().await.map_err(unreachable)?;
        self.block(connection, &tokens, until).await
    }

    /// Blocks until there is a token or the time is over.
    async fn block(
        &self,
        mut connection: MultiplexedConnection,
        tokens: &[String],
        until: Instant,
    ) -> Result<(), Unreachable> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let block = left.min(BLOCK);
            // Zero would mean for ever.
            if block >= Duration::from_millis(1) {
                let mut pop = redis::cmd("BLPOP");
                pop.arg(tokens).arg(format!("{:.3}", block.as_secs_f64()));
                let popped: Result<Option<(String, String)>, RedisError> =
                    timeout(block + GRACE, pop.query_async(&mut connection)).await.map_err(unreachable)?;
                if popped.map_err(unreachable)?.is_none() && left > block {
                    continue;
                }
            }
            self.resting.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            return Ok(());
        }
    }
}
