//! `carnet audit verify`: what was done to a store with its own SQL is found and named, and what brokers do is not.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use carnet::audit::{
    Audit, AuditRecord, Chain, FaultKind, Group, Head, Kept, Outcome, Reach, Report, Scope, Signatures, Upkeep,
    Verification,
};
use carnet::clock::{Clock, ManualClock};
use carnet::http;
use carnet::issuer::{Algorithm, Issuer, Keyring, SigningKey, StatementKeys, StoredKey};
use carnet::secret::{SealingKeys, Secret};
use carnet::store::{StoreSettings, Stores, open, open_to_read};
use uuid::Uuid;

use crate::command_line::{carnet, run, text};
use crate::postgres::{Database, with_database};
use crate::support::{STORE_KEY, Setup, captured_logs, with_setup};

pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const RETENTION: Duration = Duration::from_secs(30 * 86_400);

/// A store in either kind of database, and everything that a broker of it has.
pub(super) struct World<'a> {
    pub settings: StoreSettings,
    pub clock: ManualClock,
    pub issuer: Arc<Issuer>,
    pub database: Option<&'a Database>,
}

/// On a new store of either kind.
pub(super) async fn with_both(test: impl AsyncFn(&World<'_>)) {
    let folder = tempfile::tempdir().expect("a folder");
    test(&World::new(&format!("sqlite:{}/carnet.db", folder.path().display()), None)).await;
    with_database(async |database| test(&World::new(&database.url(), Some(database))).await).await;
}

fn keys() -> [StoredKey; 2] {
    Algorithm::ALL.map(|algorithm| SigningKey::generate(algorithm, SystemTime::UNIX_EPOCH).expect("a key"))
}

impl<'a> World<'a> {
    pub fn new(store: &str, database: Option<&'a Database>) -> Self {
        captured_logs();
        let settings = StoreSettings::parse(&Secret::new(store), &http::Settings::default()).expect("settings");
        let clock = ManualClock::start();
        // RSA keys take their time.
        static KEYS: LazyLock<[StoredKey; 2]> = LazyLock::new(keys);
        let ring = Keyring::stored(&*KEYS, None).expect("keys");
        let issuer = Issuer::new("https://carnet.example.com".to_owned(), ring, Arc::new(clock.clone()));
        Self { settings, clock, issuer: Arc::new(issuer), database }
    }

    pub async fn stores(&self) -> Stores {
        let sealing = SealingKeys::from_base64(&[Secret::new(STORE_KEY)]).expect("a key");
        open(&self.settings, Arc::new(sealing)).await.expect("a store")
    }

    /// A broker's life: so many groups of two records, a second apart, a checkpoint after each ten and at its end.
    pub async fn live(&self, groups: usize) {
        self.live_and(groups, async |upkeep, _audit| upkeep.checkpoint().await).await;
    }

    /// As [`live`](Self::live), with another end.
    pub async fn live_and(&self, groups: usize, end: impl AsyncFnOnce(&Upkeep, &Audit)) {
        let stores = self.stores().await;
        let (audit, writer) = Audit::start(stores.audit.clone(), Arc::new(self.clock.clone()));
        let upkeep = audit.upkeep(stores.records.clone(), Some(self.issuer.clone()));
        for number in 0..groups {
            self.clock.advance(Duration::from_secs(1));
            let records = [1, 2].map(|id| self.record(u128::try_from(10 * number + id).expect("small")));
            audit.record(records.into()).await.expect("written");
            if number % 10 == 9 {
                upkeep.checkpoint().await;
            }
        }
        end(&upkeep, &audit).await;
        drop(audit);
        writer.await.expect("a clean end");
    }

    pub fn record(&self, id: u128) -> AuditRecord {
        AuditRecord {
            exchange_id: Uuid::from_u128(id),
            time: self.clock.now(),
            action: "exchange",
            lease_id: None,
            outcome: Outcome::Denied,
            reason: None,
            subject: format!("entra:{}", "s".repeat(70)),
            entra_token_id: String::new(),
            client_id: String::new(),
            target: "t".to_owned(),
            rule: String::new(),
            job: Arc::default(),
            lifetime: None,
            cached: false,
            issued: None,
            identity: None,
            attributes: Vec::new(),
        }
    }

    /// Somebody who can write the store does so.
    pub async fn manipulate(&self, sql: &str) {
        match (&self.settings, self.database) {
            (StoreSettings::Sqlite(path), _) => {
                let store = rusqlite::Connection::open(path).expect("the store");
                store.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            (StoreSettings::Postgres { .. }, database) => {
                let client = database.expect("a database").client().await;
                // Where the dialects differ.
                let sql = sql.replace("x'", "'\\x").replace("INSERT INTO audit (sequence,", "INSERT INTO audit (");
                client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
        }
    }

    pub fn scope(&self) -> Scope {
        Scope {
            keys: StatementKeys::of(&self.issuer.keys()),
            signatures: Signatures::Expected,
            retention: RETENTION,
            since: None,
            now: self.clock.now(),
        }
    }

    pub async fn verify(&self) -> Report {
        self.verify_in(self.scope()).await
    }

    pub async fn verify_in(&self, scope: Scope) -> Report {
        let mut verification = Verification::new(open_to_read(&self.settings).await.expect("a store"), scope);
        verification.chains().await.expect("read");
        verification.into_report()
    }

    /// The chains, oldest first.
    pub async fn chains(&self) -> Vec<Uuid> {
        let store = open_to_read(&self.settings).await.expect("a store");
        store.chains().await.expect("read").iter().map(|extent| extent.chain).collect()
    }

    pub async fn groups(&self, chain: Uuid) -> Vec<Group> {
        let store = open_to_read(&self.settings).await.expect("a store");
        let mut groups = store.onwards(chain, 0, 1_000_000).await.expect("read");
        groups.sort_by_key(|group| group.position);
        groups
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    format!("x'{}'", hex::encode(bytes))
}

/// What is found: of which kind, in which of the chains, at which position.
pub(super) fn found(report: &Report, chains: &[Uuid]) -> Vec<(FaultKind, usize, u64)> {
    let number = |chain: Option<Uuid>| chains.iter().position(|other| Some(*other) == chain).expect("a chain");
    report.faults.iter().map(|fault| (fault.kind, number(fault.chain), fault.position)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_brokers_write_in_their_lives_is_whole() {
    with_both(async |world| {
        drop(world.stores().await);
        assert_eq!(world.verify().await, Report::default(), "an empty log");
        world.live(25).await;
        world.clock.advance(DAY);
        // Killed: no last checkpoint, and the next start names its head.
        world.live_and(13, async |_upkeep, _audit| {}).await;
        world.clock.advance(DAY);
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.chains, report.records), (&[][..], 2, 51 + 27));
        assert_eq!((report.signed, report.unsigned, report.newer), (51 + 21, 0, 6));
        world.live(3).await;
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.signed, report.newer), (&[][..], 51 + 27 + 7, 0));

        // A key of before, which nobody knows any more: the chains that it signed are named by one that can be checked.
        world.issuer.replace_keys(Keyring::stored(&keys(), None).expect("keys"));
        assert_eq!(world.verify().await.faults.first().map(|fault| fault.kind), None, "one chain is too young to tell");
        world.live(1).await;
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.signed, report.newer), (&[][..], 85 + 3, 0));
        assert_eq!(report.unknown_keys.len(), 1);
        let without = Scope { keys: StatementKeys::default(), signatures: Signatures::None, ..world.scope() };
        let report = world.verify_in(without).await;
        assert_eq!((&report.faults[..], report.signed, report.newer), (&[][..], 0, 88));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_manipulation_of_a_store_is_named_with_the_first_record_that_it_hit() {
    use FaultKind::{
        ChainMissing, CheckpointContradicts, CheckpointForged, Edited, Inserted, Missing, Reordered, Uncovered,
    };
    with_both(async |world| {
        world.live(25).await;
        world.clock.advance(DAY);
        world.live(12).await;
        world.clock.advance(DAY);
        world.live(3).await;
        let chains = world.chains().await;
        let [first, second, third] = chains[..] else { panic!("{} chains", chains.len()) };
        assert_eq!(found(&world.verify().await, &chains), []);
        let groups = world.groups(first).await;
        let group = |position: u64| groups.iter().find(|group| group.position == position).expect("a group").clone();

        // The second record of the group at 10, by one letter.
        let mut edited = group(10).bytes;
        let at = edited.len() - 10;
        edited[at] ^= 1;
        let of_first = |position: u64| format!("chain = {} AND position = {position}", hex(first.as_bytes()));
        let set = |what: String, position| format!("UPDATE audit SET {what} WHERE {};", of_first(position));
        let bytes = |bytes: &[u8], position| set(format!("bytes = {}", hex(bytes)), position);
        let content =
            |of: &Group, position| set(format!("bytes = {}, hashes = {}", hex(&of.bytes), hex(&of.hashes)), position);
        let insert = |group: &Group| {
            format!(
                "INSERT INTO audit (sequence, chain, position, records, newest_ms, hashes, bytes)
                 VALUES (100000, {}, {}, {}, {}, {}, {});",
                hex(first.as_bytes()),
                group.position,
                group.records,
                group.newest_ms,
                hex(&group.hashes),
                hex(&group.bytes)
            )
            .replace("VALUES (100000, ", if world.database.is_some() { "VALUES (" } else { "VALUES (100000, " })
        };
        let move_up = format!(
            "UPDATE audit SET position = -position - 2 WHERE chain = {0} AND position >= 20;
             UPDATE audit SET position = -position WHERE chain = {0} AND position < 0;",
            hex(first.as_bytes())
        );
        // Everything behind 20 anew, with hashes that fit.
        let mut forged = Chain::resume(Head { chain: first, position: 19, hash: hash_of(&group(18), 1) });
        let rewritten: Vec<Group> = (20..52)
            .step_by(2)
            .map(|id| forged.seal(vec![world.record(id), world.record(id + 1)], Vec::new()))
            .collect();
        let anew = |of: &Group| {
            let (bytes, hashes) = (hex(&of.bytes), hex(&of.hashes));
            set(format!("bytes = {bytes}, hashes = {hashes}, newest_ms = {}", of.newest_ms), of.position)
        };
        let rewrite: String = rewritten.iter().map(anew).collect();
        let mut stranger = Chain::resume(Head { chain: first, position: 19, hash: hash_of(&group(18), 1) });
        let made_up = stranger.seal(vec![world.record(98), world.record(99)], Vec::new());
        let drop_checkpoints = format!("DELETE FROM audit_checkpoint WHERE chain = {};", hex(first.as_bytes()));
        let another = Issuer::new(
            "https://carnet.example.com".to_owned(),
            Keyring::stored(&keys(), None).expect("keys"),
            Arc::new(world.clock.clone()),
        );
        let head = forged.head().expect("a head");
        let forgery = |issuer: Option<&Issuer>| {
            let reach = Reach { head, newest_ms: 0 };
            carnet::audit::Checkpoint::make(&reach, issuer, world.clock.now()).expect("made").statement
        };
        let claimed = |statement: String| {
            format!("UPDATE audit_checkpoint SET statement = '{statement}' WHERE {};", of_first(head.position))
        };
        let honest = {
            let store = open_to_read(&world.settings).await.expect("a store");
            let all = store.checkpoints((first, 0), 100).await.expect("read");
            all.iter().find(|checkpoint| checkpoint.position == 51).expect("a checkpoint").statement.clone()
        };
        let (payload, signature) =
            (forgery(Some(&another)), honest.rsplit_once('.').expect("a signature").1.to_owned());
        let payload = payload.split('.').nth(1).expect("claims").to_owned();
        let honest_header = honest.split('.').next().expect("a header").to_owned();
        let gone = |chain: Uuid| {
            let chain = hex(chain.as_bytes());
            format!("DELETE FROM audit WHERE chain = {chain}; DELETE FROM audit_checkpoint WHERE chain = {chain};")
        };

        for (what, sql, expected) in [
            ("a byte edited", bytes(&edited, 10), (Edited, 0, 11)),
            ("a group cut", bytes(&group(10).bytes[..290], 10), (Edited, 0, 11)),
            ("a group emptied", bytes(&[], 10), (Edited, 0, 10)),
            ("hashes blanked", set(format!("hashes = {}", hex(&[0; 64])), 10), (Edited, 0, 10)),
            ("hashes taken away", set("hashes = NULL".to_owned(), 10), (Edited, 0, 10)),
            ("a group deleted", format!("DELETE FROM audit WHERE {};", of_first(10)), (Missing, 0, 10)),
            ("the beginning deleted", format!("DELETE FROM audit WHERE {};", of_first(1)), (Missing, 0, 1)),
            (
                "the tail deleted",
                format!("DELETE FROM audit WHERE chain = {} AND position >= 44;", hex(first.as_bytes())),
                (Missing, 0, 44),
            ),
            (
                "the tail deleted with its checkpoints",
                format!(
                    "DELETE FROM audit WHERE chain = {0} AND position >= 44;
                     DELETE FROM audit_checkpoint WHERE chain = {0} AND position >= 44;",
                    hex(first.as_bytes())
                ),
                (Missing, 0, 44),
            ),
            ("a chain deleted", gone(second), (ChainMissing, 1, 1)),
            (
                "a chain deleted but for its checkpoints",
                format!("DELETE FROM audit WHERE chain = {};", hex(third.as_bytes())),
                (ChainMissing, 2, 1),
            ),
            ("two groups swapped", content(&group(30), 10) + &content(&group(10), 30), (Reordered, 0, 10)),
            ("two neighbours swapped", content(&group(12), 10) + &content(&group(10), 12), (Reordered, 0, 10)),
            ("an old group replayed", insert(&Group { position: 52, ..group(10) }), (Inserted, 0, 52)),
            ("an old group in another's place", content(&group(10), 30), (Inserted, 0, 30)),
            ("a group put between", move_up.clone() + &insert(&made_up), (Inserted, 0, 20)),
            (
                "an old group put between",
                move_up.clone() + &insert(&Group { position: 20, ..group(10) }),
                (Inserted, 0, 20),
            ),
            ("a record at no place", insert(&Group { position: 0, ..group(10) }), (Inserted, 0, 0)),
            ("a chain rewritten with fresh hashes", rewrite.clone(), (CheckpointContradicts, 0, 51)),
            (
                "a chain rewritten and its checkpoints deleted",
                rewrite.clone() + &drop_checkpoints,
                (CheckpointContradicts, 0, 51),
            ),
            (
                "the last chain's signatures deleted, and an hour of records made up",
                format!("DELETE FROM audit_checkpoint WHERE chain = {};", hex(third.as_bytes()))
                    + &longer(world, third, &world.groups(third).await),
                (Uncovered, 2, 1),
            ),
            (
                "a checkpoint forged with another key, of a rewritten chain",
                rewrite.clone() + &claimed(forgery(Some(&another))),
                (CheckpointContradicts, 0, 51),
            ),
            (
                "a checkpoint with the signature of another",
                rewrite.clone() + &claimed(format!("{honest_header}.{payload}.{signature}")),
                (CheckpointForged, 0, 51),
            ),
            ("a checkpoint that is none", claimed("none".to_owned()), (CheckpointForged, 0, 51)),
            (
                "a checkpoint moved",
                format!("UPDATE audit_checkpoint SET position = 30 WHERE {};", of_first(51)),
                (CheckpointForged, 0, 30),
            ),
            (
                "an anchor made up",
                format!(
                    "UPDATE audit_checkpoint SET anchor_ms = 1 WHERE {};
                     DELETE FROM audit WHERE chain = {} AND position <= 51;",
                    of_first(51),
                    hex(first.as_bytes())
                ),
                (Missing, 0, 1),
            ),
        ] {
            let backup = world.backup().await;
            world.manipulate(&sql).await;
            let report = world.verify().await;
            let (kind, chain, position) = expected;
            assert_eq!(found(&report, &chains).first(), Some(&(kind, chain, position)), "{what}: {:?}", report.faults);
            world.restore(backup).await;
        }
        assert_eq!(found(&world.verify().await, &chains), []);
    })
    .await;
}

/// Statements that add an hour of records to a chain, each linked as it should be.
fn longer(world: &World<'_>, chain: Uuid, groups: &[Group]) -> String {
    let last = groups.last().expect("a group");
    let position = last.position + last.records - 1;
    let mut chain = Chain::resume(Head { chain, position, hash: hash_of(last, 1) });
    let mut add = |minutes: u64| {
        let record = AuditRecord { time: world.clock.now() + Duration::from_secs(60 * minutes), ..world.record(7) };
        let group = chain.seal(vec![record], Vec::new());
        format!(
            "INSERT INTO audit (sequence, chain, position, records, newest_ms, hashes, bytes)
             VALUES ({}{}, {}, 1, {}, {}, {});",
            if world.database.is_some() { String::new() } else { format!("{}, ", 200_000 + minutes) },
            hex(group.chain.expect("a chain").as_bytes()),
            group.position,
            group.newest_ms,
            hex(&group.hashes),
            hex(&group.bytes)
        )
    };
    (0..60).map(&mut add).collect()
}

/// Of the record with this index.
fn hash_of(group: &Group, index: usize) -> [u8; 32] {
    group.hashes[32 * index..32 * (index + 1)].try_into().expect("a hash")
}

impl World<'_> {
    /// Everything of the audit log, to be put back.
    pub async fn backup(&self) -> Option<Vec<u8>> {
        match &self.settings {
            StoreSettings::Sqlite(path) => {
                let store = rusqlite::Connection::open(path).expect("the store");
                store.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("checkpointed");
                Some(std::fs::read(path).expect("the file"))
            }
            StoreSettings::Postgres { .. } => {
                let sql = "CREATE TABLE saved AS SELECT * FROM audit;
                           CREATE TABLE saved_checkpoint AS SELECT * FROM audit_checkpoint;
                           CREATE TABLE saved_token AS SELECT * FROM audit_token;
                           CREATE TABLE saved_identity AS SELECT * FROM audit_identity;";
                self.manipulate(sql).await;
                None
            }
        }
    }

    pub async fn restore(&self, backup: Option<Vec<u8>>) {
        match (&self.settings, backup) {
            (StoreSettings::Sqlite(path), Some(backup)) => {
                for more in ["db-wal", "db-shm"] {
                    let _ = std::fs::remove_file(path.with_extension(more));
                }
                std::fs::write(path, backup).expect("written");
            }
            _ => {
                let sql = "TRUNCATE audit; INSERT INTO audit OVERRIDING SYSTEM VALUE SELECT * FROM saved;
                           TRUNCATE audit_checkpoint; INSERT INTO audit_checkpoint SELECT * FROM saved_checkpoint;
                           TRUNCATE audit_token; INSERT INTO audit_token SELECT * FROM saved_token;
                           TRUNCATE audit_identity; INSERT INTO audit_identity SELECT * FROM saved_identity;
                           DROP TABLE saved, saved_checkpoint, saved_token, saved_identity;";
                self.manipulate(sql).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_stays_whole_when_what_is_too_old_is_dropped_and_only_then() {
    with_both(async |world| {
        world.live(25).await;
        // Killed, with more than a checkpoint covers.
        world.live_and(15, async |_upkeep, _audit| {}).await;
        for _ in 0..13 {
            world.clock.advance(3 * DAY);
            world
                .live_and(2, async |upkeep, audit| {
                    upkeep.checkpoint().await;
                    upkeep.prune_once(audit, RETENTION).await.expect("pruned");
                    upkeep.checkpoint().await;
                })
                .await;
            let report = world.verify().await;
            assert_eq!((&report.faults[..], report.newer), (&[][..], 0));
        }
        assert_eq!(world.chains().await.len(), 10, "a month of lives");
        // A longer retention than was in force is no reason to call what was dropped then missing.
        let longer = Scope { retention: 12 * RETENTION, ..world.scope() };
        assert_eq!(world.verify_in(longer).await.faults, []);

        // An export of a record whose time is over, of one that is there, and of one that somebody took.
        let chain = *world.chains().await.last().expect("a chain");
        let group = world.groups(chain).await.pop().expect("a group");
        let position = group.position + group.records - 1;
        let hash = base64_url(&group.hashes[group.hashes.len() - 32..]);
        let line = |chain: Uuid, position: u64, hash: &str, time: SystemTime| {
            let time = carnet::app::rfc3339(time);
            format!(
                r#"{{"exchange_id":"e","time":"{time}","sequence":{position},"chain_hash":"{hash}","attributes":{{"chain":"{chain}"}}}}"#
            )
        };
        let now = world.clock.now();
        let old = line(Uuid::from_u128(1), 7, "x", now - 2 * RETENTION);
        let there = line(chain, position, &hash, now);
        let missing = line(Uuid::from_u128(2), 7, "x", now);
        let cut = line(chain, position + 1, "x", now);
        let other = line(chain, position, "x", now);
        let against = async |lines: &[&String]| {
            let store = open_to_read(&world.settings).await.expect("a store");
            let mut verification = Verification::new(store, world.scope());
            verification.chains().await.expect("read");
            let lines: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
            verification.against((lines.join("\n") + "\n\n").as_bytes()).await.expect("compared");
            let report = verification.into_report();
            let faults: Vec<_> = report.faults.iter().map(|fault| (fault.kind, fault.position)).collect();
            (faults, report.exported, report.exported_before)
        };
        use FaultKind::ExportContradicts;
        assert_eq!(against(&[&old, &there]).await, (vec![], 2, 1));
        assert_eq!(against(&[&missing]).await, (vec![(ExportContradicts, 7)], 1, 0));
        assert_eq!(against(&[&there, &cut]).await, (vec![(ExportContradicts, position + 1)], 2, 0));
        assert_eq!(against(&[&other]).await, (vec![(ExportContradicts, position)], 1, 0));
    })
    .await;
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_that_ended_in_the_middle_leaves_a_log_that_is_whole() {
    with_both(async |world| {
        world.live(25).await;
        world.clock.advance(RETENTION + DAY);
        world.live(1).await;
        let first = world.chains().await[0];
        let groups = world.groups(first).await;
        world
            .live_and(1, async |upkeep, audit| {
                assert_eq!(upkeep.prune_once(audit, RETENTION).await.expect("pruned"), 51);
                upkeep.checkpoint().await;
            })
            .await;
        // The power failed before the last groups were gone.
        let stores = world.stores().await;
        for group in groups.iter().filter(|group| group.position >= 30) {
            stores.audit.append(group.clone()).await.expect("written");
        }
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.records), (&[][..], 22 + 3 + 4));
        // Of what is left, too, nobody changes anything.
        let sql = format!("UPDATE audit SET hashes = {} WHERE position = 40", hex(&[7; 64]));
        world.manipulate(&sql).await;
        assert_eq!(found(&world.verify().await, &[first]), [(FaultKind::Edited, 0, 40)]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_changed_in_a_packed_group_is_found_and_so_is_a_group_that_cannot_be_unpacked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("carnet.db");
    let world = World::new(&format!("sqlite:{}", path.display()), None);
    let stores = world.stores().await;
    let (audit, writer) = Audit::start(stores.audit.clone(), Arc::new(world.clock.clone()));
    audit.record((1..=100).map(|id| world.record(id)).collect()).await.expect("written");
    drop((audit, stores));
    writer.await.expect("a clean end");
    let first = world.chains().await[0];
    assert_eq!(found(&world.verify().await, &[first]), []);

    let store = rusqlite::Connection::open(&path).expect("the store");
    let (packed, length): (Vec<u8>, Option<u32>) = store
        .query_row("SELECT bytes, unpacked FROM audit WHERE position = 2", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("the group after the start's");
    let length = length.expect("a packed group") as usize;
    let mut records = lz4_flex::block::decompress(&packed, length).expect("packed records");
    // The records have the same length, and their target is the last text of each.
    let target = records[..50 * length / 100].iter().rposition(|byte| *byte == b't').expect("a target");
    records[target] = b'u';
    let put = |bytes: Vec<u8>| {
        let sql = "UPDATE audit SET bytes = ?1 WHERE position = 2";
        assert_eq!(store.execute(sql, [bytes]).expect("changed"), 1);
    };
    put(lz4_flex::block::compress(&records));
    assert_eq!(found(&world.verify().await, &[first]), [(FaultKind::Edited, 0, 51)]);
    put(packed[..packed.len() / 2].to_vec());
    assert_eq!(found(&world.verify().await, &[first]), [(FaultKind::Edited, 0, 2)]);
    put(packed);
    assert_eq!(found(&world.verify().await, &[first]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_whole_or_what_is_broken_and_the_program_that_called_it_can_tell() {
    with_setup(Setup::default(), async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name).display().to_string();
        let config = broker.config_path().display().to_string();
        let verify = async |more: &[&str]| {
            let output = run(carnet(&[&["audit", "verify", "--config", &config], more].concat())).await;
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let exported = run(carnet(&["audit", "export", "--config", &config])).await;
        std::fs::write(file("export.jsonl"), &exported.stdout).expect("written");
        let (code, said, complaint) = verify(&["--against", &file("export.jsonl")]).await;
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{said}");
        assert!(said.contains("2 exported records compared") && said.ends_with("whole\n"), "{said}");

        broker.app().refresh_issuer_keys().await;
        let jwks = run(carnet(&["issuer", "jwks", "--config", &config])).await;
        std::fs::write(file("keys.json"), &jwks.stdout).expect("written");
        assert_eq!(verify(&["--jwks", &file("keys.json"), "--since", "1d"]).await.0, Some(0));
        std::fs::write(file("none.json"), "{}").expect("written");
        let (code, _said, complaint) = verify(&["--jwks", &file("none.json")]).await;
        assert!(code == Some(1) && complaint.contains("none.json") && complaint.contains("ES256"), "{complaint}");
        std::fs::write(file("none.jsonl"), "\n[]\n").expect("written");
        let (code, _said, complaint) = verify(&["--against", &file("none.jsonl")]).await;
        assert!(code == Some(1) && complaint.contains("line 2 is neither a record"), "{complaint}");

        let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
        let sql = "UPDATE audit SET bytes = CAST(replace(CAST(bytes AS TEXT), 'vertex', 'vortex') AS BLOB)
                   WHERE position = 2";
        assert_eq!(store.execute(sql, []).expect("changed"), 1);
        let (code, said, complaint) = verify(&["--output", "json"]).await;
        assert_eq!((code, complaint.as_str()), (Some(1), ""));
        let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let fault = &report["faults"][0];
        assert_eq!(
            (&report["whole"], &fault["kind"], &fault["sequence"]),
            (&false.into(), &"edited".into(), &2.into())
        );
        let (code, said, _complaint) = verify(&[]).await;
        let id = fault["exchange_id"].as_str().expect("an id");
        assert!(code == Some(1) && said.contains("BROKEN") && said.contains(id), "{said}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn since_begins_at_a_checkpoint_and_records_of_before_the_chain_stand_before_it() {
    with_both(async |world| {
        let old = "INSERT INTO audit (sequence, records, newest_ms, bytes) VALUES (-5, 3, 1000, x'00');";
        let old = if world.database.is_some() {
            old.replace("(sequence, records", "(records").replace("(-5, 3", "(3")
        } else {
            old.to_owned()
        };
        world.stores().await;
        world.manipulate(&old).await;
        world.live(25).await;
        world.clock.advance(DAY);
        world.live(5).await;
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.unchained, report.records), (&[][..], 3, 62));
        let since = |before: Duration| Scope { since: Some(world.clock.now() - before), ..world.scope() };
        let report = world.verify_in(since(DAY / 2)).await;
        assert_eq!((&report.faults[..], report.chains, report.records, report.signed), (&[][..], 1, 11, 11));
        let report = world.verify_in(since(2 * DAY)).await;
        assert_eq!((&report.faults[..], report.chains, report.records), (&[][..], 2, 62));

        let young = old.replace("1000", &format!("{}", carnet::clock::unix_milliseconds(world.clock.now())));
        world.manipulate(&young.replace("-5", "-9")).await;
        let report = world.verify().await;
        assert_eq!(
            report.faults.iter().map(|fault| (fault.kind, fault.chain)).collect::<Vec<_>>(),
            [(FaultKind::Inserted, None)]
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_waits_for_records_that_wait_in_a_spool() {
    with_database(async |database| {
        let folder = tempfile::tempdir().expect("a folder");
        let world = World::new(&database.url(), Some(database));
        let StoreSettings::Postgres { settings, .. } = world.settings.clone() else { panic!("PostgreSQL") };
        let spool = Some(folder.path().join("spool.db"));
        let settings = StoreSettings::Postgres { settings, spool };
        let sealing = Arc::new(SealingKeys::from_base64(&[Secret::new(STORE_KEY)]).expect("a key"));
        let stores = open(&settings, sealing).await.expect("a store");
        let mut chain = Chain::new(Uuid::now_v7());
        let checkpoint = |chain: &Chain| {
            let reach = Reach { head: chain.head().expect("a head"), newest_ms: 0 };
            carnet::audit::Checkpoint::make(&reach, Some(&world.issuer), world.clock.now()).expect("made")
        };
        let write = async |chain: &mut Chain| {
            stores.audit.append(chain.seal(vec![world.record(1)], Vec::new())).await.expect("written");
        };
        write(&mut chain).await;
        assert_eq!(stores.audit.checkpoint(checkpoint(&chain)).await.expect("kept"), Kept::Yes);
        database.is_away(true).await;
        write(&mut chain).await;
        database.is_away(false).await;
        assert_eq!(stores.audit.checkpoint(checkpoint(&chain)).await.expect("no error"), Kept::NotYet);
        stores.spool.clone().expect("a spool").leave_empty().await;
        assert_eq!(stores.audit.checkpoint(checkpoint(&chain)).await.expect("kept"), Kept::Yes);
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.records, report.signed), (&[][..], 2, 2));
    })
    .await;
}
