//! `carnet issuer`: the broker's public keys, for those who have to trust them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;

use super::print;
use crate::app;
use crate::clock::SystemClock;
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Issuer {
    /// Print the JWKS, for upload to a Google provider (`--jwk-json-path`); makes the keys where there are none yet
    Jwks {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
        config: PathBuf,
    },
}

impl Issuer {
    pub async fn run(self) -> anyhow::Result<()> {
        let Self::Jwks { config } = self;
        let config = Config::load(&config)?;
        let issuer =
            app::issuer_of(&config, Arc::new(SystemClock)).await?.context("the configuration has no `issuer`")?;
        print(serde_json::to_string_pretty(&issuer.jwks())?);
        Ok(())
    }
}
