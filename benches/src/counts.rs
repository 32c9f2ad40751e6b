//! What a target used over a stretch of work, divided by its runs.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    engine::Engine,
    process,
    report::Figures,
    servers::{RedisCounts, SqlCounts},
};

/// Everything that can be counted about a target at a moment.
#[derive(Debug, Default)]
pub struct Counts {
    cpu_ms: f64,
    /// Bytes that its processes wrote to disks, where the database is one of their files.
    written: Option<f64>,
    redis: Option<(f64, RedisCounts)>,
    postgres: Option<(f64, SqlCounts)>,
    /// Calls and rows of each statement, when they are asked for.
    statements: BTreeMap<String, (f64, f64)>,
    detailed: bool,
}

impl Counts {
    pub async fn of(engine: &Engine) -> anyhow::Result<Self> {
        let processes = process::family(&engine.processes());
        let redis = match &engine.redis {
            // Rewriting its file is the work of a child.
            Some(redis) => Some((process::cpu_ms(&process::family(&[redis.id()])), redis.counts()?)),
            None => None,
        };
        let postgres = match &engine.postgres {
            Some(postgres) => Some((process::cpu_ms(&process::family(&[postgres.id()])), postgres.counts().await?)),
            None => None,
        };
        let statements = match &engine.postgres {
            Some(postgres) if engine.wants_detail() => postgres.statements().await?,
            _ => BTreeMap::new(),
        };
        Ok(Self {
            cpu_ms: process::cpu_ms(&processes),
            written: engine.postgres.is_none().then(|| process::written(&processes)),
            redis,
            postgres,
            statements,
            detailed: engine.wants_detail(),
        })
    }

    /// Of processes of which nothing else is known.
    pub fn of_processes(roots: &[u32]) -> Self {
        Self { cpu_ms: process::cpu_ms(&process::family(roots)), ..Self::default() }
    }

    /// What was used between two moments, a run.
    pub fn since(&self, before: &Self, runs: usize, figures: &mut Figures) {
        let runs = (runs as f64).max(1.0);
        figures.set("cpu_ms", (self.cpu_ms - before.cpu_ms) / runs);
        if let (Some((cpu, counts)), Some((cpu_before, counts_before))) = (&self.redis, &before.redis) {
            figures.set("redis_cpu_ms", (cpu - cpu_before) / runs);
            figures.set("redis_scripts", (counts.scripts() - counts_before.scripts()) / runs);
            figures.set("redis_commands", (counts.commands() - counts_before.commands()) / runs);
            figures.set("redis_bytes_in", (counts.bytes_in - counts_before.bytes_in) / runs);
            figures.set("redis_bytes_out", (counts.bytes_out - counts_before.bytes_out) / runs);
        }
        if let (Some((cpu, counts)), Some((cpu_before, counts_before))) = (&self.postgres, &before.postgres) {
            figures.set("postgres_cpu_ms", (cpu - cpu_before) / runs);
            figures.set("sql_statements", (counts.statements - counts_before.statements) / runs);
            figures.set("sql_transactions", (counts.transactions - counts_before.transactions) / runs);
            figures.set("wal_bytes", (counts.wal_bytes - counts_before.wal_bytes) / runs);
        }
        if let (Some(written), Some(written_before)) = (self.written, before.written) {
            figures.set("disk_bytes", (written - written_before) / runs);
        }
    }

    /// Everything by its kind, a run, for people: the commands of Redis, and the statements of SQL with their rows.
    pub fn detail(&self, before: &Self, runs: usize) -> Option<String> {
        let (true, runs) = (self.detailed, (runs as f64).max(1.0)) else { return None };
        let mut text = String::new();
        if let (Some((_, counts)), Some((_, earlier))) = (&self.redis, &before.redis) {
            let calls =
                counts.calls.iter().map(|(name, calls)| (calls - earlier.calls.get(name).unwrap_or(&0.0), name));
            for (calls, name) in most_first(calls) {
                let _ = writeln!(text, "{:9.3}  {name}", calls / runs);
            }
        }
        let earlier: BTreeMap<&str, &(f64, f64)> =
            before.statements.iter().map(|(query, counts)| (query.as_str(), counts)).collect();
        let grown = self.statements.iter().map(|(query, (calls, rows))| {
            let (calls_before, rows_before) = earlier.get(query.as_str()).copied().unwrap_or(&(0.0, 0.0));
            (calls - calls_before, (rows - rows_before, query))
        });
        for (calls, (rows, query)) in most_first(grown) {
            let query: String =
                query.split_ascii_whitespace().collect::<Vec<_>>().join(" ").chars().take(120).collect();
            let _ = writeln!(text, "{:9.3}  {:9.3} rows  {query}", calls / runs, rows / runs);
        }
        Some(text)
    }
}

fn most_first<T>(counts: impl Iterator<Item = (f64, T)>) -> Vec<(f64, T)> {
    let mut grown: Vec<_> = counts.filter(|(calls, _)| *calls > 0.0).collect();
    grown.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    grown
}
