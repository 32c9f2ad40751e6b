//! Opens the database, and knows whether its schema is the one that this version needs.
//!
//! SQLite is opened in WAL mode with full synchronisation, because a run that was accepted with a 202 must survive a power cut.
//! Whoever reads before it writes in one transaction begins it with [`begin`].

pub mod exclusive;

use std::{
    collections::BTreeSet,
    path::Path,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use migrations::Migrator;
use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, RuntimeErr, SqlErr,
    SqliteTransactionMode, SqlxPostgresConnector, SqlxSqliteConnector, Statement, TransactionOptions, TransactionTrait,
    sqlx::{
        self, ConnectOptions as _, Connection,
        postgres::PgConnectOptions,
        sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous},
    },
};
use sea_orm_migration::{MigratorTrait, SchemaManager};
use workers::ledger::{Fault, LedgerError};

use crate::config::DatabaseConfig;

/// How long a connection, or a free one of the pool, may be waited for.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long SQLite waits for another writer before it answers "locked".
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one process waits for another one's migration.
const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// A pooled connection that was idle for this long is checked before it is used, so that a restart of the server is not
/// seen as an error of the next query; checking every time would double the round trips.
const CHECK_IDLE_AFTER: Duration = Duration::from_secs(1);
/// The key of the advisory lock that migrations hold: "prompt-m" in ASCII.
const MIGRATION_LOCK: i64 = 0x7072_6f6d_7074_2d6d;

/// Why a store did not do what it was asked: shaped by what the caller does next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// One sentence for whoever asked: a name is taken, an account does not exist.
    #[error("{0}")]
    Refused(String),
    /// The database does not answer, or refused a write; the sentence says which.
    #[error("{sentence}")]
    Unavailable {
        sentence: String,
        #[source]
        source: Arc<DbErr>,
    },
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        let sentence = match Fault::of(&error) {
            Fault::Full(reason) => format!("the database cannot store more: {reason}"),
            Fault::Unreachable { .. } => "the database is unreachable".to_owned(),
            Fault::Data | Fault::Other => "the database refused the request".to_owned(),
        };
        StoreError::Unavailable { sentence, source: Arc::new(error) }
    }
}

impl From<LedgerError> for StoreError {
    fn from(error: LedgerError) -> Self {
        let sentence = error.to_string();
        let source = match error {
            LedgerError::Unreachable(source) | LedgerError::Refused(source) => source,
            LedgerError::Full(detail) | LedgerError::Unreadable(detail) => Arc::new(DbErr::Custom(detail)),
        };
        StoreError::Unavailable { sentence, source }
    }
}

/// Whether a write was refused because a row with the same key exists.
pub fn is_unique_violation(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

/// Connects. One sentence says what is wrong when that fails; it never holds the password of the URL.
pub async fn connect(config: &DatabaseConfig) -> Result<DatabaseConnection, StoreError> {
    let url = config.url.expose();
    if url.starts_with("sqlite:") {
        connect_sqlite(config).await
    } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        connect_postgres(config).await
    } else {
        Err(StoreError::Refused("the database URL must start with sqlite:// or postgres://".to_owned()))
    }
}

/// Begins a transaction that may read first and write later: on SQLite it takes the write lock at once (`BEGIN IMMEDIATE`), because a
/// deferred one that finds the lock taken when it comes to write fails whatever the busy timeout.
pub async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    db.begin_with_options(TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    })
    .await
}

/// The database's schema beside the one that this version was built for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaState {
    Current,
    /// Steps that were not applied yet, in their order.
    Behind {
        pending: Vec<String>,
    },
    /// Steps that a newer version applied, in their order.
    Ahead {
        unknown: Vec<String>,
    },
}

/// Compares the schema. Writes nothing, so that a user without the right to create tables may ask.
pub async fn schema_state(db: &DatabaseConnection) -> Result<SchemaState, StoreError> {
    Ok(compare_schema(db, SchemaManager::new(db)).await?)
}

