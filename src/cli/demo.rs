//! `demo`: the whole product in one process, with the example of the published contract, and no key to anything.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime};
use workers::providers::Secret;

use super::{
    error::CliError,
    output::Output,
    serve::{self, Signals},
};
use crate::{
    accounts::{self, NewAccount, Plan},
    config::Config,
    keys::{self, NewKey},
    node::{Node, Roles, open_database},
    prompts::{self, PromptFile},
};

/// The example of the published contract, for the offline model.
const PROMPT: &str = include_str!("demo/email-de-bienvenue.toml");
const ACCOUNT: &str = "demo";
const ACTOR: &str = "demo";

/// Seeds a throw-away database, serves, runs the example over HTTP and shows what came back; then serves on, or ends with `once`.
pub async fn run(mut config: Config, once: bool, output: Output, runtime: Arc<Runtime>) -> Result<(), CliError> {
    let folder = tempfile::Builder::new()
        .prefix("prompt-manager-demo-")
        .tempdir()
        .map_err(|error| CliError::Unavailable(format!("cannot create a folder for the demo's database: {error}")))?;
    let file = folder.path().join("demo.db");
    config.database.url = Secret::new(format!("sqlite://{}?mode=rwc", file.display()));
    config.redis = None;
    config.server.metrics_listen = None;
    config.server.listen = free_address(config.server.listen).await;

    let key = seed(&config).await?;
    let mut signals = Signals::install()?;
    let node = Node::start(config, Roles { front_door: true, executors: true }, runtime).await?;
    let address = node
        .address()
        .ok_or_else(|| CliError::Software("the demo's server has no address".into()))?;
    let answer = call(address, &key).await?;
    output.emit(&json!({ "url": url(address), "key": key, "answer": answer }), || story(address, &key, &answer))?;
    if !once {
        eprintln!("Serving until Ctrl-C. The database is a throw-away one: {}", file.display());
        signals.next().await;
    }
    serve::stop(node, &mut signals).await
}

/// The configured address, or any free port beside it: a demo has no reason to fail on a port.
async fn free_address(wanted: SocketAddr) -> SocketAddr {
    match TcpListener::bind(wanted).await {
        Ok(_) => wanted,
        Err(_) => SocketAddr::new(wanted.ip(), 0),
    }
}

async fn seed(config: &Config) -> Result<String, CliError> {
    let db = open_database(config).await?;
    let account = accounts::create(&db, NewAccount { name: ACCOUNT.into(), plan: Plan::Pro, ..NewAccount::default() }, ACTOR).await?;
    let file = PromptFile::parse("email-de-bienvenue.toml", PROMPT)?;
    prompts::import(&db, account.id, &[file], true, ACTOR).await?;
    let key = keys::create(&db, config.secret_key.as_ref(), NewKey { account: account.id, name: "demo".into(), ..NewKey::default() }, ACTOR).await?;
    db.close().await.map_err(crate::db::StoreError::from)?;
    Ok(key.text.expose().to_owned())
}

fn example() -> Value {
    json!({
        "promptName": "Email de Bienvenue",
        "variables": { "nom_utilisateur": "Steph", "nom_service": "Prompt Manager" }
    })
}

async fn call(address: SocketAddr, key: &str) -> Result<Value, CliError> {
    let failed = |error: reqwest::Error| CliError::Software(format!("the demo's own call failed: {error}"));
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()
        .map_err(failed)?
        .post(format!("{}/api/v1/run", url(address)))
        .header("x-api-key", key)
        .json(&example())
        .send()
        .await
        .map_err(failed)?;
    let status = answer.status();
    let body: Value = answer.json().await.map_err(failed)?;
    if status.is_success() { Ok(body) } else { Err(CliError::Refused(format!("the demo's run failed: {body}"))) }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn story(address: SocketAddr, key: &str, answer: &Value) -> String {
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    format!(
        "A run of the prompt \"Email de Bienvenue\", through the queue and the offline demo model:\n\n{}\n\n\
         API key: {key}\n\nTry it yourself:\n\ncurl -X POST {}/api/v1/run \\\n  -H \"Content-Type: application/json\" \\\n  \
         -H \"x-api-key: {key}\" \\\n  -d '{}'\n",
        pretty(answer),
        url(address),
        pretty(&example()),
    )
}
