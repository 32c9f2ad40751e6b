//! The public contract (`contract/api-integration.fr.mdx`) and what extends it, over HTTP, in both modes.

mod refusals;
mod runs;
mod samples;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{Answer, App, Mode, Shape};

/// The contract's prompt, as its third version.
const EMAIL_DE_BIENVENUE: &str = "Email de Bienvenue";

/// A product with small limits and no pauses between retries, so that every refusal is cheap to reach.
async fn started(mode: Mode) -> App {
    configured(mode, "[server]\nmax_body_bytes = 4096\n[retry]\nbase_ms = 1\ncap_ms = 1\n").await
}

async fn configured(mode: Mode, config: &str) -> App {
    App::shaped(Shape { config: config.to_owned(), ..Shape::of(mode) }).await
}

fn import_email(app: &App) {
    for version in 1..=3 {
        app.import_prompt(&format!(
            "name = \"{EMAIL_DE_BIENVENUE}\"\nmodel = \"gpt-4\"\nsystem = \"Version {version}.\"\n\
             template = \"Écris à {{{{ nom_utilisateur }}}} pour {{{{ nom_service }}}}.\"\n"
        ));
    }
}

/// The contract's request.
fn email() -> Value {
    json!({
        "promptName": EMAIL_DE_BIENVENUE,
        "variables": { "nom_utilisateur": "Steph", "nom_service": "Prompt Manager" }
    })
}

fn greeting() -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": "Ada" } })
}

/// Any request, with a key or without.
async fn send(app: &App, method: Method, path: &str, key: Option<&str>) -> Answer {
    let mut request = app.client().request(method, format!("{}{path}", app.url()));
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    Answer::of(request.send().await.unwrap()).await
}

async fn get(app: &App, path: &str) -> Answer {
    send(app, Method::GET, path, Some(&app.key())).await
}

async fn cancel(app: &App, id: &str) -> Answer {
    send(app, Method::POST, &format!("/api/v1/runs/{id}/cancel"), Some(&app.key())).await
}

/// The shape that every error has, with its status and code; `Retry-After` wherever it is promised.
#[track_caller]
pub(crate) fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{answer:?}");
    assert_eq!(answer.body["success"], false, "{answer:?}");
    assert!(!answer.body["error"].as_str().unwrap().is_empty(), "{answer:?}");
    assert!(answer.body["retryable"].is_boolean(), "{answer:?}");
    assert_eq!(answer.body["requestId"], answer.header("x-request-id").unwrap(), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.header("content-type").unwrap().starts_with("application/json"));
    if status == 429 || status == 503 {
        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
        assert_eq!(answer.body["retryable"], true, "{answer:?}");
    }
}
