//! A run that is told as it happens: its events are read, over as many connections as it takes, and its text is written as it comes.

use std::{cell::OnceCell, time::Duration};

use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{
    Console, Stop,
    api::{Api, header, run_of},
    refusal,
    request::Call,
    sse::{Event, Parser},
    stdout::printable,
    transcript::{Remainder, Repeated, Transcript},
};
use crate::cli::{client::root_cause, error::CliError};

/// The server says something every 15 seconds. A connection that is silent for three times as long is none.
const SILENCE: Duration = Duration::from_secs(45);
/// How often a broken connection is taken up again without hearing anything new.
const MAX_RESUMES: u32 = 6;
/// The pause before the first time; each one after it is twice as long, a quarter of a minute in all.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// The last event has the whole output. A server takes 4 MiB from a provider unless it is told otherwise (`max_response_bytes`), and JSON may need six
/// times as much for it.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// Starts the run of `call` and reads it to its end; without one, reads the run that is `known`.
pub(super) async fn read(
    call: Option<&Call>,
    api: &Api,
    known: &OnceCell<Uuid>,
    console: &Console,
) -> Result<(), Stop> {
    let transcript = Transcript::new(console.terminal);
    Reader { call, api, known, console, transcript, request: None, heard: false }.read().await
}

struct Reader<'a> {
    call: Option<&'a Call>,
    api: &'a Api,
    known: &'a OnceCell<Uuid>,
    console: &'a Console,
    transcript: Transcript,
    /// The id of the last request that was answered.
    request: Option<String>,
    /// Something new came over this connection.
    heard: bool,
}

/// What a connection came to.
enum Connection {
    /// The run has ended.
    Over,
    /// It can be taken up again, after a while that the server may have named.
    Broke(String, Option<Duration>),
}

