//! The writes of the ledger, each one transaction.
//!
//! Rows are written in the order of their keys, so that two processes that write the same rows wait for each other instead of
//! blocking each other for good. The numbers of rows in a statement are few, so that connections keep them all prepared.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait, ExprTrait, QueryFilter,
    QueryResult, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
    entity::prelude::*,
    sqlx::{self, error::BoxDynError},
};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    Accepted, Entered, Fault, LedgerStats, Settled, attempts, idempotency, outbox, results,
    runs::{self, Texts},
    upserts,
};
use crate::job::{Attempt, AttemptOutcome, Ending, Fence, Job, RunId};

/// How long PostgreSQL may take to answer: a server that was stopped in the middle keeps its connections open and says nothing.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Rows of one statement, at most: 256 rows of `runs` have 8192 parameters, and SQLite takes 32766 (PostgreSQL 65535).
const MAX_ROWS: usize = 256;

/// The connection, and the right to write.
#[derive(Clone)]
pub(super) struct Store {
    db: DatabaseConnection,
    /// SQLite has one writer at a time: writes of this process take turns here, in order, instead of polling for the file's lock.
    turn: Option<Arc<Mutex<()>>>,
    inserts: Arc<AtomicU64>,
    insert_commits: Arc<AtomicU64>,
}

impl Store {
    pub fn new(db: DatabaseConnection) -> Self {
        let turn = (db.get_database_backend() == DbBackend::Sqlite).then(Arc::default);
        Self { db, turn, inserts: Arc::default(), insert_commits: Arc::default() }
    }

    pub fn stats(&self) -> LedgerStats {
        LedgerStats {
            inserts: self.inserts.load(Ordering::Relaxed),
            insert_commits: self.insert_commits.load(Ordering::Relaxed),
        }
    }

    /// What reads are made on, inside [`answered`](Self::answered).
    pub fn db(&self) -> &DatabaseConnection {
        &self.db
    }

    pub async fn ping(&self) -> Result<(), DbErr> {
        self.answered(|| self.db.ping()).await
    }

    /// Inserts runs, each unless its key was taken before. Answers in the order of `rows`.
    pub async fn insert(&self, rows: &[Accepted]) -> Result<Vec<Entered>, DbErr> {
        let entered = self.answered(|| self.insert_once(rows)).await?;
        self.inserts.fetch_add(u64::try_from(rows.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.insert_commits.fetch_add(1, Ordering::Relaxed);
        Ok(entered)
    }

    async fn insert_once(&self, rows: &[Accepted]) -> Result<Vec<Entered>, DbErr> {
        let keyed = || rows.iter().enumerate().filter_map(|(index, row)| Some((index, &*row.job, row.key.as_ref()?)));
        let _turn = self.turn().await;
        if keyed().next().is_none() {
            self.insert_rows(None, rows.iter().map(|row| &*row.job)).await?;
            return Ok(vec![Entered::New; rows.len()]);
        }
        let transaction = self.begin().await?;
        let mut taken = idempotency::take(&transaction, keyed()).await?;
        let new = rows.iter().enumerate().filter(|(index, _)| !taken.contains_key(index));
        self.insert_rows(Some(&transaction), new.map(|(_, row)| &*row.job)).await?;
        transaction.commit().await?;
        Ok((0..rows.len()).map(|index| taken.remove(&index).map_or(Entered::New, Entered::Known)).collect())
    }

    /// Within a transaction, or in one of its own.
    async fn insert_rows(
        &self,
        transaction: Option<&DatabaseTransaction>,
        jobs: impl Iterator<Item = &Job>,
    ) -> Result<(), DbErr> {
        let mut jobs: Vec<&Job> = jobs.collect();
        jobs.sort_unstable_by_key(|job| job.id);
        if transaction.is_none() && self.db.get_database_backend() == DbBackend::Postgres {
            let rows: Vec<_> = jobs.into_iter().map(runs::queued).collect();
            let (text, parameters) = upserts::queued_arrays(&rows).map_err(not_encoded)?;
            sqlx::query_with(text, parameters).execute(self.postgres()).await.map_err(not_executed)?;
            return Ok(());
        }
        let inserts: Vec<Statement> = statements(&jobs)
            .map(|jobs| {
                let insert = upserts::queued(jobs.iter().map(|job| runs::queued(job)));
                self.db.get_database_backend().build(&insert)
            })
            .collect();
        if let Some(transaction) = transaction {
            for insert in inserts {
                transaction.execute_raw(insert).await?;
            }
            return Ok(());
        }
        // One statement is a transaction by itself, without the round trips of BEGIN and COMMIT.
        if inserts.len() == 1 {
            for insert in inserts {
                self.db.execute_raw(insert).await?;
            }
            return Ok(());
        }
        let transaction = self.begin().await?;
        for insert in inserts {
            transaction.execute_raw(insert).await?;
        }
        transaction.commit().await
    }

    /// Writes endings and their attempts.
    pub async fn settle(&self, batch: &[(Arc<Job>, Arc<Ending>)], texts: Texts) -> Result<Vec<Settled>, DbErr> {
        self.answered(|| self.settle_once(batch, texts)).await
    }

    async fn settle_once(&self, batch: &[(Arc<Job>, Arc<Ending>)], texts: Texts) -> Result<Vec<Settled>, DbErr> {
        let calls = batch.iter().filter_map(|(job, ending)| Some((job.id, ending.attempt.as_ref()?)));
        let mut settled = vec![Settled::AlreadyEnded; batch.len()];
        if let Some(round) = self.for_one_statement(batch) {
            let won = self.settle_in_one(&round, texts).await?;
            for (settled, _) in settled.iter_mut().zip(batch).filter(|(_, (job, _))| won.contains(&job.id.0)) {
                *settled = Settled::Won;
            }
            return Ok(settled);
        }
        let mut kept = Vec::new();
        let _turn = self.turn().await;
        let transaction = self.begin().await?;
        self.write_attempts(&transaction, calls, texts).await?;
        let rounds = rounds(batch);
        for round in &rounds {
            for entries in statements(round) {
                let won = self.write_endings(&transaction, entries, texts).await?;
                let told = entries.iter().filter(|(_, job, _)| won.contains(&job.id.0));
                outbox::enter(&transaction, told.map(|(_, job, ending)| (*job, *ending))).await?;
                for (index, job, _) in entries {
                    if let Some(settled) = settled.get_mut(*index)
                        && won.contains(&job.id.0)
                    {
                        *settled = Settled::Won;
                    }
                }
                if texts == Texts::Kept {
                    kept.extend(entries.iter().filter(|(_, job, _)| won.contains(&job.id.0)));
                }
            }
        }
        // After all runs: whoever locks a result has locked its runs before.
        results::keep(&transaction, kept.into_iter().map(|&(_, job, ending)| (job, ending))).await?;
        transaction.commit().await?;
        Ok(settled)
    }

    /// A batch that one statement can write, which is a transaction without the round trips of one: where the database can do that, and when
    /// there is nothing to write but a row and an attempt for each run.
    fn for_one_statement<'a>(&self, batch: &'a [(Arc<Job>, Arc<Ending>)]) -> Option<Vec<Entry<'a>>> {
        let is_plain = |(job, _): &(Arc<Job>, Arc<Ending>)| job.webhook_url.is_none() && job.caching.is_none();
        if self.db.get_database_backend() != DbBackend::Postgres || !batch.iter().all(is_plain) {
            return None;
        }
        let [round] = <[_; 1]>::try_from(rounds(batch)).ok()?;
        Some(round)
    }

