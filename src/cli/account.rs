//! `prompt-manager account`.

use chrono::{DateTime, SecondsFormat};
use clap::{
    ArgGroup,
    builder::{PossibleValuesParser, TypedValueParser},
};
use sea_orm::DatabaseConnection;
use serde::Serialize;
use workers::job::{AccountId, UnixMillis};

use super::{
    error::CliError,
    output::{Output, table},
};
use crate::{
    accounts::{Account, Accounts, NewAccount, Plan, PlanChange},
    audit::Actor,
    changes::Changes,
    config::Config,
    money::Usd,
};

#[derive(Debug, clap::Subcommand)]
pub enum AccountCommand {
    /// Create an account
    Create {
        /// What it is called, unlike any other account
        name: String,
        #[arg(long, value_parser = plan_parser())]
        plan: Plan,
        /// When the subscription ends, as in 2027-01-31T00:00:00Z [default: never]
        #[arg(long, value_name = "RFC3339", value_parser = parse_moment)]
        plan_ends: Option<UnixMillis>,
        /// A model that runs may use, any number of times [default: every model of the plan]
        #[arg(long = "allow-model", value_name = "MODEL")]
        allowed_models: Vec<String>,
        /// What may be spent in a calendar month (UTC) before new runs are refused, as in 12.5 [default: no limit]
        #[arg(long = "monthly-budget-usd", value_name = "AMOUNT")]
        monthly_budget: Option<Usd>,
    },
    /// List all accounts
    List,
    /// Change an account's plan; what is not given stays as it is
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args([
        "plan", "plan_ends", "never_ends", "allowed_models", "allow_all_models", "monthly_budget", "no_monthly_budget",
    ]))]
    SetPlan {
        /// Which account
        name: String,
        #[arg(long, value_parser = plan_parser())]
        plan: Option<Plan>,
        /// When the subscription ends, as in 2027-01-31T00:00:00Z
        #[arg(long, value_name = "RFC3339", value_parser = parse_moment, conflicts_with = "never_ends")]
        plan_ends: Option<UnixMillis>,
        /// Let the subscription never end
        #[arg(long)]
        never_ends: bool,
        /// A model that runs may use, any number of times; replaces the list
        #[arg(long = "allow-model", value_name = "MODEL", conflicts_with = "allow_all_models")]
        allowed_models: Vec<String>,
        /// Let runs use every model of the plan
        #[arg(long)]
        allow_all_models: bool,
        /// What may be spent in a calendar month (UTC) before new runs are refused, as in 12.5
        #[arg(long = "monthly-budget-usd", value_name = "AMOUNT", conflicts_with = "no_monthly_budget")]
        monthly_budget: Option<Usd>,
        /// Let runs spend without limit
        #[arg(long)]
        no_monthly_budget: bool,
    },
}

pub async fn run(
    command: AccountCommand,
    db: &DatabaseConnection,
    _config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let accounts = Accounts::new(db.clone(), Changes::unwatched());
    match command {
        AccountCommand::Create { name, plan, plan_ends, allowed_models, monthly_budget } => {
            let new = NewAccount { name, plan, plan_ends, allowed_models, monthly_budget };
            let account = accounts.create(&Actor::cli(), new).await?;
            output.emit(&AccountView::of(&account), || format!("created account {}", line(&account)))
        }
        AccountCommand::List => {
            let accounts = accounts.list().await?;
            let views: Vec<AccountView> = accounts.iter().map(AccountView::of).collect();
            output.emit(&views, || list(&accounts))
        }
        AccountCommand::SetPlan {
            name,
            plan,
            plan_ends,
            never_ends,
            allowed_models,
            allow_all_models,
            monthly_budget,
            no_monthly_budget,
        } => {
            let change = PlanChange {
                plan,
                plan_ends: if never_ends { Some(None) } else { plan_ends.map(Some) },
                allowed_models: (allow_all_models || !allowed_models.is_empty()).then_some(allowed_models),
                monthly_budget: if no_monthly_budget { Some(None) } else { monthly_budget.map(Some) },
            };
            let account = accounts.named(&name).await?;
            let account = accounts.set_plan(&Actor::cli(), account.id, change).await?;
            output.emit(&AccountView::of(&account), || format!("account {}", line(&account)))
        }
    }
}

