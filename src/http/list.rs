//! `GET /api/v1/runs`: the runs of the caller's account, newest first.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::DateTime;
use serde::Serialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use workers::{
    job::{Lane, RunId, UnixMillis},
    ledger::RunFilter,
};

use super::{Door, auth::Caller, error::ApiError, openapi::schemas, run_body::RunBody};

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

/// A page of runs.
#[derive(Serialize, ToSchema)]
#[schema(as = RunList)]
#[serde(rename_all = "camelCase")]
struct ListBody<'a> {
    success: bool,
    runs: Vec<RunBody<'a>>,
    /// The `cursor` of the next page; null when this is the last one.
    #[schema(value_type = Option<Uuid>, required = true)]
    next_cursor: Option<RunId>,
}

/// The parameters as the document describes them; [`Asked`] reads them by hand.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[expect(dead_code, reason = "only the document's generator reads it")]
struct Parameters {
    #[param(schema_with = schemas::state, required = false)]
    state: String,
    /// Runs of this prompt.
    #[param(nullable = false)]
    prompt_name: Option<String>,
    /// Runs of this model.
    #[param(nullable = false)]
    model: Option<String>,
    #[param(schema_with = schemas::lane, required = false)]
    priority: String,
    /// Runs that were accepted at this moment (RFC 3339) or later.
    #[param(format = DateTime, nullable = false)]
    created_after: Option<String>,
    /// Runs that were accepted before this moment (RFC 3339).
    #[param(format = DateTime, nullable = false)]
    created_before: Option<String>,
    /// The `nextCursor` of the page before.
    #[param(value_type = Option<Uuid>, nullable = false)]
    cursor: Option<String>,
    /// How many runs a page has at most.
    #[param(minimum = 1, maximum = 100, default = 20, nullable = false)]
    limit: Option<u64>,
}

/// Answers with a page of runs of the caller's account, newest first, without their outputs.
#[utoipa::path(
    get,
    path = "/api/v1/runs",
    operation_id = "listRuns",
    tag = "Runs",
    params(Parameters),
    responses(
        (status = 200, description = "A page of runs", body = ListBody),
        (status = 400, description = "`invalid_request`: a parameter is wrong, unknown or given twice"),
    ),
)]
pub(super) async fn show(
    State(door): State<Arc<Door>>,
    Caller(principal): Caller,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Ok(Query(pairs)) = query else { return Err(ApiError::plain(StatusCode::BAD_REQUEST)) };
    let Asked { filter, cursor, limit } = Asked::of(pairs)?;
    let page = door.runner.list(principal.account.id, &filter, cursor, limit).await?;
    let runs = page.runs.iter().map(RunBody::new).collect();
    Ok(Json(ListBody { success: true, runs, next_cursor: page.next }).into_response())
}

#[derive(Debug, PartialEq)]
struct Asked {
    filter: RunFilter,
    cursor: Option<RunId>,
    limit: usize,
}

impl Asked {
    /// Every parameter once, and none that is not known.
    fn of(pairs: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs {
            if parameters.insert(name.clone(), value).is_some() {
                return Err(wrong(&name, "given once"));
            }
        }
        let mut filter = RunFilter {
            state: take(
                &mut parameters,
                "state",
                "'queued', 'running', 'succeeded', 'failed', 'cancelled' or 'expired'",
            )?,
            prompt_name: parameters.remove("promptName"),
            model: parameters.remove("model"),
            lane: take::<Lane>(&mut parameters, "priority", "'interactive', 'default' or 'batch'")?,
            created: None..None,
        };
        filter.created.start = moment(&mut parameters, "createdAfter")?;
        filter.created.end = moment(&mut parameters, "createdBefore")?;
        let cursor = take(&mut parameters, "cursor", "the nextCursor of an earlier page")?;
        let limit = take(&mut parameters, "limit", LIMIT)?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(wrong("limit", LIMIT));
        }
        match parameters.into_keys().next() {
            Some(name) => Err(wrong(&name, "left out: there is no such parameter")),
            None => Ok(Self { filter, cursor, limit }),
        }
    }
}

const LIMIT: &str = "a number from 1 to 100";

fn take<T: FromStr>(
    parameters: &mut BTreeMap<String, String>,
    name: &str,
    expected: &str,
) -> Result<Option<T>, ApiError> {
    let value = parameters.remove(name);
    value.map(|text| text.parse().map_err(|_| wrong(name, expected))).transpose()
}

fn moment(parameters: &mut BTreeMap<String, String>, name: &str) -> Result<Option<UnixMillis>, ApiError> {
    let Some(text) = parameters.remove(name) else { return Ok(None) };
    match DateTime::parse_from_rfc3339(&text) {
        Ok(moment) => Ok(Some(UnixMillis(moment.timestamp_millis()))),
        Err(_) => Err(wrong(name, "a moment such as 2026-01-31T12:00:00Z")),
    }
}

fn wrong(name: &str, expected: &str) -> ApiError {
    let short: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", format!("'{short}' must be {expected}"))
        .details(json!({ "parameter": short }))
}

#[cfg(test)]
mod tests {
    use workers::job::RunState;

    use super::*;

    #[test]
    fn every_described_parameter_is_read() {
        let described = Parameters::into_params(|| None);
        assert_eq!(described.len(), 8);
        for parameter in described {
            // What is not known is refused with other words than a wrong value.
            let refused = Asked::of(vec![(parameter.name.clone(), "\u{1}".to_owned())]);
            let words = refused.err().map(|error| format!("{error:?}")).unwrap_or_default();
            assert!(!words.contains("there is no such parameter"), "{}", parameter.name);
        }
    }

    fn asked(pairs: &[(&str, &str)]) -> Option<Asked> {
        Asked::of(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()).ok()
    }

    #[test]
    fn parameters_are_read_strictly() {
        let none = asked(&[]).unwrap();
        assert_eq!((none.filter, none.cursor, none.limit), (RunFilter::default(), None, 20));
        let id = RunId::new();
        let all = asked(&[
            ("state", "failed"),
            ("promptName", "Email de Bienvenue"),
            ("model", "gpt-4"),
            ("priority", "batch"),
            ("createdAfter", "2023-11-14T22:13:20Z"),
            ("createdBefore", "2023-11-14T23:13:20.5+01:00"),
            ("cursor", &id.to_string()),
            ("limit", "100"),
        ]);
        let expected = RunFilter {
            state: Some(RunState::Failed),
            prompt_name: Some("Email de Bienvenue".into()),
            model: Some("gpt-4".into()),
            lane: Some(Lane::Batch),
            created: Some(UnixMillis(1_700_000_000_000))..Some(UnixMillis(1_700_000_000_500)),
        };
        assert_eq!(all, Some(Asked { filter: expected, cursor: Some(id), limit: 100 }));
        for (name, value) in [
            ("state", "dead"),
            ("priority", "urgent"),
            ("createdAfter", "yesterday"),
            ("cursor", "next"),
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "-1"),
            ("page", "2"),
        ] {
            assert_eq!(asked(&[(name, value)]), None, "{name}={value}");
        }
        assert_eq!(asked(&[("limit", "1"), ("limit", "2")]), None);
    }
}
