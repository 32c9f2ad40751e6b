//! A PostgreSQL of our own.
//!
//! A small shell script runs it, because it refuses to run as root, and ends it and removes its files when this program ends, however that
//! ends: the script reads from a pipe whose other end we hold.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, bail};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};

use super::free_port;

/// The arguments are the folder of PostgreSQL's programs and the port. It says its process id once it takes connections.
const SCRIPT: &str = r#"
bin=$1; port=$2
dir=$(mktemp -d "${TMPDIR:-/tmp}/prompt-manager-bench.XXXXXX") || exit 1
"$bin/initdb" -D "$dir/data" -U postgres -A trust --no-locale -E UTF8 >"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; }
"$bin/postgres" -D "$dir/data" -p "$port" -k "" -c listen_addresses=127.0.0.1 -c max_connections=200 \
    -c shared_preload_libraries=pg_stat_statements -c pg_stat_statements.track_planning=off </dev/null >>"$dir/log" 2>&1 &
child=$!
until grep -qs ready "$dir/data/postmaster.pid"; do
    kill -0 "$child" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
    sleep 0.02
done
echo "$child"
read -r _
kill -INT "$child"
wait "$child"
rm -rf "$dir"
"#;

pub struct Postgres {
    port: u16,
    server: u32,
    shell: Child,
    /// Its end is the script's signal to stop.
    input: Option<ChildStdin>,
    statistics: DatabaseConnection,
}

/// What the server has done since it started, for all its databases. Each of these counts at once, unlike `pg_stat_database`, to which a
/// connection that fell idle reports ten seconds later.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqlCounts {
    /// Statements, `BEGIN` and `COMMIT` included.
    pub statements: f64,
    /// Transactions that wrote something: each has taken one transaction id.
    pub transactions: f64,
    /// Bytes of the write-ahead log.
    pub wal_bytes: f64,
}

const COUNTS: &str = "SELECT \
    (SELECT coalesce(sum(calls), 0)::float8 FROM pg_stat_statements) AS statements, \
    pg_snapshot_xmax(pg_current_snapshot())::text::float8 AS transactions, \
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 AS wal";

impl Postgres {
    /// Starts a server with a database `bench`.
    pub async fn start() -> anyhow::Result<Self> {
        let port = free_port()?;
        let root = std::fs::metadata("/proc/self")?.uid() == 0;
        let mut command = if root { Command::new("runuser") } else { Command::new("sh") };
        if root {
            command.args(["-u", "postgres", "--", "sh"]);
        }
        let mut shell = command
            .args(["-c", SCRIPT, "sh"])
            .arg(programs()?)
            .arg(port.to_string())
            .current_dir("/")
            // Not in the terminal's group, so that Ctrl-C leaves the cleaning up to the script.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the shell that runs PostgreSQL")?;
        let input = shell.stdin.take();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().context("its output")?).read_line(&mut line)?;
        let server = line.trim().parse().context("PostgreSQL does not start")?;
        let maintenance = connect(&url(port, "postgres")).await?;
        maintenance.execute_unprepared("CREATE DATABASE bench TEMPLATE template0").await?;
        maintenance.execute_unprepared("CREATE EXTENSION pg_stat_statements").await.context(
            "pg_stat_statements is missing: it belongs to PostgreSQL's contributed modules (Debian: in the server's package)",
        )?;
        Ok(Self { port, server, shell, input, statistics: maintenance })
    }

    pub fn url(&self) -> String {
        url(self.port, "bench")
    }

    /// The process id of the server, whose children are its backends.
    pub fn id(&self) -> u32 {
        self.server
    }

    pub async fn counts(&self) -> anyhow::Result<SqlCounts> {
        let query = Statement::from_string(DbBackend::Postgres, COUNTS);
        let row = self.statistics.query_one_raw(query).await?.context("one row")?;
        Ok(SqlCounts {
            statements: row.try_get("", "statements")?,
            transactions: row.try_get("", "transactions")?,
            wal_bytes: row.try_get("", "wal")?,
        })
    }

    /// Calls and rows of each statement; of one that changes several tables, the rows of the last.
    pub async fn statements(&self) -> anyhow::Result<BTreeMap<String, (f64, f64)>> {
        let text = "SELECT sum(calls)::float8 AS calls, sum(rows)::float8 AS rows, query FROM pg_stat_statements GROUP BY query";
        let rows = self.statistics.query_all_raw(Statement::from_string(DbBackend::Postgres, text)).await?;
        let read = |row: &sea_orm::QueryResult| {
            Ok::<_, sea_orm::DbErr>((row.try_get("", "query")?, (row.try_get("", "calls")?, row.try_get("", "rows")?)))
        };
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.shell.wait();
    }
}

/// One connection, and nothing logged of it.
pub async fn connect(url: &str) -> anyhow::Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Ok(Database::connect(options).await?)
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

/// The folder of `initdb` and `postgres`: in the `PATH`, or where Debian keeps them.
fn programs() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(version_of(folder)));
    let mut places = folders.into_iter().chain(std::env::split_paths(&path));
    match places.find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file()) {
        Some(folder) => Ok(folder),
        None => bail!("PostgreSQL is not installed: apt-get install postgresql"),
    }
}

fn version_of(bin: &Path) -> u32 {
    bin.parent().and_then(|version| version.file_name()?.to_str()?.parse().ok()).unwrap_or(0)
}
