//! `demo`: the whole product in one process, with the example of the published contract, and no key to anything.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use workers::providers::Secret;

use super::{
    error::CliError,
    output::Output,
    serve::{self, Signals},
};
use crate::{
    accounts::{Accounts, NewAccount, Plan},
    audit::Actor,
    changes::Changes,
    config::{Config, USUAL_LISTEN},
    db::StoreError,
    keys::{Keys, NewKey},
    node::{Node, Roles, open_database},
    prompts::{Prompts, file},
};

/// The example of the published contract, for the offline model.
const PROMPT: &str = include_str!("demo/email-de-bienvenue.toml");
const EXAMPLE: &str = r#"{
    "promptName": "Email de Bienvenue",
    "variables": {
      "nom_utilisateur": "Steph",
      "nom_service": "Prompt Manager"
    }
  }"#;
const ACCOUNT: &str = "demo";

/// Seeds a throw-away database, serves, runs the example over HTTP and shows what came back; then serves on, or ends with `once`.
pub async fn run(mut config: Config, once: bool, output: Output) -> Result<(), CliError> {
    let folder = tempfile::Builder::new()
        .prefix("prompt-manager-demo-")
        .tempdir()
        .map_err(|error| CliError::Unavailable(format!("cannot create a folder for the demo's database: {error}")))?;
    let file = folder.path().join("demo.db");
    config.database.url = Secret::new(format!("sqlite://{}?mode=rwc", file.display()));
    config.redis = None;
    config.server.metrics_listen = None;
    config.server.listen = address(config.server.listen).await;

    let key = seed(&config).await?;
    let mut signals = Signals::install()?;
    let node = Node::start(config, Roles { front_door: true, executors: true }).await?;
    let address = node.address().ok_or_else(|| CliError::Software("the demo's server has no address".into()))?;
    let answer = call(address, &key).await?;
    let data = json!({ "url": url(address), "key": key, "answer": serde_json::from_str::<Value>(&answer).ok() });
    output.emit(&data, || story(address, &key, &answer))?;
    if !once {
        eprintln!("Serving until Ctrl-C. The database is a throw-away one: {}", file.display());
        signals.next().await;
    }
    serve::stop(node, &mut signals).await
}

/// The address that somebody asked for; in place of the usual one, when that is taken, any free port: a demo has no reason to fail on it.
async fn address(wanted: SocketAddr) -> SocketAddr {
    if wanted.to_string() != USUAL_LISTEN || TcpListener::bind(wanted).await.is_ok() {
        return wanted;
    }
    eprintln!("{wanted} is taken: the demo is served on a free port");
    SocketAddr::new(wanted.ip(), 0)
}

async fn seed(config: &Config) -> Result<String, CliError> {
    let db = open_database(config).await?;
    let (changes, actor) = (Changes::unwatched(), Actor::cli());
    let new = NewAccount {
        name: ACCOUNT.into(),
        plan: Plan::Pro,
        plan_ends: None,
        allowed_models: Vec::new(),
        monthly_budget: None,
    };
    let account = Accounts::new(db.clone(), changes.clone()).create(&actor, new).await?;
    let prompt =
        file::parse("email-de-bienvenue.toml", PROMPT).map_err(|error| CliError::Software(error.to_string()))?;
    Prompts::new(db.clone(), changes.clone()).import(&actor, account.id, vec![prompt], true).await?;
    let new = NewKey { account: account.id, name: ACCOUNT.into(), environment: String::new(), expires_at: None };
    let key = Keys::new(db.clone(), config.secret_key.clone(), changes).create(&actor, new).await?;
    db.close().await.map_err(StoreError::from)?;
    Ok(key.text.expose().to_owned())
}

/// Answers with the body as it came.
async fn call(address: SocketAddr, key: &str) -> Result<String, CliError> {
    let failed = |error: reqwest::Error| CliError::Software(format!("the demo's own call failed: {error}"));
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(failed)?
        .post(format!("{}/api/v1/run", url(address)))
        .header("x-api-key", key)
        .header("content-type", "application/json")
        .body(EXAMPLE)
        .send()
        .await
        .map_err(failed)?;
    let status = answer.status();
    let body = answer.text().await.map_err(failed)?;
    if status.is_success() { Ok(body) } else { Err(CliError::Refused(format!("the demo's run failed: {body}"))) }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn story(address: SocketAddr, key: &str, answer: &str) -> String {
    format!(
        "A run of the prompt \"Email de Bienvenue\", through the queue and the offline demo model:\n\n{answer}\n\n\
         API key: {key}\n\nTry it yourself:\n\ncurl -X POST {}/api/v1/run \\\n  -H \"Content-Type: application/json\" \\\n  \
         -H \"x-api-key: {key}\" \\\n  -d '{EXAMPLE}'\n",
        url(address),
    )
}
