//! What a credential costs while it is kept, and what a verified token does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carnet::clock::{Clock, SystemClock};
use carnet::config::Config;
use carnet::credential::{Call, CloudIdentity, Credential, CredentialProvider, Credentials, IssueError};
use carnet::policy::{Ask, ExcessScopes, Inquiry, Policy};
use carnet::secret::Secret;
use carnet::subject::{EntraVerifier, SubjectToken, VerifiedIdentity, Verifier};
use carnet::target::{Job, TokenType};
use uuid::Uuid;

use crate::broker::{Clouds, Place, RUNNER, TENANT};
use crate::machine::{self, Core};
use crate::table::{Row, aside, row};

pub const ROLE: &str = "keep-credentials";

/// Runs in a process of its own, whose memory holds nothing else.
pub async fn run() -> Result<Vec<Row>> {
    let output = machine::output(machine::role(Core::Server, ROLE)?).await?;
    let (bytes, kept, verified): (f64, usize, Vec<(usize, f64)>) = serde_json::from_slice(&output)?;
    let mut rows = vec![
        row("resident bytes per cached credential", format!("{bytes:.0}"), "<= 3000"),
        aside("tokens of 1200 bytes, still there of 100000", kept.to_string()),
    ];
    rows.extend(verified.into_iter().map(|(length, bytes)| {
        aside(format!("resident bytes per verified token of {length} bytes"), format!("{bytes:.0}"))
    }));
    Ok(rows)
}

#[expect(clippy::print_stdout, reason = "the result, for the process that started this one")]
pub fn child() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(keep())?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// Bytes per credential, and how many are still there at the end; lengths of tokens, and bytes per verified one.
async fn keep() -> Result<(f64, usize, Vec<(usize, f64)>)> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let config = Config::load(&place.config)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let http = carnet::http::Client::new(&config.outbound)?;
    let verifier = EntraVerifier::new(config.entra, http, clock.clone());
    let subject_token = SubjectToken::new(Secret::new(clouds.subject_token()))?;
    let caller = Caller { identity: verifier.verify(&subject_token).await?, subject_token, policy: config.policy };
    let mint = Arc::new(Mint { clock: clock.clone(), minted: AtomicUsize::new(0) });
    let credentials = Credentials::new(mint.clone(), clock.clone());

    // Whatever is made once is made by the first.
    credentials.credential(caller.call(0, clock.as_ref())?).await?;
    let before = machine::resident("self")?;
    for job in 1..=CREDENTIALS {
        credentials.credential(caller.call(job, clock.as_ref())?).await?;
    }
    let after = machine::resident("self")?;
    let minted = mint.minted.load(Ordering::Relaxed);
    let mut kept = 0;
    for job in 1..=CREDENTIALS {
        kept += usize::from(credentials.credential(caller.call(job, clock.as_ref())?).await?.cached);
    }
    ensure!(minted == CREDENTIALS + 1, "{minted} credentials were minted");
    let grown = after.checked_sub(before).context("less memory than before")?;
    let token = || clouds.entra.app_token(TENANT, RUNNER).roles(["Training.Submit"]);
    let groups = || (0..GROUPS).map(|_group| Uuid::now_v7().to_string());
    let ordinary = verified(&verifier, || token().sign()).await?;
    let with_groups = verified(&verifier, || token().groups(groups()).sign()).await?;
    Ok((grown as f64 / CREDENTIALS as f64, kept, vec![ordinary, with_groups]))
}

/// How long the tokens are, and what one costs once it is verified.
async fn verified(verifier: &EntraVerifier, token: impl Fn() -> String) -> Result<(usize, f64)> {
    let tokens: Vec<String> = (0..TOKENS).map(|_token| token()).collect();
    let length = tokens.first().map(String::len).unwrap_or_default();
    let before = machine::resident("self")?;
    for token in &tokens {
        // Records refer to the facts.
        verifier.verify(&SubjectToken::new(Secret::new(token.clone()))?).await?.facts();
    }
    let grown = machine::resident("self")?.checked_sub(before).context("less memory than before")?;
    Ok((length, grown as f64 / TOKENS as f64))
}

struct Caller {
    identity: Arc<VerifiedIdentity>,
    subject_token: SubjectToken,
    policy: Policy,
}

impl Caller {
    /// Each job has a credential of its own.
    fn call(&self, job: usize, clock: &dyn Clock) -> Result<Call> {
        let ask = Ask {
            target: "vertex-training".to_owned(),
            scopes: std::iter::empty().collect(),
            excess: ExcessScopes::Refuse,
            token_type: TokenType::AccessToken,
            audience: None,
            lifetime: None,
            beyond: None,
        };
        let job = Arc::new(Job { id: Some(format!("run-{job}")), ..Job::default() });
        let grant = self.policy.decide(Inquiry::once(&self.identity, &job, clock.now()), &ask)?;
        let (grant, subject_token) = (Arc::new(grant), Some(self.subject_token.clone()));
        Ok(Call { grant, subject_token, exchange_id: Uuid::now_v7(), purpose: carnet::credential::Purpose::Exchange })
    }
}

/// A cloud that issues at once.
#[derive(Debug)]
pub struct Mint {
    pub clock: Arc<dyn Clock>,
    pub minted: AtomicUsize,
}

#[async_trait::async_trait]
impl CredentialProvider for Mint {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError> {
        let number = self.minted.fetch_add(1, Ordering::Relaxed);
        let (now, life) = (self.clock.now(), Duration::from_secs(3600));
        let identity = CloudIdentity::Google {
            principal: call.grant.identity().subject().to_owned(),
            service_account: Some("trainer@ml-sandbox.iam.gserviceaccount.com".to_owned()),
        };
        Ok(Credential::new(Secret::new(format!("ya29.{number:01195}")), now, now + life, life, identity))
    }
}

const CREDENTIALS: usize = 100_000;
const TOKENS: usize = 2000;

/// As many as Entra puts into a token.
const GROUPS: usize = 200;
