//! `prompt-manager key`.

use std::io::{self, Write};

use sea_orm::DatabaseConnection;
use serde::Serialize;
use workers::job::{KeyId, UnixMillis};

use super::{
    account::{parse_moment, show_moment},
    error::CliError,
    output::{Output, table},
};
use crate::{
    accounts::Accounts,
    audit::Actor,
    changes::Changes,
    config::Config,
    keys::{KeyRecord, Keys, NewKey, Revocation},
};

#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Create an API key and print it, this once
    Create {
        /// What it is for, as in "Production App"
        name: String,
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
        /// Where it is used, as in production or dev
        #[arg(long, default_value = "", hide_default_value = true)]
        environment: String,
        /// When it stops working, as in 2027-01-31T00:00:00Z [default: never]
        #[arg(long, value_name = "RFC3339", value_parser = parse_moment)]
        expires: Option<UnixMillis>,
    },
    /// List an account's keys, partly hidden
    List {
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
    },
    /// Revoke a key for ever
    Revoke {
        /// The key's id, as `key list` shows it
        #[arg(value_parser = parse_id)]
        id: KeyId,
    },
}

pub async fn run(
    command: KeyCommand,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let accounts = Accounts::new(db.clone(), Changes::unwatched());
    let keys = Keys::new(db.clone(), config.secret_key.clone(), Changes::unwatched());
    match command {
        KeyCommand::Create { name, account, environment, expires } => {
            let account = accounts.named(&account).await?;
            let new = NewKey { account: account.id, name, environment, expires_at: expires };
            let minted = keys.create(&Actor::cli(), new).await?;
            let key = minted.text.expose();
            let view = MintedView { id: minted.record.id, key, mask: &minted.record.mask, name: &minted.record.name };
            output.emit(&view, || key.to_owned())?;
            if !output.json {
                // The key is out; whether anybody reads the advice changes nothing.
                let _ = writeln!(
                    io::stderr(),
                    "This key is shown only once: keep it now. If it is lost, create another and revoke this one ({}).",
                    minted.record.id
                );
            }
            Ok(())
        }
        KeyCommand::List { account } => {
            let account = accounts.named(&account).await?;
            let records = keys.list(account.id).await?;
            let views: Vec<KeyView> = records.iter().map(KeyView::of).collect();
            output.emit(&views, || list(&records))
        }
        KeyCommand::Revoke { id } => {
            let (revoked_at, sentence) = match keys.revoke(&Actor::cli(), None, id).await? {
                Revocation::Revoked => (UnixMillis::now(), format!("revoked key {id}")),
                Revocation::RevokedBefore(at) => (at, format!("key {id} was revoked before, at {}", show_moment(at))),
                Revocation::NotFound => return Err(CliError::Refused(format!("there is no key {id}"))),
            };
            output.emit(&RevokedView { id, revoked_at: show_moment(revoked_at) }, || sentence)
        }
    }
}

fn parse_id(text: &str) -> Result<KeyId, &'static str> {
    text.parse().map_err(|_| "expected a key's id, as `prompt-manager key list` shows it")
}

/// A key that was just made, as programs see it.
#[derive(Serialize)]
struct MintedView<'a> {
    id: KeyId,
    key: &'a str,
    mask: &'a str,
    name: &'a str,
}

/// A key as programs see it ever after.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyView<'a> {
    id: KeyId,
    name: &'a str,
    environment: &'a str,
    mask: &'a str,
    created_at: String,
    last_used_at: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RevokedView {
    id: KeyId,
    revoked_at: String,
}

impl<'a> KeyView<'a> {
    fn of(record: &'a KeyRecord) -> Self {
        Self {
            id: record.id,
            name: &record.name,
            environment: &record.environment,
            mask: &record.mask,
            created_at: show_moment(record.created_at),
            last_used_at: record.last_used_at.map(show_moment),
            expires_at: record.expires_at.map(show_moment),
            revoked_at: record.revoked_at.map(show_moment),
        }
    }
}

fn list(records: &[KeyRecord]) -> String {
    let now = UnixMillis::now();
    let rows = records.iter().map(|record| {
        let state = match (record.revoked_at, record.expires_at) {
            (Some(at), _) => format!("revoked {}", show_moment(at)),
            (None, Some(end)) if end <= now => format!("expired {}", show_moment(end)),
            (None, Some(end)) => format!("until {}", show_moment(end)),
            (None, None) => "active".to_owned(),
        };
        [
            record.name.clone(),
            record.environment.clone(),
            record.mask.clone(),
            show_moment(record.created_at),
            record.last_used_at.map_or("never".to_owned(), show_moment),
            state,
            record.id.to_string(),
        ]
    });
    if records.is_empty() {
        String::new()
    } else {
        table(["NAME", "ENVIRONMENT", "KEY", "CREATED", "LAST USED", "STATE", "ID"], rows)
    }
}