    /// Answers with the runs that it ended.
    async fn settle_in_one(&self, round: &[Entry<'_>], texts: Texts) -> Result<HashSet<Uuid>, DbErr> {
        let calls = round.iter().filter_map(|(_, job, ending)| Some((job.id, ending.attempt.as_ref()?)));
        let calls: Vec<_> = calls.map(|(run, attempt)| attempts::row(run, attempt, texts)).collect();
        let runs: Vec<_> = round.iter().map(|(_, job, ending)| runs::ended(job, ending, texts)).collect();
        let (text, parameters) = upserts::endings_with_calls(&runs, &calls).map_err(not_encoded)?;
        let won = sqlx::query_scalar_with(text, parameters).fetch_all(self.postgres()).await;
        Ok(won.map_err(not_executed)?.into_iter().collect())
    }

    /// Of a database that is PostgreSQL.
    fn postgres(&self) -> &sqlx::PgPool {
        self.db.get_postgres_connection_pool()
    }

    /// Answers with the runs that this statement ended.
    async fn write_endings(
        &self,
        transaction: &DatabaseTransaction,
        entries: &[Entry<'_>],
        texts: Texts,
    ) -> Result<HashSet<Uuid>, DbErr> {
        let upsert = upserts::endings(entries.iter().map(|(_, job, ending)| runs::ended(job, ending, texts)));
        ids(transaction.query_all_raw(self.db.get_database_backend().build(&upsert)).await?)
    }

    /// Records attempts of runs that go on.
    pub async fn record(&self, batch: &[(RunId, Attempt)], texts: Texts) -> Result<(), DbErr> {
        self.answered(|| self.record_once(batch, texts)).await
    }

    async fn record_once(&self, batch: &[(RunId, Attempt)], texts: Texts) -> Result<(), DbErr> {
        use runs::{Column, Entity};
        let calls: BTreeMap<RunId, &Attempt> = latest(batch);
        let _turn = self.turn().await;
        let transaction = self.begin().await?;
        self.write_attempts(&transaction, batch.iter().map(|(run, attempt)| (*run, attempt)), texts).await?;
        for (run, attempt) in calls {
            Entity::update_many()
                .col_expr(Column::Fence, Expr::value(attempt.fence.0))
                .col_expr(Column::AttemptCount, Expr::value(attempt.number))
                .col_expr(Column::StartedAt, Expr::col(Column::StartedAt).if_null(attempt.started_at.0))
                .filter(Column::Id.eq(run.0))
                .filter(Column::FinishedAt.is_null())
                .filter(Column::Fence.lt(attempt.fence.0))
                .exec(&transaction)
                .await?;
        }
        transaction.commit().await
    }

    async fn write_attempts(
        &self,
        transaction: &DatabaseTransaction,
        calls: impl Iterator<Item = (RunId, &Attempt)>,
        texts: Texts,
    ) -> Result<(), DbErr> {
        // Each call once, as its own worker tells it: a statement must not write a row twice.
        let mut unique: BTreeMap<(RunId, Fence), &Attempt> = BTreeMap::new();
        for (run, attempt) in calls {
            let known = unique.entry((run, attempt.fence)).or_insert(attempt);
            if known.outcome == AttemptOutcome::WorkerLost {
                *known = attempt;
            }
        }
        let unique: Vec<(RunId, &Attempt)> = unique.into_iter().map(|((run, _), attempt)| (run, attempt)).collect();
        for calls in statements(&unique) {
            let rows = calls.iter().map(|(run, attempt)| attempts::row(*run, attempt, texts));
            let upsert = upserts::calls(rows);
            transaction.execute_raw(self.db.get_database_backend().build(&upsert)).await?;
        }
        Ok(())
    }

    pub async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match &self.turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        }
    }

