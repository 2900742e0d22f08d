//! `carnet policy`: rules as code, judged before a broker follows them.

mod check;
mod junit;
mod test;

use clap::Subcommand;

/// Check and test rules before a broker follows them
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    Check(check::Check),
    Test(test::Test),
}

impl Policy {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(check) => check.run(),
            Self::Test(test) => test.run(),
        }
    }
}