impl Reader<'_> {
    async fn read(mut self) -> Result<(), Stop> {
        let mut resumes = 0;
        let mut is_first = true;
        loop {
            self.heard = false;
            let Connection::Broke(why, after) = self.connect(is_first).await? else { return Ok(()) };
            is_first = false;
            if self.heard {
                resumes = 0;
            }
            if resumes == MAX_RESUMES {
                let run = self.known.get().map(|run| format!("; the run {run} goes on")).unwrap_or_default();
                let server = &self.api.server;
                let sentence =
                    format!("the connection to {server} broke off and could not be taken up again: {why}{run}");
                return Err(CliError::Unavailable(printable(&sentence)).into());
            }
            self.console.progress.set("reconnecting");
            let pause = FIRST_PAUSE.saturating_mul(1 << resumes);
            sleep(pause.max(after.unwrap_or_default().min(MAX_PAUSE))).await;
            resumes += 1;
        }
    }

    /// What is wrong with the first request is told at once; later ones may meet a server that starts again.
    async fn connect(&mut self, is_first: bool) -> Result<Connection, Stop> {
        let request = match (self.known.get(), self.call) {
            (Some(run), _) => self.api.events(*run, self.transcript.seq()),
            // It has a key, so that it starts one run however often it is sent.
            (None, Some(call)) => self.api.start(call),
            (None, None) => return Err(CliError::Software("there is no run to follow".to_owned()).into()),
        };
        let response = match timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if is_first && error.is_connect() => return Err(self.api.unanswered(&error).into()),
            Ok(Err(error)) => return Ok(Connection::Broke(root_cause(&error), None)),
            Err(_) => return Ok(Connection::Broke("the server does not answer".to_owned(), None)),
        };
        self.request = header(&response, "x-request-id").map(str::to_owned);
        let status = response.status();
        if !status.is_success() {
            return self.refused(status, response, is_first).await;
        }
        if !header(&response, "content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
            let sentence = format!("the server answered {status} without a stream: is it Prompt Manager?");
            return Err(CliError::Unavailable(sentence).into());
        }
        if let Some(run) = run_of(&response) {
            // It is the same one every time.
            let _known = self.known.set(run);
        }
        self.tell(response).await
    }

    async fn refused(&self, status: StatusCode, response: Response, is_first: bool) -> Result<Connection, Stop> {
        let after = header(&response, "retry-after").and_then(|after| after.parse().ok()).map(Duration::from_secs);
        let body = response.bytes().await.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
        let error = refusal::of_answer(status, body.as_ref());
        if !is_first && refusal::is_passing(status, body.as_ref()) {
            return Ok(Connection::Broke(error.to_string(), after));
        }
        self.console.write_json(body.as_ref()).await?;
        Err(error.into())
    }

    async fn tell(&mut self, mut response: Response) -> Result<Connection, Stop> {
        let mut parser = Parser::new(MAX_EVENT_BYTES);
        let mut events = Vec::new();
        loop {
            let bytes = match timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => return Ok(Connection::Broke("the stream ended before the run".to_owned(), None)),
                Ok(Err(error)) => return Ok(Connection::Broke(root_cause(&error), None)),
                Err(_) => return Ok(Connection::Broke("the server fell silent".to_owned(), None)),
            };
            let fed = parser.feed(&bytes, &mut events);
            for event in events.drain(..) {
                if self.event(event).await? {
                    return Ok(Connection::Over);
                }
            }
            if fed.is_err() {
                let sentence = format!("the server sent an event of more than {} MiB", MAX_EVENT_BYTES >> 20);
                return Err(CliError::Unavailable(sentence).into());
            }
        }
    }

    /// Whether it is the last one.
    async fn event(&mut self, event: Event) -> Result<bool, Stop> {
        if event.data == "[DONE]" {
            return Ok(false);
        }
        let body: Value = serde_json::from_str(&event.data)
            .map_err(|error| CliError::Unavailable(format!("the server sent an event that is not JSON: {error}")))?;
        self.heard = true;
        if let Some(run) = body.get("runId").and_then(Value::as_str).and_then(|run| run.parse().ok()) {
            let _known = self.known.set(run);
        }
        if let Some(seq) = body.get("seq").and_then(Value::as_u64) {
            self.transcript.event(seq);
        }
        if self.console.json {
            // An event has one line. Whoever cut it in two did not change the JSON.
            self.console.write(format!("{}\n", event.data.replace('\n', " "))).await?;
        }
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        match event.name.as_str() {
            "run.queued" => self.console.progress.set("queued"),
            "run.started" => self.console.progress.set("running"),
            "run.output_text.delta" if !self.console.json => self.delta(text("delta").unwrap_or_default()).await?,
            "run.retrying" if !self.console.json => self.retrying().await?,
            "run.completed" if !self.console.json => {
                let missing = || CliError::Unavailable("the server told of an end without `output`".to_owned());
                self.completed(text("output").ok_or_else(missing)?).await?;
                return Ok(true);
            }
            "run.completed" => return Ok(true),
            "run.failed" | "run.cancelled" => {
                self.end_line().await?;
                return Err(refusal::of_event(&body, self.request.as_deref()).into());
            }
            _ => {}
        }
        Ok(false)
    }

    async fn delta(&mut self, delta: &str) -> Result<(), Stop> {
        let new = self.transcript.delta(delta);
        self.console.write(self.console.shown(new)).await
    }

    async fn retrying(&mut self) -> Result<(), Stop> {
        self.end_line().await?;
        match self.transcript.retrying() {
            Repeated::Unseen => {}
            Repeated::StartsOver => self.console.progress.say("the call broke off and is made again: the text starts over"),
            Repeated::Stays => self.console.progress.say(
                "the call broke off and is made again; what went to stdout cannot be taken back, and goes on only if the new text begins with it",
            ),
        }
        Ok(())
    }

    async fn completed(&mut self, output: &str) -> Result<(), Stop> {
        let (remainder, starts_over) = match self.transcript.completed(output) {
            Remainder::Rest(rest) => (rest, false),
            Remainder::Whole(whole) => (whole, true),
        };
        let shown = self.transcript.shown();
        if starts_over {
            if !shown.ends_with('\n') {
                self.console.write("\n".to_owned()).await?;
            }
            if self.transcript.starts_over() {
                self.console.progress.say("the text above is not the output: it starts over");
            }
        }
        let ends_line = output.ends_with('\n') || output.is_empty();
        let end = if ends_line { "" } else { "\n" };
        self.console.write(format!("{}{end}", self.console.shown(remainder))).await?;
        if starts_over && !self.transcript.starts_over() {
            let sentence = format!(
                "the first {} bytes on stdout, and the line break after them, are of a call that broke off; the output comes after them",
                shown.len()
            );
            return Err(CliError::StartedOver(sentence).into());
        }
        Ok(())
    }

    /// Lets what is said next on a terminal begin on a line of its own.
    async fn end_line(&self) -> Result<(), Stop> {
        let shown = self.transcript.shown();
        if self.console.terminal && !shown.is_empty() && !shown.ends_with('\n') {
            self.console.write("\n".to_owned()).await?;
        }
        Ok(())
    }
}
