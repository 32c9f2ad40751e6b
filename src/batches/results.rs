//! The results of a batch, page by page: lines joined with their runs.

use std::{collections::HashMap, sync::Arc};

use workers::{
    RunView,
    job::{AccountId, RunId},
};

use super::{BatchError, BatchId, Inner, table::lines::Model};

/// Lines that are read at a time: outputs can be large.
const PAGE: u64 = 100;

/// A line that has ended.
#[derive(Clone, Debug)]
pub struct LineResult {
    /// From 0, over the lines that are not blank.
    pub index: u32,
    /// From 1, over all lines of the body.
    pub line: u32,
    pub ended: EndedLine,
}

/// How it ended.
#[derive(Clone, Debug)]
pub enum EndedLine {
    /// Its run ended; without attempts.
    Run(Box<RunView>),
    /// It became no run.
    Refused { code: String, sentence: String },
    /// It was cancelled before it became a run.
    Cancelled,
}

/// A place in the results.
pub struct Results {
    inner: Arc<Inner>,
    account: AccountId,
    id: BatchId,
    after: Option<i32>,
    /// Read before anything is answered, so that a store that fails is told as an error.
    first: Option<Vec<LineResult>>,
}

impl Results {
    pub(super) async fn open(
        inner: Arc<Inner>,
        account: AccountId,
        id: BatchId,
        after: Option<u32>,
    ) -> Result<Self, BatchError> {
        let after = after.map(|after| i32::try_from(after).unwrap_or(i32::MAX));
        let mut results = Self { inner, account, id, after, first: None };
        results.first = Some(results.read().await?);
        Ok(results)
    }

    /// The next lines; none when there are no more by now.
    pub async fn page(&mut self) -> Result<Vec<LineResult>, BatchError> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Vec<LineResult>, BatchError> {
        let lines = self.inner.store.ended(self.id, self.after, PAGE).await?;
        let Some(last) = lines.last() else { return Ok(Vec::new()) };
        self.after = Some(last.line_index);
        let runs: Vec<RunId> = lines.iter().filter_map(|line| line.run.map(RunId)).collect();
        let records = self.inner.engine.records(self.account, &runs).await.map_err(crate::run::RunError::from)?;
        let mut records: HashMap<RunId, RunView> = records.into_iter().map(|record| (record.id, record)).collect();
        Ok(lines.into_iter().map(|line| result(line, &mut records)).collect())
    }
}

fn result(line: Model, records: &mut HashMap<RunId, RunView>) -> LineResult {
    let record = line.run.and_then(|run| records.remove(&RunId(run)));
    let ended = match (record, line.error_code) {
        (Some(record), _) => EndedLine::Run(Box::new(record)),
        (None, Some(code)) => EndedLine::Refused { code, sentence: line.error_message.unwrap_or_default() },
        (None, None) => EndedLine::Cancelled,
    };
    let number = |column: i32| u32::try_from(column).unwrap_or_default();
    LineResult { index: number(line.line_index), line: number(line.line_number), ended }
}
