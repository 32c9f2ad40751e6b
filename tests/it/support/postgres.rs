//! Throw-away PostgreSQL: one server for all tests of the process, and more for those that stop theirs.
//!
//! A server is run by a small shell script that obeys lines on its standard input. The test process holds the other end, so that the
//! server stops and its files are removed when the test process ends, however it ends.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use sea_orm::{ConnectionTrait, Database};

/// The arguments are the folder of PostgreSQL's programs and the port.
const SCRIPT: &str = r#"
bin=$1; port=$2; child=
dir=$(mktemp -d /tmp/prompt-manager-postgres.XXXXXX) || exit 1
start() {
    "$bin/postgres" -D "$dir/data" -p "$port" -k "" -c listen_addresses=127.0.0.1 -c max_connections=200 \
        -c fsync=off -c full_page_writes=off -c shared_buffers=32MB -c shared_preload_libraries=pg_stat_statements </dev/null >>"$dir/log" 2>&1 &
    child=$!
    # The last line of this file says when connections are taken.
    until grep -qs ready "$dir/data/postmaster.pid"; do
        kill -0 "$child" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
        sleep 0.02
    done
}
signal() { [ -n "$child" ] && kill "-$1" "$child" 2>/dev/null; }
signal_all() { [ -n "$child" ] && kill "-$1" $(cat "/proc/$child/task/$child/children") "$child" 2>/dev/null; }
halt() { signal "$1"; [ -n "$child" ] && wait "$child"; child=; }
"$bin/initdb" -D "$dir/data" -U postgres -A trust --no-sync --no-locale -E UTF8 >"$dir/log" 2>&1 || cat "$dir/log" >&2
while read -r command; do
    case $command in
        start) start ;;
        stop) halt INT ;;
        crash) halt QUIT ;;
        pause) signal_all STOP ;;
        resume) signal_all CONT ;;
    esac
    echo "$command"
done
signal_all CONT
halt INT
rm -rf "$dir"
"#;

/// A fresh, empty database on the server that all tests share: its URL.
pub async fn database() -> String {
    static SHARED: OnceLock<PostgresServer> = OnceLock::new();
    SHARED.get_or_init(PostgresServer::start).database().await
}

/// A server on a free port.
pub struct PostgresServer {
    port: u16,
    databases: AtomicU32,
    control: Mutex<Control>,
}

struct Control {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl PostgresServer {
    /// Starts one, and waits until it answers.
    pub fn start() -> Self {
        let port = free_port();
        // PostgreSQL refuses to run as root.
        let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut command = if root { Command::new("runuser") } else { Command::new("sh") };
        if root {
            command.args(["-u", "postgres", "--", "sh"]);
        }
        let mut child = command
            .args(["-c", SCRIPT, "sh"])
            .arg(programs())
            .arg(port.to_string())
            .current_dir("/")
            // Not in the terminal's group, so that Ctrl-C ends the tests and leaves the cleaning up to the script.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shell that runs PostgreSQL starts");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let control = Mutex::new(Control { child, commands, answers });
        let server = Self { port, databases: AtomicU32::new(0), control };
        server.restart();
        server
    }

    /// A fresh, empty database: its URL.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let server = Database::connect(self.url("postgres")).await.unwrap();
        server.execute_unprepared(&format!("CREATE DATABASE {name} TEMPLATE template0")).await.unwrap();
        server.close().await.unwrap();
        self.url(&name)
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends all connections and stops, in good order.
    pub fn stop(&self) {
        self.command("stop");
    }

    /// Ends at once, as after a power cut (of the process, not of the disk).
    pub fn crash(&self) {
        self.command("crash");
    }

    /// Starts again after [`stop`](Self::stop) or [`crash`](Self::crash), on the same port, and waits until it answers.
    pub fn restart(&self) {
        self.command("start");
    }

    /// Keeps all its connections and says nothing more, until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.command("pause");
    }

    pub fn resume(&self) {
        self.command("resume");
    }

    fn command(&self, command: &str) {
        let mut control = self.control.lock().unwrap();
        writeln!(control.commands.as_mut().unwrap(), "{command}").expect("the shell that runs PostgreSQL listens");
        let mut answer = String::new();
        control.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim_end(), command, "the shell that runs PostgreSQL ended");
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap();
        drop(control.commands.take());
        let _ = control.child.wait();
    }
}

/// The folder of `initdb` and `postgres`: in the `PATH`, or where Debian keeps them.
fn programs() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    folders.sort_by_key(|folder| std::cmp::Reverse(version_of(folder)));
    std::env::split_paths(&path)
        .chain(folders)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .expect("PostgreSQL is not installed: these tests need the package `postgresql` (apt-get install postgresql)")
}

fn version_of(bin: &Path) -> u32 {
    bin.parent().and_then(|version| version.file_name()?.to_str()?.parse().ok()).unwrap_or(0)
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}
