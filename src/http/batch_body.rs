//! The bodies that tell about a batch: its progress, and a line of its results.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;
use workers::{
    RunView,
    job::{Lane, RunId, RunState},
};

use super::{
    openapi::schemas,
    run_body::{UsageBody, failure, rfc3339},
};
use crate::batches::{BatchState, BatchView, EndedLine, LineResult};

/// A batch as its progress shows it, and as a 202 announces it.
#[derive(Serialize, ToSchema)]
#[schema(as = Batch)]
#[serde(rename_all = "camelCase")]
pub(super) struct BatchBody {
    success: bool,
    #[schema(format = Uuid)]
    batch_id: String,
    #[schema(value_type = String, pattern = "^(running|completed|cancelled)$")]
    state: BatchState,
    total: u32,
    queued: u32,
    running: u32,
    succeeded: u32,
    failed: u32,
    cancelled: u32,
    #[schema(format = DateTime)]
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false)]
    finished_at: Option<String>,
}

impl BatchBody {
    pub(super) fn new(view: &BatchView) -> Self {
        Self {
            success: true,
            batch_id: view.id.to_string(),
            state: view.state,
            total: view.total,
            queued: view.queued,
            running: view.running,
            succeeded: view.succeeded,
            failed: view.failed,
            cancelled: view.cancelled,
            created_at: rfc3339(view.created_at),
            finished_at: view.finished_at.map(rfc3339),
        }
    }
}

/// One line of the results. Here `success` says whether the run succeeded.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchResult)]
#[serde(rename_all = "camelCase")]
pub(super) struct LineBody<'a> {
    index: u32,
    line: u32,
    /// `null` when the line became no run.
    #[schema(value_type = Option<Uuid>, required = true)]
    run_id: Option<RunId>,
    success: bool,
    #[schema(schema_with = schemas::state)]
    state: RunState,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    output: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retryable: Option<bool>,
    #[serde(flatten)]
    run: RunFields<'a>,
}

/// What is known of a line that became a run; nothing of another.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = BatchResultRun)]
#[serde(rename_all = "camelCase")]
struct RunFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    prompt_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    prompt_version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::lane, required = false)]
    priority: Option<Lane>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::metadata, required = false)]
    metadata: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    usage: Option<UsageBody>,
}

impl<'a> LineBody<'a> {
    pub(super) fn new(result: &'a LineResult) -> Self {
        let none = |state, error: &str, code: &str| Self {
            index: result.index,
            line: result.line,
            run_id: None,
            success: false,
            state,
            output: None,
            error: Some(error.to_owned()),
            code: Some(code.to_owned()),
            retryable: Some(false),
            run: RunFields::default(),
        };
        match &result.ended {
            EndedLine::Run(run) => Self::of_run(result, run),
            EndedLine::Refused { code, sentence } => none(RunState::Failed, sentence, code),
            EndedLine::Cancelled => {
                none(RunState::Cancelled, "The batch was cancelled before this line ran", "run_cancelled")
            }
        }
    }

    fn of_run(result: &LineResult, run: &'a RunView) -> Self {
        let failure = failure(run);
        Self {
            index: result.index,
            line: result.line,
            run_id: Some(run.id),
            success: run.state == RunState::Succeeded,
            state: run.state,
            output: run.output.as_deref(),
            error: failure.as_ref().map(|failure| failure.message.clone()),
            retryable: failure.as_ref().map(|failure| failure.retryable),
            code: failure.map(|failure| failure.code),
            run: RunFields {
                prompt_name: Some(&run.prompt_name),
                prompt_version: Some(run.prompt_version),
                model: Some(&run.model),
                priority: Some(run.lane),
                metadata: Some(&run.metadata),
                duration_ms: run.finished_at.map(|finished| finished.since(run.created_at)),
                finish_reason: run.finish_reason.as_deref(),
                usage: Some(UsageBody::new(run.usage, run.cost_nano_usd)),
            },
        }
    }
}
