//! One batch, fed: lines become runs, runs that have ended end their lines.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use workers::job::{AccountId, RunId, RunState};

use super::{STEP, answered};
use crate::{
    batches::{
        BatchId, Inner,
        store::{CLAIM, Claimed, Refused},
        table::{BatchState, FedLine, LineState, Work},
        upload,
    },
    db::StoreError,
    keys::Principal,
    run::{RunError, Runner},
};

/// Lines that are handed out in one go, unless their bodies are large, and accepted at a time: as many as the ledger inserts in one transaction.
const CHUNK: usize = 256;
/// Lines of a cancelled batch that end in one transaction.
const CANCEL_CHUNK: i32 = 5_000;
/// Runs that are ended at a time.
const CANCELS: usize = 16;
/// When a run that did not end is told again.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// How soon the runs of a batch are looked at again: at first, and when nothing moves.
const SOON: Duration = Duration::from_millis(50);
const AT_LAST: Duration = Duration::from_secs(1);
/// How long lines are handed out without a look at what has ended.
const LONG: Duration = Duration::from_millis(200);
/// How long a line waits at most before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// When the claim is renewed, if no other change did it.
const RENEW: Duration = Duration::from_secs(5);
/// Why a feeder leaves a batch.
pub(super) enum Left {
    /// Another front door has it, or it has finished.
    Lost,
    Failed(String),
}