/// Applies the steps that are missing, all in one transaction. Processes that start at once wait for each other, and a schema that is ahead
/// is refused.
pub async fn migrate(db: &DatabaseConnection) -> Result<(), StoreError> {
    let transaction = while_locked(MIGRATION_LOCK_TIMEOUT, || begin(db)).await?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        let timeout = format!("SET LOCAL lock_timeout = {}", MIGRATION_LOCK_TIMEOUT.as_millis());
        transaction.execute_unprepared(&timeout).await?;
        transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")).await?;
    }
    match compare_schema(&transaction, SchemaManager::new(&transaction)).await? {
        SchemaState::Current => {}
        SchemaState::Behind { .. } => Migrator::up(&transaction, None).await?,
        SchemaState::Ahead { unknown } => {
            return Err(StoreError::Refused(format!(
                "the database was migrated by a newer version of this program: it has {}",
                unknown.join(", ")
            )));
        }
    }
    Ok(transaction.commit().await?)
}

async fn compare_schema(db: &impl ConnectionTrait, schema: SchemaManager<'_>) -> Result<SchemaState, DbErr> {
    let table = "seaql_migrations";
    let mut applied = BTreeSet::new();
    if schema.has_table(table).await? {
        let select = Statement::from_string(db.get_database_backend(), format!("SELECT version FROM {table}"));
        for row in db.query_all_raw(select).await? {
            applied.insert(row.try_get::<String>("", "version")?);
        }
    }
    // Steps are named by their dates, so that their alphabetical order is their order.
    let known: BTreeSet<String> = Migrator::migrations().iter().map(|step| step.name().to_owned()).collect();
    let unknown: Vec<String> = applied.difference(&known).cloned().collect();
    let pending: Vec<String> = known.difference(&applied).cloned().collect();
    Ok(match (unknown.is_empty(), pending.is_empty()) {
        (false, _) => SchemaState::Ahead { unknown },
        (true, false) => SchemaState::Behind { pending },
        (true, true) => SchemaState::Current,
    })
}

async fn connect_sqlite(config: &DatabaseConfig) -> Result<DatabaseConnection, StoreError> {
    let url = config.url.expose();
    let file = SqliteConnectOptions::from_str(url)
        .map_err(|error| unavailable("the SQLite database URL cannot be read", error))?
        .get_filename()
        .to_owned();
    if url.contains(":memory:") || url.contains("mode=memory") {
        return Err(StoreError::Refused(
            "a SQLite database in memory would lose accepted runs: name a file in the database URL".to_owned(),
        ));
    }
    let mut options = pool_options(config);
    // The file is ours alone: no connection goes stale, and each keeps its cache and its prepared statements.
    options.test_before_acquire(false).idle_timeout(None).max_lifetime(None);
    options.map_sqlx_sqlite_opts(|options| {
        options
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // Sixteen MiB of pages for each connection; and the log is cut back after a burst.
            .pragma("cache_size", "-16384")
            .pragma("temp_store", "memory")
            .pragma("journal_size_limit", "67108864")
    });
    options.map_sqlx_sqlite_pool_opts(|options| {
        options.after_release(|connection, _| Box::pin(async move { ended_its_transaction(connection).await }))
    });
    // Turning a new file to WAL needs a lock that SQLite does not wait for: another process may be doing the same.
    while_locked(BUSY_TIMEOUT, || SqlxSqliteConnector::connect(options.clone())).await.map_err(|error| {
        let sentence = sqlite_sentence(url, &file, &error);
        StoreError::Unavailable { sentence, source: Arc::new(error) }
    })
}

