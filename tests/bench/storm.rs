//! A storm, in virtual time: a hundred thousand watched leases, and a cloud that is away until every one of them is due.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use carnet::audit::{Audit, AuditError, AuditLog, Checkpoint, Expired, Group, HandOut, Head, Kept};
use carnet::clock::Clock;
use carnet::config::Config;
use carnet::credential::{Call, CloudIdentity, Credential, CredentialProvider, Credentials, Hop, IssueError};
use carnet::exchange::{Caller, Door, Exchange, FakeRunHistory, History, PLACES, TargetRequest};
use carnet::lease::{Change, FakeLeaseStore, Lease, LeaseStore, Leases};
use carnet::limit::{Limits, Settings};
use carnet::secret::Secret;
use carnet::subject::{EntraVerifier, SubjectToken, VerifiedIdentity, Verifier};
use carnet::target::Job;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::broker::{Clouds, Place};
use crate::table::{Row, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let config = Config::load(&place.config)?;
    let http = carnet::http::Client::new(&config.outbound)?;
    let verifier = Arc::new(EntraVerifier::new(config.entra, http, Arc::new(carnet::clock::SystemClock)));
    let identity = verifier.verify(&SubjectToken::new(Secret::new(clouds.subject_token()))?).await?;
    let policy = Arc::new(ArcSwap::from_pointee(config.policy));
    let storm = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(async {
            let clock = Arc::new(VirtualClock(carnet::clock::SystemClock.now(), Instant::now()));
            let cloud = Arc::new(Cloud { clock: clock.clone(), began: Instant::now(), minted: Mutex::default() });
            let (audit, _writer) = Audit::start(Arc::new(NoLog), clock.clone());
            let exchange = Exchange {
                verifier,
                policy,
                credentials: Credentials::new(cloud.clone(), clock.clone()),
                history: History::new(Arc::new(FakeRunHistory::default())),
                audit,
                clock: clock.clone(),
                places: Arc::new(Semaphore::new(PLACES)),
                limits: Limits::new(Settings::WIDE),
            };
            weather(Arc::new(exchange), clock, cloud, &identity).await
        })
    };
    tokio::task::spawn_blocking(storm).await?
}

