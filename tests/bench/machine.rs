//! Processes of the bench: started on a core of their own, looked at through `/proc`, ended when dropped.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Where a process runs, so that load and server do not take each other's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    Server,
    Load,
}

impl Core {
    fn number(self) -> usize {
        match self {
            Self::Server => 0,
            Self::Load => cores() - 1,
        }
    }
}

/// A process that ends with its handle.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {}", command.get_program().display()))?))
    }

    /// Processor time that it has used.
    pub fn busy(&self) -> Result<Duration> {
        busy(&self.0.id().to_string())
    }

    /// Memory that is resident, in bytes.
    pub fn resident(&self) -> Result<u64> {
        resident(&self.0.id().to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `USER_HZ`, the same on every Linux that people run.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that the process with this id, or `self`, has used.
pub fn busy(process: &str) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold blanks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |position: usize| fields.get(position).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = (ticks(11).context("utime")?, ticks(12).context("stime")?);
    Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

/// Of the process with this id, or of `self`.
pub fn resident(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// `program`, on its core where there are two.
pub fn pinned(core: Core, program: &Path) -> Command {
    on(&core.number().to_string(), program)
}

/// `program` on the first so many cores.
pub fn pinned_to(cores: usize, program: &Path) -> Command {
    on(&format!("0-{}", cores - 1), program)
}

fn on(cores: &str, program: &Path) -> Command {
    if is_pinning() {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", cores]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// `program` as [`pinned`], under callgrind, which counts when it is told to and leaves its counts in `folder`.
pub fn counted(core: Core, program: &Path, folder: &Path) -> Command {
    let mut command = pinned(core, Path::new("valgrind"));
    command.args(["--tool=callgrind", "--instr-atstart=no", "-q"]);
    command.arg(format!("--callgrind-out-file={}/callgrind.%p", folder.display())).arg(program);
    command
}

/// This program in another role.
pub fn role(core: Core, role: &str) -> Result<Command> {
    let mut command = pinned(core, &std::env::current_exe()?);
    command.arg(role);
    Ok(command)
}

/// Runs `command` to its end; returns what it printed.
pub async fn output(mut command: Command) -> Result<Vec<u8>> {
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "a process of the bench failed: {}", output.status);
    Ok(output.stdout)
}

fn is_pinning() -> bool {
    let taskset = Command::new("taskset").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    cores() > 1 && taskset.is_ok_and(|status| status.success())
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub fn description() -> Result<String> {
    let models = fs::read_to_string("/proc/cpuinfo")?;
    let model = models.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let pinning = if is_pinning() { "server and load each on its own" } else { "NOT PINNED: no taskset, or one core" };
    Ok(format!("{} cores, {pinning}; {model}", cores()))
}

pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if changed { format!("{commit} with changes") } else { commit }
}
