//! The table `runs`, and a run on its way into it and out of it.

use sea_orm::{
    entity::prelude::*,
    sqlx::{error::BoxDynError, postgres::PgArguments},
};
use serde::Serialize;

use super::{
    LedgerError, RunRecord,
    columns::{Columns, Filled},
    signed, storable, unreadable,
};
use crate::job::{
    AccountId, Attempt, CacheUse, Ending, Failure, Fence, Job, Outcome, RunId, RunState, UnixMillis, Usage,
    WIRE_VERSION,
};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "runs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub account: Uuid,
    pub api_key: Option<Uuid>,
    pub prompt: Uuid,
    pub prompt_name: String,
    pub prompt_version: i32,
    pub lane: String,
    pub state: String,
    pub model: String,
    pub provider: Option<String>,
    pub job: Option<String>,
    pub metadata: String,
    pub stream: bool,
    pub created_at: i64,
    pub deadline: i64,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub queue_ms: Option<i64>,
    pub first_token_ms: Option<i64>,
    pub fence: i64,
    pub attempt_count: i32,
    pub input: Option<String>,
    pub output: Option<String>,
    pub finish_reason: Option<String>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub error_retryable: Option<bool>,
    pub input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
    pub cost_nano_usd: Option<i64>,
    pub requeued_from: Option<Uuid>,
    pub cache: Option<String>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// The columns that an ending takes over from its own row when the run's row is there already. The others were written with the
/// run and stay; `started_at` and `attempt_count` are merged.
pub(super) const ENDING_COLUMNS: [Column; 18] = [
    Column::State,
    Column::Model,
    Column::Provider,
    Column::Job,
    Column::FinishedAt,
    Column::QueueMs,
    Column::FirstTokenMs,
    Column::Fence,
    Column::Input,
    Column::Output,
    Column::FinishReason,
    Column::ErrorCode,
    Column::ErrorMessage,
    Column::ErrorRetryable,
    Column::InputTokens,
    Column::OutputTokens,
    Column::CostNanoUsd,
    Column::Cache,
];

/// Whether the texts of a run are written, or left out because the database refused them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Texts {
    Kept,
    Dropped,
}

/// The row of a run that waits.
pub(super) fn queued(job: &Job) -> Model {
    let model = job.targets.first().map_or("", |target| &target.model);
    Model { job: Some(job.to_text()), ..accepted(job, RunState::Queued, model) }
}

/// The whole row of a run that has ended.
pub(super) fn ended(job: &Job, ending: &Ending, texts: Texts) -> Model {
    let attempt = ending.attempt.as_ref();
    let usage = ending.usage();
    let keep = job.keep_content && texts == Texts::Kept;
    let (output, finish_reason, failure) = match &ending.outcome {
        Outcome::Succeeded { output, finish_reason } => (Some(output), finish_reason.as_ref(), None),
        Outcome::Failed(failure) => (None, None, Some(failure)),
        Outcome::Cancelled | Outcome::Expired => (None, None, None),
    };
    Model {
        provider: attempt.map(|attempt| storable(&attempt.provider)),
        // A dead run keeps its job, so that an operator can start it again.
        job: failure.filter(|failure| failure.is_poison()).map(|_| job.to_text()),
        started_at: ending.started_at.map(|at| at.0),
        finished_at: Some(ending.finished_at.0),
        queue_ms: Some(signed(ending.queue_ms)),
        first_token_ms: attempt.and_then(|attempt| attempt.first_token_ms).map(signed),
        fence: ending.fence.0,
        attempt_count: attempt.map_or(0, |attempt| attempt.number),
        input: keep.then(|| input_of(job)),
        output: output.filter(|_| keep).map(|text| storable(text)),
        finish_reason: finish_reason.filter(|_| texts == Texts::Kept).map(|text| storable(text)),
        error_code: failure.map(|failure| storable(&failure.code)),
        error_message: failure.map(|failure| storable(&failure.message)),
        error_retryable: failure.map(|failure| failure.retryable),
        input_tokens: usage.input_tokens.map(signed),
        output_tokens: usage.output_tokens.map(signed),
        cost_nano_usd: ending.cost_nano_usd(),
        cache: ending.cache.map(|cache| cache.as_str().to_owned()),
        ..accepted(job, ending.outcome.state(), &ending.model)
    }
}

