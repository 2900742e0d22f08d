//! How much one caller, or one address, may have of the broker, so that none of them slows the others.
//!
//! A caller is who a token shows, once it is verified; before that there is an address only, and many callers may come
//! from one. So an address is held to account for tokens that are refused and for nothing else, and those whom the broker
//! knows are let by.

mod bucket;
mod held;
mod known;
mod peer;
mod queue;
mod share;
mod unrecorded;

pub use held::{Held, HeldBack};
pub use peer::{Peer, network};
pub use queue::{FairQueue, Turn};
pub use share::{Share, Shares};
pub use unrecorded::{Omission, Unrecorded};

/// Too much is held of requests that are not complete; nothing is wrong with this one. For gRPC, the status that says so.
#[derive(Debug, thiserror::Error)]
#[error("too many large requests are under way")]
pub struct Crowded(#[source] pub Box<dyn std::error::Error + Send + Sync>);

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use self::bucket::Buckets;
use self::known::Known;

/// Tenant and object of whom a token shows, or says that it shows.
pub type Holder = (Uuid, Uuid);

/// What is allowed at once, and how fast it is allowed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Exchanges of one caller.
    pub per_caller: Rate,
    /// Tokens from one address that are refused, and records of strangers there.
    pub per_peer: Rate,
}

/// Everything that is counted by caller and by address. Its memory is made at the start and does not grow.
#[derive(Debug)]
pub struct Limits {
    hasher: RandomState,
    began: Instant,
    /// Exchanges, by verified caller.
    exchanges: Buckets,
    /// Refused tokens, by address.
    refused: Buckets,
    /// Refused tokens, by the known caller that they say to be of.
    pretended: Buckets,
    /// Records of those whom nobody knows, by address.
    recorded: Buckets,
    /// Questions about tokens that nobody handed out, by address.
    misses: Buckets,
    /// Those questions under way: an address has as many more answers than its limit, at most.
    questions: FairQueue<u64>,
    /// Lease tokens that are looked for and were not found here before.
    lease_tokens: FairQueue<u64>,
    known: Known,
    known_leases: Known,
    /// Exchanges under way, by verified caller, and by address while the caller is not verified yet.
    pub under_way: Shares,
    pub unrecorded: Unrecorded,
    pub held_back: HeldBack,
}

impl Limits {
    pub fn new(settings: Settings) -> Self {
        let by_peer = || Buckets::new(settings.per_peer);
        Self {
            hasher: RandomState::new(),
            began: Instant::now(),
            exchanges: Buckets::new(settings.per_caller),
            refused: by_peer(),
            pretended: Buckets::new(PRETENDED),
            recorded: by_peer(),
            misses: by_peer(),
            questions: FairQueue::new(QUESTIONS),
            lease_tokens: FairQueue::new(QUESTIONS),
            known: Known::new(),
            known_leases: Known::new(),
            under_way: Shares::default(),
            unrecorded: Unrecorded::default(),
            held_back: HeldBack::default(),
        }
    }

    /// Takes one exchange from what a verified caller may have.
    ///
    /// # Errors
    /// How long to wait.
    pub fn exchange(&self, holder: Holder) -> Result<(), Duration> {
        self.exchanges.take(self.key(holder), self.now())
    }

    /// Whether a token from there is looked at, which costs a signature check. `holder`: whom it says to show, asked for
    /// only where the address has used up what it has.
    ///
    /// # Errors
    /// How long to wait.
    pub fn hear(&self, peer: &Peer, holder: impl FnOnce() -> Option<Holder>) -> Result<(), Duration> {
        let Some(network) = peer.network() else { return Ok(()) };
        let now = self.now();
        let Err(wait) = self.refused.has_room(self.key(&*network), now) else { return Ok(()) };
        // A flood and good callers may have one address: a balancer's. A caller that was here before is heard all the same,
        // until tokens that only pretend to be theirs become too many.
        let known = holder().map(|holder| self.key(holder)).filter(|key| self.known.holds(*key));
        match known {
            Some(key) => self.pretended.has_room(key, now),
            None => Err(wait),
        }
    }

    /// Remembers whom a good token showed.
    pub fn verified(&self, holder: Holder) {
        self.known.insert(self.key(holder));
    }

    /// A token from there was refused for what it is.
    pub fn refused(&self, peer: &Peer, holder: impl FnOnce() -> Option<Holder>) {
        let Some(network) = peer.network() else { return };
        let now = self.now();
        if self.refused.take(self.key(&*network), now).is_err()
            && let Some(holder) = holder()
        {
            // Beyond its limit an address is heard for the sake of known callers only.
            let _ = self.pretended.take(self.key(holder), now);
        }
    }

    /// Whether what a stranger did is put on record by itself.
    pub fn is_recorded(&self, peer: &Peer) -> bool {
        peer.network().is_none_or(|network| self.recorded.take(self.key(&*network), self.now()).is_ok())
    }

    /// A turn at looking for a lease token; none is needed for one that was good here before. Nobody is refused for what
    /// others at the same address guess: a heartbeat that does not come through ends a lease.
    pub async fn lease_token(&self, token_sha256: &[u8; 32], peer: &Peer) -> Option<Turn<u64>> {
        let network = peer.network().filter(|_network| !self.known_leases.holds(self.key(token_sha256)))?;
        Some(self.lease_tokens.turn(self.key(&*network)).await)
    }

    /// There is an open lease of that token.
    pub fn found_lease(&self, token_sha256: &[u8; 32]) {
        self.known_leases.insert(self.key(token_sha256));
    }

    /// A turn at asking about a token, which is a look into the store; none is needed from within the broker.
    ///
    /// # Errors
    /// How long to wait.
    pub async fn question(&self, peer: &Peer) -> Result<Option<Turn<u64>>, Duration> {
        let Some(network) = peer.network() else { return Ok(None) };
        let key = self.key(&*network);
        self.misses.has_room(key, self.now())?;
        let turn = self.questions.turn(key).await;
        // Those before it may have been asked in vain.
        self.misses.has_room(key, self.now())?;
        Ok(Some(turn))
    }

    /// Nobody handed out the token that was asked about.
    pub fn asked_in_vain(&self, peer: &Peer) {
        if let Some(network) = peer.network() {
            let _ = self.misses.take(self.key(&*network), self.now());
        }
    }

    /// A place for one more exchange of a verified caller; `free`: places that nobody has.
    pub fn place_of_caller(&self, holder: Holder, free: usize) -> Option<Share> {
        self.under_way.take(self.key(holder), free)
    }

    /// The same while it is not known whose it is.
    pub fn place_of_peer(&self, peer: &Peer, free: usize) -> Option<Share> {
        self.under_way.take(self.key(peer.network().as_deref().unwrap_or_default()), free)
    }

    fn key<T: std::hash::Hash>(&self, of: T) -> u64 {
        self.hasher.hash_one(of)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Whoever knows a caller's object id can use these up, and so keep that caller's next fresh token waiting behind an
/// address that floods; tokens that were verified before stay good.
const PRETENDED: Rate = match (NonZeroU32::new(5), NonZeroU32::new(20)) {
    (Some(per_second), Some(burst)) => Rate { per_second, burst },
    _ => Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN },
};

/// A store reads few things at once.
const QUESTIONS: usize = 4;

#[cfg(any(test, feature = "testing"))]
impl Settings {
    /// Beyond what any test of something else asks for.
    pub const WIDE: Self = {
        let rate = Rate { per_second: NonZeroU32::MAX, burst: NonZeroU32::MAX };
        Self { per_caller: rate, per_peer: rate }
    };
}

#[cfg(test)]
mod tests;
