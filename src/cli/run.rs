//! `prompt-manager run`: a client of the HTTP API, as any caller is.

mod api;
mod interrupt;
mod progress;
mod refusal;
mod request;
mod sse;
mod stdout;
mod stream;
mod transcript;

use std::{
    cell::OnceCell,
    collections::HashMap,
    io::{self, IsTerminal},
};

use reqwest::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use self::{
    api::{Api, run_of},
    interrupt::{Interrupted, Signals},
    progress::Progress,
    request::Call,
    stdout::{Stdout, Unwritten, printable},
};
use super::{error::CliError, id, output::Output};

#[derive(Debug, clap::Args)]
// The program's version is not a question for this command: a prompt has versions.
#[command(disable_version_flag = true)]
#[command(after_help = "Ctrl-C cancels the run; a second one does not wait for that.\n\n\
    Exit codes: 0 done; 1 refused; 2 wrong command line; 3 the run failed or was cancelled; 65 stdout has the output after \
    text that does not count; 69 the server does not answer, or refuses for now; 124 deadline; 130 Ctrl-C.")]
pub struct RunArgs {
    /// The prompt's name
    #[arg(required_unless_present = "follow")]
    name: Option<String>,
    /// A variable: NAME=TEXT, NAME=@FILE (@- for stdin, @@ for a text that begins with @), NAME:=JSON; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE")]
    texts: Vec<String>,
    /// A variable whose value is JSON; may be repeated
    #[arg(long = "var-json", value_name = "NAME=JSON")]
    values: Vec<String>,
    /// Write the text as it comes; with --json, every event as a line
    #[arg(long, conflicts_with = "respond_async")]
    stream: bool,
    /// Print the run's id and do not wait for its output
    #[arg(long = "async")]
    respond_async: bool,
    /// The version to run [default: the PRODUCTION one]
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// The run's deadline [default: the server's]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// The lane in which the run waits [default: interactive]
    #[arg(long, value_enum)]
    priority: Option<Priority>,
    /// Whether the output may be that of another run which was the same call [default: as the prompt has it]
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    cache: Option<bool>,
    /// A text that is kept on the run; may be repeated
    #[arg(long, value_name = "NAME=TEXT")]
    metadata: Vec<String>,
    /// A name for this request: sent again, it gets the same run
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Write the text of a run that was started before, from its beginning; Ctrl-C leaves it alone
    #[arg(long, value_name = "RUN", value_parser = id::<Uuid>, conflicts_with_all = [
        "name", "texts", "values", "respond_async", "version", "timeout", "priority", "cache", "metadata", "idempotency_key",
    ])]
    follow: Option<Uuid>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Priority {
    Interactive,
    Default,
    Batch,
}

impl Priority {
    fn word(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Default => "default",
            Self::Batch => "batch",
        }
    }
}

/// Runs a prompt and prints its output. Interrupting the command cancels the run.
pub async fn run(args: RunArgs, environment: &HashMap<String, String>, output: Output) -> Result<(), CliError> {
    let api = Api::of(environment)?;
    let call = match args.follow {
        Some(_) => None,
        None => Some(Call::of(&args)?),
    };
    let known = OnceCell::new();
    if let Some(run) = args.follow {
        let _first = known.set(run);
    }
    let mut signals = Signals::install()?;
    let console = Console {
        stdout: Stdout::open(),
        progress: Progress::start(output.json, environment),
        terminal: io::stdout().is_terminal(),
        json: output.json,
    };
    let work = async {
        match &call {
            Some(call) if args.stream => stream::read(Some(call), &api, &known, &console).await,
            Some(call) => ask(call, args.respond_async, &api, &known, &console).await,
            None => stream::read(None, &api, &known, &console).await,
        }
    };
    let stop = tokio::select! {
        done = work => match done {
            Ok(()) => return Ok(()),
            Err(stop) => stop,
        },
        number = signals.next() => Stop::Signal(number),
    };
    console.progress.clear();
    let what = match (&call, args.follow) {
        (Some(call), _) => Interrupted::Running(known.get().copied(), call),
        (None, Some(run)) => Interrupted::Following(run),
        (None, None) => return Err(CliError::Software("there is nothing to run".to_owned())),
    };
    match stop {
        Stop::Error(error) => Err(error),
        Stop::Signal(number) => Err(interrupt::end(what, &api, &mut signals, number).await),
        Stop::Gone => {
            // Nobody reads what the model would go on to write. What came of it has no reader either.
            if args.stream {
                let _unread = interrupt::end(what, &api, &mut signals, 0).await;
            }
            Ok(())
        }
    }
}

/// Why a run was not told to its end.
enum Stop {
    Error(CliError),
    /// A signal of this number came.
    Signal(u8),
    /// Whoever reads stdout has gone, with what it wanted.
    Gone,
}

impl From<CliError> for Stop {
    fn from(error: CliError) -> Self {
        Self::Error(error)
    }
}

impl From<Unwritten> for Stop {
    fn from(unwritten: Unwritten) -> Self {
        match unwritten {
            Unwritten::Gone => Self::Gone,
            Unwritten::Failed(error) => CliError::Software(format!("stdout cannot be written: {error}")).into(),
        }
    }
}

/// Where data and messages go.
struct Console {
    stdout: Stdout,
    progress: Progress,
    /// Whether stdout is one.
    terminal: bool,
    json: bool,
}

impl Console {
    async fn write(&self, text: String) -> Result<(), Stop> {
        if !text.is_empty() {
            self.progress.clear();
        }
        Ok(self.stdout.write(text).await?)
    }

    /// The server's own words, for a program that asked for JSON; refusals included, the exit code tells them apart.
    async fn write_json(&self, body: Option<&Value>) -> Result<(), Stop> {
        match body {
            Some(body) if self.json => self.write(format!("{body}\n")).await,
            _ => Ok(()),
        }
    }

    /// Text as stdout takes it.
    fn shown(&self, text: &str) -> String {
        if self.terminal { printable(text) } else { text.to_owned() }
    }
}

/// Starts a run and prints its output, or its id when it is not waited for.
async fn ask(
    call: &Call,
    respond_async: bool,
    api: &Api,
    known: &OnceCell<Uuid>,
    console: &Console,
) -> Result<(), Stop> {
    console.progress.set("running");
    let request = if respond_async { api.start_async(call) } else { api.start_and_wait(call) };
    let answer = request.send().await.map_err(|error| api.unanswered(&error))?;
    if let Some(run) = run_of(&answer) {
        let _first = known.set(run);
    }
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| api.unanswered(&error))?;
    let body: Option<Value> = serde_json::from_slice(&body).ok();
    console.write_json(body.as_ref()).await?;
    if !status.is_success() {
        return Err(refusal::of_answer(status, body.as_ref()).into());
    }
    let member = if respond_async || status == StatusCode::ACCEPTED { "runId" } else { "output" };
    let Some(text) = body.as_ref().and_then(|body| body.get(member)).and_then(Value::as_str) else {
        let sentence = format!("the server answered {status} without `{member}`: is it Prompt Manager?");
        return Err(CliError::Unavailable(sentence).into());
    };
    if console.json {
        return Ok(());
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    console.write(format!("{}{end}", console.shown(text))).await
}
