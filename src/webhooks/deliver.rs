//! The task that empties the outbox: one in each front door.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use workers::{
    Engine, RunView,
    job::{AccountId, UnixMillis},
    ledger::{Claimed, Delivery, LedgerError, Try},
};

use super::{
    Webhooks,
    schedule::{self, Outcome},
    send::{Message, Sender},
    signature,
};
use crate::db::StoreError;

/// How often an outbox in which nothing was due is looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// Calls at a time.
const SLOTS: usize = 64;
/// Calls at a time for one account, beyond which no more is taken of it: its receiver may be slow, and others wait.
const SLOTS_OF_AN_ACCOUNT: usize = 16;
/// Taken at a time.
const BATCH: u64 = 8;
/// How long calls under way may take once the process stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a run's status is, as the API shows it.
pub type Status = fn(&RunView) -> Box<RawValue>;

/// Sends what is due. Cheap to clone.
#[derive(Clone)]
pub struct Deliverer {
    webhooks: Webhooks,
    /// For its clock: processes that share an outbox share the queue's.
    engine: Engine,
    sender: Sender,
    status: Status,
}

/// The body: what happened, when, and the run's status.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    name: &'a str,
    timestamp: String,
    data: &'a RawValue,
}

/// Why a delivery was not tried: it is left as it was.
#[derive(Debug, thiserror::Error)]
enum Postponed {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Deliverer {
    pub fn new(webhooks: Webhooks, engine: Engine, status: Status) -> Result<Self, reqwest::Error> {
        let sender = Sender::new(webhooks.guard.clone(), webhooks.settings.timeout)?;
        Ok(Self { webhooks, engine, sender, status })
    }

