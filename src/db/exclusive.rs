//! An embedded queue has its database to itself.
//!
//! Two of them on one database would each take the other's runs for lost ones, and call models twice for all of them. So a process with an
//! embedded queue holds a lock for as long as it lives; it goes with the process, however that ends.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use sea_orm::sqlx::{self, ConnectOptions, PgConnection, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};
use tokio::time::sleep;

use super::{StoreError, unavailable};
use crate::config::DatabaseConfig;

/// How long a process that is ending may take to let go: PostgreSQL hears of a killed one a moment later.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
/// The key of the advisory lock: "prompt-q" in ASCII.
const EMBEDDED_LOCK: i64 = 0x7072_6f6d_7074_2d71;

/// The right to be the only embedded queue of a database, for as long as it is kept.
pub struct Exclusive {
    _lock: Lock,
}

enum Lock {
    File { _held: File },
    Session { _held: PgConnection },
}

/// Takes the right. `None`: another process has it.
pub async fn take(config: &DatabaseConfig) -> Result<Option<Exclusive>, StoreError> {
    let url = config.url.expose();
    let until = Instant::now() + PATIENCE;
    let lock = if url.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| unavailable("the SQLite database URL cannot be read", error))?;
        of_file(&lock_file(options.get_filename()), until).await?.map(|held| Lock::File { _held: held })
    } else {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| unavailable("the PostgreSQL database URL cannot be read", error))?;
        of_session(&options, until).await?.map(|held| Lock::Session { _held: held })
    };
    Ok(lock.map(|lock| Exclusive { _lock: lock }))
}

/// A file beside the database: SQLite loses its own locks on a file that the same process opens and closes.
fn lock_file(database: &Path) -> PathBuf {
    // Every name of one file leads to one lock.
    let mut path = database.canonicalize().unwrap_or_else(|_| database.to_owned()).into_os_string();
    path.push(".lock");
    path.into()
}

async fn of_file(path: &Path, until: Instant) -> Result<Option<File>, StoreError> {
    let unusable = |error| {
        let sentence = format!("the lock file {} cannot be used: {error}", path.display());
        unavailable(sentence, sqlx::Error::Io(error))
    };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(unusable)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(PAUSE).await,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
}

async fn of_session(options: &PgConnectOptions, until: Instant) -> Result<Option<PgConnection>, StoreError> {
    let refused = |error| unavailable("the database refused a lock", error);
    let mut session = options.connect().await.map_err(refused)?;
    loop {
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(EMBEDDED_LOCK)
            .fetch_one(&mut session)
            .await
            .map_err(refused)?;
        match taken {
            true => return Ok(Some(session)),
            false if Instant::now() < until => sleep(PAUSE).await,
            false => return Ok(None),
        }
    }
}
