//! Ctrl-C: the run is cancelled, and the command ends. A second one ends it at once.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use uuid::Uuid;

use super::{api::Api, refusal, request::Call};
use crate::cli::error::CliError;

/// How long the server may take to hear of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The signals that end a command: SIGINT, SIGTERM, SIGHUP.
pub(super) struct Signals([(Signal, u8); 3]);

impl Signals {
    pub fn install() -> Result<Self, CliError> {
        let install =
            |kind| signal(kind).map_err(|error| CliError::Software(format!("cannot listen for signals: {error}")));
        Ok(Self([
            (install(SignalKind::interrupt())?, 2),
            (install(SignalKind::terminate())?, 15),
            (install(SignalKind::hangup())?, 1),
        ]))
    }

    /// The number of the next signal.
    pub async fn next(&mut self) -> u8 {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.0.recv() => interrupt.1,
            _ = terminate.0.recv() => terminate.1,
            _ = hangup.0.recv() => hangup.1,
        }
    }
}

/// What an interrupted command was about.
pub(super) enum Interrupted<'a> {
    /// It only looked at a run.
    Following(Uuid),
    /// It waits for a run with this id, if that has come already.
    Running(Option<Uuid>, &'a Call),
}

/// Cancels the run, and says what came of it.
pub(super) async fn end(what: Interrupted<'_>, api: &Api, signals: &mut Signals, number: u8) -> CliError {
    let sentence = match what {
        Interrupted::Following(run) => format!("interrupted; the run {run} goes on"),
        // Its connection was closed a moment ago, and the server cancels what nobody waits for.
        Interrupted::Running(None, Call { key: None, .. }) => "interrupted; the run is cancelled".to_owned(),
        Interrupted::Running(run, call) => {
            let cancel = timeout(PATIENCE, cancel(run, call, api));
            let unknown = |why: &str| match run {
                Some(run) => format!("interrupted; whether the run {run} is cancelled is not known: {why}"),
                None => format!("interrupted; whether the run was started is not known: {why}"),
            };
            tokio::select! {
                cancelled = cancel => match cancelled {
                    Ok(Ok(sentence)) => sentence,
                    Ok(Err(error)) => unknown(&error.to_string()),
                    Err(_) => unknown("the server did not answer in time"),
                },
                _ = signals.next() => unknown("it was not waited for"),
            }
        }
    };
    CliError::Interrupted { signal: number, sentence }
}

async fn cancel(run: Option<Uuid>, call: &Call, api: &Api) -> Result<String, CliError> {
    let run = match run {
        Some(run) => run,
        None => find(call, api).await?,
    };
    let (status, body) = ask(api.cancel(run), api).await?;
    let code = body.as_ref().and_then(|body| body.get("code")).and_then(Value::as_str);
    match status {
        _ if status.is_success() => Ok(format!("interrupted; the run {run} is cancelled")),
        StatusCode::CONFLICT if code == Some("run_already_ended") => {
            Ok(format!("interrupted; the run {run} had ended already"))
        }
        _ => Err(refusal::of_answer(status, body.as_ref())),
    }
}

/// The id of a run whose request was not answered yet: the same request is answered with the same run.
async fn find(call: &Call, api: &Api) -> Result<Uuid, CliError> {
    let (status, body) = ask(api.start_async(call), api).await?;
    if !status.is_success() {
        return Err(refusal::of_answer(status, body.as_ref()));
    }
    let run = body.as_ref().and_then(|body| body.get("runId")).and_then(Value::as_str);
    run.and_then(|run| run.parse().ok())
        .ok_or_else(|| CliError::Unavailable("the server's answer names no run".to_owned()))
}

async fn ask(request: reqwest::RequestBuilder, api: &Api) -> Result<(StatusCode, Option<Value>), CliError> {
    let response = request.send().await.map_err(|error| api.unanswered(&error))?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| api.unanswered(&error))?;
    Ok((status, serde_json::from_slice(&body).ok()))
}
