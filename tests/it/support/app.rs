//! The product as its users meet it: the real binary, in either mode, with accounts, keys and a scripted provider.

use std::{collections::BTreeSet, sync::LazyLock, time::Duration};

use serde_json::{Value, json};

use super::{
    load::new_name,
    postgres,
    process::{self, Process, Said},
    provider::ScriptedProvider,
    proxy::FaultProxy,
    redis::RedisServer,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Embedded,
    Distributed,
}

/// How many processes, and what their configuration says beyond the usual.
#[derive(Clone, Debug)]
pub struct Shape {
    pub mode: Mode,
    /// Front doors of a distributed deployment.
    pub front_doors: usize,
    pub workers: usize,
    /// TOML, put before the provider and the models.
    pub config: String,
    /// TOML keys of the scripted provider.
    pub provider: String,
    /// The URL of a database of its own, for tests that take it away; otherwise one is made.
    pub database: Option<String>,
    /// Proxies in front of the stores of a distributed deployment.
    pub redis_proxy: bool,
    pub database_proxy: bool,
}

impl Shape {
    pub fn of(mode: Mode) -> Self {
        Self {
            mode,
            front_doors: 1,
            workers: 1,
            config: String::new(),
            provider: String::new(),
            database: None,
            redis_proxy: false,
            database_proxy: false,
        }
    }
}

pub struct App {
    pub mode: Mode,
    pub front_doors: Vec<Process>,
    pub workers: Vec<Process>,
    pub redis: Option<RedisServer>,
    pub redis_proxy: Option<FaultProxy>,
    pub database_proxy: Option<FaultProxy>,
    /// The database itself, not through the proxy.
    pub database: String,
    /// What the configuration says of the scripted provider.
    pub provider_limits: toml::Table,
    provider: ScriptedProvider,
    urls: Vec<String>,
    key: String,
    free_key: String,
    expired_key: String,
    env: Vec<(String, String)>,
    /// Last, so that the processes' logs are still there when they are dropped.
    pub folder: tempfile::TempDir,
}

impl App {
    pub async fn start(mode: Mode) -> Self {
        Self::shaped(Shape::of(mode)).await
    }