/// Whether a connection may go back to the pool.
///
/// SQLite ends a transaction by itself when the disk is full or fails. The driver's own `ROLLBACK` is then an error, and the driver goes on
/// to believe that the connection is in a transaction: its next "commit" would be the release of a savepoint, which commits nothing.
async fn ended_its_transaction(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // A rollback may still be on its way to the connection's thread; an answer comes after it.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

fn sqlite_sentence(url: &str, file: &Path, error: &DbErr) -> String {
    let name = file.display();
    // "prompt-manager.db" has an empty parent: the current folder, which exists.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    match (Fault::of(error), folder) {
        (_, Some(folder)) if !folder.exists() => {
            format!("the folder {} of the database does not exist", folder.display())
        }
        (_, _) if !file.exists() && url.contains("mode=rwc") => {
            format!("the database file {name} cannot be created: may this user write in its folder?")
        }
        (_, _) if !file.exists() => {
            format!("the database file {name} does not exist (it is created when its URL ends in ?mode=rwc)")
        }
        (Fault::Full(reason), _) => format!("the database file {name} cannot be written: {reason}"),
        (Fault::Unreachable { .. }, _) => format!("the database file {name} is locked by another process"),
        (Fault::Data | Fault::Other, _) => format!("the database file {name} cannot be opened as a SQLite database"),
    }
}

async fn connect_postgres(config: &DatabaseConfig) -> Result<DatabaseConnection, StoreError> {
    let server = PgConnectOptions::from_str(config.url.expose())
        .map_err(|error| unavailable("the PostgreSQL database URL cannot be read", error))?;
    let name = format!(
        "PostgreSQL database {} at {}:{}",
        server.get_database().unwrap_or(server.get_username()),
        server.get_host(),
        server.get_port()
    );
    // The pool tries a refused connection again and again, and in the end says only that time is up: look ourselves first.
    let timeout = config.connect_timeout.min(MAX_CONNECT_TIMEOUT);
    let probe = match tokio::time::timeout(timeout, server.connect()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let reason = match &error {
                sqlx::Error::Database(refusal) => refusal.message().to_owned(),
                sqlx::Error::Io(error) => error.to_string(),
                sqlx::Error::Tls(_) => "the encrypted connection could not be set up".to_owned(),
                _ => "the server does not speak its protocol".to_owned(),
            };
            return Err(unavailable(format!("the {name} cannot be reached: {reason}"), error));
        }
        Err(_) => {
            let sentence = format!("the {name} did not answer within {} s", timeout.as_secs_f32());
            return Err(unavailable(sentence, sqlx::Error::PoolTimedOut));
        }
    };
    // A connection that cannot say goodbye is gone all the same.
    let _ = probe.close().await;
    let mut options = pool_options(config);
    options.test_before_acquire_if_idle_for(CHECK_IDLE_AFTER).connect_lazy(true);
    SqlxPostgresConnector::connect(options).await.map_err(|error| StoreError::Unavailable {
        sentence: format!("the {name} cannot be reached"),
        source: Arc::new(error),
    })
}

fn pool_options(config: &DatabaseConfig) -> ConnectOptions {
    let mut options = ConnectOptions::new(config.url.expose());
    options
        .max_connections(config.max_connections.max(1))
        .acquire_timeout(config.connect_timeout.min(MAX_CONNECT_TIMEOUT))
        .set_application_name("prompt-manager")
        // Statements hold hundreds of rows: neither logs nor spans should.
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    options
}

fn unavailable(sentence: impl Into<String>, source: sqlx::Error) -> StoreError {
    StoreError::Unavailable {
        sentence: sentence.into(),
        source: Arc::new(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(source)))),
    }
}

/// Repeats a step for as long as SQLite says that another connection holds the lock, up to a limit.
async fn while_locked<T, F>(limit: Duration, mut step: impl FnMut() -> F) -> Result<T, DbErr>
where
    F: Future<Output = Result<T, DbErr>>,
{
    let started = Instant::now();
    loop {
        match step().await {
            Err(error) if Fault::is_locked(&error) && started.elapsed() < limit => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result,
        }
    }
}
