//! Connections for commands. Steps share them: each is written behind the ones before it and answered in that order, so that many
//! steps cost few system calls, and no step costs a look at its connection. A pool opens and bounds them; a connection that is checked out of it
//! stays so for its life, because handing it back and out again costs a round trip.
//!
//! A connection that broke, or does not answer in time, is given up, and the next step opens another one. A step that meets a broken one
//! is made again on a new one, as every step may be.

use std::{
    iter,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool_redis::{Pool, PoolError};
use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout, timeout_at};

use super::connect::unreachable;
use crate::queue::Unreachable;

/// One step, from its sending to its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The same, with the wait for a connection.
const STEP_WITHIN: Duration = Duration::from_secs(4);
/// Steps that wait for answers on one connection before another one is opened. Few connections are better: Redis reads and answers
/// together what comes on one.
const SHARED_BY: usize = 256;

/// What can be asked once and, over another connection, once more.
pub(super) trait Step: Sync {
    fn ask<T: FromRedisValue + Send>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = Result<T, RedisError>> + Send;
}

impl Step for redis::Cmd {
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> Result<T, RedisError> {
        self.query_async(connection).await
    }
}

impl Step for redis::Pipeline {
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> Result<T, RedisError> {
        self.query_async(connection).await
    }
}

pub(super) struct Lines {
    pool: Pool,
    first: Line,
    more: Box<[Line]>,
}

/// A connection, or the place of one.
#[derive(Default)]
struct Line {
    open: Mutex<Option<Open>>,
    /// Held by whoever opens it.
    opening: tokio::sync::Mutex<()>,
    /// How many steps are on it.
    steps: AtomicUsize,
}

/// A connection that is checked out.
struct Open {
    pooled: deadpool_redis::Connection,
    /// Tells it from those before and after it.
    identity: Arc<()>,
}

/// What a step has of it.
struct Shared {
    connection: MultiplexedConnection,
    identity: Arc<()>,
}

impl Lines {
    /// As many as the pool has connections.
    pub fn new(pool: Pool) -> Self {
        let more = (1..pool.status().max_size).map(|_| Line::default()).collect();
        Self { pool, first: Line::default(), more }
    }

    /// Runs one step within a bounded time.
    pub async fn ask<T: FromRedisValue + Send>(&self, step: &impl Step) -> Result<T, Unreachable> {
        let until = Instant::now() + STEP_WITHIN;
        let line = self.line();
        let _place = Place::on(line);
        let mut tried = false;
        loop {
            let opened = timeout_at(until, line.open(&self.pool)).await.map_err(unreachable)?;
            let Shared { mut connection, identity } = opened.map_err(unreachable)?;
            let error = match timeout(ANSWER_WITHIN, step.ask(&mut connection)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(late) => {
                    line.give_up(&identity);
                    return Err(unreachable(late));
                }
            };
            let broken = error.is_io_error() || error.is_unrecoverable_error();
            // The server was demoted. The name may lead to its successor by now, and only a new connection finds out.
            if broken || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
                line.give_up(&identity);
            }
            if !broken || tried {
                return Err(unreachable(error));
            }
            tried = true;
        }
    }

    /// The first one with room, or else the one with the least to do.
    fn line(&self) -> &Line {
        let steps = |line: &&Line| line.steps.load(Ordering::Relaxed);
        let mut lines = iter::once(&self.first).chain(&self.more);
        let roomy = lines.clone().find(|line| steps(line) < SHARED_BY);
        roomy.or_else(|| lines.by_ref().min_by_key(steps)).unwrap_or(&self.first)
    }
}

impl Line {
    /// Its connection, opened unless it is.
    async fn open(&self, pool: &Pool) -> Result<Shared, PoolError> {
        if let Some(open) = self.shared() {
            return Ok(open);
        }
        let _opening = self.opening.lock().await;
        if let Some(open) = self.shared() {
            return Ok(open);
        }
        let open = Open { pooled: pool.get().await?, identity: Arc::default() };
        let shared = open.share();
        *self.lock() = Some(open);
        Ok(shared)
    }

    fn shared(&self) -> Option<Shared> {
        self.lock().as_ref().map(Open::share)
    }

    /// Steps that are still on it get no answer. The pool is told to forget it, and has room for another one.
    fn give_up(&self, identity: &Arc<()>) {
        let open = self.lock().take_if(|open| Arc::ptr_eq(&open.identity, identity));
        if let Some(open) = open {
            drop(deadpool_redis::Connection::take(open.pooled));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // Nothing panics while it holds the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn share(&self) -> Shared {
        Shared { connection: MultiplexedConnection::clone(&self.pooled), identity: self.identity.clone() }
    }
}

/// A step's place on a line.
struct Place<'a>(&'a Line);

impl<'a> Place<'a> {
    fn on(line: &'a Line) -> Self {
        line.steps.fetch_add(1, Ordering::Relaxed);
        Self(line)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.steps.fetch_sub(1, Ordering::Relaxed);
    }
}