impl From<StoreError> for Left {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// One batch, fed by this front door.
pub(super) struct Feeder {
    inner: Arc<Inner>,
    id: BatchId,
    /// Runs that have not ended, as far as is known.
    open: BTreeMap<RunId, Open>,
    /// Runs that were told to end, and when.
    told: HashMap<RunId, Instant>,
    /// Before the last change that renewed the claim.
    claimed_at: Instant,
    /// When lines are handed out again, after one had to wait.
    hold_until: Option<Instant>,
}

struct Open {
    index: i32,
    /// What is left to do before the run is accepted.
    line: Option<Arc<FedLine>>,
}

/// What became of a line that was handed out.
enum Handed {
    Accepted,
    Refused(Refused),
    Later(Duration),
}

impl Open {
    fn of(line: FedLine) -> Self {
        Self { index: line.index, line: Some(Arc::new(line)) }
    }
}

impl Feeder {
    /// The claim was just taken.
    pub(super) fn new(inner: Arc<Inner>, id: BatchId) -> Self {
        let (open, told) = (BTreeMap::new(), HashMap::new());
        Self { inner, id, open, told, claimed_at: Instant::now(), hold_until: None }
    }

    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Result<(), Left> {
        self.take_over().await?;
        let mut pause = SOON;
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            self.renew().await?;
            let work = answered(self.inner.store.work(self.id)).await?.ok_or(Left::Lost)?;
            if work.finished {
                return Ok(());
            }
            let mut moved = self.settle().await?;
            moved |= match work.state {
                BatchState::Running => self.hand_out(&work).await?,
                _ => self.cancel(work.account).await?,
            };
            pause = if moved { SOON } else { (pause * 2).min(AT_LAST) };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.inner.news.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Learns what the feeder before this one left.
    async fn take_over(&mut self) -> Result<(), Left> {
        let fed = answered(self.inner.store.fed(self.id)).await?;
        let runs: Vec<RunId> = fed.iter().map(|(_, run)| *run).collect();
        let accepted: HashSet<RunId> = self.states(&runs).await?.into_iter().map(|(run, _)| run).collect();
        let missing: Vec<i32> =
            fed.iter().filter(|(_, run)| !accepted.contains(run)).map(|(index, _)| *index).collect();
        self.open = fed.into_iter().map(|(index, run)| (run, Open { index, line: None })).collect();
        for line in answered(self.inner.store.bodies(self.id, &missing)).await? {
            self.open.insert(line.run, Open::of(line));
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Left> {
        if self.claimed_at.elapsed() < RENEW {
            return Ok(());
        }
        let at = Instant::now();
        let claimed = answered(self.inner.store.claim(self.id, self.inner.engine.now())).await?;
        self.ours(claimed, at)
    }

    fn ours(&mut self, claimed: Claimed, at: Instant) -> Result<(), Left> {
        match claimed {
            Claimed::Ours => {
                self.claimed_at = at;
                Ok(())
            }
            Claimed::Lost => Err(Left::Lost),
        }
    }

    async fn states(&self, runs: &[RunId]) -> Result<Vec<(RunId, RunState)>, Left> {
        self.inner.engine.states(runs).await.map_err(|error| Left::Failed(error.to_string()))
    }

    /// Ends the lines whose runs have ended. Whether there were any.
    async fn settle(&mut self) -> Result<bool, Left> {
        let accepted = self.open.iter().filter(|(_, open)| open.line.is_none());
        let runs: Vec<RunId> = accepted.map(|(run, _)| *run).collect();
        let states = self.states(&runs).await?;
        let ended = states.into_iter().filter_map(|(run, state)| Some((run, LineState::of(state)?)));
        let ended: Vec<(RunId, LineState)> = ended.collect();
        self.end(&ended).await?;
        Ok(!ended.is_empty())
    }

    async fn end(&mut self, ended: &[(RunId, LineState)]) -> Result<(), Left> {
        if ended.is_empty() {
            return Ok(());
        }
        let lines: Vec<_> = ended.iter().filter_map(|(run, state)| Some((self.open.get(run)?.index, *state))).collect();
        let at = Instant::now();
        let settled = answered(self.inner.store.settle(self.id, &lines, self.inner.engine.now())).await?;
        self.ours(settled, at)?;
        for (run, _) in ended {
            self.open.remove(run);
            self.told.remove(run);
        }
        Ok(())
    }

    /// Accepts lines as runs, as far as there is room. Whether any line moved.
    async fn hand_out(&mut self, work: &Work) -> Result<bool, Left> {
        let (mut moved, began) = (false, Instant::now());
        loop {
            if self.hold_until.is_some_and(|until| Instant::now() < until) {
                return Ok(moved);
            }
            self.hold_until = None;
            if self.open.values().all(|open| open.line.is_none()) && !self.assign().await? {
                return Ok(moved);
            }
            moved |= self.accept(work).await?;
            // Whoever feeds many lines in a row looks at what has ended in between.
            if began.elapsed() > LONG {
                return Ok(true);
            }
        }
    }

    /// Chooses the runs of the next lines; `false` when none waits, or there is no room.
    async fn assign(&mut self) -> Result<bool, Left> {
        let room = self.inner.settings.max_in_flight.saturating_sub(self.open.len());
        if room == 0 {
            return Ok(false);
        }
        let at = Instant::now();
        let assigned = answered(self.inner.store.assign(self.id, room.min(CHUNK), self.inner.engine.now())).await?;
        let lines = assigned.ok_or(Left::Lost)?;
        if lines.is_empty() {
            // Nothing was written, the claim neither.
            return Ok(false);
        }
        self.claimed_at = at;
        self.open.extend(lines.into_iter().map(|line| (line.run, Open::of(line))));
        Ok(true)
    }

    /// Accepts the lines whose runs were chosen. Whether any was accepted or refused.
    async fn accept(&mut self, work: &Work) -> Result<bool, Left> {
        let began = Instant::now();
        let principal = answered(self.inner.keys.holder(work.key)).await?;
        let lines: Vec<Arc<FedLine>> = self.open.values().filter_map(|open| open.line.clone()).collect();
        // Limits are taken one by one, so that the first line that has to wait holds back the others; what is not reached soon goes on with the next look.
        let limits = &self.inner.runner.limits();
        let at_once =
            if limits.account_requests_per_minute.or(limits.key_requests_per_minute).is_some() { 1 } else { CHUNK };
        let (runner, principal, until) = (&self.inner.runner, principal.as_ref(), self.claimed_at + CLAIM - STEP / 4);
        let mut handed = stream::iter(lines)
            .map(async |line| (line.run, hand(runner, principal, &line, until).await))
            .buffer_unordered(at_once);
        let (mut accepted, mut refused, mut wait) = (Vec::new(), Vec::new(), None);
        while let Some((run, handed)) = handed.next().await {
            match handed {
                Handed::Accepted => accepted.push(run),
                Handed::Refused(line) => refused.push((run, line)),
                Handed::Later(after) => wait = wait.max(Some(after)),
            }
            if at_once == 1 && (wait.is_some() || began.elapsed() > LONG) {
                break;
            }
        }
        drop(handed);
        for run in &accepted {
            if let Some(open) = self.open.get_mut(run) {
                open.line = None;
            }
        }
        let moved = !accepted.is_empty() || !refused.is_empty();
        if !refused.is_empty() {
            let (runs, lines): (Vec<RunId>, Vec<Refused>) = refused.into_iter().unzip();
            let at = Instant::now();
            let told = answered(self.inner.store.refuse(self.id, &lines, self.inner.engine.now())).await?;
            self.ours(told, at)?;
            for run in runs {
                self.open.remove(&run);
            }
        }
        self.hold_until = wait.map(|after| Instant::now() + after.clamp(SOON, TRY_AGAIN));
        Ok(moved)
    }

    /// Ends everything of a cancelled batch. Whether anything moved.
    async fn cancel(&mut self, account: AccountId) -> Result<bool, Left> {
        let at = Instant::now();
        let left = answered(self.inner.store.cancel_waiting(self.id, CANCEL_CHUNK, self.inner.engine.now())).await?;
        let more = left.ok_or(Left::Lost)?;
        if more {
            // Otherwise nothing may have been written.
            self.claimed_at = at;
        }
        let unborn = self.open.iter().filter(|(_, open)| open.line.is_some());
        let unborn: Vec<(RunId, LineState)> = unborn.map(|(run, _)| (*run, LineState::Cancelled)).collect();
        self.end(&unborn).await?;
        let is_due = |run: &RunId| self.told.get(run).is_none_or(|told| told.elapsed() > TELL_AGAIN);
        // The newest first: they wait, and would take the slots that the others leave.
        let runs: Vec<RunId> = self.open.keys().rev().filter(|run| is_due(run)).take(CANCELS * 8).copied().collect();
        let engine = &self.inner.engine;
        let told: Vec<(RunId, bool)> = stream::iter(runs)
            .map(async |run| (run, engine.cancel(account, run).await.is_ok()))
            .buffer_unordered(CANCELS)
            .collect()
            .await;
        let moved = more || !unborn.is_empty() || told.iter().any(|(_, told)| *told);
        self.told.extend(told.into_iter().filter(|(_, told)| *told).map(|(run, _)| (run, Instant::now())));
        Ok(moved)
    }
}

/// Hands one line out. Not after `until`: another front door may have the batch then, and its runs may have ended and been forgotten.
async fn hand(runner: &Runner, principal: Option<&Principal>, line: &FedLine, until: Instant) -> Handed {
    let number = u32::try_from(line.number).unwrap_or_default();
    let refused =
        |code: &str, sentence: String| Handed::Refused(Refused { index: line.index, code: code.to_owned(), sentence });
    let Some(principal) = principal else {
        return refused("invalid_api_key", "The API key of this batch is revoked or has expired".to_owned());
    };
    let request = match upload::read(line.body.as_bytes(), number) {
        Ok(request) => request,
        Err(refusal) => return refused(refusal.code, refusal.sentence),
    };
    if Instant::now() > until {
        return Handed::Later(SOON);
    }
    match runner.feed(principal, line.run, request).await {
        Ok(()) => Handed::Accepted,
        Err(error) => match error.retry_after() {
            Some(after) => {
                tracing::debug!(run = %line.run, %error, "a line waits");
                Handed::Later(after)
            }
            None => {
                if let RunError::Internal(source) = &error {
                    tracing::error!(run = %line.run, error = %source, "a line failed");
                }
                refused(error.code(), error.to_string())
            }
        },
    }
}
