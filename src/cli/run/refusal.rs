//! What a run's caller is told when there is no output: the server's sentence with its code and ids, and an exit code by what to do next.

use reqwest::StatusCode;
use serde_json::Value;

use super::stdout::printable;
use crate::cli::error::CliError;

/// An answer of the API that is no success.
pub(super) fn of_answer(status: StatusCode, body: Option<&Value>) -> CliError {
    let member = |name: &str| body.and_then(|body| body.get(name)).and_then(Value::as_str);
    let sentence = match member("error") {
        Some(error) => with_ids(error, member("code"), member("runId"), member("requestId")),
        None => format!("the server answered {status} without saying why"),
    };
    match member("code") {
        Some("deadline_exceeded") => CliError::TimedOut(sentence),
        Some("run_cancelled") => CliError::Failed(sentence),
        // A run was made: what failed is not the request.
        _ if status == StatusCode::INTERNAL_SERVER_ERROR && member("runId").is_some() => CliError::Failed(sentence),
        _ if is_passing(status, body) => CliError::Unavailable(sentence),
        _ => CliError::Refused(sentence),
    }
}

/// The last event of a run that did not succeed.
pub(super) fn of_event(event: &Value, request: Option<&str>) -> CliError {
    let member = |name: &str| event.get(name).and_then(Value::as_str);
    let error = member("error").unwrap_or("The run failed");
    let sentence = with_ids(error, member("code"), member("runId"), request);
    if member("code") == Some("deadline_exceeded") { CliError::TimedOut(sentence) } else { CliError::Failed(sentence) }
}

/// Whether the same request may go better another time.
pub(super) fn is_passing(status: StatusCode, body: Option<&Value>) -> bool {
    let passing = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    let retryable = body.and_then(|body| body.get("retryable")).and_then(Value::as_bool);
    retryable.unwrap_or_else(|| passing.contains(&status))
}

fn with_ids(sentence: &str, code: Option<&str>, run: Option<&str>, request: Option<&str>) -> String {
    let run = run.map(|run| format!("run {run}"));
    let request = request.map(|request| format!("request {request}"));
    let facts: Vec<String> = code.map(str::to_owned).into_iter().chain(run).chain(request).collect();
    let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
    printable(&format!("{sentence}{facts}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_to_do_next_decides() {
        let check = |status: u16, body: Value, expect: CliError| {
            assert_eq!(of_answer(StatusCode::from_u16(status).unwrap(), Some(&body)), expect, "{body}");
        };
        let no = || "No (x, run r, request q)".to_owned();
        let body = |code: &str, run: Option<&str>, retryable: bool| json!({ "error": "No", "code": code, "runId": run, "requestId": "q", "retryable": retryable });
        check(400, json!({ "error": "No\u{1b}[2J" }), CliError::Refused("No[2J".into()));
        check(422, body("x", Some("r"), false), CliError::Refused(no()));
        check(500, body("x", Some("r"), true), CliError::Failed(no()));
        check(503, body("x", Some("r"), true), CliError::Unavailable(no()));
        check(500, body("x", None, true), CliError::Unavailable("No (x, request q)".into()));
        let code = |code: &str| format!("No ({code}, run r, request q)");
        check(504, body("deadline_exceeded", Some("r"), true), CliError::TimedOut(code("deadline_exceeded")));
        check(409, body("run_cancelled", Some("r"), false), CliError::Failed(code("run_cancelled")));
        let silent = "the server answered 504 Gateway Timeout without saying why".to_owned();
        assert_eq!(of_answer(StatusCode::GATEWAY_TIMEOUT, None), CliError::Unavailable(silent));
    }
}
