//! `prompt-manager run`: a client of the HTTP API, as any caller is.

use std::{collections::HashMap, io::IsTerminal};

use reqwest::{
    StatusCode, Url,
    header::{HeaderValue, InvalidHeaderValue},
};
use serde_json::{Map, Value, json};

use super::{
    client::{client, root_cause},
    error::CliError,
    output::Output,
};

const DEFAULT_BASE_URL: &str = "http://127.0.0.1:8080";
const ENV_BASE_URL: &str = "PROMPT_MANAGER_BASE_URL";
const ENV_API_KEY: &str = "PROMPT_MANAGER_API_KEY";

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The prompt's name
    name: String,
    /// A variable whose value is a text; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE")]
    texts: Vec<String>,
    /// A variable whose value is JSON; may be repeated
    #[arg(long = "var-json", value_name = "NAME=JSON")]
    values: Vec<String>,
    /// Print the run's id and do not wait for its output
    #[arg(long = "async")]
    respond_async: bool,
}

/// Runs a prompt and prints its output. Interrupting the command closes the connection, which cancels the run.
pub async fn run(args: RunArgs, environment: &HashMap<String, String>, output: Output) -> Result<(), CliError> {
    let key = api_key(environment)?;
    let url = run_url(environment.get(ENV_BASE_URL).map_or(DEFAULT_BASE_URL, String::as_str))?;
    let variables = variables(&args)?;

    let mut request = client(&url, |builder| builder)?
        .post(url.clone())
        .header("x-api-key", key)
        .json(&json!({ "promptName": args.name, "variables": variables }));
    if args.respond_async {
        request = request.header("prefer", "respond-async");
    }
    let unreachable = |error: reqwest::Error| {
        let server = url.origin().ascii_serialization();
        CliError::Unavailable(format!("the server at {server} cannot be reached: {}", root_cause(&error)))
    };
    let answer = request.send().await.map_err(unreachable)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(unreachable)?;
    let body: Option<Value> = serde_json::from_slice(&body).ok();

    // A program that asked for JSON reads the server's own words, refusals included; the exit code tells them apart.
    if let (true, Some(body)) = (output.json, &body) {
        output.emit(body, String::new)?;
    }
    if !status.is_success() {
        return Err(refusal(status, body.as_ref()));
    }
    let member = if args.respond_async || status == StatusCode::ACCEPTED { "runId" } else { "output" };
    let Some(text) = body.as_ref().and_then(|body| body.get(member)).and_then(Value::as_str) else {
        return Err(CliError::Unavailable(format!(
            "the server answered {status} without `{member}`: is it Prompt Manager?"
        )));
    };
    if output.json {
        return Ok(());
    }
    output.emit(&(), || if std::io::stdout().is_terminal() { printable(text) } else { text.to_owned() })
}

fn api_key(environment: &HashMap<String, String>) -> Result<HeaderValue, CliError> {
    let key = environment.get(ENV_API_KEY).map(|key| key.trim()).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| CliError::Usage(format!("{ENV_API_KEY} must be set to an API key (sk_…)")))?;
    let mut key = HeaderValue::from_str(key).map_err(|_: InvalidHeaderValue| {
        CliError::Usage(format!("{ENV_API_KEY} holds characters that no API key has"))
    })?;
    key.set_sensitive(true);
    Ok(key)
}

fn run_url(base: &str) -> Result<Url, CliError> {
    let wrong = || CliError::Usage(format!("{ENV_BASE_URL} must be a URL such as {DEFAULT_BASE_URL}"));
    let url = Url::parse(&format!("{}/api/v1/run", base.trim_end_matches('/'))).map_err(|_| wrong())?;
    if ["http", "https"].contains(&url.scheme()) && url.query().is_none() { Ok(url) } else { Err(wrong()) }
}

fn variables(args: &RunArgs) -> Result<Map<String, Value>, CliError> {
    let mut variables = Map::new();
    let texts = args.texts.iter().map(|text| ("--var", text));
    for (flag, assignment) in texts.chain(args.values.iter().map(|value| ("--var-json", value))) {
        let (name, text) = assignment
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| CliError::Usage(format!("{flag} wants NAME=VALUE, but is {assignment:?}")))?;
        let value = match flag {
            "--var-json" => serde_json::from_str(text)
                .map_err(|error| CliError::Usage(format!("{flag} {name} is not JSON: {error}")))?,
            _ => Value::from(text),
        };
        if variables.insert(name.to_owned(), value).is_some() {
            return Err(CliError::Usage(format!("the variable {name} is given twice")));
        }
    }
    Ok(variables)
}

/// The server's sentence with its code. What may go better another time has another exit code than what may not.
fn refusal(status: StatusCode, body: Option<&Value>) -> CliError {
    let member = |name: &str| body.and_then(|body| body.get(name));
    let sentence = match (member("error").and_then(Value::as_str), member("code").and_then(Value::as_str)) {
        (Some(error), Some(code)) => format!("{error} ({code})"),
        (Some(error), None) => error.to_owned(),
        (None, _) => format!("the server answered {status} without saying why"),
    };
    let retryable = member("retryable").and_then(Value::as_bool);
    let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE];
    if retryable.unwrap_or_else(|| passing.contains(&status)) {
        CliError::Unavailable(printable(&sentence))
    } else {
        CliError::Refused(printable(&sentence))
    }
}

/// Text without the control characters that a terminal would obey: a model's words must not move its cursor or set its title.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
