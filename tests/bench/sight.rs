//! The first sight of a token, whose signature is checked, against the check of the signature alone.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::clock::SystemClock;
use carnet::config::Config;
use carnet::secret::Secret;
use carnet::subject::{EntraVerifier, SubjectToken, Verifier};
use serde_json::Value;
use tokio::time::Instant;

use crate::broker::{Clouds, Place, TENANT};
use crate::machine::{self, Core};
use crate::table::{Row, Spread, aside, row};

pub const ROLE: &str = "see-tokens";

/// Runs in a process of its own, on one core.
pub async fn run() -> Result<Vec<Row>> {
    let output = machine::output(machine::role(Core::Server, ROLE)?).await?;
    let rounds: Vec<(f64, f64)> = serde_json::from_slice(&output)?;
    let median = |of: fn(&(f64, f64)) -> f64| Spread::of(rounds.iter().map(of)).median;
    Ok(vec![
        row(
            "first sights of a token per second / bare RSA-2048 verifications",
            Spread::of(rounds.iter().map(|(bare, sight)| bare / sight)).show("×"),
            ">= 0.85",
        ),
        aside(
            "µs: verification, first sight",
            format!("{:.1}, {:.1}", median(|(bare, _sight)| *bare), median(|(_bare, sight)| *sight)),
        ),
    ])
}

#[expect(clippy::print_stdout, reason = "the result, for the process that started this one")]
pub fn child() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{}", serde_json::to_string(&runtime.block_on(rounds())?)?);
    Ok(())
}

/// Microseconds for one of each, round by round.
async fn rounds() -> Result<Vec<(f64, f64)>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let config = Config::load(&place.config)?;
    let http = carnet::http::Client::new(&config.outbound)?;
    let verifier = EntraVerifier::new(config.entra, http, Arc::new(SystemClock));
    let tokens: Vec<String> = (0..=ROUNDS * TOKENS).map(|number| clouds.subject_token_of(number)).collect();
    let (first, tokens) = tokens.split_last().context("tokens")?;
    // Fetches the keys.
    verifier.verify(&SubjectToken::new(Secret::new(first.clone()))?).await?;
    let key = published_key(&clouds, first).await?;
    let key = key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)?;

    let mut rounds = Vec::with_capacity(ROUNDS);
    for tokens in tokens.chunks(TOKENS) {
        let mut signed = Vec::with_capacity(tokens.len());
        for token in tokens {
            let (text, signature) = token.rsplit_once('.').context("a token")?;
            signed.push((text.as_bytes(), BASE64_URL_SAFE_NO_PAD.decode(signature)?));
        }
        let began = Instant::now();
        for (text, signature) in &signed {
            ensure!(key.verify_sig(text, signature).is_ok(), "a signature is refused");
        }
        let bare = began.elapsed();
        let shown: Vec<Secret> = tokens.iter().map(Secret::new).collect();
        let began = Instant::now();
        for token in shown {
            verifier.verify(&SubjectToken::new(token)?).await?;
        }
        let each = |took: std::time::Duration| took.as_secs_f64() * 1e6 / tokens.len() as f64;
        rounds.push((each(bare), each(began.elapsed())));
    }
    Ok(rounds)
}

/// The key that signed `token`.
async fn published_key(clouds: &Clouds, token: &str) -> Result<RsaPublicKeyComponents<Vec<u8>>> {
    let header = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap_or_default())?;
    let header: Value = serde_json::from_slice(&header)?;
    for document in ["discovery/v2.0/keys", "discovery/keys"] {
        let url = format!("{}/{TENANT}/{document}", clouds.entra.authority());
        let document = reqwest::get(url).await?.error_for_status()?.bytes().await?;
        let document: Value = serde_json::from_slice(&document)?;
        let keys = document.get("keys").and_then(Value::as_array).context("keys")?;
        if let Some(key) = keys.iter().find(|key| key.get("kid") == header.get("kid")) {
            let field = |name: &str| key.get(name).and_then(Value::as_str).context("a component");
            let (n, e) = (field("n")?, field("e")?);
            return Ok(RsaPublicKeyComponents {
                n: BASE64_URL_SAFE_NO_PAD.decode(n)?,
                e: BASE64_URL_SAFE_NO_PAD.decode(e)?,
            });
        }
    }
    anyhow::bail!("the token's key is not published")
}

const ROUNDS: usize = 9;
const TOKENS: usize = 500;
