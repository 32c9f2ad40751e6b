//! The statements that write rows of `runs` and `attempts`, each in two forms: with every value, for SQLite and within transactions; and with
//! an array for each column, for PostgreSQL.

use std::sync::OnceLock;

use sea_orm::{
    ExprTrait, IntoActiveModel, QueryTrait,
    entity::prelude::*,
    sea_query::{
        CommonTableExpression, InsertStatement, OnConflict, PostgresQueryBuilder, Query, ReturningClause, WithClause,
    },
    sqlx::{error::BoxDynError, postgres::PgArguments},
};

use super::{
    attempts::{self, CALL_COLUMNS},
    runs::{self, ENDING_COLUMNS},
};
use crate::job::AttemptOutcome;

/// A text that never changes, with what it is executed with.
type Prepared = Result<(&'static str, PgArguments), BoxDynError>;

/// Writes runs that wait, unless they are there.
pub(super) fn queued(rows: impl Iterator<Item = runs::Model>) -> InsertStatement {
    runs::Entity::insert_many(rows.map(IntoActiveModel::into_active_model)).on_conflict(unless_there()).into_query()
}

/// The same with arrays.
pub(super) fn queued_arrays(rows: &[runs::Model]) -> Prepared {
    static TEXT: OnceLock<String> = OnceLock::new();
    let mut parameters = PgArguments::default();
    let runs = runs::fill_queued(&mut parameters, rows)?;
    let text =
        TEXT.get_or_init(|| runs.insert(runs::Entity).on_conflict(unless_there()).to_string(PostgresQueryBuilder));
    Ok((text, parameters))
}

/// Ends runs, and returns the ids of those that it ended.
pub(super) fn endings(rows: impl Iterator<Item = runs::Model>) -> InsertStatement {
    let mut upsert = runs::Entity::insert_many(rows.map(IntoActiveModel::into_active_model))
        .on_conflict(unless_ended())
        .into_query();
    upsert.returning(ids());
    upsert
}

/// Records calls, each once.
pub(super) fn calls(rows: impl Iterator<Item = attempts::Model>) -> InsertStatement {
    attempts::Entity::insert_many(rows.map(IntoActiveModel::into_active_model)).on_conflict(unless_told()).into_query()
}

/// [`calls`] and [`endings`] in one statement, with arrays.
pub(super) fn endings_with_calls(runs: &[runs::Model], calls: &[attempts::Model]) -> Prepared {
    static TEXT: OnceLock<String> = OnceLock::new();
    let mut parameters = PgArguments::default();
    let calls = attempts::fill(&mut parameters, calls)?;
    let runs = runs::fill(&mut parameters, runs)?;
    let text = TEXT.get_or_init(|| {
        let calls = calls.insert(attempts::Entity).on_conflict(unless_told()).to_owned();
        let calls = CommonTableExpression::new().query(calls).table_name("calls").to_owned();
        let runs = runs.insert(runs::Entity).on_conflict(unless_ended()).returning(ids()).to_owned();
        runs.with(WithClause::new().cte(calls).to_owned()).to_string(PostgresQueryBuilder)
    });
    Ok((text, parameters))
}

fn unless_there() -> OnConflict {
    OnConflict::column(runs::Column::Id).do_nothing().to_owned()
}

fn unless_ended() -> OnConflict {
    use runs::Column;
    OnConflict::column(Column::Id)
        .update_columns(ENDING_COLUMNS)
        .value(Column::StartedAt, Expr::cust("COALESCE(runs.started_at, excluded.started_at)"))
        .value(
            Column::AttemptCount,
            Expr::cust(
                "CASE WHEN excluded.attempt_count > runs.attempt_count \
                 THEN excluded.attempt_count ELSE runs.attempt_count END",
            ),
        )
        .action_and_where(Expr::cust("runs.finished_at IS NULL AND runs.fence <= excluded.fence"))
        .to_owned()
}

/// Unless the worker that made the call has told of it itself.
fn unless_told() -> OnConflict {
    use attempts::{Column, Entity};
    let lost = AttemptOutcome::WorkerLost.as_str();
    OnConflict::columns([Column::Run, Column::Fence])
        .update_columns(CALL_COLUMNS)
        .action_and_where(ExprTrait::eq(Expr::col((Entity, Column::Outcome)), lost))
        .action_and_where(Expr::cust("excluded.outcome <> attempts.outcome"))
        .to_owned()
}

fn ids() -> ReturningClause {
    Query::returning().column(runs::Column::Id)
}
