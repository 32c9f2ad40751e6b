//! `queue dead`: runs that ended as poison, which an operator starts again or gives up.
//!
//! They are rows of the ledger. A requeued run is committed there first: a process that dies before it is enqueued as well
//! leaves it to the reconciler, and a server with an embedded queue finds it in the same way, in half a minute or so.

use std::collections::HashMap;

use clap::Subcommand;
use sea_orm::DatabaseConnection;
use serde_json::json;
use workers::{
    job::{AccountId, RunId, UnixMillis},
    ledger::{DeadRun, Ledger},
    queue::{Queue, Submission},
};

use crate::{
    accounts::Accounts,
    audit::{self, Actor},
    changes::Changes,
    cli::{
        account::show_moment,
        error::CliError,
        id,
        output::{Output, table},
    },
    config::Config,
    db::StoreError,
    node,
};

#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List the dead runs that nobody has looked after, newest first
    List {
        /// Show so many at most
        #[arg(long, default_value_t = 100, value_name = "NUMBER")]
        limit: u64,
    },
    /// Start them again as new runs, with as much time as they had
    Requeue {
        /// The runs' ids
        #[arg(required = true, value_name = "ID", value_parser = id::<RunId>)]
        ids: Vec<RunId>,
    },
    /// Give them up: what they were to do is dropped, their history stays
    Discard {
        /// The runs' ids
        #[arg(required = true, value_name = "ID", value_parser = id::<RunId>)]
        ids: Vec<RunId>,
    },
}

pub(super) async fn run(
    command: DeadCommand,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let ledger = Ledger::new(db.clone());
    match command {
        DeadCommand::List { limit } => {
            let runs = ledger.dead(limit).await?;
            let accounts = Accounts::new(db.clone(), Changes::unwatched()).list().await?;
            let names = accounts.into_iter().map(|account| (account.id, account.name)).collect();
            let views: Vec<_> = runs.iter().map(|run| to_json(run, &names)).collect();
            output.emit(&views, || to_text(&runs, &names))
        }
        DeadCommand::Requeue { ids } => {
            let queue = match &config.redis {
                Some(_) => Some(node::open_redis(config, "`prompt-manager queue dead requeue`").await?),
                None => None,
            };
            for dead in ids {
                // A server with an embedded queue keeps its clock to itself; it begins with that of this machine.
                let now = queue.as_ref().map_or_else(UnixMillis::now, |queue| queue.now());
                let Some(job) = ledger.requeue(dead, now).await? else { return Err(not_dead(dead)) };
                let (run, account) = (job.id, job.account);
                note(db, "queue.dead.requeue", dead, Some(account), json!({ "run": run })).await?;
                if let Some(queue) = &queue {
                    // The run is committed: what this cannot enqueue, the reconciler does.
                    if let Err(error) = queue.enqueue(Submission { job, reply_to: None }, None).await {
                        tracing::warn!(%run, %error, "the new run waits until the queue is compared with the database");
                    }
                }
                output
                    .emit(&json!({ "runId": run, "requeuedFrom": dead }), || format!("requeued {dead} as {run}\n"))?;
            }
            Ok(())
        }
        DeadCommand::Discard { ids } => {
            for dead in ids {
                if !ledger.discard(dead).await? {
                    return Err(not_dead(dead));
                }
                note(db, "queue.dead.discard", dead, None, json!({})).await?;
                output.emit(&json!({ "discarded": dead }), || format!("discarded {dead}\n"))?;
            }
            Ok(())
        }
    }
}

fn not_dead(run: RunId) -> CliError {
    CliError::Refused(format!("run {run} is not dead, or was looked after before"))
}

async fn note(
    db: &DatabaseConnection,
    action: &'static str,
    run: RunId,
    account: Option<AccountId>,
    detail: serde_json::Value,
) -> Result<(), CliError> {
    let subject = run.to_string();
    let entry = audit::Entry { account, actor: &Actor::cli(), action, subject: &subject, detail };
    Ok(audit::append(db, entry).await.map_err(StoreError::from)?)
}

/// An account that is gone is shown by its id.
fn name_of(run: &DeadRun, names: &HashMap<AccountId, String>) -> String {
    names.get(&run.account).cloned().unwrap_or_else(|| run.account.to_string())
}

fn to_json(run: &DeadRun, names: &HashMap<AccountId, String>) -> serde_json::Value {
    json!({
        "runId": run.id,
        "account": name_of(run, names),
        "promptName": run.prompt_name,
        "promptVersion": run.prompt_version,
        "model": run.model,
        "createdAt": show_moment(run.created_at),
        "finishedAt": show_moment(run.finished_at),
        "attempts": run.attempts,
    })
}

fn to_text(runs: &[DeadRun], names: &HashMap<AccountId, String>) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let rows = runs.iter().map(|run| {
        [
            run.id.to_string(),
            name_of(run, names),
            format!("{} v{}", run.prompt_name, run.prompt_version),
            run.model.clone(),
            show_moment(run.finished_at),
            run.attempts.to_string(),
        ]
    });
    table(["ID", "ACCOUNT", "PROMPT", "MODEL", "DIED", "ATTEMPTS"], rows)
}
