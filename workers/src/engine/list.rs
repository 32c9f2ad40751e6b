//! The runs of an account as a list: the ledger's, with what the queue knows of those that have not ended.

use futures::future::try_join_all;

use super::{Engine, RunView};
use crate::{
    job::{AccountId, RunId, RunState},
    ledger::{LedgerError, RunFilter},
};

/// How many rows are looked at for one page, in pages of the asked size: only the queue knows which of the runs that have not ended has a worker,
/// and those of the wrong kind are passed over.
const MOST_PAGES: usize = 10;

/// Some runs, newest first.
#[derive(Debug)]
pub struct Page {
    pub runs: Vec<RunView>,
    /// Where the next page begins: before this run. `None` when there is none.
    pub next: Option<RunId>,
}

impl Engine {
    /// Runs of an account before `before`, newest first, without their outputs. A page may hold fewer than `limit` and still not be the last.
    pub async fn list(
        &self,
        account: AccountId,
        filter: &RunFilter,
        mut before: Option<RunId>,
        limit: usize,
    ) -> Result<Page, LedgerError> {
        let mut runs = Vec::with_capacity(limit);
        for _ in 0..MOST_PAGES {
            let wanted = limit - runs.len();
            let rows = self.0.ledger.list(account, filter, before, wanted as u64).await?;
            let is_last = rows.len() < wanted;
            before = rows.last().map(|row| row.id).or(before);
            let views = try_join_all(rows.into_iter().map(async |row| {
                if row.state.is_terminal() {
                    return Ok(row);
                }
                let view = self.find(account, row.id).await?.unwrap_or(row);
                Ok::<_, LedgerError>(RunView { output: None, ..view })
            }));
            let wrong = |state: RunState| filter.state.is_some_and(|wanted| wanted != state);
            runs.extend(views.await?.into_iter().filter(|view| !wrong(view.state)));
            if is_last {
                return Ok(Page { runs, next: None });
            }
            if runs.len() >= limit {
                break;
            }
        }
        Ok(Page { runs, next: before })
    }
}
