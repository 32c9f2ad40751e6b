//! `prompt-manager migrate`, and opening a database whose schema fits.

use sea_orm::DatabaseConnection;
use serde::Serialize;

use super::{error::CliError, output::Output};
use crate::{
    config::{Config, DatabaseConfig},
    db::{self, SchemaState},
};

#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    /// Only say whether the schema is current; exit code 1 when it is not.
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
            Err(behind(&pending))
        }
        SchemaState::Ahead { unknown } => {
            output.emit(&Report::Ahead { unknown: unknown.clone() }, || unknown.join("\n"))?;
            Err(ahead(&unknown))
        }
    }
}

/// Connects to a database whose schema is the one that this version needs.
///
/// A SQLite file belongs to this program alone and is migrated on the way; a PostgreSQL server may have other, older processes at work, so
/// that somebody decides about it with `prompt-manager migrate`.
pub async fn open_database(config: &DatabaseConfig) -> Result<DatabaseConnection, CliError> {
    let database = db::connect(config).await?;
    match db::schema_state(&database).await? {
        SchemaState::Current => Ok(database),
        SchemaState::Behind { .. } if config.url.expose().starts_with("sqlite:") => {
            db::migrate(&database).await?;
            Ok(database)
        }
        SchemaState::Behind { pending } => Err(behind(&pending)),
        SchemaState::Ahead { unknown } => Err(ahead(&unknown)),
    }
}

/// Closes the database, so that SQLite folds its log back into the one file that people copy.
pub async fn close_database(database: DatabaseConnection) {
    if let Err(error) = database.close().await {
        tracing::debug!(%error, "the database was not closed");
    }
}

fn behind(pending: &[String]) -> CliError {
    CliError::Refused(format!("the database is behind by {} steps: run `prompt-manager migrate` first", pending.len()))
}

fn ahead(unknown: &[String]) -> CliError {
    CliError::Refused(format!(
        "the database was migrated by a newer version of this program: it has {}",
        unknown.join(", ")
    ))
}
