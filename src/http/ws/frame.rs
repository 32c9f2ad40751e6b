//! What a client says on a socket, parsed into types that cannot be wrong. Pure.

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use workers::job::RunId;

use crate::{
    http::error::ApiError,
    run::{Answer, InvalidRequest, RunError, RunRequest, parse_json},
};

/// Characters of a client's own id.
const MAX_ID: usize = 128;
const TYPES: &str = "'run.create', 'run.cancel' or 'run.resume'";

/// What a client calls a run, or a message about one.
pub(super) type ClientId = Arc<str>;

/// One thing that a client wants.
#[derive(Debug)]
pub(super) enum Frame {
    Create {
        id: ClientId,
        request: Box<RunRequest>,
    },
    Cancel {
        id: Option<ClientId>,
        /// Absent: the run that this socket knows by `id`.
        run: Option<RunId>,
    },
    Resume {
        id: Option<ClientId>,
        run: RunId,
        after: u64,
    },
}

/// A message that cannot be honoured, with the client's id as far as it has one.
#[derive(Debug)]
pub(super) struct Refused {
    pub id: Option<ClientId>,
    pub error: ApiError,
}

/// Reads one message: a JSON object with a known `type` and the fields of that type.
pub(super) fn parse(text: &str) -> Result<Frame, Refused> {
    let nameless = |error| Refused { id: None, error };
    let value = parse_json(text).map_err(|error| nameless(not_json(error)))?;
    let Value::Object(mut map) = value else {
        return Err(nameless(invalid("The message must be a JSON object")));
    };
    let id = client_id(map.remove("id")).map_err(nameless)?;
    let order = map.remove("type");
    let refused = |error| Refused { id: id.clone(), error };
    match order.as_ref().and_then(Value::as_str) {
        Some("run.create") => {
            let Some(id) = id else {
                let sentence = "'id' is required: what this run is called on this socket";
                return Err(nameless(refusal("missing_id", sentence)));
            };
            let request = RunRequest::of_fields(map, Answer::Wait);
            let mut request = request.map_err(|error| Refused { id: Some(id.clone()), error: request_error(error) })?;
            // Everything is told as it happens here, whatever `stream` says.
            request.stream = true;
            Ok(Frame::Create { id, request: Box::new(request) })
        }
        Some("run.cancel") => {
            let run = run_id(&mut map).map_err(refused)?;
            nothing_else(&map).map_err(refused)?;
            if run.is_none() && id.is_none() {
                return Err(nameless(refusal("missing_id", "'runId' or 'id' is required: which run to cancel")));
            }
            Ok(Frame::Cancel { id, run })
        }
        Some("run.resume") => {
            let run = run_id(&mut map).map_err(refused)?;
            let run = run.ok_or_else(|| refused(invalid("'runId' is required: which run to follow")))?;
            let after = match map.remove("after") {
                None | Some(Value::Null) => Some(0),
                Some(value) => value.as_u64(),
            };
            let sentence = "'after' must be the number of an event, or 0";
            let after = after.ok_or_else(|| refused(invalid(sentence)))?;
            nothing_else(&map).map_err(refused)?;
            Ok(Frame::Resume { id, run, after })
        }
        Some(_) => Err(refused(refusal("unknown_type", format!("'type' must be {TYPES}")))),
        None => Err(refused(refusal("unknown_type", format!("'type' is required and must be {TYPES}")))),
    }
}

/// A message that is no text.
pub(super) fn binary() -> Refused {
    Refused { id: None, error: invalid("A message must be text, not binary") }
}

fn client_id(value: Option<Value>) -> Result<Option<ClientId>, ApiError> {
    let fits = |id: &str| (1..=MAX_ID).contains(&id.chars().count()) && !id.chars().any(char::is_control);
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if fits(&id) => Ok(Some(id.into())),
        Some(_) => {
            let sentence = format!("'id' must be a string of 1 to {MAX_ID} characters without control characters");
            Err(refusal("invalid_id", sentence))
        }
    }
}

/// As over HTTP, a text that is no id names no run.
fn run_id(map: &mut Map<String, Value>) -> Result<Option<RunId>, ApiError> {
    match map.remove("runId") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|_| RunError::RunNotFound.into()),
        Some(_) => Err(invalid("'runId' must be a string")),
    }
}

fn nothing_else(map: &Map<String, Value>) -> Result<(), ApiError> {
    // Names are the client's own text: few of them, and none that is long, are worth repeating.
    let shown: Vec<_> = map.keys().take(20).map(|name| name.chars().take(64).collect::<String>()).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let sentence = format!("Not a known field of this message: '{}'", shown.join("', '"));
    Err(invalid(sentence).details(json!({ "unknown": shown })))
}

fn not_json(error: serde_json::Error) -> ApiError {
    let (line, column) = (error.line(), error.column());
    refusal("invalid_json", format!("The message is not valid JSON: {error}"))
        .details(json!({ "line": line, "column": column }))
}

fn request_error(error: InvalidRequest) -> ApiError {
    RunError::from(error).into()
}

fn invalid(sentence: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    refusal("invalid_request", sentence)
}

fn refusal(code: &'static str, sentence: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code, sentence)
}

#[cfg(test)]
mod tests;
