//! Processes that never outlive this one, and what they used: from `/proc` (proc(5)).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context;

/// What `/proc` counts processor time in: USER_HZ, which is 100 on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Runs a program with this environment and the `PATH`, and nothing else: what the user of this program has exported would be measured, too.
pub fn bare(program: &Path, env: &[(String, String)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command
}

/// A process that is killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program; what it says goes to `log`.
    pub fn start(program: &Path, args: &[&str], env: &[(String, String)], log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        // Started from the main thread, with which it would die.
        let child = bare(Path::new("setpriv"), env)
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {} (with setpriv, of util-linux)", program.display()))?;
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes and all that descend from them.
pub fn family(roots: &[u32]) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut open) = (Vec::new(), roots.to_vec());
    while let Some(pid) = open.pop() {
        found.push(pid);
        open.extend(children.get(&pid).into_iter().flatten());
    }
    found
}

/// Processor time of the processes, user and system, with that of children they have reaped: in milliseconds, and in steps of ten.
pub fn cpu_ms(pids: &[u32]) -> f64 {
    let fields = pids.iter().filter_map(|&pid| stat(pid));
    let ticks = fields.flat_map(|fields| {
        let times = fields.get(11..15).unwrap_or_default();
        times.iter().filter_map(|ticks| ticks.parse::<f64>().ok()).collect::<Vec<_>>()
    });
    ticks.sum::<f64>() * 1000.0 / TICKS_PER_SECOND
}

pub fn is_there(pid: u32) -> bool {
    stat(pid).is_some()
}

/// The fields of proc_pid_stat(5) from the third on: what stands before them may hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// The most memory that the processes had, in bytes, since [`forget_peaks`]. Pages that they share count once for each.
pub fn peak_memory(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|&pid| status(pid, "VmHWM:")).sum()
}

/// The memory that the processes have, in bytes.
pub fn memory(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|&pid| status(pid, "VmRSS:")).sum()
}

/// Lets peaks begin anew. Where that is not allowed, they go on from the processes' start.
pub fn forget_peaks(pids: &[u32]) {
    for pid in pids {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}

fn status(pid: u32, name: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

/// What the processes caused to be written to disks, in bytes.
pub fn written(pids: &[u32]) -> f64 {
    let of = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse::<f64>().ok()
    };
    pids.iter().filter_map(|&pid| of(pid)).sum()
}
