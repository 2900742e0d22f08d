//! The command line: one file per family of commands, and the exit codes they share.

mod agent;
mod audit;
mod broker;
mod config;
mod credential;
mod credentials;
mod doctor;
mod exchange;
mod exec;
mod explain;
mod health;
mod issuer;
mod lease;
mod login;
mod notice;
mod operator;
mod policy;
mod records;
mod report;
mod request;
mod sandbox;
mod serve;
mod table;
mod trust;

#[cfg(any(test, feature = "testing"))]
pub use credential::Understood;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::line;
use crate::private_file;

/// A Microsoft Entra ID token in, short-lived Google Cloud and Azure credentials out.
#[derive(Debug, Parser)]
#[command(name = "carnet", version = VERSION, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// `carnet 0.1.0, commit 0123456789ab, features none`
const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), ", commit ", env!("CARNET_COMMIT"), ", features ", env!("CARNET_FEATURES"));

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 denied, 4 the subject token was refused, 5 broker or cloud unavailable.
Results go to standard output, everything else to standard error.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker
    Serve(serve::Serve),
    /// Run stand-ins for Entra, Google and Azure beside a real broker, on loopback, and do one exchange
    Sandbox(sandbox::Sandbox),
    /// Check a configuration file, or print its JSON Schema
    #[command(subcommand)]
    Config(config::Config),
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Trade a subject token for the credentials of one or more targets
    Exchange(Box<exchange::Exchange>),
    #[command(subcommand)]
    Credential(credential::Credential),
    #[command(subcommand)]
    Lease(lease::Lease),
    #[command(subcommand)]
    Audit(audit::Audit),
    #[command(subcommand)]
    Report(report::Report),
    Login(Box<login::Login>),
    Logout(login::Logout),
    Explain(Box<explain::Explain>),
    Exec(Box<exec::Exec>),
    Agent(agent::Agent),
    Health(Box<health::Health>),
    /// The broker as an OIDC issuer
    #[command(subcommand)]
    Issuer(issuer::Issuer),
    #[command(subcommand)]
    Trust(trust::Trust),
    Doctor(doctor::Doctor),
}

impl Cli {
    /// What the arguments of this process say; under the name of a tool's own program they are that tool's.
    pub fn of_this_process() -> Self {
        match credential::Credential::under_name_of(called_as()) {
            Some(credential) => Self { command: Command::Credential(credential) },
            None => Self::parse(),
        }
    }
}

/// How a command ended, when it did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Failed = 1,
    Usage = 2,
    Denied = 3,
    SubjectToken = 4,
    Unavailable = 5,
}

/// An error that is worth an exit code of its own; everything else is [`Exit::Failed`].
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Ended {
    exit: Exit,
    message: String,
}

/// The command failed, and said why where its caller looks for it.
#[derive(Debug, thiserror::Error)]
#[error("the reason stands on standard output")]
struct Told;

/// Runs the command in a runtime of its own.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = match cli.command {
        // Beside somebody else's program: small, and there at once.
        Command::Exec(_) | Command::Agent(_) | Command::Health(_) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        }
        // Deeper than the default, for expressions at their depth limit in unoptimized builds.
        _ => tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(4 * 1024 * 1024).build(),
    };
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let done = runtime.block_on(async {
            let done = match cli.command {
                Command::Exec(exec) => return exec.run().await,
                Command::Explain(explain) => return explain.run().await,
                Command::Agent(agent) => agent.run().await,
                Command::Serve(serve) => serve.run().await,
                Command::Sandbox(sandbox) => sandbox.run().await,
                Command::Config(config) => config.run(),
                Command::Policy(policy) => policy.run().await,
                Command::Exchange(exchange) => exchange.run().await,
                Command::Credential(credential) => credential.run().await,
                Command::Lease(lease) => lease.run().await,
                Command::Audit(audit) => audit.run().await,
                Command::Report(report) => report.run().await,
                Command::Login(login) => login.run().await,
                Command::Logout(logout) => logout.run().await,
                Command::Issuer(issuer) => issuer.run().await,
                Command::Trust(trust) => trust.run().await,
                Command::Doctor(doctor) => doctor.run().await,
                Command::Health(health) => health.run().await,
            };
            done.map(|()| ExitCode::SUCCESS)
        });
        // Blocking reads of standard input, if any, must not keep the process.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            if !error.is::<Told>() {
                complain(&error);
            }
            let exit = error.downcast_ref::<Ended>().map_or(Exit::Failed, |ended| ended.exit);
            ExitCode::from(exit as u8)
        }
    }
}

/// `carnet`, or the name of the tool's program that a link to this one bears.
fn called_as() -> &'static str {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name();
    credential::NAMES.into_iter().find(|known| name == Some(known.as_ref())).unwrap_or("carnet")
}

fn complain(error: &anyhow::Error) {
    remark(format_args!("{error:#}"));
}

#[expect(clippy::print_stderr, reason = "the command line's own voice")]
fn remark(text: impl std::fmt::Display) {
    eprintln!("{}: {}", called_as(), line::plain_lines(&text.to_string()));
}

#[expect(clippy::print_stdout, reason = "results go to standard output")]
fn print(result: impl std::fmt::Display) {
    println!("{result}");
}

/// With nothing in its texts that a terminal would act on.
fn print_json(object: &impl serde::Serialize) -> anyhow::Result<()> {
    print(line::plain_json(serde_json::to_string_pretty(object)?));
    Ok(())
}
