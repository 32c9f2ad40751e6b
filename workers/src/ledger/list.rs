//! The runs of an account, newest first, a page at a time.

use std::ops::Range;

use sea_orm::{EntityTrait, IdenStatic, Iterable, QueryFilter, QueryOrder, QuerySelect, entity::prelude::*};

use super::{
    LedgerError, RunRecord, read,
    runs::{Column, Entity, Row},
    store::Store,
};
use crate::job::{AccountId, Lane, RunId, RunState, UnixMillis};

/// Which runs are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFilter {
    pub state: Option<RunState>,
    pub prompt_name: Option<String>,
    pub model: Option<String>,
    pub lane: Option<Lane>,
    /// When they were accepted: from the first moment on, and before the second.
    pub created: Range<Option<UnixMillis>>,
}

/// Runs before `before`, newest first. The ledger does not know what has a worker: both states of a run that has not ended match both. Outputs
/// are left out, because a page of them may be large.
pub(super) async fn list(
    store: &Store,
    account: AccountId,
    filter: &RunFilter,
    before: Option<RunId>,
    limit: u64,
) -> Result<Vec<RunRecord>, LedgerError> {
    let columns = Column::iter().filter(|column| SHOWN.contains(&column.as_str()));
    let mut select = Entity::find()
        .select_only()
        .columns(columns)
        .expr_as(Expr::cust("CAST(NULL AS TEXT)"), Column::Output.as_str())
        .filter(Column::Account.eq(account.0))
        .order_by_desc(Column::Id)
        .limit(limit);
    if let Some(state) = filter.state {
        select = match state.is_terminal() {
            true => select.filter(Column::State.eq(state.as_str())),
            false => select.filter(Column::FinishedAt.is_null()),
        };
    }
    if let Some(name) = &filter.prompt_name {
        select = select.filter(Column::PromptName.eq(super::storable(name)));
    }
    if let Some(model) = &filter.model {
        select = select.filter(Column::Model.eq(super::storable(model)));
    }
    if let Some(lane) = filter.lane {
        select = select.filter(Column::Lane.eq(lane.as_str()));
    }
    // Ids are in the order of their moments, and there is an index of them.
    if let Some(from) = filter.created.start {
        select = select.filter(Column::Id.gte(RunId::first_at(from).0));
    }
    if let Some(to) = filter.created.end {
        select = select.filter(Column::Id.lt(RunId::first_at(to).0));
    }
    if let Some(before) = before {
        select = select.filter(Column::Id.lt(before.0));
    }
    let rows = store.answered(|| select.clone().into_model::<Row>().all(store.db())).await?;
    let mut attempts = read::attempts_of(store, &rows.iter().map(|row| row.id).collect::<Vec<_>>()).await?;
    let records = rows.into_iter().map(|row| {
        let attempts = attempts.remove(&row.id).unwrap_or_default();
        row.into_record(attempts)
    });
    records.collect()
}

/// The columns of [`Row`], but for the output.
const SHOWN: &[&str] = &[
    "id",
    "account",
    "prompt_name",
    "prompt_version",
    "lane",
    "state",
    "model",
    "metadata",
    "created_at",
    "deadline",
    "started_at",
    "finished_at",
    "queue_ms",
    "fence",
    "finish_reason",
    "error_code",
    "error_message",
    "error_retryable",
    "input_tokens",
    "output_tokens",
    "cost_nano_usd",
    "requeued_from",
    "cache",
];