/// An account as programs see it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountView<'a> {
    id: AccountId,
    name: &'a str,
    plan: Plan,
    plan_ends: Option<String>,
    allowed_models: &'a [String],
    monthly_budget_usd: Option<Usd>,
}

impl<'a> AccountView<'a> {
    fn of(account: &'a Account) -> Self {
        Self {
            id: account.id,
            name: &account.name,
            plan: account.plan,
            plan_ends: account.plan_ends.map(show_moment),
            allowed_models: &account.allowed_models,
            monthly_budget_usd: account.monthly_budget,
        }
    }
}

fn line(account: &Account) -> String {
    let ends = account.plan_ends.map_or("never ends".to_owned(), |end| format!("ends {}", show_moment(end)));
    let budget =
        account.monthly_budget.map_or("no monthly budget".to_owned(), |budget| format!("{budget} USD a month"));
    format!("{}: plan {}, {ends}, {}, {budget}", account.name, account.plan.as_str(), models(account))
}

fn list(accounts: &[Account]) -> String {
    let rows = accounts.iter().map(|account| {
        [
            account.name.clone(),
            account.plan.as_str().to_owned(),
            account.plan_ends.map_or("never".to_owned(), show_moment),
            account.monthly_budget.map_or("none".to_owned(), |budget| budget.to_string()),
            models(account),
            account.id.to_string(),
        ]
    });
    if accounts.is_empty() {
        String::new()
    } else {
        table(["NAME", "PLAN", "ENDS", "USD A MONTH", "MODELS", "ID"], rows)
    }
}

fn models(account: &Account) -> String {
    if account.allowed_models.is_empty() { "all models".to_owned() } else { account.allowed_models.join(", ") }
}

fn plan_parser() -> impl TypedValueParser<Value = Plan> {
    PossibleValuesParser::new(Plan::ALL.map(Plan::as_str))
        .try_map(|plan| plan.parse().map_err(|()| format!("there is no plan '{plan}'")))
}

/// Reads a moment as RFC 3339 has it.
pub(super) fn parse_moment(text: &str) -> Result<UnixMillis, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|moment| UnixMillis(moment.timestamp_millis()))
        .map_err(|_| "expected a moment as in 2027-01-31T00:00:00Z".to_owned())
}

/// Writes a moment as RFC 3339 has it, in UTC: to the second, or to the millisecond where there are some.
pub(in crate::cli) fn show_moment(moment: UnixMillis) -> String {
    match DateTime::from_timestamp_millis(moment.0) {
        Some(moment) => moment.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        None => format!("{} ms after 1970", moment.0),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser, error::ErrorKind};

    use super::*;

    #[derive(Debug, Parser)]
    struct Tree {
        #[command(subcommand)]
        command: AccountCommand,
    }

    #[test]
    fn a_plan_that_is_not_changed_is_a_usage_error_that_names_the_flags() {
        Tree::command().debug_assert();
        let error = Tree::try_parse_from(["a", "set-plan", "acme"]).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::MissingRequiredArgument, 2));
        for flag in [
            "--plan <",
            "--plan-ends",
            "--never-ends",
            "--allow-model",
            "--allow-all-models",
            "--monthly-budget-usd",
            "--no-monthly-budget",
        ] {
            assert!(error.to_string().contains(flag), "`{flag}` is missing: {error}");
        }
        for change in [&["--plan", "free"][..], &["--never-ends", "--allow-all-models"], &["--no-monthly-budget"]] {
            assert!(Tree::try_parse_from([&["a", "set-plan", "acme"], change].concat()).is_ok(), "{change:?}");
        }
    }
}
