//! The product under measurement: its release binary, its stores, an account, a key and prompts.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    caller::{Caller, Endpoint},
    mock::Mock,
    process::{Process, bare},
    servers::{Postgres, Redis, free_port},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One process, SQLite.
    Embedded,
    /// A front door and a worker on PostgreSQL and Redis.
    Distributed,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Embedded => "embedded",
            Mode::Distributed => "distributed",
        }
    }
}

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub binary: PathBuf,
    pub provider: Mock,
    /// Executors' slots of a process.
    pub slots: usize,
    /// Whether each kind of command and statement is counted.
    pub detail: bool,
}

pub struct Engine {
    pub mode: Mode,
    address: SocketAddr,
    key: String,
    setup: Setup,
    env: Vec<(String, String)>,
    pub front_door: Process,
    worker: Option<Process>,
    pub redis: Option<Redis>,
    pub postgres: Option<Postgres>,
    /// Last, so that logs and the database are there as long as the processes.
    folder: TempDir,
}

/// Streams of 20 pieces: those of the first come at once, a few in each read, those of the second one by one, as models write them.
pub const BURST: &str = "mock-chunks-20";
pub const PACED: &str = "mock-chunks-20-every-5";
/// The prompts that every engine has, each named for its model: the provider does what that says.
const MODELS: [&str; 4] = ["mock", "mock-delay-50", BURST, PACED];
/// The prompt of the offline model: a run that does nothing but pass through.
pub const NO_OP: &str = "demo";
/// The prompt of a provider whose limit lets one run a minute go: all others wait in the queue.
pub const HELD: &str = "mock-held";

impl Engine {
    pub async fn start(mode: Mode, setup: &Setup) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (redis, postgres) = match mode {
            Mode::Embedded => (None, None),
            Mode::Distributed => (Some(Redis::start().await?), Some(Postgres::start().await?)),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let file = folder.path().join("bench.toml");
        std::fs::write(&file, configuration(setup))?;
        let sqlite = || format!("sqlite://{}?mode=rwc", folder.path().join("bench.db").display());
        let mut env = vec![
            ("PROMPT_MANAGER_CONFIG".to_owned(), file.display().to_string()),
            ("PROMPT_MANAGER_LISTEN".to_owned(), address.to_string()),
            ("PROMPT_MANAGER_DATABASE_URL".to_owned(), postgres.as_ref().map_or_else(sqlite, Postgres::url)),
        ];
        env.extend(redis.as_ref().map(|redis| ("PROMPT_MANAGER_REDIS_URL".to_owned(), redis.url())));
        command(setup, &env, folder.path(), &["migrate"])?;
        let key = seed(setup, &env, folder.path())?;
        let args: &[&str] = if redis.is_some() { &["serve", "--no-workers"] } else { &["serve"] };
        let front_door = Process::start(&setup.binary, args, &env, &folder.path().join("front-door.log"))?;
        let mut engine =
            Self { mode, address, key, setup: setup.clone(), env, front_door, worker: None, redis, postgres, folder };
        if engine.redis.is_some() {
            engine.start_worker()?;
        }
        engine.until_ready().await?;
        Ok(engine)
    }