    pub async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        self.db
            .begin_with_options(TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            })
            .await
    }

    /// Bounds the wait for an answer, and repeats a step when the connection that it was made on turned out to be broken: after a restart
    /// of the server each of the pool's is, and every failure weeds one out.
    pub async fn answered<T, F>(&self, step: impl Fn() -> F) -> Result<T, DbErr>
    where
        F: Future<Output = Result<T, DbErr>>,
    {
        let mut broken = 0;
        loop {
            match self.bounded(step()).await {
                Err(error) if Fault::of(&error) == (Fault::Unreachable { broken: true }) && broken < self.pooled() => {
                    broken += 1;
                }
                result => return result,
            }
        }
    }

    /// Connections that the pool may hold open.
    fn pooled(&self) -> u32 {
        match self.db.get_database_backend() {
            DbBackend::Postgres => self.postgres().options().get_max_connections(),
            _ => 1,
        }
    }

    async fn bounded<T>(&self, step: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        if self.db.get_database_backend() == DbBackend::Sqlite {
            return step.await;
        }
        tokio::time::timeout(ANSWER_WITHIN, step).await.unwrap_or_else(|_| {
            Err(DbErr::Conn(RuntimeErr::Internal(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))))
        })
    }
}

fn not_encoded(error: BoxDynError) -> DbErr {
    not_executed(sqlx::Error::Encode(error))
}

fn not_executed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

fn ids(rows: Vec<QueryResult>) -> Result<HashSet<Uuid>, DbErr> {
    rows.into_iter().map(|row| row.try_get::<Uuid>("", "id")).collect()
}

/// An ending with its place in the batch.
type Entry<'a> = (usize, &'a Job, &'a Ending);

/// Splits a batch so that no round holds a run twice: a statement must not write a row twice, and the first of two endings has the
/// first chance. Each round is in the order of the ids.
fn rounds(batch: &[(Arc<Job>, Arc<Ending>)]) -> Vec<Vec<Entry<'_>>> {
    let mut seen: HashMap<RunId, usize> = HashMap::with_capacity(batch.len());
    let mut rounds: Vec<Vec<Entry<'_>>> = Vec::new();
    for (index, (job, ending)) in batch.iter().enumerate() {
        let times = seen.entry(job.id).or_default();
        let entry = (index, job.as_ref(), ending.as_ref());
        match rounds.get_mut(*times) {
            Some(round) => round.push(entry),
            None => rounds.push(vec![entry]),
        }
        *times += 1;
    }
    for round in &mut rounds {
        round.sort_unstable_by_key(|(_, job, _)| job.id);
    }
    rounds
}

/// The newest attempt of each run, in the order of the ids.
fn latest(batch: &[(RunId, Attempt)]) -> BTreeMap<RunId, &Attempt> {
    let mut latest: BTreeMap<RunId, &Attempt> = BTreeMap::new();
    for (run, attempt) in batch {
        let known = latest.entry(*run).or_insert(attempt);
        if attempt.fence > known.fence {
            *known = attempt;
        }
    }
    latest
}

/// Cuts rows into statements of 1 to 8, 16, 32, 64, 128 or 256 rows: thirteen texts for each kind of write.
fn statements<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let (statement, left) = rest.split_at_checked(statement_size(rest.len()))?;
        rest = left;
        (!statement.is_empty()).then_some(statement)
    })
}

fn statement_size(rows: usize) -> usize {
    match rows {
        0..=8 => rows,
        _ => Ord::min(1 << rows.ilog2(), MAX_ROWS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_hold_every_row_once_in_few_sizes() {
        let sizes = |rows: usize| statements(&vec![(); rows]).map(<[()]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(0), Vec::<usize>::new());
        assert_eq!(sizes(7), [7]);
        assert_eq!(sizes(13), [8, 5]);
        assert_eq!(sizes(255), [128, 64, 32, 16, 8, 7]);
        assert_eq!(sizes(600), [256, 256, 64, 16, 8]);
        for rows in 0..2000 {
            assert_eq!(sizes(rows).iter().sum::<usize>(), rows);
        }
    }
}
