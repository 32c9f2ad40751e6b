//! One process of the product: what it opens at start, and in which order it closes.
//!
//! A node has a front door, executors, or both. It opens the database, then the queue, then what it is for; it closes in the
//! direction of the data: no new requests, no new claims, then the writes that are still on their way.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::{net::TcpListener, pin, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use workers::{
    Engine,
    executor::{ExecutorPool, Health, PoolSettings, StartError},
    ledger::Ledger,
    queue::{
        Queue,
        embedded::{EmbeddedQueue, EmbeddedSettings},
        redis::{ConnectError, RedisQueue, RedisSettings},
    },
};

use crate::{
    batches::Batches,
    changes::Changes,
    config::Config,
    db::{
        self, SchemaState, StoreError,
        exclusive::{self, Exclusive},
    },
    http::{self, FrontDoor, Readiness},
    intake::Intake,
    keys::Keys,
    prompts::Prompts,
    run::Runner,
    webhooks::{Deliverer, Webhooks},
};

/// The least time that the executors have to hand their runs back, however long the front door took to drain.
const LEAST_GRACE: Duration = Duration::from_secs(1);
/// How long before the drain timeout cuts them off those who still wait are answered; a tenth of that timeout, if that is shorter.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the last writes may take.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    pub front_door: bool,
    pub executors: bool,
}

/// Why a node did not start; each is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database is behind by {pending} migration(s): run `prompt-manager migrate` first")]
    Behind { pending: usize },
    #[error("the database was migrated by a newer version of prompt-manager: run that version")]
    Ahead,
    #[error(transparent)]
    Queue(#[from] ConnectError),
    #[error("the queue store is unreachable: {0}")]
    QueueGone(#[source] workers::queue::Unreachable),
    #[error(
        "{0} needs Redis: set PROMPT_MANAGER_REDIS_URL (the embedded queue lives in one process, `prompt-manager serve`)"
    )]
    NeedsRedis(&'static str),
    #[error(
        "another `prompt-manager serve` has this database; stop it, or set PROMPT_MANAGER_REDIS_URL for all of them: \
         then they share their runs"
    )]
    TakenDatabase,
    #[error("cannot listen on {address}: {}", reason(source, setting))]
    Listen {
        address: SocketAddr,
        /// What chooses the address, for the sentence.
        setting: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("webhooks cannot be called: {0}")]
    Webhooks(#[from] reqwest::Error),
    #[error(transparent)]
    Executors(#[from] StartError),
}

const API_SETTING: &str = "--listen or PROMPT_MANAGER_LISTEN";
const OPERATIONS_SETTING: &str = "PROMPT_MANAGER_METRICS_LISTEN";

fn reason(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another process has that port; stop it, or choose another with {setting}")
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; choose a higher one".into(),
        _ => error.to_string(),
    }
}

/// A node that runs.
pub struct Node {
    config: Arc<Config>,
    db: DatabaseConnection,
    engine: Engine,
    batches: Batches,
    executors: Option<ExecutorPool>,
    api: Option<Door>,
    /// Answers probes to the end: a process that drains is alive, and says that it drains.
    operations: Option<Door>,
    /// Stops the API's listener.
    stop: CancellationToken,
    /// Stops what requests and runs need until they have ended.
    last: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    /// Of a node with an embedded queue.
    exclusive: Option<Exclusive>,
}

/// A listener with the task that serves it.
struct Door {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Node {
    /// Opens everything, within [`run_system`](workers::executor::run_system) if it has executors. Nothing is left behind when it fails.
    pub async fn start(config: Config, roles: Roles) -> Result<Self, NodeError> {
        let config = Arc::new(config);
        // Listening comes first: a port that is taken is the most common mistake, and the cheapest to find.
        let api = if roles.front_door { Some(listen(config.server.listen, API_SETTING).await?) } else { None };
        let operations = match config.server.metrics_listen {
            Some(address) => Some(listen(address, OPERATIONS_SETTING).await?),
            None => None,
        };
        // Before the database: without a queue there is no reason to create one.
        let queue = open_queue(&config, roles).await?;
        let db = open_database(&config).await?;
        let exclusive = match &config.redis {
            Some(_) => None,
            None => Some(exclusive::take(&config.database).await?.ok_or(NodeError::TakenDatabase)?),
        };
        if exclusive.is_none() && db.get_database_backend() == DbBackend::Sqlite {
            tracing::warn!(
                "the queue is shared and the database is a SQLite file: every process must open this very file; \
                 PostgreSQL serves processes on several machines"
            );
        }
        let ledger = Ledger::new(db.clone());
        let engine = Engine::start(ledger.clone(), queue.clone(), config.engine).await.map_err(NodeError::QueueGone)?;
        let executors = if roles.executors {
            let settings = PoolSettings {
                slots: config.workers.slots,
                retry: config.retry,
                providers: config.providers.values().cloned().collect(),
            };
            Some(ExecutorPool::start(ledger.clone(), queue, settings)?)
        } else {
            None
        };
        let (stop, last) = (CancellationToken::new(), CancellationToken::new());
        let (changes, watching) = Changes::watch(db.clone(), last.clone());
        let keys = Keys::new(db.clone(), config.secret_key.clone(), changes.clone())
            .with_old_secrets(config.old_secret_keys.clone());
        let mut tasks = vec![watching, keys.record_uses(last.clone())];
        let intake = Intake::new(db.clone(), changes.clone());
        let webhooks = Webhooks::new(db.clone(), ledger, &config, changes.clone());
        let prompts = Prompts::new(db.clone(), changes);
        if roles.front_door {
            let deliverer = Deliverer::new(webhooks.clone(), engine.clone(), http::status_of)?;
            tasks.push(deliverer.start(last.clone()));
        }
        let readiness = Readiness { engine: engine.clone(), executors: executors.as_ref().map(ExecutorPool::health) };
        let open = |listener, router, stop: &CancellationToken| Door::open(listener, router, &config, stop);
        let runner = Runner::new(prompts, engine.clone(), intake, webhooks.clone(), config.clone());
        let max_body_bytes = config.server.max_body_bytes;
        let batches =
            Batches::new(db.clone(), runner.clone(), engine.clone(), keys.clone(), config.batches, max_body_bytes);
        if roles.front_door {
            // Ends with the intake: what it would hand out from then on is for another front door.
            tasks.push(batches.feed(stop.clone()));
        }
        let front_door = FrontDoor {
            keys,
            runner,
            batches: batches.clone(),
            webhooks,
            max_body_bytes,
            websocket: config.websocket.clone(),
            readiness: readiness.clone(),
        };
        let api = api.map(|listener| open(listener, http::router(front_door), &stop)).transpose()?;
        let operations =
            operations.map(|listener| open(listener, http::operations_router(readiness), &last)).transpose()?;
        Ok(Self { config, db, engine, batches, executors, api, operations, stop, last, tasks, exclusive })
    }

