//! A batch on its way in: its lines go to the database as they arrive, and nothing of it runs before its last one is there.

use std::sync::Arc;

use workers::job::AccountId;

use super::{
    BatchError, BatchId, BatchView, Inner,
    lines::{Line, Lines, TooLong},
    store::{Claimed, storable},
    table::{LineState, lines::Model},
};
use crate::run::{Answer, InvalidRequest, RunRequest};

/// Lines, and bytes of them, that are written in one transaction.
const CHUNK_LINES: usize = 1_000;
const CHUNK_BYTES: usize = 1 << 20;

/// A batch whose body is arriving. Dropping it before [`Receiving::finish`] leaves nothing behind.
pub struct Receiving {
    inner: Arc<Inner>,
    account: AccountId,
    id: BatchId,
    lines: Option<Lines>,
    bytes: u64,
    count: u32,
    chunk: Chunk,
    finished: bool,
}

#[derive(Default)]
struct Chunk {
    rows: Vec<Model>,
    bytes: usize,
    failed: i32,
}

impl Receiving {
    pub(super) fn new(inner: Arc<Inner>, account: AccountId, id: BatchId) -> Self {
        let lines = Some(Lines::new(inner.max_line_bytes));
        Self { inner, account, id, lines, bytes: 0, count: 0, chunk: Chunk::default(), finished: false }
    }

    /// Refuses a body that says how large it is, before it is sent.
    pub fn expect(&self, bytes: u64) -> Result<(), BatchError> {
        let max_bytes = self.inner.settings.max_bytes;
        if bytes > max_bytes { Err(BatchError::TooLarge { max_bytes }) } else { Ok(()) }
    }

    /// Takes the next bytes of the body.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.expect(self.bytes)?;
        if let Some(lines) = &mut self.lines {
            lines.push(bytes);
        }
        while let Some(line) = self.next_line()? {
            self.keep(line).await?;
        }
        Ok(())
    }

    /// The whole body is there: the batch runs.
    pub async fn finish(mut self) -> Result<BatchView, BatchError> {
        let last = self.lines.take().map(Lines::last).transpose();
        if let Some(line) = last.map_err(|error| self.too_long(error))?.flatten() {
            self.keep(line).await?;
        }
        if self.count == 0 {
            return Err(BatchError::Empty);
        }
        self.write().await?;
        held(self.inner.store.run(self.id, self.inner.engine.now()).await?)?;
        self.finished = true;
        self.inner.news.notify_waiters();
        self.inner.find(self.account, self.id).await
    }

    fn next_line(&mut self) -> Result<Option<Line>, BatchError> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        lines.next().map_err(|error| self.too_long(error))
    }

    fn too_long(&self, TooLong { number }: TooLong) -> BatchError {
        BatchError::LineTooLong { number, max_bytes: self.inner.max_line_bytes }
    }

    async fn keep(&mut self, line: Line) -> Result<(), BatchError> {
        let max = self.inner.settings.max_lines;
        if self.count >= max {
            return Err(BatchError::TooManyLines { max });
        }
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let row = Model {
            batch: self.id.0,
            line_index: number(self.count),
            line_number: number(line.number),
            state: LineState::Waiting.as_str().to_owned(),
            body: None,
            run: None,
            error_code: None,
            error_message: None,
        };
        self.chunk.bytes += line.bytes.len();
        self.chunk.rows.push(match read(&line.bytes, line.number) {
            // What was read as JSON is UTF-8.
            Ok(_) => Model { body: Some(String::from_utf8_lossy(&line.bytes).into_owned()), ..row },
            Err(Refusal { code, sentence }) => {
                self.chunk.failed += 1;
                let state = LineState::Failed.as_str().to_owned();
                Model { state, error_code: Some(code.to_owned()), error_message: Some(storable(&sentence)), ..row }
            }
        });
        self.count += 1;
        if self.chunk.rows.len() >= CHUNK_LINES || self.chunk.bytes >= CHUNK_BYTES {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), BatchError> {
        let Chunk { rows, failed, .. } = std::mem::take(&mut self.chunk);
        if rows.is_empty() {
            return Ok(());
        }
        held(self.inner.store.add(self.id, rows, failed, self.inner.engine.now()).await?)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let (inner, id) = (self.inner.clone(), self.id);
        self.inner.tasks.spawn(async move {
            if let Err(error) = inner.store.discard(id).await {
                tracing::warn!(batch = %id, %error, "an upload that broke off is dropped later");
            }
        });
    }
}

fn held(claimed: Claimed) -> Result<(), BatchError> {
    match claimed {
        Claimed::Ours => Ok(()),
        Claimed::Lost => Err(BatchError::GivenUp),
    }
}

/// Why a line is no run.
pub(super) struct Refusal {
    pub code: &'static str,
    pub sentence: String,
}

/// Reads the line of a batch: the body of a run, but for what only makes sense while somebody waits.
pub(super) fn read(line: &[u8], number: u32) -> Result<RunRequest, Refusal> {
    let refusal = |code, sentence| Refusal { code, sentence };
    match RunRequest::parse(line, Answer::Later) {
        Ok(request) if request.stream => {
            let sentence = format!("Line {number}: 'stream' must be false in a batch, not true");
            Err(refusal("invalid_request", sentence))
        }
        Ok(request) => Ok(request),
        Err(error) => Err(refusal(error.code(), sentence(&error, number))),
    }
}

fn sentence(error: &InvalidRequest, number: u32) -> String {
    match error {
        InvalidRequest::Empty => format!("Line {number} is empty; a JSON object is expected"),
        InvalidRequest::NotUtf8 { at } => format!("Line {number} is not UTF-8 (byte {at})"),
        InvalidRequest::NotJson { message, column, .. } => {
            format!("Line {number} is not valid JSON: {message} at column {column}")
        }
        InvalidRequest::NotAnObject { found } => format!("Line {number} must be a JSON object, not {found}"),
        InvalidRequest::Fields(_) => format!("Line {number}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_line_is_said_with_its_number() {
        let check = |line: &[u8], code: &str, sentence: &str| {
            let refusal = read(line, 7).map(|_| ()).unwrap_err();
            assert_eq!((refusal.code, refusal.sentence.as_str()), (code, sentence));
        };
        check(b"{", "invalid_json", "Line 7 is not valid JSON: EOF while parsing an object at column 1");
        check(b"{\"\xff\"}", "invalid_json", "Line 7 is not UTF-8 (byte 2)");
        check(b"[]", "invalid_request", "Line 7 must be a JSON object, not an array");
        let sentence = "Line 7: The request is not valid: 'promptName' is required and must be a string";
        check(b"{}", "invalid_request", sentence);
        let sentence = "Line 7: 'stream' must be false in a batch, not true";
        check(br#"{"promptName":"a","stream":true}"#, "invalid_request", sentence);
        assert!(read(br#"{"promptName":"a","priority":"interactive","onDisconnect":"cancel"}"#, 7).is_ok());
    }
}