/// What is known of a run from the start.
fn accepted(job: &Job, state: RunState, model: &str) -> Model {
    Model {
        id: job.id.0,
        account: job.account.0,
        api_key: job.key.map(|key| key.0),
        prompt: job.prompt.0,
        prompt_name: storable(&job.prompt_name),
        prompt_version: job.prompt_version,
        lane: job.lane.as_str().to_owned(),
        state: state.as_str().to_owned(),
        model: storable(model),
        provider: None,
        job: None,
        // A map of strings always serialises.
        metadata: serde_json::to_string(&job.metadata).unwrap_or_else(|_| "{}".to_owned()),
        stream: job.stream,
        created_at: job.created_at.0,
        deadline: job.deadline.0,
        started_at: None,
        finished_at: None,
        queue_ms: None,
        first_token_ms: None,
        fence: 0,
        attempt_count: 0,
        input: None,
        output: None,
        finish_reason: None,
        error_code: None,
        error_message: None,
        error_retryable: None,
        input_tokens: None,
        output_tokens: None,
        cost_nano_usd: None,
        requeued_from: None,
        cache: None,
    }
}

/// Makes parameters of whole rows.
pub(super) fn fill(parameters: &mut PgArguments, rows: &[Model]) -> Result<Filled<Column>, BoxDynError> {
    let mut columns = Columns::new(parameters);
    fill_accepted(&mut columns, rows)?;
    columns.fill(Column::Provider, rows.iter().map(|row| row.provider.as_deref()))?;
    columns.fill(Column::StartedAt, rows.iter().map(|row| row.started_at))?;
    columns.fill(Column::FinishedAt, rows.iter().map(|row| row.finished_at))?;
    columns.fill(Column::QueueMs, rows.iter().map(|row| row.queue_ms))?;
    columns.fill(Column::FirstTokenMs, rows.iter().map(|row| row.first_token_ms))?;
    columns.fill(Column::Input, rows.iter().map(|row| row.input.as_deref()))?;
    columns.fill(Column::Output, rows.iter().map(|row| row.output.as_deref()))?;
    columns.fill(Column::FinishReason, rows.iter().map(|row| row.finish_reason.as_deref()))?;
    columns.fill(Column::ErrorCode, rows.iter().map(|row| row.error_code.as_deref()))?;
    columns.fill(Column::ErrorMessage, rows.iter().map(|row| row.error_message.as_deref()))?;
    columns.fill(Column::ErrorRetryable, rows.iter().map(|row| row.error_retryable))?;
    columns.fill(Column::InputTokens, rows.iter().map(|row| row.input_tokens))?;
    columns.fill(Column::OutputTokens, rows.iter().map(|row| row.output_tokens))?;
    columns.fill(Column::CostNanoUsd, rows.iter().map(|row| row.cost_nano_usd))?;
    columns.fill(Column::RequeuedFrom, rows.iter().map(|row| row.requeued_from))?;
    columns.fill(Column::Cache, rows.iter().map(|row| row.cache.as_deref()))?;
    Ok(columns.filled())
}

/// Makes parameters of the rows of runs that wait. The columns that are left out are NULL in all of them.
pub(super) fn fill_queued(parameters: &mut PgArguments, rows: &[Model]) -> Result<Filled<Column>, BoxDynError> {
    let mut columns = Columns::new(parameters);
    fill_accepted(&mut columns, rows)?;
    Ok(columns.filled())
}

/// What a run that waits has, and may have.
fn fill_accepted(columns: &mut Columns<'_, Column>, rows: &[Model]) -> Result<(), BoxDynError> {
    columns.fill(Column::Id, rows.iter().map(|row| row.id))?;
    columns.fill(Column::Account, rows.iter().map(|row| row.account))?;
    columns.fill(Column::ApiKey, rows.iter().map(|row| row.api_key))?;
    columns.fill(Column::Prompt, rows.iter().map(|row| row.prompt))?;
    columns.fill(Column::PromptName, rows.iter().map(|row| &row.prompt_name))?;
    columns.fill(Column::PromptVersion, rows.iter().map(|row| row.prompt_version))?;
    columns.fill(Column::Lane, rows.iter().map(|row| &row.lane))?;
    columns.fill(Column::State, rows.iter().map(|row| &row.state))?;
    columns.fill(Column::Model, rows.iter().map(|row| &row.model))?;
    columns.fill(Column::Job, rows.iter().map(|row| row.job.as_deref()))?;
    columns.fill(Column::Metadata, rows.iter().map(|row| &row.metadata))?;
    columns.fill(Column::Stream, rows.iter().map(|row| row.stream))?;
    columns.fill(Column::CreatedAt, rows.iter().map(|row| row.created_at))?;
    columns.fill(Column::Deadline, rows.iter().map(|row| row.deadline))?;
    columns.fill(Column::Fence, rows.iter().map(|row| row.fence))?;
    columns.fill(Column::AttemptCount, rows.iter().map(|row| row.attempt_count))
}

