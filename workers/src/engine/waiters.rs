//! Who waits in this process: for which ending, for which events.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{inbox::Inbox, rows::Rows},
    fail,
    job::{Ending, Event, Job, Logged, RunId},
    ledger::Ledger,
    queue::Reply,
};

/// How often the ledger is asked for endings whose message may have been lost.
const SWEEP: Duration = Duration::from_secs(2);
/// Runs that the ledger is asked about at a time.
const PAGE: usize = 500;

#[derive(Default)]
pub(super) struct Waiters {
    waiting: Mutex<HashMap<RunId, Vec<Waiting>>>,
    next: AtomicU64,
    /// What is not in the ledger yet of runs that were accepted here.
    pub rows: Arc<Rows>,
    /// Told when messages may have been lost.
    missed: tokio::sync::Notify,
}

struct Waiting {
    id: u64,
    since: Instant,
    told: Told,
}

/// What somebody who waits is told.
enum Told {
    Ending(oneshot::Sender<Box<Ending>>),
    Events(Inbox),
}

/// A place among those who wait, given up when it is dropped.
pub(super) struct Registration {
    run: RunId,
    id: u64,
    waiters: Arc<Waiters>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        if let Some(list) = waiting.get_mut(&self.run) {
            list.retain(|waiting| waiting.id != self.id);
            if list.is_empty() {
                waiting.remove(&self.run);
            }
        }
    }
}

/// The ending to come. Dropping it stops waiting, and changes nothing about the run.
pub struct Waiter {
    ending: oneshot::Receiver<Box<Ending>>,
    _registration: Registration,
}

impl Waiter {
    /// The ending of the run. Pending for as long as the run is; bound it with the run's deadline. To be awaited until it answers,
    /// once; a call that was dropped before that may be repeated.
    pub async fn ending(&mut self) -> Box<Ending> {
        match (&mut self.ending).await {
            Ok(ending) => ending,
            // The sender goes only with the whole engine: there is nothing left to wait for.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Waiters {
    pub fn register(self: &Arc<Self>, run: RunId) -> Waiter {
        let (sender, ending) = oneshot::channel();
        Waiter { ending, _registration: self.enter(run, Told::Ending(sender)) }
    }

    /// Brings the events of a run to an inbox.
    pub(super) fn follow(self: &Arc<Self>, run: RunId, inbox: Inbox) -> Registration {
        self.enter(run, Told::Events(inbox))
    }

    fn enter(self: &Arc<Self>, run: RunId, told: Told) -> Registration {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().entry(run).or_default().push(Waiting { id, since: Instant::now(), told });
        Registration { run, id, waiters: self.clone() }
    }

    /// Has the row of a run written that somebody waits for here, unless it ends soon; or has ended by now.
    pub fn hold_row(&self, job: Arc<Job>) {
        let waiting = self.lock();
        if waiting.contains_key(&job.id) {
            self.rows.hold(job);
        }
    }

    /// Those who wait for a run that has ended. Whoever ended it writes its row.
    fn take(&self, run: RunId) -> Vec<Waiting> {
        let waiting = self.lock().remove(&run).unwrap_or_default();
        self.rows.let_go(run);
        waiting
    }

    pub fn end(&self, ending: Box<Ending>) {
        for_each_with(self.take(ending.run), ending, |waiting, ending| match waiting.told {
            // A waiter that left in this moment needs no ending.
            Told::Ending(sender) => drop(sender.send(ending)),
            Told::Events(inbox) => inbox.end(ending),
        });
    }

    fn happened(&self, run: RunId, Logged { seq, event }: Logged) {
        match event {
            // Those who follow find it in their inbox, with its number; the others need the ending only.
            Event::Ended(ending) => for_each_with(self.take(run), ending, |waiting, ending| match waiting.told {
                Told::Ending(sender) => drop(sender.send(ending)),
                Told::Events(inbox) => inbox.push(Logged { seq, event: Event::Ended(ending) }),
            }),
            event => {
                let waiting = self.lock();
                let inboxes = waiting.get(&run).into_iter().flatten().filter_map(|waiting| match &waiting.told {
                    Told::Events(inbox) => Some(inbox),
                    Told::Ending(_) => None,
                });
                for_each_with(inboxes, event, |inbox, event| inbox.push(Logged { seq, event }));
            }
        }
    }

    /// Events may have been lost on their way to this process.
    fn missed(&self) {
        for waiting in self.lock().values().flatten() {
            if let Told::Events(inbox) = &waiting.told {
                inbox.miss();
            }
        }
        self.missed.notify_one();
    }

    /// Runs that were waited for since before `moment`.
    fn since_before(&self, moment: Instant) -> Vec<RunId> {
        let waiting = self.lock();
        let old = waiting.iter().filter(|(_, list)| list.iter().any(|waiting| waiting.since < moment));
        old.map(|(run, _)| *run).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Vec<Waiting>>> {
        // Nothing panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something for each with a value of its own; the only one, or the last, gets the value itself.
fn for_each_with<I, V: Clone>(each: impl IntoIterator<Item = I>, value: V, mut tell: impl FnMut(I, V)) {
    let mut each = each.into_iter().peekable();
    while let Some(one) = each.next() {
        if each.peek().is_none() {
            return tell(one, value);
        }
        tell(one, value.clone());
    }
}

/// Hands endings to their waiters as they are sent. It waits for nobody: what is sent meanwhile gathers before it.
pub(super) async fn listen(waiters: Arc<Waiters>, mut replies: mpsc::Receiver<Reply>) {
    while let Some(reply) = replies.recv().await {
        match reply {
            Reply::Ended(ending) => {
                fail::point("reply.before").await;
                waiters.end(ending);
                fail::point("reply.after").await;
            }
            Reply::Event(run, logged) => waiters.happened(run, logged),
            Reply::Resumed => waiters.missed(),
        }
    }
}

/// Finds endings whose message was lost, in the ledger: at once after a broken connection, and now and then in any case.
pub(super) async fn sweep(waiters: Arc<Waiters>, ledger: Ledger, stop: CancellationToken) {
    loop {
        let overdue = tokio::select! {
            () = stop.cancelled() => return,
            () = waiters.missed.notified() => Instant::now(),
            () = tokio::time::sleep(SWEEP) => Instant::now() - SWEEP,
        };
        for runs in waiters.since_before(overdue).chunks(PAGE) {
            match ledger.endings(runs).await {
                Ok(endings) => endings.into_iter().for_each(|ending| waiters.end(Box::new(ending))),
                Err(error) => tracing::debug!(%error, "outstanding runs cannot be looked up"),
            }
        }
    }
}
