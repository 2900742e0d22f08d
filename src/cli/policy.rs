//! `carnet policy`: rules as code, judged before a broker follows them.

mod check;

use clap::Subcommand;

/// Check rules
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    Check(check::Check),
}

impl Policy {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(check) => check.run(),
        }
    }
}
