//! `carnet policy`: rules as code, judged before a broker follows them.

mod check;
mod junit;
mod replay;
mod test;

use clap::Subcommand;

/// Check and test rules, and replay decisions with them, before a broker follows them
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    Check(check::Check),
    Test(test::Test),
    Replay(Box<replay::ReplayRules>),
}

impl Policy {
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(check) => check.run(),
            Self::Test(test) => test.run(),
            Self::Replay(replay) => replay.run().await,
        }
    }
}
