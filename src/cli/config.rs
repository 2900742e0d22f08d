//! `carnet config`: is this file usable, and what may stand in it.

use std::path::PathBuf;

use clap::Subcommand;

use super::print;
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Report every mistake of a configuration file, with its line
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Print the JSON Schema of the configuration file
    Schema,
}

impl Config {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check { file } => {
                let config = config::Config::load(&file)?;
                print(format!("{}: good ({} targets)", file.display(), config.policy.targets().count()));
            }
            Self::Schema => print(serde_json::to_string_pretty(&config::Config::schema())?),
        }
        Ok(())
    }
}