async fn weather(
    exchange: Arc<Exchange>,
    clock: Arc<VirtualClock>,
    cloud: Arc<Cloud>,
    identity: &VerifiedIdentity,
) -> Result<Vec<Row>> {
    let store = Arc::new(FakeLeaseStore::default());
    let leases = Leases::start(exchange, store.clone(), NonZeroU32::new(RATE).context("a rate")?);
    leases.begin().await?;
    let upkeep = tokio::spawn(leases.clone().keep(Duration::from_secs(86_400)));
    let mut tokens = Vec::with_capacity(LEASES);
    for number in 0..LEASES {
        let token = Secret::new(format!("lease-{number}"));
        let lease = Lease {
            token_sha256: token.sha256(),
            subject: identity.subject().to_owned(),
            job: Arc::new(Job { id: Some(format!("run-{number}")), ..Job::default() }),
            targets: [TargetRequest { target: "vertex-training".to_owned(), ..TargetRequest::default() }].into(),
            ..Lease::for_test(number as u128 + 1, clock.now())
        };
        store.apply(vec![Change::Open { lease: Box::new(lease), identity: identity.snapshot() }]).await?;
        tokens.push(token);
    }
    let (lost, renewed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let mut watches = JoinSet::new();
    for token in tokens {
        let (leases, clock, lost, renewed) = (leases.clone(), clock.clone(), lost.clone(), renewed.clone());
        watches.spawn(async move {
            let caller = Caller::new(Door::Grpc, "storm".into(), "");
            let mut watch = leases.watch(&token, &[], caller).await.map_err(|failed| failed.error)?;
            let mut expires_at = None;
            while let Some(update) = watch.next().await {
                let update = update.map_err(|failed| failed.error)?;
                let credential = update.credentials.first().context("a credential")?;
                if expires_at.is_some_and(|expired| clock.now() >= expired) {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                if began.elapsed() >= RETURNS {
                    renewed.fetch_add(1, Ordering::Relaxed);
                }
                expires_at = Some(credential.expires_at());
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    // To the moment at which the last of the credentials from before the outage has expired.
    sleep_until(began + RETURNS + Duration::from_secs(2700)).await;
    upkeep.abort();
    while let Some(ended) = watches.try_join_next() {
        ended??;
    }
    watches.shutdown().await;
    let calls = cloud.per_second_after(RETURNS);
    let storm = calls.get(..LEASES / RATE as usize).unwrap_or(&calls);
    let (peak, mean) =
        (calls.iter().max().copied().unwrap_or(0), storm.iter().sum::<usize>() as f64 / storm.len() as f64);
    let renewed = renewed.load(Ordering::Relaxed);
    Ok(vec![
        row("peak second / mean second of upstream calls", format!("{:.2}", peak as f64 / mean), "<= 1.5"),
        row("credentials that expired before their replacement", lost.load(Ordering::Relaxed).to_string(), "0"),
        aside("leases, replacements after the outage", format!("{LEASES}, {renewed}")),
        aside("calls in the fullest second, allowed", format!("{peak}, {RATE}")),
    ])
}

/// Follows tokio's, which jumps to the next timer whenever nobody has anything to do.
#[derive(Debug)]
struct VirtualClock(SystemTime, Instant);

impl Clock for VirtualClock {
    fn now(&self) -> SystemTime {
        self.0 + self.1.elapsed()
    }
}

/// Issues what is asked for, except while it is away; remembers in which second it issued.
struct Cloud {
    clock: Arc<VirtualClock>,
    began: Instant,
    minted: Mutex<Vec<usize>>,
}

impl Cloud {
    fn per_second_after(&self, time: Duration) -> Vec<usize> {
        let minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        minted.iter().skip(time.as_secs() as usize).copied().collect()
    }
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cloud")
    }
}

#[async_trait::async_trait]
impl CredentialProvider for Cloud {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = self.began.elapsed();
        if (LEAVES..RETURNS).contains(&second) {
            let (cause, retry_after) = ("away".to_owned(), Duration::from_secs(1));
            let upstream = Vec::new();
            return Err(IssueError::Unavailable { hop: Hop::GoogleSts, cause, fault: None, retry_after, upstream });
        }
        let number = {
            let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
            let second = second.as_secs() as usize;
            if minted.len() <= second {
                minted.resize(second + 1, 0);
            }
            if let Some(calls) = minted.get_mut(second) {
                *calls += 1;
            }
            minted.iter().sum::<usize>()
        };
        let (now, life) = (self.clock.now(), call.grant.plan().lifetime);
        let identity = CloudIdentity::Google { principal: String::new(), service_account: None };
        Ok(Credential::new(Secret::new(format!("storm-{number}")), now, now + life, life, identity))
    }
}

/// Takes everything: what is measured here are calls upstream.
#[derive(Debug)]
struct NoLog;

#[async_trait::async_trait]
impl AuditLog for NoLog {
    async fn append(&self, _group: Group) -> Result<(), AuditError> {
        Ok(())
    }

    async fn heads(&self, _most: u32) -> Result<Vec<Head>, AuditError> {
        Ok(Vec::new())
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn find_issued(&self, _token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        Ok(None)
    }

    async fn checkpoint(&self, _checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        Ok(Kept::Yes)
    }

    async fn prune(&self, _expired: &Expired) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn probe(&self) -> Result<(), AuditError> {
        Ok(())
    }
}

const LEASES: usize = 100_000;

/// Refreshes a second. The first credentials of all leases are a storm of their own, of eleven minutes.
const RATE: u32 = 150;

/// Tokens live an hour and are replaced after six to seven tenths of it: nothing is due before the cloud leaves, and when
/// it returns everything is, five minutes before the first expires.
const LEAVES: Duration = Duration::from_secs(2100);
const RETURNS: Duration = Duration::from_secs(3300);
