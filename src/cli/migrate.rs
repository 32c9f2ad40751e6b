//! `prompt-manager migrate`: brings the schema of the database up to this version, or says whether it is.

use sea_orm::DatabaseConnection;
use serde::Serialize;

use super::{error::CliError, output::Output};
use crate::{
    config::Config,
    db::{self, SchemaState},
    node::NodeError,
};

#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    /// Only say whether the schema is current; exit code 1 when it is not
    #[arg(long)]
    status: bool,
}

/// What `migrate` reports.
#[derive(Serialize)]
#[serde(tag = "schema", rename_all = "snake_case")]
enum Report {
    Current {
        /// Steps that this command applied.
        applied: Vec<String>,
    },
    Behind {
        pending: Vec<String>,
    },
    Ahead {
        unknown: Vec<String>,
    },
}

pub async fn run(config: &Config, args: MigrateArgs, output: Output) -> Result<(), CliError> {
    let database = db::connect(&config.database).await?;
    let result = check_or_migrate(&database, args, output).await;
    close_database(database).await;
    result
}

async fn check_or_migrate(database: &DatabaseConnection, args: MigrateArgs, output: Output) -> Result<(), CliError> {
    let state = db::schema_state(database).await?;
    if args.status {
        return status(state, output);
    }
    // `migrate` itself refuses a schema that is ahead.
    db::migrate(database).await?;
    let applied = match state {
        SchemaState::Behind { pending } => pending,
        SchemaState::Current | SchemaState::Ahead { .. } => Vec::new(),
    };
    output.emit(&Report::Current { applied: applied.clone() }, || match applied.as_slice() {
        [] => "the database was current already".to_owned(),
        applied => format!("applied {}", applied.join(", ")),
    })
}

fn status(state: SchemaState, output: Output) -> Result<(), CliError> {
    match state {
        SchemaState::Current => {
            output.emit(&Report::Current { applied: Vec::new() }, || "the database is current".to_owned())
        }
        SchemaState::Behind { pending } => {
            output.emit(&Report::Behind { pending: pending.clone() }, || pending.join("\n"))?;
            Err(NodeError::Behind { pending: pending.len() }.into())
        }
        SchemaState::Ahead { unknown } => {
            output.emit(&Report::Ahead { unknown: unknown.clone() }, || unknown.join("\n"))?;
            Err(NodeError::Ahead.into())
        }
    }
}

/// Closes the database, so that SQLite folds its log back into the one file that people copy.
pub async fn close_database(database: DatabaseConnection) {
    if let Err(error) = database.close().await {
        tracing::debug!(%error, "the database was not closed");
    }
}
