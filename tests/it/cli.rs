//! The real binary: exit codes, what goes to stdout and what to stderr, and the client against a server of the test's own.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Output, Stdio},
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The binary in an empty folder, with no variable but those given.
struct Binary {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl Binary {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prompt-manager"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::new(self.command(arguments).output().unwrap())
    }
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Ended with this code; stderr is one line, or empty for success.
    #[track_caller]
    fn check(&self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(code), stdout, stderr));
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", self.stdout, self.stderr))
    }
}

/// Answers one request with the given bytes, and hands the request back.
fn answering(status: &str, body: &str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&request).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.to_lowercase().lines().find_map(|line| {
                    line.strip_prefix("content-length: ").map(|length| length.parse::<usize>().unwrap())
                });
                if body.len() >= length.unwrap_or(0) {
                    stream.write_all(answer.as_bytes()).unwrap();
                    return text;
                }
            }
            assert_ne!(read, 0, "the request ended early: {text}");
        }
    });
    (address, server)
}

/// An address where nobody listens.
fn closed_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn client(address: SocketAddr) -> Binary {
    Binary::new().env("PROMPT_MANAGER_BASE_URL", format!("http://{address}")).env("PROMPT_MANAGER_API_KEY", "sk_test")
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    for arguments in [&["nope"][..], &["--nope"], &[], &["run"], &["config"], &["healthcheck", "--database-url", "x"]] {
        let ran = Binary::new().run(arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{arguments:?}: {}", ran.stdout);
    }
}

#[test]
fn help_and_version_are_data() {
    let ran = Binary::new().run(&["--version"]);
    ran.check(0, concat!("prompt-manager ", env!("CARGO_PKG_VERSION"), "\n"), "");
    let ran = Binary::new().run(&["--help"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("migrate"), "{}", ran.stdout);
}

#[test]
fn config_check_lists_values_with_their_origin_and_no_secret() {
    let binary = Binary::new()
        .env("PROMPT_MANAGER_SECRET_KEY", "planted-1")
        .env("OPENAI_API_KEY", "planted-2")
        .env("PROMPT_MANAGER_REDIS_URL", "redis://:planted-3@cache");
    let ran =
        binary.run(&["config", "check", "--listen", "127.0.0.1:1", "--database-url", "postgres://u:planted-4@db/x"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let line = |key: &str| -> Vec<String> {
        let line = ran.stdout.lines().find(|line| line.starts_with(key)).unwrap();
        line.split("  ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
    };
    assert_eq!(line("server.listen "), ["server.listen", "127.0.0.1:1", "flag --listen"]);
    assert_eq!(line("database.url "), ["database.url", "postgres://u:[secret]@db/x", "flag --database-url"]);
    let secret = ["security.secret_key", "[secret]", "environment variable PROMPT_MANAGER_SECRET_KEY"];
    assert_eq!(line("security.secret_key "), secret);
    assert_eq!(line("workers.slots "), ["workers.slots", "64", "default"]);
    assert!(!ran.stdout.contains("planted"), "{}", ran.stdout);

    let json = binary.run(&["--json", "config", "check"]).json();
    assert!(!json.to_string().contains("planted"), "{json}");
    assert_eq!(json["valid"], json!(true));
    let settings = json["settings"].as_array().unwrap();
    let slots = settings.iter().find(|setting| setting["key"] == "workers.slots").unwrap();
    assert_eq!(*slots, json!({ "key": "workers.slots", "value": 64, "source": "default", "origin": "default" }));
}

#[test]
fn a_wrong_configuration_ends_every_command_that_needs_one_with_78() {
    let binary = Binary::new().env("PROMPT_MANAGER_LISTEN", "nowhere");
    let sentence = "error: server.listen (environment variable PROMPT_MANAGER_LISTEN) must be an IP address and a port, \
                    such as 127.0.0.1:8080, but is \"nowhere\"\n";
    for arguments in [&["config", "check"][..], &["migrate"], &["healthcheck"]] {
        binary.run(arguments).check(78, "", sentence);
    }
    let ran = binary.run(&["config", "check", "--json"]);
    assert_eq!(ran.code, Some(78));
    assert_eq!(ran.json()["valid"], json!(false));
    assert_eq!(ran.json()["problems"].as_array().unwrap().len(), 1);
}

#[test]
fn several_problems_are_a_list() {
    let ran =
        Binary::new().env("PROMPT_MANAGER_NOPE", "").env("PROMPT_MANAGER_LOG__FORMAT", "").run(&["config", "check"]);
    ran.check(
        78,
        "",
        "error: the configuration has 2 problems:\n  \
         - environment variable PROMPT_MANAGER_NOPE is not one that Prompt Manager knows\n  \
         - log.format (environment variable PROMPT_MANAGER_LOG__FORMAT) must be text or json, but is empty\n",
    );
}

#[test]
fn a_reader_that_leaves_is_not_an_error() {
    let mut child =
        Binary::new().command(&["config", "check"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::new(child.wait_with_output().unwrap());
    ran.check(0, "", "");
}

#[test]
fn migrate_creates_the_schema_once_and_tells_its_state() {
    let binary = Binary::new();
    let ran = binary.run(&["migrate", "--status", "--json"]);
    assert_eq!((ran.code, ran.json()["schema"].as_str()), (Some(1), Some("behind")));
    assert!(ran.stderr.contains("run `prompt-manager migrate` first"), "{}", ran.stderr);

    let ran = binary.run(&["migrate", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(!ran.json()["applied"].as_array().unwrap().is_empty());
    // One file: the log of SQLite is folded back when a command ends.
    let files: Vec<_> = fs::read_dir(binary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["prompt-manager.db"]);

    binary.run(&["migrate"]).check(0, "the database was current already\n", "");
    binary.run(&["migrate", "--status"]).check(0, "the database is current\n", "");
}

#[test]
fn a_database_that_does_not_answer_ends_with_69() {
    let address = closed_address();
    let ran = Binary::new().run(&["migrate", "--database-url", &format!("postgres://u:planted@{address}/x")]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(69), ""));
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    assert!(!ran.stderr.contains("planted"), "{}", ran.stderr);
}

#[test]
fn healthcheck_tells_by_0_and_1() {
    let (address, server) = answering("200 OK", "");
    let url = format!("http://{address}/healthz");
    Binary::new().run(&["healthcheck", "--listen", &address.to_string()]).check(0, &format!("{url} is healthy\n"), "");
    assert!(server.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));

    let (address, _server) = answering("503 Service Unavailable", "");
    let binary = Binary::new().env("PROMPT_MANAGER_METRICS_LISTEN", address.to_string());
    let sentence = format!("error: http://{address}/healthz is not healthy: it answered 503 Service Unavailable\n");
    binary.run(&["healthcheck"]).check(1, "", &sentence);

    let address = closed_address();
    let ran = Binary::new().run(&["healthcheck", "--listen", &address.to_string()]);
    let sentence = format!("error: http://{address}/healthz cannot be reached: Connection refused (os error 111)\n");
    ran.check(1, "", &sentence);
}

#[test]
fn healthcheck_does_not_wait_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ran = Binary::new().run(&["healthcheck", "--listen", &address.to_string()]);
    ran.check(1, "", &format!("error: http://{address}/healthz did not answer within 3 s\n"));
}

#[test]
fn run_sends_the_variables_and_prints_the_output() {
    let body =
        json!({ "success": true, "output": "Bonjour\nSteph", "promptVersion": 3, "durationMs": 5, "model": "m" });
    let (address, server) = answering("200 OK", &body.to_string());
    let arguments = ["run", "Email de Bienvenue", "--var", "nom=Steph=a", "--var-json", "items=[1, 2]"];
    client(address).run(&arguments).check(0, "Bonjour\nSteph\n", "");
    let request = server.join().unwrap();
    let (head, sent) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /api/v1/run HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nx-api-key: sk_test\r\n") && !head.contains("\r\nprefer:"), "{head}");
    let expected = json!({ "promptName": "Email de Bienvenue", "variables": { "nom": "Steph=a", "items": [1, 2] } });
    assert_eq!(serde_json::from_str::<Value>(sent).unwrap(), expected);

    let (address, _server) = answering("200 OK", &body.to_string());
    assert_eq!(client(address).run(&["run", "x", "--json"]).json(), body);
}

#[test]
fn run_async_prints_the_id() {
    let (address, server) = answering("202 Accepted", r#"{"success":true,"runId":"0190","state":"queued"}"#);
    client(address).run(&["run", "x", "--async"]).check(0, "0190\n", "");
    assert!(server.join().unwrap().contains("\r\nprefer: respond-async\r\n"));
}

#[test]
fn run_says_what_the_server_said() {
    let refused = |status: &str, body: &str, code: i32, sentence: &str| {
        let (address, _server) = answering(status, body);
        client(address).run(&["run", "x"]).check(code, "", &format!("error: {sentence}\n"));
    };
    refused(
        "404 Not Found",
        r#"{"success":false,"error":"Prompt 'x' not found or has no PRODUCTION version","code":"prompt_not_found"}"#,
        1,
        "Prompt 'x' not found or has no PRODUCTION version (prompt_not_found)",
    );
    refused(
        "503 Service Unavailable",
        r#"{"success":false,"error":"The queue is full","code":"queue_full"}"#,
        69,
        "The queue is full (queue_full)",
    );
    refused("500 Internal Server Error", r#"{"error":"It broke","code":"x","retryable":true}"#, 69, "It broke (x)");
    refused("502 Bad Gateway", "<html>", 69, "the server answered 502 Bad Gateway without saying why");
    refused("200 OK", "{}", 69, "the server answered 200 OK without `output`: is it Prompt Manager?");

    let (address, _server) = answering("403 Forbidden", r#"{"success":false,"error":"No","code":"plan"}"#);
    let ran = client(address).run(&["run", "x", "--json"]);
    assert_eq!((ran.code, ran.json()["code"].as_str()), (Some(1), Some("plan")));
}

#[test]
fn run_needs_a_key_a_server_and_sound_variables() {
    let keyless = Binary::new().run(&["run", "x"]);
    keyless.check(2, "", "error: PROMPT_MANAGER_API_KEY must be set to an API key (sk_…)\n");

    let address = closed_address();
    let sentence =
        format!("error: the server at http://{address} cannot be reached: Connection refused (os error 111)\n");
    client(address).run(&["run", "x"]).check(69, "", &sentence);

    let usage = |arguments: &[&str], sentence: &str| {
        client(address).run(arguments).check(2, "", &format!("error: {sentence}\n"));
    };
    usage(&["run", "x", "--var", "nom"], "--var wants NAME=VALUE, but is \"nom\"");
    usage(&["run", "x", "--var", "a=1", "--var-json", "a=2"], "the variable a is given twice");
    let ran = client(address).run(&["run", "x", "--var-json", "a=b"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.starts_with("error: --var-json a is not JSON: "), "{}", ran.stderr);
    let ran =
        Binary::new().env("PROMPT_MANAGER_API_KEY", "sk").env("PROMPT_MANAGER_BASE_URL", "example").run(&["run", "x"]);
    ran.check(2, "", "error: PROMPT_MANAGER_BASE_URL must be a URL such as http://127.0.0.1:8080\n");
}
