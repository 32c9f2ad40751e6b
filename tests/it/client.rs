//! `prompt-manager run` against a real server: what is on stdout and stderr, when, and with which exit code.

mod breaking;
mod ending;
mod interrupting;
mod telling;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    eventually, process,
};

/// Quick retries.
const CONFIG: &str = "[retry]\nmax_attempts = 3\nbase_ms = 50\ncap_ms = 50\n";
const PATIENCE: Duration = Duration::from_secs(60);

async fn app() -> App {
    let app = App::shaped(Shape { config: CONFIG.into(), ..Shape::of(Mode::Embedded) }).await;
    app.import_greeting();
    app
}

/// The command as it runs: killed when dropped.
struct Client {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A command that has ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Client {
    /// `run` with these arguments, for the server of an app.
    fn start(app: &App, arguments: &[&str]) -> Self {
        Self::start_at(app, &app.url(), arguments)
    }

    /// The same, for whoever is at another URL.
    fn start_at(app: &App, url: &str, arguments: &[&str]) -> Self {
        Self::spawn(app, url, arguments, None)
    }

    /// With a stdout of the test's own, or a file.
    fn spawn(app: &App, url: &str, arguments: &[&str], stdout: Option<Stdio>) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |name: &str| app.folder.path().join(format!("client-{number}.{name}"));
        let (out, err) = (file("out"), file("err"));
        let arguments = [&["run"], arguments].concat();
        let mut command = process::binary(app.folder.path(), &arguments, &env(app, url));
        let stdout = stdout.unwrap_or_else(|| File::create(&out).unwrap().into());
        command.stdout(stdout).stderr(File::create(&err).unwrap());
        Self { child: process::spawn(command), stdout: out, stderr: err }
    }

    fn stdout(&self) -> String {
        said(&self.stdout)
    }

    fn stderr(&self) -> String {
        said(&self.stderr)
    }

    /// Waits until stdout is this and nothing else.
    async fn until_stdout(&self, text: &str) {
        eventually(&format!("{text:?} on stdout"), async || self.stdout() == text).await;
    }

    fn signal(&self, name: &str) {
        let status = process::bound("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    async fn ended(mut self) -> Ended {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended { code: status.code().unwrap_or(-1), stdout: self.stdout(), stderr: self.stderr() };
            }
            assert!(tokio::time::Instant::now() < deadline, "it did not end: {:?} {:?}", self.stdout(), self.stderr());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The lines of stdout, each a JSON.
    fn json(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }
}

fn env(app: &App, url: &str) -> Vec<(String, String)> {
    let more = [("PROMPT_MANAGER_BASE_URL", url.to_owned()), ("PROMPT_MANAGER_API_KEY", app.key())];
    app.env().iter().cloned().chain(more.map(|(name, value)| (name.to_owned(), value))).collect()
}

fn said(file: &Path) -> String {
    // A file that ends within a character is one that is being written.
    String::from_utf8(fs::read(file).unwrap_or_default()).unwrap_or_default()
}

/// The one run of the account.
async fn only_run(app: &App) -> Value {
    let url = format!("{}/api/v1/runs", app.url());
    let answer = Answer::of(client().get(url).header("x-api-key", app.key()).send().await.unwrap()).await;
    let runs = answer.body["runs"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone();
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs[0].clone()
}

/// Waits until the one run of the account has ended, and answers with its status.
async fn ended_run(app: &App) -> Value {
    eventually("the run is listed", async || {
        let url = format!("{}/api/v1/runs", app.url());
        let answer = Answer::of(client().get(url).header("x-api-key", app.key()).send().await.unwrap()).await;
        answer.body["runs"].as_array().is_some_and(|runs| !runs.is_empty())
    })
    .await;
    let id = only_run(app).await["runId"].as_str().unwrap().to_owned();
    app.ended(0, &id, PATIENCE).await
}
