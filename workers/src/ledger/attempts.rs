//! The table `attempts`, and a call on its way into it and out of it.

use sea_orm::{
    entity::prelude::*,
    sqlx::{error::BoxDynError, postgres::PgArguments},
};

use super::{
    LedgerError,
    columns::{Columns, Filled},
    runs::Texts,
    signed, storable, unreadable, unsigned,
};
use crate::job::{Attempt, Fence, RunId, UnixMillis, Usage, WorkerId};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub run: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub fence: i64,
    pub number: i32,
    pub provider: String,
    pub model: String,
    pub worker: Uuid,
    pub started_at: i64,
    pub duration_ms: i64,
    pub first_token_ms: Option<i64>,
    pub outcome: String,
    pub status: Option<i32>,
    pub detail: Option<String>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    pub cost_nano_usd: Option<i64>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// What the account of the worker that made a call says better than that of the worker that found it lost.
pub(super) const CALL_COLUMNS: [Column; 13] = [
    Column::Number,
    Column::Provider,
    Column::Model,
    Column::Worker,
    Column::StartedAt,
    Column::DurationMs,
    Column::FirstTokenMs,
    Column::Outcome,
    Column::Status,
    Column::Detail,
    Column::InputTokens,
    Column::OutputTokens,
    Column::CostNanoUsd,
];

pub(super) fn row(run: RunId, attempt: &Attempt, texts: Texts) -> Model {
    Model {
        run: run.0,
        fence: attempt.fence.0,
        number: attempt.number,
        provider: storable(&attempt.provider),
        model: storable(&attempt.model),
        worker: attempt.worker.0,
        started_at: attempt.started_at.0,
        duration_ms: signed(attempt.duration_ms),
        first_token_ms: attempt.first_token_ms.map(signed),
        outcome: attempt.outcome.as_str().to_owned(),
        status: attempt.status.map(i32::from),
        detail: attempt.detail.as_ref().filter(|_| texts == Texts::Kept).map(|text| storable(text)),
        input_tokens: attempt.usage.input_tokens.map(signed),
        output_tokens: attempt.usage.output_tokens.map(signed),
        cost_nano_usd: attempt.cost_nano_usd,
    }
}

/// Makes parameters of whole rows.
pub(super) fn fill(parameters: &mut PgArguments, rows: &[Model]) -> Result<Filled<Column>, BoxDynError> {
    let mut columns = Columns::new(parameters);
    columns.fill(Column::Run, rows.iter().map(|row| row.run))?;
    columns.fill(Column::Fence, rows.iter().map(|row| row.fence))?;
    columns.fill(Column::Number, rows.iter().map(|row| row.number))?;
    columns.fill(Column::Provider, rows.iter().map(|row| &row.provider))?;
    columns.fill(Column::Model, rows.iter().map(|row| &row.model))?;
    columns.fill(Column::Worker, rows.iter().map(|row| row.worker))?;
    columns.fill(Column::StartedAt, rows.iter().map(|row| row.started_at))?;
    columns.fill(Column::DurationMs, rows.iter().map(|row| row.duration_ms))?;
    columns.fill(Column::FirstTokenMs, rows.iter().map(|row| row.first_token_ms))?;
    columns.fill(Column::Outcome, rows.iter().map(|row| &row.outcome))?;
    columns.fill(Column::Status, rows.iter().map(|row| row.status))?;
    columns.fill(Column::Detail, rows.iter().map(|row| row.detail.as_deref()))?;
    columns.fill(Column::InputTokens, rows.iter().map(|row| row.input_tokens))?;
    columns.fill(Column::OutputTokens, rows.iter().map(|row| row.output_tokens))?;
    columns.fill(Column::CostNanoUsd, rows.iter().map(|row| row.cost_nano_usd))?;
    Ok(columns.filled())
}

impl Model {
    pub(super) fn into_attempt(self) -> Result<Attempt, LedgerError> {
        Ok(Attempt {
            number: self.number,
            fence: Fence(self.fence),
            provider: self.provider,
            model: self.model,
            worker: WorkerId(self.worker),
            started_at: UnixMillis(self.started_at),
            duration_ms: unsigned(self.duration_ms),
            first_token_ms: self.first_token_ms.map(unsigned),
            outcome: self.outcome.parse().map_err(|()| unreadable(self.run, "attempt"))?,
            status: self.status.and_then(|status| u16::try_from(status).ok()),
            detail: self.detail,
            usage: Usage {
                input_tokens: self.input_tokens.map(unsigned),
                output_tokens: self.output_tokens.map(unsigned),
            },
            cost_nano_usd: self.cost_nano_usd,
        })
    }
}
