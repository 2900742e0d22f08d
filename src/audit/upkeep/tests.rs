use std::sync::LazyLock;

use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::audit::{Chain, FakeAuditLog};
use crate::clock::ManualClock;
use crate::issuer::{Algorithm, Keyring, SigningKey, Standing, StatementKeys, StoredKey};

/// Two of each algorithm.
static KEYS: LazyLock<[[StoredKey; 2]; 2]> = LazyLock::new(|| {
    let key = |algorithm| SigningKey::generate(algorithm, SystemTime::UNIX_EPOCH).expect("a key");
    [[key(Algorithm::Es256), key(Algorithm::Rs256)], [key(Algorithm::Es256), key(Algorithm::Rs256)]]
});

fn ring(number: usize) -> Keyring {
    Keyring::stored(&KEYS[number], None).expect("a key of each algorithm")
}

struct World {
    log: Arc<FakeAuditLog>,
    issuer: Arc<Issuer>,
    audit: Audit,
    writer: JoinHandle<()>,
    upkeep: Upkeep,
}

impl World {
    fn new() -> Self {
        let (log, clock) = (Arc::new(FakeAuditLog::default()), Arc::new(ManualClock::start()));
        let issuer = Arc::new(Issuer::new("https://carnet.example.com".to_owned(), ring(0), clock.clone()));
        let (audit, writer) = Audit::start(log.clone(), clock);
        let upkeep = audit.upkeep(log.clone(), Some(issuer.clone()));
        Self { log, issuer, audit, writer, upkeep }
    }

    fn keep(&self) -> JoinHandle<()> {
        tokio::spawn(self.upkeep.clone().keep(self.audit.clone(), Duration::from_secs(90 * 86_400)))
    }

    async fn record(&self) {
        self.audit.record(vec![AuditRecord::for_test(1)]).await.expect("written");
    }

    /// Another replica is so far.
    async fn other(&self, chain: &mut Chain) -> String {
        self.log.append(chain.seal(vec![AuditRecord::for_test(1)], Vec::new())).await.expect("written");
        chain.head().expect("a head").to_string()
    }

    /// Positions of the checkpoints, each of which this key signed.
    fn covered(&self, signed_by: usize) -> Vec<u64> {
        let keys = StatementKeys::of(&ring(signed_by));
        let position = |checkpoint: Checkpoint| {
            let (said, statement) = checkpoint.statement().expect("a statement");
            assert_eq!(said.head.position, checkpoint.position);
            (statement.standing(&keys) == Standing::Signed).then_some(said.head.position)
        };
        self.log.checkpoints().into_iter().filter_map(position).collect()
    }

    /// What own records but the first say of others.
    fn named(&self) -> Vec<(&'static str, String)> {
        let records = self.log.groups().into_iter().flat_map(|group| group.sealed);
        let named = records.filter(|record| record.action == WITNESS);
        named.map(|record| (record.action, record.attributes[0].1.clone())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn every_minute_with_records_has_one_checkpoint_and_so_has_the_end() {
    let world = World::new();
    let keeping = world.keep();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.covered(0), [1], "of the start");
    for _ in 0..30 {
        world.record().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.covered(0), [1]);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(world.covered(0), [1, 31]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.covered(0), [1, 31], "nothing new");
    world.record().await;
    keeping.abort();
    let _ = keeping.await;
    let World { log, audit, writer, upkeep, .. } = world;
    drop(audit);
    writer.await.expect("a clean end");
    upkeep.checkpoint().await;
    upkeep.checkpoint().await;
    assert_eq!(log.checkpoints().iter().map(|checkpoint| checkpoint.position).collect::<Vec<_>>(), [1, 31, 32]);
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_was_left_after_a_failed_write_has_its_checkpoint_too() {
    let world = World::new();
    world.record().await;
    world.log.fails(true);
    assert!(world.audit.record(vec![AuditRecord::for_test(2)]).await.is_err());
    world.log.fails(false);
    world.record().await;
    world.upkeep.checkpoint().await;
    assert_eq!(world.covered(0), [2, 2]);
    let chains: Vec<Uuid> = world.log.checkpoints().iter().map(|checkpoint| checkpoint.chain).collect();
    assert_ne!(chains[0], chains[1]);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_signs_for_what_the_old_one_did_and_others_chains_are_named_to_it() {
    let world = World::new();
    let mut other = Chain::new(Uuid::from_u128(5));
    let head = world.other(&mut other).await;
    let _keeping = world.keep();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.named().last(), Some(&(WITNESS, head.clone())), "the first hour's");
    let before = world.covered(0);
    world.issuer.replace_keys(ring(1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.named(), [(WITNESS, head.clone()), (WITNESS, head)]);
    let last = world.audit.progress.current().expect("a chain").head.position;
    assert_eq!((world.covered(0), world.covered(1)), (before, vec![last]));
}

#[tokio::test(start_paused = true)]
async fn every_hour_other_chains_are_named_as_far_as_nobody_has_named_them() {
    let world = World::new();
    let mut chains = [5, 6].map(|id| Chain::new(Uuid::from_u128(id)));
    let _keeping = world.keep();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.named(), [], "nobody else is there");
    let first = [world.other(&mut chains[0]).await, world.other(&mut chains[1]).await].join(",");
    tokio::time::sleep(PRUNE_EVERY).await;
    assert_eq!(world.named(), [(WITNESS, first.clone())]);
    tokio::time::sleep(5 * PRUNE_EVERY).await;
    assert_eq!(world.named(), [(WITNESS, first.clone())]);
    let second = world.other(&mut chains[1]).await;
    tokio::time::sleep(PRUNE_EVERY).await;
    assert_eq!(world.named(), [(WITNESS, first), (WITNESS, second)]);
}