    fn start_worker(&mut self) -> anyhow::Result<()> {
        let log = self.folder.path().join("worker.log");
        self.worker = Some(Process::start(&self.setup.binary, &["worker"], &self.env, &log)?);
        Ok(())
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let give_up = Instant::now() + Duration::from_secs(30);
        while Instant::now() < give_up && self.front_door.is_running() {
            if let Ok(mut caller) = Caller::connect(Endpoint::new(self.address, "/readyz")?).await
                && caller.get("/readyz").await.is_ok_and(|(status, _)| status.is_success())
            {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        let said = std::fs::read_to_string(self.folder.path().join("front-door.log")).unwrap_or_default();
        bail!("the engine is not ready:\n{said}")
    }

    /// Stops taking runs from the queue, or goes on. What is accepted meanwhile waits.
    pub fn pause(&self, paused: bool) -> anyhow::Result<()> {
        self.command(&["queue", if paused { "pause" } else { "resume" }]).map(drop)
    }

    /// Runs a command of the binary on this engine's stores.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<String> {
        command(&self.setup, &self.env, self.folder.path(), args)
    }

    /// Creates one more account with a prompt, and answers with a key of it.
    pub fn tenant(&self, name: &str) -> anyhow::Result<String> {
        account(&self.setup, &self.env, self.folder.path(), name, &["mock-delay-50"])
    }

    pub fn wants_detail(&self) -> bool {
        self.setup.detail
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where runs are posted.
    pub fn endpoint(&self) -> anyhow::Result<Endpoint> {
        Endpoint::new(self.address, "/api/v1/run")?.with("x-api-key", &self.key)
    }

    /// The same, for runs that nobody waits for.
    pub fn background(&self) -> anyhow::Result<Endpoint> {
        self.endpoint()?.with("prefer", "respond-async")
    }

    /// The processes of the engine itself.
    pub fn processes(&self) -> Vec<u32> {
        [Some(&self.front_door), self.worker.as_ref()].into_iter().flatten().map(Process::id).collect()
    }

    pub fn database_url(&self) -> String {
        let url = self.env.iter().find(|(name, _)| name == "PROMPT_MANAGER_DATABASE_URL");
        url.map(|(_, url)| url.clone()).unwrap_or_default()
    }
}

/// The body of a run of one of the prompts: a name, a sentence and a list to fill in.
pub fn run_of(prompt: &str, stream: bool) -> Bytes {
    let variables =
        json!({ "nom_utilisateur": "Steph", "nom_service": "Prompt Manager", "points": ["prix", "délai", "qualité"] });
    Bytes::from(json!({ "promptName": prompt, "variables": variables, "stream": stream }).to_string())
}

fn seed(setup: &Setup, env: &[(String, String)], folder: &Path) -> anyhow::Result<String> {
    account(setup, env, folder, "bench", &[MODELS.as_slice(), &[NO_OP, HELD]].concat())
}

/// An account with prompts named for their models: a key of it.
fn account(
    setup: &Setup,
    env: &[(String, String)],
    folder: &Path,
    name: &str,
    models: &[&str],
) -> anyhow::Result<String> {
    command(setup, env, folder, &["account", "create", name, "--plan", "pro"])?;
    for model in models {
        let file = folder.join("prompt.toml");
        std::fs::write(&file, prompt(model))?;
        let file = file.display().to_string();
        command(setup, env, folder, &["prompt", "import", &file, "--account", name, "--promote"])?;
    }
    let created = command(setup, env, folder, &["key", "create", "bench", "--account", name, "--json"])?;
    let created: Value = serde_json::from_str(&created)?;
    let key = created.get("key").and_then(Value::as_str);
    Ok(key.context("a key")?.to_owned())
}

fn command(setup: &Setup, env: &[(String, String)], folder: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = bare(&setup.binary, env)
        .args(args)
        .current_dir(folder)
        .output()
        .with_context(|| format!("starting {}", setup.binary.display()))?;
    if !output.status.success() {
        bail!("{} {args:?}: {}", setup.binary.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn prompt(model: &str) -> String {
    format!(
        r#"name = "{model}"
model = "{model}"
system = "Tu rédiges des courriels brefs et chaleureux pour {{{{ nom_service }}}}."
template = """
Écris un courriel de bienvenue à {{{{ nom_utilisateur }}}} pour {{{{ nom_service }}}}.
Parle de :
{{% for point in points %}}- {{{{ point }}}}
{{% endfor %}}
"""
[parameters]
temperature = 0.7
max_tokens = 400
"#
    )
}

/// Defaults, but for what stands here.
fn configuration(setup: &Setup) -> String {
    let models = MODELS.map(|model| {
        format!(
            "[[model]]\nname = \"{model}\"\nprovider = \"mock\"\ninput_usd_per_million = 2.5\noutput_usd_per_million = 10.0\n"
        )
    });
    format!(
        "[workers]\nslots = {}\n[websocket]\nmax_sockets = 100000\nmax_sockets_per_key = 100000\n\
         [[provider]]\nname = \"mock\"\nkind = \"openai\"\nbase_url = \"http://{provider}/v1\"\n\
         [[provider]]\nname = \"held\"\nkind = \"openai\"\nbase_url = \"http://{provider}/v1\"\nrequests_per_minute = 1\n\
         {}[[model]]\nname = \"{HELD}\"\nprovider = \"held\"\n",
        setup.slots,
        models.concat(),
        provider = setup.provider.address(),
    )
}
