//! `prompt-manager webhook` and `prompt-manager secrets`.

use std::io::{self, Write};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sea_orm::DatabaseConnection;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;
use workers::{
    job::{AccountId, DeliveryId, RunId, UnixMillis},
    ledger::{Delivery, DeliveryState, Ledger, Redelivery, Try},
};

use super::{
    account::show_moment,
    error::CliError,
    id,
    output::{Output, table},
};
use crate::{
    accounts::Accounts,
    audit::{self, Actor},
    changes::Changes,
    config::Config,
    db::StoreError,
    webhooks::{SecretRecord, SecretState, SigningSecret, Webhooks},
};

#[derive(Debug, clap::Subcommand)]
pub enum WebhookCommand {
    /// Manage the secrets that sign what an account is told
    Secret {
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// List what an account was told, or is to be, newest first
    Deliveries {
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
        /// Only those in this state
        #[arg(long, value_parser = state_parser())]
        state: Option<DeliveryState>,
        /// Show so many at most
        #[arg(long, default_value_t = 100, value_name = "NUMBER")]
        limit: u64,
    },
    /// Call a webhook again, whatever became of it before
    Redeliver {
        /// The delivery's id, as `webhook deliveries` shows it
        #[arg(value_parser = id::<DeliveryId>)]
        id: DeliveryId,
    },
}

#[derive(Debug, clap::Subcommand)]
pub enum SecretCommand {
    /// Make an account's secret and print it, this once
    Create {
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
    },
    /// Replace an account's secret and print the new one, this once; the old one signs beside it for a while
    Rotate {
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
    },
    /// List an account's secrets, hidden
    List {
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub enum SecretsCommand {
    /// Seal all stored secrets again with the first key of PROMPT_MANAGER_SECRET_KEY
    Rotate,
}

pub async fn run(
    command: WebhookCommand,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let accounts = Accounts::new(db.clone(), Changes::unwatched());
    let webhooks = open(db, config);
    match command {
        WebhookCommand::Secret { command } => secret(command, &accounts, &webhooks, output).await,
        WebhookCommand::Deliveries { account, state, limit } => {
            let account = accounts.named(&account).await?;
            let deliveries = webhooks.outbox().of(account.id, None, state, limit).await?;
            let mut views = Vec::with_capacity(deliveries.len());
            for delivery in &deliveries {
                // People see one line a delivery; programs may want its history.
                let tries = if output.json { webhooks.outbox().tries(delivery.id).await? } else { Vec::new() };
                views.push(DeliveryView {
                    attempts: tries.iter().map(AttemptView::of).collect(),
                    ..DeliveryView::of(delivery)
                });
            }
            output.emit(&views, || list(&deliveries))
        }
        WebhookCommand::Redeliver { id } => {
            // A server with an embedded queue keeps its clock to itself; it begins with that of this machine.
            match webhooks.outbox().redeliver(None, id, UnixMillis::now()).await? {
                Redelivery::Queued(delivery) => {
                    note(db, &delivery).await?;
                    let tries = webhooks.outbox().tries(id).await?;
                    let attempts = tries.iter().map(AttemptView::of).collect();
                    let view = DeliveryView { attempts, ..DeliveryView::of(&delivery) };
                    output.emit(&view, || format!("delivery {id} is sent again"))
                }
                Redelivery::NotFound => Err(CliError::Refused(format!("there is no delivery {id}"))),
            }
        }
    }
}

/// `prompt-manager secrets`.
pub async fn run_secrets(
    command: SecretsCommand,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let SecretsCommand::Rotate = command;
    let done = open(db, config).reseal(&Actor::cli()).await?;
    let view = json!({ "resealed": done.resealed, "current": done.current, "unopened": done.unopened });
    output.emit(&view, || {
        format!("{} sealed again, {} were sealed with the first key before", done.resealed, done.current)
    })?;
    if done.unopened > 0 {
        let sentence =
            "were sealed with a key that is not configured, and left as they are; put that key behind the others";
        return Err(CliError::Refused(format!("{} secret(s) {sentence}", done.unopened)));
    }
    Ok(())
}

fn open(db: &DatabaseConnection, config: &Config) -> Webhooks {
    Webhooks::new(db.clone(), Ledger::new(db.clone()), config, Changes::unwatched())
}

async fn secret(
    command: SecretCommand,
    accounts: &Accounts,
    webhooks: &Webhooks,
    output: Output,
) -> Result<(), CliError> {
    match command {
        SecretCommand::Create { account } => {
            let account = accounts.named(&account).await?.id;
            show_once(&webhooks.create_secret(&Actor::cli(), account).await?, output)
        }
        SecretCommand::Rotate { account } => {
            let account = accounts.named(&account).await?.id;
            show_once(&webhooks.rotate_secret(&Actor::cli(), account).await?, output)
        }
        SecretCommand::List { account } => {
            let records = webhooks.secrets(accounts.named(&account).await?.id).await?;
            let now = UnixMillis::now();
            let views: Vec<_> = records.iter().map(|record| SecretView::of(record, now, None)).collect();
            let rows = || {
                views.iter().map(|view| {
                    let until = view.valid_until.clone().unwrap_or_default();
                    [view.id.to_string(), view.state.to_owned(), view.created_at.clone(), until, view.key_id.to_owned()]
                })
            };
            output.emit(&views, || match views.is_empty() {
                true => String::new(),
                false => table(["ID", "STATE", "CREATED", "SIGNS UNTIL", "SEALED BY"], rows()),
            })
        }
    }
}

fn show_once((record, secret): &(SecretRecord, SigningSecret), output: Output) -> Result<(), CliError> {
    let text = secret.expose();
    output.emit(&SecretView::of(record, record.created_at, Some(&text)), || text.clone())?;
    if !output.json {
        // The secret is out; whether anybody reads the advice changes nothing.
        let _ = writeln!(
            io::stderr(),
            "This secret is shown only once: give it to the receiver now. If it is lost, `webhook secret rotate` makes another."
        );
    }
    Ok(())
}

async fn note(db: &DatabaseConnection, delivery: &Delivery) -> Result<(), StoreError> {
    let (subject, detail) = (delivery.id.to_string(), json!({ "run": delivery.run }));
    let account = Some(delivery.account);
    let entry = audit::Entry { account, actor: &Actor::cli(), action: "webhook.redeliver", subject: &subject, detail };
    Ok(audit::append(db, entry).await?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SecretView<'a> {
    id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    state: &'static str,
    key_id: &'a str,
    created_at: String,
    valid_until: Option<String>,
}

impl<'a> SecretView<'a> {
    fn of(record: &'a SecretRecord, now: UnixMillis, secret: Option<&'a str>) -> Self {
        let state = match record.state(now) {
            SecretState::Active => "active",
            SecretState::Overlapping => "overlapping",
            SecretState::Expired => "expired",
        };
        Self {
            id: record.id,
            secret,
            state,
            key_id: &record.key_id,
            created_at: show_moment(record.created_at),
            valid_until: record.valid_until.map(show_moment),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeliveryView<'a> {
    id: DeliveryId,
    account_id: AccountId,
    run_id: RunId,
    event: &'a str,
    url: &'a str,
    state: &'static str,
    /// Failed calls of this round.
    failures: u32,
    created_at: String,
    next_attempt_at: Option<String>,
    finished_at: Option<String>,
    /// Every call that was recorded, in order.
    attempts: Vec<AttemptView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttemptView {
    at: String,
    duration_ms: u64,
    status: Option<u16>,
    error: Option<String>,
}

impl AttemptView {
    fn of(made: &Try) -> Self {
        let Try { at, duration_ms, status, error, .. } = made;
        Self { at: show_moment(*at), duration_ms: *duration_ms, status: *status, error: error.clone() }
    }
}

impl<'a> DeliveryView<'a> {
    fn of(delivery: &'a Delivery) -> Self {
        Self {
            id: delivery.id,
            account_id: delivery.account,
            run_id: delivery.run,
            event: &delivery.event,
            url: &delivery.url,
            state: delivery.state.as_str(),
            failures: delivery.tries,
            created_at: show_moment(delivery.created_at),
            next_attempt_at: delivery.due_at.map(show_moment),
            finished_at: delivery.finished_at.map(show_moment),
            attempts: Vec::new(),
        }
    }
}

fn list(deliveries: &[Delivery]) -> String {
    let rows = deliveries.iter().map(|delivery| {
        [
            delivery.id.to_string(),
            delivery.run.to_string(),
            delivery.event.clone(),
            delivery.state.as_str().to_owned(),
            delivery.tries.to_string(),
            delivery.due_at.map_or_else(String::new, show_moment),
            delivery.url.clone(),
        ]
    });
    if deliveries.is_empty() {
        String::new()
    } else {
        table(["ID", "RUN", "EVENT", "STATE", "FAILURES", "NEXT", "URL"], rows)
    }
}

fn state_parser() -> impl TypedValueParser<Value = DeliveryState> {
    PossibleValuesParser::new(DeliveryState::ALL.map(DeliveryState::as_str)).map(|word| {
        // The parser lets no other word through.
        word.parse().unwrap_or(DeliveryState::Pending)
    })
}
