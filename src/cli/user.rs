//! `prompt-manager user`.

use std::io::{self, BufRead, IsTerminal, Read};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sea_orm::DatabaseConnection;
use serde::Serialize;
use workers::providers::Secret;

use super::{error::CliError, output::Output};
use crate::{
    accounts::{Accounts, NewUser, Role, UserId, check_password_strength},
    audit::Actor,
    changes::Changes,
    config::Config,
};

#[derive(Debug, clap::Subcommand)]
pub enum UserCommand {
    /// Create a user; the password, of 15 characters at least, is the first line of stdin, or is asked for
    Create {
        /// With which the user signs in
        email: String,
        /// The account that the user belongs to
        #[arg(long, value_name = "NAME")]
        account: String,
        /// An operator may act on every account
        #[arg(long, default_value = "member", value_parser = role_parser())]
        role: Role,
    },
}

pub async fn run(
    command: UserCommand,
    db: &DatabaseConnection,
    _config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let accounts = Accounts::new(db.clone(), Changes::unwatched());
    match command {
        UserCommand::Create { email, account, role } => {
            let account = accounts.named(&account).await?;
            let password = read_password()?;
            let new = NewUser { email, account: account.id, role, password };
            let user = accounts.create_user(&Actor::cli(), new).await?;
            let view = UserView { id: user.id, email: &user.email, account: &account.name, role: user.role };
            output.emit(&view, || format!("created {} {} of account {}", role.as_str(), user.email, account.name))
        }
    }
}

/// A user as programs see it.
#[derive(Serialize)]
struct UserView<'a> {
    id: UserId,
    email: &'a str,
    account: &'a str,
    role: Role,
}

fn role_parser() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.map(Role::as_str))
        .try_map(|role| role.parse().map_err(|()| format!("there is no role '{role}'")))
}

/// Asks a person twice, and anything else once.
fn read_password() -> Result<Secret, CliError> {
    if !io::stdin().is_terminal() {
        return first_line(&mut io::stdin().lock());
    }
    let ask = |prompt: &str| rpassword::prompt_password(prompt).map(Secret::new).map_err(unread);
    let password = ask("Password: ")?;
    // Before it is typed again for nothing.
    check_password_strength(&password).map_err(|weak| CliError::Refused(weak.to_string()))?;
    if ask("The same again: ")? != password {
        return Err(CliError::Refused("the two passwords differ".to_owned()));
    }
    Ok(password)
}

fn first_line(input: &mut impl BufRead) -> Result<Secret, CliError> {
    /// More than any password may have, and little enough to read from a pipe that never ends.
    const MAX_BYTES: u64 = 64 * 1024;
    let mut line = String::new();
    input.take(MAX_BYTES).read_line(&mut line).map_err(unread)?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    Ok(Secret::new(password.strip_suffix('\r').unwrap_or(password)))
}

fn unread(error: io::Error) -> CliError {
    CliError::Refused(format!("the password cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_first_line_as_it_stands() {
        for (input, expect) in [("a b \n", "a b "), ("a\r\nb\n", "a"), ("a", "a"), ("", "")] {
            assert_eq!(first_line(&mut input.as_bytes()).unwrap().expose(), expect, "{input:?}");
        }
        assert!(first_line(&mut &b"\xff\n"[..]).is_err());
    }
}
