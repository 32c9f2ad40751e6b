//! How every process hears within a second that an account, a key or a prompt changed.
//!
//! The table `changes` holds one number. [`begin`] starts every mutation by adding one to it, in the mutation's own
//! transaction; the lock on that one row makes mutations take turns, so that the numbers become visible in the order of
//! the commits: who has read a number sees everything that was committed up to it. Each process reads the number four
//! times a second, and when it moved, forgets all that it remembered. Nothing can be lost on the way, because nothing is
//! sent: a process that was cut off reads the number when it is back. It is all the same whether the other process is a
//! command line beside a SQLite file or one of many front doors on a PostgreSQL server.
//!
//! Memory is trusted only while the number is read successfully: after [`TRUST`] without that, every look-up goes to
//! the database, which then says itself that it is unreachable.

mod lookups;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ActiveValue::Set, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, ExprTrait, QuerySelect,
    entity::prelude::*,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::db::{self, StoreError};

pub(crate) use self::lookups::{Lookups, each_counts_one};

/// How often the number is read.
const PERIOD: Duration = Duration::from_millis(250);
/// How long one reading may take.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How long memory is trusted after the last successful reading.
pub const TRUST: Duration = Duration::from_secs(5);

/// Tells caches when to forget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Changes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Grows whenever something may have changed. What was read under an older generation is not used again.
    generation: watch::Sender<u64>,
    /// The zero of `trusted_until`.
    started: Instant,
    /// Milliseconds after `started`; 0 is never.
    trusted_until: AtomicU64,
}

impl Changes {
    /// For short-lived processes: nothing is ever remembered.
    pub fn unwatched() -> Self {
        Self {
            shared: Arc::new(Shared {
                generation: watch::Sender::new(0),
                started: Instant::now(),
                trusted_until: AtomicU64::new(0),
            }),
        }
    }

    /// Starts to watch the database, until `stop`. Whoever calls owns the task, and joins it after `stop`.
    pub fn watch(db: DatabaseConnection, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let changes = Self::unwatched();
        let task = tokio::spawn(changes.clone().poll(db, stop));
        (changes, task)
    }

    /// What memory must be younger than to be used; `None` while no memory may be used at all.
    pub fn generation(&self) -> Option<u64> {
        let elapsed = self.shared.millis(Instant::now());
        (elapsed < self.shared.trusted_until.load(Ordering::Acquire)).then(|| *self.shared.generation.borrow())
    }

    /// Makes this process forget at once. Called after each mutation of its own, so that it reads what it wrote.
    pub fn forget(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Wakes whenever something may have changed: for what holds on to a decision for long, such as a socket to its key.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    async fn poll(self, db: DatabaseConnection, stop: CancellationToken) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        let mut failing = false;
        loop {
            let (asked, reading) = tokio::select! {
                () = stop.cancelled() => return,
                answer = async {
                    ticks.tick().await;
                    let asked = Instant::now();
                    (asked, timeout(READ_TIMEOUT, read(&db)).await)
                } => answer,
            };
            match reading {
                Ok(Ok(counter)) => {
                    if last != Some(counter) {
                        last = Some(counter);
                        self.forget();
                    }
                    // After the generation: nobody may trust the old one on the strength of this reading. It tells what was true when
                    // it was asked for, at the latest.
                    self.shared.trusted_until.store(self.shared.millis(asked + TRUST), Ordering::Release);
                    failing = false;
                }
                failure => {
                    if !std::mem::replace(&mut failing, true) {
                        let error = failure.map_or("no answer".to_owned(), |inner| {
                            inner.err().map(|error| error.to_string()).unwrap_or_default()
                        });
                        tracing::warn!(
                            error,
                            "changes cannot be read; accounts, keys and prompts are soon read from the database only"
                        );
                    }
                }
            }
        }
    }
}

impl Shared {
    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Begins a mutation: takes the turn among all processes, and counts it. Dropped without a commit, nothing happened.
pub(crate) async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, StoreError> {
    let transaction = db::begin(db).await?;
    let updated = Entity::update_many()
        .col_expr(Column::Counter, Expr::col(Column::Counter).add(1))
        .filter(Column::Id.eq(ROW))
        .exec(&transaction)
        .await?;
    if updated.rows_affected == 0 {
        // Somebody emptied the table. Other processes see the new number as a change, as they should.
        let row = ActiveModel { id: Set(ROW), counter: Set(workers::job::UnixMillis::now().0) };
        Entity::insert(row).exec_without_returning(&transaction).await?;
    }
    Ok(transaction)
}

async fn read(db: &DatabaseConnection) -> Result<Option<i64>, DbErr> {
    Entity::find_by_id(ROW).select_only().column(Column::Counter).into_tuple().one(db).await
}

/// The only row.
const ROW: i32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "changes")]
struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    id: i32,
    counter: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
