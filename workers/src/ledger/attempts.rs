//! The table `attempts`, and a call on its way into it and out of it.

use sea_orm::{ActiveValue::Set, entity::prelude::*};

use super::{LedgerError, runs::Texts, signed, storable, unreadable, unsigned};
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

pub(super) fn row(run: RunId, attempt: &Attempt, texts: Texts) -> ActiveModel {
    ActiveModel {
        run: Set(run.0),
        fence: Set(attempt.fence.0),
        number: Set(attempt.number),
        provider: Set(storable(&attempt.provider)),
        model: Set(storable(&attempt.model)),
        worker: Set(attempt.worker.0),
        started_at: Set(attempt.started_at.0),
        duration_ms: Set(signed(attempt.duration_ms)),
        first_token_ms: Set(attempt.first_token_ms.map(signed)),
        outcome: Set(attempt.outcome.as_str().to_owned()),
        status: Set(attempt.status.map(i32::from)),
        detail: Set(attempt.detail.as_ref().filter(|_| texts == Texts::Kept).map(|text| storable(text))),
        input_tokens: Set(attempt.usage.input_tokens.map(signed)),
        output_tokens: Set(attempt.usage.output_tokens.map(signed)),
        cost_nano_usd: Set(attempt.cost_nano_usd),
    }
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