    pub async fn shaped(shape: Shape) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let provider = ScriptedProvider::start().await;
        let mut env = vec![
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            ("PROMPT_MANAGER_CONFIG".to_owned(), folder.path().join("test.toml").display().to_string()),
            ("SCRIPTED_KEY".to_owned(), "provider-secret".to_owned()),
        ];
        // `TEST_LOG=workers=debug` makes the processes of failing tests say more.
        env.extend(std::env::var("TEST_LOG").map(|level| ("PROMPT_MANAGER_LOG__LEVEL".to_owned(), level)));
        let database = match (&shape.database, shape.mode) {
            (Some(url), _) => url.clone(),
            (None, Mode::Embedded) => format!("sqlite://{}?mode=rwc", folder.path().join("test.db").display()),
            (None, Mode::Distributed) => postgres::database().await,
        };
        let redis = match shape.mode {
            Mode::Embedded => None,
            Mode::Distributed => Some(RedisServer::start().await),
        };
        let proxied = |url: &str, wanted: bool| {
            let (proxy, through) = wanted.then(|| FaultProxy::in_front_of(url)).unzip();
            (proxy, through.unwrap_or_else(|| url.to_owned()))
        };
        let (database_proxy, database_url) = proxied(&database, shape.database_proxy);
        env.push(("PROMPT_MANAGER_DATABASE_URL".into(), database_url));
        let mut redis_proxy = None;
        if let Some(redis) = &redis {
            let (proxy, url) = proxied(&redis.url(), shape.redis_proxy);
            env.push(("PROMPT_MANAGER_REDIS_URL".into(), url));
            redis_proxy = proxy;
        }
        std::fs::write(folder.path().join("test.toml"), configuration(&shape, &provider.url())).unwrap();
        let mut app = Self {
            folder,
            mode: shape.mode,
            front_doors: Vec::new(),
            workers: Vec::new(),
            redis,
            redis_proxy,
            database_proxy,
            database,
            provider_limits: shape.provider.parse().unwrap(),
            provider,
            urls: Vec::new(),
            key: String::new(),
            free_key: String::new(),
            expired_key: String::new(),
            env,
        };
        app.seed();
        let front_doors = if shape.mode == Mode::Embedded { 1 } else { shape.front_doors };
        for _ in 0..front_doors {
            app.add_front_door().await;
        }
        if shape.mode == Mode::Distributed {
            for _ in 0..shape.workers {
                app.add_worker();
            }
        }
        app
    }

    /// Starts one more front door on a free port, and waits until it is ready.
    pub async fn add_front_door(&mut self) {
        let port = free_port();
        self.urls.push(format!("http://127.0.0.1:{port}"));
        self.front_doors.push(self.front_door(self.front_doors.len(), port, &[]));
        self.until_ready(self.urls.len() - 1).await;
    }

    /// Starts a front door again, on its old port.
    pub async fn restart_front_door(&mut self, index: usize) {
        self.restart_front_door_with(index, &[]);
        self.until_ready(index).await;
    }

    /// Starts a front door again with more in its environment, and does not wait for it: it may be made to die at once.
    pub fn restart_front_door_with(&mut self, index: usize, env: &[(&str, &str)]) {
        let port = self.urls[index].rsplit(':').next().unwrap().parse().unwrap();
        self.front_doors[index].kill();
        self.front_doors[index] = self.front_door(index, port, env);
    }

    pub fn add_worker(&mut self) {
        let name = format!("worker-{}", self.workers.len());
        self.workers.push(Process::start(self.folder.path(), &name, &["worker"], &self.env));
    }

    pub fn restart_worker(&mut self, index: usize) {
        self.restart_worker_with(index, &[]);
    }

    /// Starts a worker again with more in its environment.
    pub fn restart_worker_with(&mut self, index: usize, env: &[(&str, &str)]) {
        let env = self.env_with(env);
        self.workers[index] = Process::start(self.folder.path(), &format!("worker-{index}"), &["worker"], &env);
    }

    fn env_with(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.env.iter().cloned().chain(more).collect()
    }

    fn front_door(&self, index: usize, port: u16, env: &[(&str, &str)]) -> Process {
        let mut env = self.env_with(env);
        env.push(("PROMPT_MANAGER_LISTEN".into(), format!("127.0.0.1:{port}")));
        let args: &[&str] = if self.mode == Mode::Embedded { &["serve"] } else { &["serve", "--no-workers"] };
        Process::start(self.folder.path(), &format!("front-door-{index}"), args, &env)
    }

    pub async fn until_ready(&mut self, index: usize) {
        let url = format!("{}/readyz", self.urls[index]);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(answer) = client().get(&url).send().await
                && answer.status().is_success()
            {
                return;
            }
            let process = &mut self.front_doors[index];
            assert!(process.is_running(), "the front door ended:\n{}", process.said());
            assert!(tokio::time::Instant::now() < deadline, "the front door is not ready:\n{}", process.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn seed(&mut self) {
        if self.mode == Mode::Distributed {
            assert_eq!(self.cli(&["migrate"]).code, 0);
        }
        self.key = self.account("acme", &["--plan", "pro"]);
        self.free_key = self.account("gratis", &["--plan", "free"]);
        self.expired_key = self.account("lapsed", &["--plan", "pro", "--plan-ends", "2020-01-01T00:00:00Z"]);
    }

    /// Creates an account and answers with a key of it.
    pub fn account(&self, name: &str, plan: &[&str]) -> String {
        let created = self.cli(&[&["account", "create", name], plan].concat());
        assert_eq!(created.code, 0, "{created:?}");
        self.new_key(name)
    }

    pub fn new_key(&self, account: &str) -> String {
        let key = self.cli(&["key", "create", "tests", "--account", account, "--json"]).json();
        key["key"].as_str().unwrap().to_owned()
    }

    /// The first front door.
    pub fn url(&self) -> String {
        self.urls[0].clone()
    }

    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// A key of the PRO account `acme`.
    pub fn key(&self) -> String {
        self.key.clone()
    }

    /// A key of an account with the FREE plan.
    pub fn free_key(&self) -> String {
        self.free_key.clone()
    }

    /// A key of an account whose PRO plan has ended.
    pub fn expired_key(&self) -> String {
        self.expired_key.clone()
    }

    pub fn provider(&self) -> &ScriptedProvider {
        &self.provider
    }

    pub fn client(&self) -> reqwest::Client {
        client()
    }

    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// Runs a command of the binary against this deployment's database.
    pub fn cli(&self, args: &[&str]) -> Said {
        self.cli_with(args, "")
    }

    pub fn cli_with(&self, args: &[&str], stdin: &str) -> Said {
        process::run(self.folder.path(), args, &self.env, stdin)
    }

    /// Imports a prompt into `acme` and promotes it.
    pub fn import_prompt(&self, toml: &str) {
        self.import_prompt_of("acme", toml);
    }

    pub fn import_prompt_of(&self, account: &str, toml: &str) {
        let file = self.folder.path().join("prompt.toml");
        std::fs::write(&file, toml).unwrap();
        let imported = self.cli(&["prompt", "import", &file.display().to_string(), "--account", account, "--promote"]);
        assert_eq!(imported.code, 0, "{imported:?}");
    }

    /// Imports the prompt that most tests call: one variable, the scripted model.
    pub fn import_greeting(&self) {
        self.import_prompt("name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\n");
    }

    /// Posts a run to the first front door.
    pub async fn post(&self, body: &Value) -> Answer {
        self.post_with(0, body, &[]).await
    }

    pub async fn post_with(&self, front_door: usize, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let mut request =
            client().post(format!("{}/api/v1/run", self.urls[front_door])).header("x-api-key", &self.key).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send().await.unwrap()).await
    }

    /// Posts a run to the first front door, with another key.
    pub async fn post_as(&self, key: &str, body: &Value) -> Answer {
        let request = client().post(format!("{}/api/v1/run", self.urls[0])).header("x-api-key", key).json(body);
        Answer::of(request.send().await.unwrap()).await
    }

    /// Posts a greeting to be run in the background; answers with its run id.
    pub async fn post_async(&self, front_door: usize) -> String {
        let body = json!({ "promptName": "Greeting", "variables": { "name": "Ada" } });
        let answer = self.post_with(front_door, &body, &[("prefer", "respond-async")]).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.body["runId"].as_str().unwrap().to_owned()
    }

    /// Accepts greetings to be run in the background, all at once and over all front doors in turn.
    pub async fn accept(&self, runs: usize) -> Vec<String> {
        let posts = (0..runs).map(|run| self.post_async(run % self.urls.len()));
        let ids: Vec<String> = futures::future::join_all(posts).await;
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), runs, "every run has its own id");
        ids
    }

    /// As [`App::accept`], each with a name that tells its calls apart.
    pub async fn accept_named(&self, runs: usize) -> Vec<String> {
        let posts = (0..runs).map(async |run| {
            let body = json!({ "promptName": "Greeting", "variables": { "name": new_name() } });
            let answer = self.post_with(run % self.urls.len(), &body, &[("prefer", "respond-async")]).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            answer.body["runId"].as_str().unwrap().to_owned()
        });
        futures::future::join_all(posts).await
    }

    pub async fn run(&self, front_door: usize, id: &str) -> Answer {
        let url = format!("{}/api/v1/runs/{id}", self.urls[front_door]);
        Answer::of(client().get(url).header("x-api-key", &self.key).send().await.unwrap()).await
    }

    /// Waits until a run has ended, and answers with its status.
    pub async fn ended(&self, front_door: usize, id: &str, within: Duration) -> Value {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let answer = self.run(front_door, id).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if !matches!(answer.body["state"].as_str(), Some("queued" | "running")) {
                return answer.body;
            }
            assert!(tokio::time::Instant::now() < deadline, "the run has not ended: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&bytes)));
        Self { status, headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// The client of all tests, for loopback: it answers or fails within a minute. Building one costs more than many requests. It keeps no
/// connection, because a connection lives on the runtime of the test that opened it.
pub fn client() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
        // A second installation answers with an error that means nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(0)
            .build()
            .unwrap()
    });
    CLIENT.clone()
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn configuration(shape: &Shape, provider: &str) -> String {
    format!(
        r#"{}
[[provider]]
name = "scripted"
kind = "openai"
base_url = "{provider}/v1"
api_key_env = "SCRIPTED_KEY"
{}

[[model]]
name = "gpt-4"
provider = "scripted"
input_usd_per_million = 2.5
output_usd_per_million = 10.0

[[model]]
name = "gpt-4-fallback"
provider = "scripted"

[[model]]
name = "gpt-free"
provider = "scripted"
plans = ["free"]
"#,
        shape.config, shape.provider
    )
}
