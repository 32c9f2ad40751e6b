//! What was measured: for people as tables, for programs as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::load::Seen;

/// Names, headings and decimals of all figures, in the order of a table's columns. A table has those that one of its rows has.
const COLUMNS: [(&str, &str, usize); 35] = [
    ("per_second", "runs/s", 0),
    ("p50_ms", "p50 ms", 2),
    ("p95_ms", "p95 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("added_p50_ms", "added p50", 2),
    ("added_p95_ms", "added p95", 2),
    ("added_p99_ms", "added p99", 2),
    ("accepted_per_second", "accepted/s", 0),
    ("drained_per_second", "drained/s", 0),
    ("accept_p50_ms", "accept p50 ms", 2),
    ("accept_p99_ms", "accept p99 ms", 2),
    ("until_provider_p50_ms", "until provider p50", 2),
    ("until_provider_p99_ms", "until provider p99", 2),
    ("first_text_p50_ms", "first text p50 ms", 2),
    ("first_text_p99_ms", "first text p99 ms", 2),
    ("fairness", "least/most served", 2),
    ("look_up_p50_ms", "look-up p50 ms", 2),
    ("look_up_p99_ms", "look-up p99 ms", 2),
    ("list_p50_ms", "list p50 ms", 2),
    ("list_p99_ms", "list p99 ms", 2),
    ("ledger_rows", "rows", 0),
    ("ledger_bytes", "ledger B/run", 0),
    ("bytes_each", "bytes a socket", 0),
    ("cpu_ms", "CPU ms/run", 3),
    ("redis_cpu_ms", "Redis CPU ms", 3),
    ("postgres_cpu_ms", "PG CPU ms", 3),
    ("peak_mib", "peak MiB", 0),
    ("redis_scripts", "scripts", 2),
    ("redis_commands", "Redis cmds", 1),
    ("redis_bytes_in", "Redis B in", 0),
    ("redis_bytes_out", "Redis B out", 0),
    ("sql_statements", "SQL stmts", 2),
    ("sql_transactions", "write txs", 2),
    ("wal_bytes", "WAL B", 0),
    ("disk_bytes", "disk B", 0),
];

/// Figures by name.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<&'static str, f64>);

impl Figures {
    /// Every figure has its column.
    pub fn set(&mut self, name: &'static str, value: f64) {
        assert!(COLUMNS.iter().any(|(known, ..)| *known == name), "a figure without a column: {name}");
        self.0.insert(name, value);
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Tells a figure under a name that says more about it.
    pub fn rename(&mut self, from: &str, to: &'static str) {
        if let Some(value) = self.0.remove(from) {
            self.set(to, value);
        }
    }

    /// Leaves what callers saw, and nothing of what was used.
    pub fn keep_latency(&mut self) {
        self.0.retain(|name, _| matches!(*name, "per_second" | "p50_ms" | "p95_ms" | "p99_ms" | "fairness"));
    }

    /// The half of the latencies and nearly all of them under other names, if there were any.
    pub fn set_half_and_most(&mut self, seen: &Seen, [p50, p99]: [&'static str; 2]) {
        let Some([half, most]) = seen.percentiles([500, 990]) else { return };
        self.set(p50, half);
        self.set(p99, most);
    }

    /// p50, p95 and p99, if anything succeeded, and how much more they are than those of calling the provider itself.
    pub fn set_latency(&mut self, seen: &Seen, direct: Option<&Figures>) {
        let Some([p50, p95, p99]) = seen.percentiles([500, 950, 990]) else { return };
        for (name, added, value) in
            [("p50_ms", "added_p50_ms", p50), ("p95_ms", "added_p95_ms", p95), ("p99_ms", "added_p99_ms", p99)]
        {
            self.set(name, value);
            if let Some(direct) = direct.and_then(|direct| direct.get(name)) {
                self.set(added, value - direct);
            }
        }
    }
}

/// One measurement of one target in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub scenario: &'static str,
    /// What of the scenario: `16 callers`.
    pub case: String,
    pub target: String,
    pub round: usize,
    pub runs: usize,
    pub errors: u64,
    pub figures: Figures,
}

/// Everything of one invocation.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Keeps a row, and tells it on stderr, so that a long run shows what it does.
    pub fn add(&mut self, row: Row, complaint: Option<&str>) {
        let line = serde_json::to_string(&row).unwrap_or_default();
        eprintln!("{line}");
        if let Some(complaint) = complaint {
            eprintln!("  one of {} errors: {complaint}", row.errors);
        }
        self.rows.push(row);
    }

    /// How many requests failed, of all.
    pub fn errors(&self) -> u64 {
        self.rows.iter().map(|row| row.errors).sum()
    }

    /// The rows that differ in the round only, in their first order: with the median of each figure.
    fn medians(&self) -> Vec<Row> {
        let mut groups: Vec<Vec<&Row>> = Vec::new();
        for row in &self.rows {
            let same = |group: &&mut Vec<&Row>| {
                group.first().is_some_and(|first| {
                    (first.scenario, &first.case, &first.target) == (row.scenario, &row.case, &row.target)
                })
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.push(row),
                None => groups.push(vec![row]),
            }
        }
        groups.iter().filter_map(|group| Some(median_row((*group.first()?).clone(), group))).collect()
    }

    /// A table for each scenario, in Markdown.
    pub fn tables(&self) -> String {
        let medians = self.medians();
        let mut scenarios: Vec<&str> = medians.iter().map(|row| row.scenario).collect();
        scenarios.dedup();
        scenarios.iter().fold(String::new(), |text, scenario| {
            let rows: Vec<&Row> = medians.iter().filter(|row| row.scenario == *scenario).collect();
            text + &format!("\n### {scenario}\n\n") + &table(&rows)
        })
    }

    pub fn json(&self, context: &Value) -> Value {
        json!({ "context": context, "medians": self.medians(), "rounds": self.rows })
    }
}

fn median_row(first: Row, group: &[&Row]) -> Row {
    let mut figures = Figures::default();
    let names: BTreeSet<&str> = group.iter().flat_map(|row| row.figures.0.keys().copied()).collect();
    for name in names {
        let mut values: Vec<f64> = group.iter().filter_map(|row| row.figures.get(name)).collect();
        values.sort_by(f64::total_cmp);
        let upper = values.get(values.len() / 2).copied().unwrap_or_default();
        let lower = values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        figures.set(name, f64::midpoint(lower, upper));
    }
    Row {
        figures,
        runs: group.iter().map(|row| row.runs).sum(),
        errors: group.iter().map(|row| row.errors).sum(),
        ..first
    }
}

fn table(rows: &[&Row]) -> String {
    let columns: Vec<_> =
        COLUMNS.iter().filter(|(name, ..)| rows.iter().any(|row| row.figures.get(name).is_some())).collect();
    let headings: Vec<&str> = columns.iter().map(|(_, heading, _)| *heading).collect();
    let mut text = format!("| case | target | {} | runs | errors |\n", headings.join(" | "));
    let _ = writeln!(text, "|---|---|{}---|---|", "---|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<String> = columns
            .iter()
            .map(|(name, _, decimals)| {
                row.figures.get(name).map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
            })
            .collect();
        let _ =
            writeln!(text, "| {} | {} | {} | {} | {} |", row.case, row.target, cells.join(" | "), row.runs, row.errors);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(round: usize, value: f64) -> Row {
        let mut figures = Figures::default();
        figures.set("p50_ms", value);
        Row {
            scenario: "sync",
            case: "1 caller".into(),
            target: "embedded".into(),
            round,
            runs: 10,
            errors: 1,
            figures,
        }
    }

    #[test]
    fn rounds_become_one_row_of_medians() {
        let report = Report { rows: vec![row(0, 5.0), row(1, 1.0), row(2, 2.0)] };
        let medians = report.medians();
        assert_eq!(medians.len(), 1);
        assert_eq!((medians[0].runs, medians[0].errors), (30, 3));
        assert_eq!(medians[0].figures.get("p50_ms"), Some(2.0));
        assert!(report.tables().contains("| case | target | p50 ms | runs | errors |"), "{}", report.tables());
        assert!(report.tables().contains("| 1 caller | embedded | 2.00 | 30 | 3 |"), "{}", report.tables());
    }

    #[test]
    fn what_never_succeeded_has_no_latency() {
        let mut figures = Figures::default();
        figures.set_latency(&Seen::default(), Some(&row(0, 1.0).figures));
        assert_eq!((figures.get("p50_ms"), figures.get("added_p50_ms")), (None, None));
    }
}
