//! The command as a child process: it gets the signals that carnet gets, and its end is carnet's.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::environment::Environment;
use crate::cli::remark;

/// The signals that carnet receives in place of being ended by them.
#[derive(Debug)]
pub(super) struct Signals(mpsc::Receiver<Signal>);

impl Signals {
    /// Those that whoever started carnet had it ignore stay ignored, for the command too: `nohup` works so.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn install() -> io::Result<Self> {
        let (sender, received) = mpsc::channel(PASSED_ON.len());
        let ignored = ignored();
        for passed_on in PASSED_ON {
            let bit = passed_on.as_raw().unsigned_abs().saturating_sub(1);
            if ignored >> bit & 1 == 1 {
                continue;
            }
            let (mut signals, sender) = (signal(SignalKind::from_raw(passed_on.as_raw()))?, sender.clone());
            tokio::spawn(
                async move { while signals.recv().await.is_some() && sender.send(passed_on).await.is_ok() {} },
            );
        }
        Ok(Self(received))
    }

    /// The next one that asks for an end.
    pub async fn ending(&mut self) -> Signal {
        loop {
            match self.0.recv().await {
                Some(signal) if ENDING.contains(&signal) => return signal,
                Some(_other) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// A bit for each signal, the lowest for signal 1 (Linux: proc_pid_status); none where the system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Runs the command to its end.
pub(super) async fn run(command: &[OsString], environment: &Environment, signals: &mut Signals) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(NOT_FOUND) };
    let mut child = Command::new(program);
    child.args(arguments);
    environment.apply(&mut child);
    let mut child = match child.spawn() {
        Ok(child) => child,
        Err(error) => {
            remark(format_args!("{}: {error}", program.display()));
            let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            return ExitCode::from(code);
        }
    };
    loop {
        tokio::select! {
            ended = child.wait() => return match ended {
                Ok(status) => exit_code(status.code().or_else(|| status.signal().map(|signal| 128 + signal))),
                Err(error) => {
                    remark(format_args!("nothing is known of the command any more: {error}"));
                    ExitCode::FAILURE
                }
            },
            Some(signal) = signals.0.recv() => {
                // Whose end has been waited for has no number any more that another process could have taken over.
                let number = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let Some(number) = number.filter(|_| !has_it_from_the_terminal(signal)) {
                    let _ = kill_process(number, signal);
                }
            }
        }
    }
}

/// What a shell says of a process that a signal ended.
pub(super) fn ended_by(signal: Signal) -> ExitCode {
    exit_code(Some(128 + signal.as_raw()))
}

fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// A terminal sends what its keys stand for to the whole process group, the command included.
fn has_it_from_the_terminal(signal: Signal) -> bool {
    let in_foreground = || {
        let terminal = std::fs::File::open("/dev/tty").ok()?;
        tcgetpgrp(terminal).ok().map(|group| group == getpgrp())
    };
    [Signal::INT, Signal::QUIT, Signal::WINCH].contains(&signal) && in_foreground().unwrap_or(false)
}

const PASSED_ON: [Signal; 7] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2, Signal::WINCH];

const ENDING: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// The shell's codes for a command that is not there, and for one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// For a lease that is being opened when a signal comes.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
