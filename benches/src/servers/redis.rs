//! A Redis of our own.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::time::sleep;

use super::free_port;
use crate::process::Process;

pub struct Redis {
    port: u16,
    process: Process,
    _folder: TempDir,
}

/// What Redis has done since it started.
#[derive(Clone, Debug, Default)]
pub struct RedisCounts {
    /// Calls of each command, those that scripts make included.
    pub calls: BTreeMap<String, f64>,
    pub bytes_in: f64,
    pub bytes_out: f64,
}

impl Redis {
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let (number, place) = (port.to_string(), folder.path().display().to_string());
        let durability = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""];
        let mut args =
            vec!["--bind", "127.0.0.1", "--port", &number, "--dir", &place, "--maxmemory-policy", "noeviction"];
        args.extend(durability);
        let log = folder.path().join("log");
        let process = Process::start(Path::new("redis-server"), &args, &[], &log)?;
        let mut redis = Self { port, process, _folder: folder };
        for _ in 0..500 {
            if redis.cli(&["PING"]).is_ok_and(|answer| answer.trim() == "PONG") {
                return Ok(redis);
            }
            if !redis.process.is_running() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("redis-server does not start: {}", std::fs::read_to_string(log).unwrap_or_default())
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn cli(&self, command: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output()?;
        if !output.status.success() {
            bail!("redis-cli {command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn counts(&self) -> anyhow::Result<RedisCounts> {
        let mut counts = RedisCounts::default();
        for line in self.cli(&["INFO", "commandstats"])?.lines() {
            let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(':')) else {
                continue;
            };
            let calls = rest.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
            counts.calls.insert(name.to_owned(), calls.context("a count of calls")?.parse()?);
        }
        for line in self.cli(&["INFO", "stats"])?.lines() {
            match line.trim_end().split_once(':') {
                Some(("total_net_input_bytes", bytes)) => counts.bytes_in = bytes.parse()?,
                Some(("total_net_output_bytes", bytes)) => counts.bytes_out = bytes.parse()?,
                _ => {}
            }
        }
        Ok(counts)
    }
}

impl RedisCounts {
    /// All commands, those inside scripts too.
    pub fn commands(&self) -> f64 {
        self.calls.values().sum()
    }

    /// Scripts that were run.
    pub fn scripts(&self) -> f64 {
        let is_script = |name: &str| name.starts_with("eval") || name.starts_with("fcall");
        self.calls.iter().filter(|(name, _)| is_script(name)).map(|(_, calls)| calls).sum()
    }
}
