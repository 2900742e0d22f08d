//! `carnet config`: is this file usable, and what may stand in it.

use std::path::PathBuf;

use clap::Subcommand;

use super::{print, print_json};
use crate::config::{self, AgentConfig, ShadowFile};

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Report every mistake of a configuration file, with its line
    Check {
        /// The broker's configuration file, or an agent's: that one has a section `broker`
        file: PathBuf,
    },
    /// Print the JSON Schema of the configuration file
    Schema {
        /// Of the agent's file
        #[arg(long)]
        agent: bool,
    },
}

impl Config {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check { file } if AgentConfig::is_meant(&file) => {
                let config = AgentConfig::load(&file)?;
                print(format!("{}: good, for the agent ({} targets)", file.display(), config.agent.targets.len()));
            }
            Self::Check { file } => {
                let config = config::Config::load(&file)?;
                config.shadow.as_ref().map(ShadowFile::load).transpose()?;
                print(format!("{}: good ({} targets)", file.display(), config.policy.targets().count()));
            }
            Self::Schema { agent } => {
                let schema = if agent { AgentConfig::schema() } else { config::Config::schema() };
                print_json(&schema)?;
            }
        }
        Ok(())
    }
}