fn input_of(job: &Job) -> String {
    #[derive(Serialize)]
    struct Input<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        system: Option<&'a str>,
        user: &'a str,
    }
    let input = Input { system: job.request.system.as_deref(), user: &job.request.user };
    // Two strings always serialise.
    serde_json::to_string(&input).unwrap_or_default()
}

/// What reading a run needs: not its job, and not its input.
#[derive(Debug, DerivePartialModel)]
#[sea_orm(entity = "Entity")]
pub(super) struct Row {
    pub id: Uuid,
    account: Uuid,
    prompt_name: String,
    prompt_version: i32,
    lane: String,
    state: String,
    model: String,
    metadata: String,
    created_at: i64,
    deadline: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    queue_ms: Option<i64>,
    fence: i64,
    output: Option<String>,
    finish_reason: Option<String>,
    error_code: Option<String>,
    error_message: Option<String>,
    error_retryable: Option<bool>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cost_nano_usd: Option<i64>,
    requeued_from: Option<Uuid>,
    cache: Option<String>,
}

impl Row {
    pub fn into_record(self, attempts: Vec<Attempt>) -> Result<RunRecord, LedgerError> {
        let (state, cache) = (self.state()?, self.cache()?);
        Ok(RunRecord {
            id: RunId(self.id),
            account: AccountId(self.account),
            state,
            lane: self.lane.parse().map_err(|()| unreadable(self.id, "lane"))?,
            metadata: serde_json::from_str(&self.metadata).map_err(|_| unreadable(self.id, "metadata"))?,
            prompt_version: self.prompt_version,
            created_at: UnixMillis(self.created_at),
            deadline: UnixMillis(self.deadline),
            started_at: self.started_at.map(UnixMillis),
            finished_at: self.finished_at.map(UnixMillis),
            queue_ms: self.queue_ms.map(super::unsigned),
            attempts,
            failure: (state == RunState::Failed)
                .then(|| failure(self.error_code, self.error_message, self.error_retryable)),
            usage: Usage {
                input_tokens: self.input_tokens.map(super::unsigned),
                output_tokens: self.output_tokens.map(super::unsigned),
            },
            cost_nano_usd: self.cost_nano_usd,
            requeued_from: self.requeued_from.map(RunId),
            cache,
            prompt_name: self.prompt_name,
            model: self.model,
            output: self.output,
            finish_reason: self.finish_reason,
        })
    }

    /// The ending of a run that has one; `last` is its last attempt.
    pub fn into_ending(self, last: Option<Attempt>) -> Result<Ending, LedgerError> {
        let cache = self.cache()?;
        let outcome = match (self.state()?, self.output) {
            (RunState::Succeeded, Some(output)) => Outcome::Succeeded { output, finish_reason: self.finish_reason },
            (RunState::Succeeded, None) => Outcome::Failed(output_not_kept()),
            (RunState::Failed, _) => {
                Outcome::Failed(failure(self.error_code, self.error_message, self.error_retryable))
            }
            (RunState::Cancelled, _) => Outcome::Cancelled,
            (RunState::Expired, _) => Outcome::Expired,
            (RunState::Queued | RunState::Running, _) => return Err(unreadable(self.id, "state")),
        };
        let finished_at = self.finished_at.ok_or_else(|| unreadable(self.id, "end"))?;
        Ok(Ending {
            v: WIRE_VERSION,
            run: RunId(self.id),
            fence: Fence(self.fence),
            outcome,
            model: self.model,
            started_at: self.started_at.map(UnixMillis),
            finished_at: UnixMillis(finished_at),
            queue_ms: self.queue_ms.map(super::unsigned).unwrap_or_default(),
            attempt: last,
            cache,
        })
    }

    fn cache(&self) -> Result<Option<CacheUse>, LedgerError> {
        self.cache.as_deref().map(|cache| cache.parse().map_err(|()| unreadable(self.id, "cache"))).transpose()
    }

    fn state(&self) -> Result<RunState, LedgerError> {
        self.state.parse().map_err(|()| unreadable(self.id, "state"))
    }
}

fn failure(code: Option<String>, message: Option<String>, retryable: Option<bool>) -> Failure {
    Failure {
        code: code.unwrap_or_default(),
        message: message.unwrap_or_default(),
        retryable: retryable.unwrap_or_default(),
    }
}

/// What somebody who waits for the output of a run is told when the run succeeded and its output was never stored: an empty text would
/// pass for the model's answer.
fn output_not_kept() -> Failure {
    Failure {
        code: "output_not_kept".to_owned(),
        message: "The run succeeded, but its output was lost on the way, and outputs are not stored".to_owned(),
        retryable: true,
    }
}