    /// Delivers until `stop`. Whoever calls owns the task, and joins it after `stop`.
    pub fn start(self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            if self.webhooks.ring.is_empty() {
                // It could sign nothing. Another process may be able to, and has the outbox to itself.
                return;
            }
            let mut calls = Calls::default();
            self.run(&mut calls, &stop).await;
            self.say_goodbye(calls).await;
        })
    }

    async fn run(&self, calls: &mut Calls, stop: &CancellationToken) {
        let mut failing = false;
        loop {
            let more = match self.take(calls).await {
                Ok(more) => {
                    failing = false;
                    more
                }
                Err(error) => {
                    // One line tells of an outage, however long it is.
                    if !failing {
                        tracing::warn!(%error, "the outbox of webhooks cannot be read; it is tried again until it can");
                    }
                    failing = true;
                    false
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = calls.tasks.join_next_with_id() => calls.end(ended),
                () = sleep(PERIOD), if !more => {}
                () = std::future::ready(()), if more => {}
            }
        }
    }

    /// Takes what is due and begins to send it. Whether there may be more, and room for it.
    async fn take(&self, calls: &mut Calls) -> Result<bool, LedgerError> {
        let free = SLOTS.saturating_sub(calls.tasks.len());
        let outbox = self.webhooks.outbox();
        if free == 0 || !outbox.is_due(self.engine.now()).await? {
            return Ok(false);
        }
        let limit = u64::try_from(free).unwrap_or(BATCH).min(BATCH);
        let claimed = outbox.claim(self.engine.now(), self.lease(), &calls.busy(), limit).await?;
        let taken = claimed.len();
        for claimed in claimed {
            let this = self.clone();
            let delivery = claimed.clone();
            let task = calls.tasks.spawn(async move { this.deliver(&delivery).await });
            calls.claimed.insert(task.id(), claimed);
        }
        Ok(taken > 0)
    }

    /// Long enough for a call and for writing down how it went.
    fn lease(&self) -> Duration {
        self.webhooks.settings.timeout * 2 + Duration::from_secs(1)
    }

    async fn deliver(&self, claimed: &Claimed) {
        let delivery = &claimed.delivery;
        let outbox = self.webhooks.outbox();
        let (at, started) = (self.engine.now(), Instant::now());
        let outcome = match self.call(delivery).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // The receiver was not called. The lease passes, which is pause enough.
                tracing::warn!(delivery = %delivery.id, run = %delivery.run, %error, "a webhook waits");
                return;
            }
        };
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let made = Try { id: Uuid::now_v7(), at, duration_ms, status: outcome.status(), error: outcome.error() };
        let verdict =
            schedule::next(&outcome, delivery, self.engine.now(), &self.webhooks.settings, rand::random::<f64>());
        match outbox.record(claimed, &made, verdict).await {
            Ok(true) => tracing::debug!(delivery = %delivery.id, run = %delivery.run, ?verdict, "a webhook was called"),
            Ok(false) => {
                tracing::info!(delivery = %delivery.id, "a webhook was called after its lease; it may be twice")
            }
            // It is sent again when the lease has passed.
            Err(error) => tracing::warn!(delivery = %delivery.id, %error, "a call of a webhook could not be recorded"),
        }
    }

    async fn call(&self, delivery: &Delivery) -> Result<Outcome, Postponed> {
        let Some(run) = self.webhooks.ledger.find(delivery.account, delivery.run).await? else {
            return Ok(Outcome::Impossible("the run is not stored any more".to_owned()));
        };
        // Receivers compare the moment with their own clocks, and secrets end by the wall clock, too.
        let now = UnixMillis::now();
        let secrets = match self.webhooks.signing(delivery.account, now).await {
            Ok(secrets) if secrets.is_empty() => {
                return Ok(Outcome::Unanswered("not sent: the account has no webhook secret".to_owned()));
            }
            Ok(secrets) => secrets,
            Err(StoreError::Refused(sentence)) => {
                tracing::error!(account = %delivery.account, reason = sentence, "webhooks of an account cannot be signed");
                return Ok(Outcome::Unanswered("not sent: the webhook secret cannot be read".to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        let (id, timestamp) = (delivery.id.to_string(), now.0.div_euclid(1_000));
        let body = body(delivery, &(self.status)(&run));
        let signatures = signature::signatures(&secrets, &id, timestamp, &body);
        Ok(self.sender.send(&delivery.url, Message { id, timestamp, signatures, body }).await)
    }

    /// Lets calls under way end, and gives back what did not, so that others need not wait for the lease.
    async fn say_goodbye(&self, mut calls: Calls) {
        let end = async {
            while let Some(ended) = calls.tasks.join_next_with_id().await {
                calls.end(ended);
            }
        };
        if timeout(FAREWELL, end).await.is_ok() {
            return;
        }
        calls.tasks.shutdown().await;
        for claimed in calls.claimed.values() {
            if let Err(error) = self.webhooks.outbox().release(claimed).await {
                tracing::debug!(%error, "a webhook is left to its lease");
                return;
            }
        }
    }
}

/// Calls under way.
#[derive(Default)]
struct Calls {
    tasks: JoinSet<()>,
    claimed: HashMap<Id, Claimed>,
}

impl Calls {
    fn end(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a call of a webhook failed; it is made again when its lease has passed");
                error.id()
            }
        };
        self.claimed.remove(&id);
    }

    fn busy(&self) -> Vec<AccountId> {
        let mut calls: HashMap<AccountId, usize> = HashMap::new();
        for claimed in self.claimed.values() {
            *calls.entry(claimed.delivery.account).or_default() += 1;
        }
        calls.into_iter().filter(|(_, calls)| *calls >= SLOTS_OF_AN_ACCOUNT).map(|(account, _)| account).collect()
    }
}

fn body(delivery: &Delivery, status: &RawValue) -> String {
    let timestamp = DateTime::from_timestamp_millis(delivery.created_at.0).unwrap_or_default();
    let timestamp = timestamp.to_rfc3339_opts(SecondsFormat::Millis, true);
    // Two texts and a document always serialise.
    serde_json::to_string(&Event { name: &delivery.event, timestamp, data: status }).unwrap_or_default()
}