    /// Where the API listens (the port that the system chose, when the configuration asked for port 0).
    pub fn address(&self) -> Option<SocketAddr> {
        self.api.as_ref().or(self.operations.as_ref()).map(|door| door.address)
    }

    pub fn health(&self) -> Option<Arc<Health>> {
        self.executors.as_ref().map(ExecutorPool::health)
    }

    /// Drains: refuses new runs, answers those in flight, hands the rest back, writes what is left, closes.
    pub async fn stop(self) {
        let until = Instant::now() + self.config.server.drain_timeout;
        self.engine.drain();
        self.stop.cancel();
        if let Some(door) = self.api {
            let (closed, cut) = (door.closed(), self.config.server.drain_timeout);
            pin!(closed);
            if timeout(cut.saturating_sub(FAREWELL.min(cut / 10)), &mut closed).await.is_err() {
                self.engine.dismiss();
                closed.await;
            }
        }
        if let Some(executors) = self.executors {
            let grace = until.saturating_duration_since(Instant::now()).max(LEAST_GRACE);
            let handed_back = executors.drain(grace).await;
            tracing::info!(handed_back, "the executors have stopped");
        }
        self.engine.settle(LAST_WRITES).await;
        self.last.cancel();
        if let Some(door) = self.operations {
            door.closed().await;
        }
        let close = async {
            self.batches.settle().await;
            for task in self.tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a background task failed");
                }
            }
            if let Err(error) = self.db.close().await {
                tracing::warn!(%error, "the database did not close cleanly");
            }
        };
        // A server that keeps its connections open and says nothing is waited for without end otherwise.
        if tokio::time::timeout(LAST_WRITES, close).await.is_err() {
            tracing::warn!("the database did not close in time");
        }
        // Not before: the next process may write from here on.
        drop(self.exclusive);
    }
}

/// Opens the database and makes sure of its schema.
///
/// A SQLite file belongs to this program alone and is migrated on the way; a PostgreSQL server may have older processes at
/// work, so that somebody decides about it with `prompt-manager migrate`.
pub async fn open_database(config: &Config) -> Result<DatabaseConnection, NodeError> {
    let db = db::connect(&config.database).await?;
    match db::schema_state(&db).await? {
        SchemaState::Current => Ok(db),
        SchemaState::Behind { pending } if db.get_database_backend() == DbBackend::Sqlite => {
            db::migrate(&db).await?;
            tracing::info!(steps = pending.len(), "the database's schema was brought up to this version");
            Ok(db)
        }
        SchemaState::Behind { pending } => Err(NodeError::Behind { pending: pending.len() }),
        SchemaState::Ahead { .. } => Err(NodeError::Ahead),
    }
}

/// The queue of a distributed node, for the verbs that talk to it.
pub async fn open_redis(config: &Config, verb: &'static str) -> Result<RedisQueue, NodeError> {
    let Some(redis) = &config.redis else { return Err(NodeError::NeedsRedis(verb)) };
    let queue = RedisQueue::connect(RedisSettings {
        url: redis.url.clone(),
        pool: redis.pool.clone(),
        max_connections: redis.max_connections,
    })
    .await?
    .with_lease(config.workers.lease);
    for warning in queue.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(queue)
}

async fn open_queue(config: &Config, roles: Roles) -> Result<Arc<dyn Queue>, NodeError> {
    match (&config.redis, roles) {
        (Some(_), _) => Ok(Arc::new(open_redis(config, "this command").await?)),
        (None, Roles { front_door: true, executors: true }) => {
            Ok(Arc::new(EmbeddedQueue::new(EmbeddedSettings { lease: config.workers.lease })))
        }
        (None, Roles { front_door: false, .. }) => Err(NodeError::NeedsRedis("`prompt-manager worker`")),
        (None, _) => Err(NodeError::NeedsRedis("`prompt-manager serve --no-workers`")),
    }
}

async fn listen(address: SocketAddr, setting: &'static str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address, setting, source })
}

impl Door {
    fn open(
        listener: TcpListener,
        router: axum::Router,
        config: &Config,
        stop: &CancellationToken,
    ) -> Result<Self, NodeError> {
        let (address, setting) = (config.server.listen, API_SETTING);
        let address = listener.local_addr().map_err(|source| NodeError::Listen { address, setting, source })?;
        let task = tokio::spawn(http::serve(listener, router, config.server.clone(), stop.clone()));
        Ok(Self { address, task })
    }

    async fn closed(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a listener failed");
        }
    }
}
