//! What a store promises, held against both of them; and what only PostgreSQL can do to a broker.

mod leases;
mod reading;
mod retention;
mod shipments;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carnet::audit::{AuditRecord, Chain, Group, Issued, Outcome};
use carnet::clock::{Clock as _, SystemClock};
use carnet::http;
use carnet::issuer::{Algorithm, SigningKey, StoredKey};
use carnet::reason::Reason;
use carnet::secret::{SealingKeys, Secret};
use carnet::store::{OpenError, StoreSettings, Stores, open};
use uuid::Uuid;

use self::leases::{
    changes_of_one_lease_at_two_replicas_at_once_are_made_one_after_the_other,
    every_store_does_with_leases_what_the_contract_means,
    leases_outlive_the_process_and_who_opened_them_is_sealed_and_goes_with_their_end,
    what_runs_have_taken_is_known_by_subject_and_name,
};
use self::reading::{
    a_reader_goes_on_where_it_left_off_and_leaves_no_gap_behind_that_may_close,
    a_store_is_read_where_no_broker_runs_and_nothing_of_it_changes, records_are_written_while_others_are_read,
    the_newest_records_come_first_page_by_page_to_the_last,
};
use self::retention::{
    a_clock_that_has_jumped_ahead_empties_no_log, a_probe_leaves_nothing_behind,
    checkpoints_come_back_in_their_order_and_of_an_hour_only_the_last,
    records_past_their_retention_are_dropped_up_to_a_checkpoint_and_no_others,
    what_is_left_of_a_killed_writer_goes_with_its_time_and_so_do_its_anchor_and_facts,
};
use self::shipments::how_far_a_way_out_has_come_outlives_the_process_and_never_goes_back;
use crate::postgres::with_database;
use crate::support::{captured_logs, eventually, free_port};

/// Each of these runs on a new store of either kind.
macro_rules! contract {
    ($($name:ident)+) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let folder = tempfile::tempdir().expect("a folder");
                super::$name(&super::Place(format!("sqlite:{}/carnet.db", folder.path().display()))).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                crate::postgres::with_database(async |database| super::$name(&super::Place(database.url())).await).await;
            })+
        }
    };
}

contract! {
    records_survive_the_process_and_the_first_hand_out_of_a_token_is_found
    records_past_their_retention_are_dropped_up_to_a_checkpoint_and_no_others
    a_clock_that_has_jumped_ahead_empties_no_log
    what_is_left_of_a_killed_writer_goes_with_its_time_and_so_do_its_anchor_and_facts
    checkpoints_come_back_in_their_order_and_of_an_hour_only_the_last
    a_probe_leaves_nothing_behind
    groups_that_are_written_at_once_are_all_kept
    a_group_that_arrives_twice_is_kept_once
    the_heads_of_the_chains_that_were_written_last_are_known
    the_newest_records_come_first_page_by_page_to_the_last
    a_reader_goes_on_where_it_left_off_and_leaves_no_gap_behind_that_may_close
    a_store_is_read_where_no_broker_runs_and_nothing_of_it_changes
    records_are_written_while_others_are_read
    how_far_a_way_out_has_come_outlives_the_process_and_never_goes_back
    keys_come_back_whole_but_only_with_the_store_key
    a_key_is_kept_only_as_the_successor_of_the_last_one
    a_new_store_key_in_front_seals_anew_what_the_older_one_had_sealed
    every_store_does_with_leases_what_the_contract_means
    leases_outlive_the_process_and_who_opened_them_is_sealed_and_goes_with_their_end
    changes_of_one_lease_at_two_replicas_at_once_are_made_one_after_the_other
    what_runs_have_taken_is_known_by_subject_and_name
}

/// Where a store is or will be.
struct Place(String);

const STORE_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const OTHER_STORE_KEY: &str = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

impl Place {
    async fn open(&self) -> Stores {
        self.open_with(&[STORE_KEY]).await
    }

    async fn open_with(&self, keys: &[&str]) -> Stores {
        self.try_open(keys).await.expect("a store")
    }

    async fn try_open(&self, keys: &[&str]) -> Result<Stores, OpenError> {
        captured_logs();
        let settings =
            StoreSettings::parse(&Secret::new(self.0.as_str()), &http::Settings::default()).expect("settings");
        let keys: Vec<Secret> = keys.iter().map(|key| Secret::new(*key)).collect();
        let sealing = Arc::new(SealingKeys::from_base64(&keys).expect("keys"));
        open(&settings, sealing).await
    }
}

fn record(id: u128) -> AuditRecord {
    AuditRecord {
        exchange_id: Uuid::from_u128(id),
        time: at(0),
        action: "exchange",
        lease_id: None,
        outcome: Outcome::Denied,
        reason: Some(Reason::Denied),
        subject: String::new(),
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

/// In a chain of their own.
fn alone(records: impl IntoIterator<Item = AuditRecord>) -> Group {
    Chain::new(Uuid::now_v7()).seal(records.into_iter().collect(), Vec::new())
}

fn issued(id: u128, token_sha256: [u8; 32], first: bool) -> AuditRecord {
    let issued = Issued {
        token_sha256,
        first,
        scopes: "a b".to_owned(),
        acts_as: "sa@p.iam.gserviceaccount.com".to_owned(),
        issued_at: at(1_000),
        expires_at: at(4_600),
    };
    AuditRecord { outcome: Outcome::Issued, reason: None, issued: Some(issued), ..record(id) }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

async fn records_survive_the_process_and_the_first_hand_out_of_a_token_is_found(place: &Place) {
    let (store, token) = (place.open().await, [7; 32]);
    let group = vec![record(1), issued(8, [6; 32], true), issued(9, token, true), issued(10, token, false)];
    store.audit.append(alone(group)).await.expect("written");
    // Another replica handed it out for the first time, too.
    store.audit.append(alone([issued(11, token, true)])).await.expect("written");
    drop(store);
    let audit = place.open().await.audit;
    let found = audit.find_issued(&token).await.expect("read").expect("a hand-out");
    assert_eq!((found.exchange_id, found.target.as_str()), (Uuid::from_u128(9), "t"));
    assert_eq!(Some(found.issued), issued(9, token, true).issued);
    assert_eq!(audit.find_issued(&[8; 32]).await.expect("read"), None);
}

async fn groups_that_are_written_at_once_are_all_kept(place: &Place) {
    let (one, other) = (place.open().await.audit, place.open().await.audit);
    let token = |id: u8| [id; 32];
    let writing = (0..40u8).map(|id| {
        let audit = if id % 2 == 0 { &one } else { &other };
        audit.append(alone([record(0), issued(id.into(), token(id), true)]))
    });
    assert!(futures_util::future::join_all(writing).await.iter().all(Result::is_ok));
    for id in 0..40 {
        let found = other.find_issued(&token(id)).await.expect("read").expect("a hand-out");
        assert_eq!(found.exchange_id, Uuid::from_u128(id.into()));
    }
}

async fn a_group_that_arrives_twice_is_kept_once(place: &Place) {
    let (one, other) = (place.open().await.audit, place.open().await.audit);
    let mut chain = Chain::new(Uuid::from_u128(7));
    let first = chain.seal(vec![AuditRecord { time: at(10), ..issued(1, [1; 32], true) }], Vec::new());
    let second = chain.seal(vec![AuditRecord { time: at(11), ..record(2) }, record(3)], Vec::new());
    for log in [&one, &other, &one] {
        for group in [&second, &first, &second] {
            log.append(group.clone()).await.expect("written");
        }
    }
    assert_eq!(one.heads(10).await.expect("read"), [chain.head().expect("a head")]);
    assert!(one.find_issued(&[1; 32]).await.expect("read").is_some());
    let groups = place.open().await.records.onwards(Uuid::from_u128(7), 0, 100).await.expect("read");
    assert_eq!(groups.iter().map(|group| group.records).collect::<Vec<_>>(), [1, 2]);
}

async fn the_heads_of_the_chains_that_were_written_last_are_known(place: &Place) {
    let audit = place.open().await.audit;
    assert_eq!(audit.heads(10).await.expect("read"), []);
    let mut chains: Vec<Chain> = [5, 9, 7].map(|id| Chain::new(Uuid::from_u128(id))).into();
    for (seconds, written) in (0..).zip([0, 1, 0, 2, 2, 1]) {
        let group = chains[written].seal(vec![AuditRecord { time: at(seconds), ..record(1) }; 3], Vec::new());
        audit.append(group).await.expect("written");
    }
    let heads = [1, 2, 0].map(|number: usize| chains[number].head().expect("a head"));
    assert_eq!(heads.map(|head| head.position), [6, 6, 6]);
    assert_eq!(audit.heads(10).await.expect("read"), heads);
    assert_eq!(audit.heads(2).await.expect("read"), heads[..2]);
}

async fn keys_come_back_whole_but_only_with_the_store_key(place: &Place) {
    let key = SigningKey::generate(Algorithm::Es256, at(0)).expect("a key");
    place.open().await.keys.add(&key, None).await.expect("kept");
    let back = place.open().await.keys.keys().await.expect("read");
    assert_eq!((back.len(), &back[0].kid, &back[0].pkcs8), (1, &key.kid, &key.pkcs8));
    assert_eq!(back[0].algorithm, Algorithm::Es256);
    assert!(place.open_with(&[OTHER_STORE_KEY]).await.keys.keys().await.is_err());
}

async fn a_key_is_kept_only_as_the_successor_of_the_last_one(place: &Place) {
    let (one, other) = (place.open().await.keys, place.open().await.keys);
    let [first, rival, second, late, leaked] = [0, 0, 100, 100, 50].map(|signs_from| {
        let key = SigningKey::generate(Algorithm::Es256, at(0)).expect("a key");
        StoredKey { signs_from: at(signs_from), ..key }
    });
    let kids = async || {
        let keys = one.keys().await.expect("read");
        keys.into_iter().map(|key| key.kid).collect::<Vec<_>>()
    };
    let both = tokio::join!(one.add(&first, None), other.add(&rival, None));
    assert!(both.0.is_ok() && both.1.is_ok());
    let only = kids().await;
    assert!(only == [first.kid.as_str()] || only == [rival.kid.as_str()], "{only:?}");
    other.add(&second, Some(&only[0])).await.expect("kept");
    one.add(&late, Some(&only[0])).await.expect("no error");
    one.add(&late, None).await.expect("no error");
    assert_eq!(kids().await, [only[0].as_str(), &second.kid]);
    // A key that signs at once stands before the one that waits.
    one.add(&leaked, Some(&second.kid)).await.expect("kept");
    assert_eq!(kids().await, [only[0].as_str(), &leaked.kid, &second.kid]);
    other.remove(&second.kid).await.expect("removed");
    other.remove(&second.kid).await.expect("removed already");
    assert_eq!(kids().await, [only[0].as_str(), &leaked.kid]);
    let rsa =
        StoredKey { algorithm: Algorithm::Rs256, ..SigningKey::generate(Algorithm::Es256, at(0)).expect("a key") };
    one.add(&rsa, None).await.expect("the first of another algorithm");
    assert_eq!(kids().await.len(), 3);
}

async fn a_new_store_key_in_front_seals_anew_what_the_older_one_had_sealed(place: &Place) {
    let key = SigningKey::generate(Algorithm::Es256, at(0)).expect("a key");
    place.open_with(&[STORE_KEY]).await.keys.add(&key, None).await.expect("kept");
    let back = place.open_with(&[OTHER_STORE_KEY, STORE_KEY]).await.keys.keys().await.expect("read");
    assert_eq!((back.len(), &back[0].pkcs8), (1, &key.pkcs8));
    let back = place.open_with(&[OTHER_STORE_KEY]).await.keys.keys().await.expect("read");
    assert_eq!(back[0].pkcs8, key.pkcs8);
    assert!(place.open_with(&[STORE_KEY]).await.keys.keys().await.is_err(), "the older key still opens it");
}

#[tokio::test]
async fn keys_do_not_lie_in_the_file_in_clear() {
    let folder = tempfile::tempdir().expect("a folder");
    let path: PathBuf = folder.path().join("carnet.db");
    let key = SigningKey::generate(Algorithm::Es256, at(0)).expect("a key");
    let store = Place(format!("sqlite:{}", path.display())).open().await;
    store.keys.add(&key, None).await.expect("kept");
    for path in [path.with_extension("db-wal"), path] {
        let bytes = std::fs::read(path).expect("a file");
        assert!(!bytes.windows(32).any(|window| window == &key.pkcs8[..32]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_on_an_empty_database_make_its_tables_once() {
    with_database(async |database| {
        let place = Place(database.url());
        let stores = futures_util::future::join_all((0..8).map(|_| place.open())).await;
        for (id, store) in (0..).zip(stores) {
            store.audit.append(alone([record(id)])).await.expect("written");
        }
        let client = database.client().await;
        let versions = client.query("SELECT version FROM carnet_schema", &[]).await.expect("rows");
        let versions: Vec<i64> = versions.iter().map(|row| row.get(0)).collect();
        assert_eq!(versions, (1..).take(versions.len()).collect::<Vec<_>>());
        client.batch_execute("INSERT INTO carnet_schema VALUES (99)").await.expect("inserted");
        let refused = place.try_open(&[STORE_KEY]).await.expect_err("a newer schema");
        assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_at_a_time_has_the_lock_of_a_key_until_it_leaves_a_credential_or_its_time_is_up() {
    with_database(async |database| {
        let place = Place(database.url());
        let shared = async || place.open().await.shared.expect("PostgreSQL shares");
        let (one, other, key) = (shared().await, shared().await, [1; 32]);
        let minute = Duration::from_secs(60);
        let mut owners = Vec::new();
        let locking = (1..=20).map(|owner| {
            let (store, owner) = (if owner % 2 == 0 { &one } else { &other }, Uuid::from_u128(owner));
            async move { (owner, store.lock(&key, owner, minute).await.expect("an answer")) }
        });
        owners.extend(futures_util::future::join_all(locking).await.into_iter().filter(|(_owner, has)| *has));
        assert_eq!(owners.len(), 1, "{owners:?}");
        let owner = owners[0].0;
        one.unlock(&key, Uuid::nil()).await.expect("an answer");
        assert!(!one.lock(&key, Uuid::nil(), minute).await.expect("an answer"), "it was a stranger's to end");

        let now = SystemClock.now();
        assert_eq!(other.find(&key).await.expect("an answer"), None);
        one.put(&key, owner, vec![1, 2], now + minute).await.expect("kept");
        assert_eq!(other.find(&key).await.expect("an answer"), Some(vec![1, 2]));
        assert!(other.lock(&key, owner, Duration::ZERO).await.expect("an answer"), "the lock ended with the mint");
        assert!(one.lock(&key, Uuid::nil(), minute).await.expect("an answer"), "its time is up");
        one.put(&key, owner, vec![3], now + minute).await.expect("kept");
        assert_eq!(other.find(&key).await.expect("an answer"), Some(vec![3]));
        other.forget(&key).await.expect("forgotten");
        assert_eq!(one.find(&key).await.expect("an answer"), None);

        one.put(&key, owner, vec![4], now - minute).await.expect("kept");
        one.put(&[2; 32], owner, vec![5], now + minute).await.expect("kept");
        assert_eq!(one.find(&key).await.expect("an answer"), None, "it has expired");
        one.sweep().await.expect("swept");
        let left: i64 = database
            .client()
            .await
            .query_one("SELECT count(*) FROM shared_credential", &[])
            .await
            .expect("a row")
            .get(0);
        assert_eq!(left, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_connections_are_cut_connects_anew() {
    with_database(async |database| {
        let store = Place(database.url()).open().await;
        for round in 0..3 {
            store.audit.append(alone([record(round)])).await.expect("written");
            database.cut_connections().await;
            eventually("a new connection", async || store.audit.probe().await.is_ok()).await;
        }
        let why = "terminating connection due to administrator command";
        eventually("a line that says why", async || captured_logs().text().contains(why)).await;
        assert_eq!(store.keys.keys().await.expect("read").len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_holds_a_statement_up_gives_an_error_and_recovers() {
    with_database(async |database| {
        let store = Place(database.url()).open().await;
        let blocker = database.client().await;
        blocker.batch_execute("BEGIN; LOCK TABLE audit").await.expect("locked");
        let error = store.audit.append(alone([record(1)])).await.expect_err("no answer in time");
        assert_eq!(error.to_string(), "the audit log cannot be written");
        blocker.batch_execute("ROLLBACK").await.expect("unlocked");
        store.audit.append(alone([record(2)])).await.expect("written");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_connections_that_a_partition_has_silenced_one_costs_an_error_and_the_others_nothing() {
    with_database(async |database| {
        let (url, proxy) = database.by_proxy().await;
        let store = Place(url).open().await;
        let several = (0..4).map(|id| store.audit.append(alone([record(id)])));
        assert!(futures_util::future::join_all(several).await.iter().all(Result::is_ok));
        proxy.partition();
        store.audit.append(alone([record(5)])).await.expect_err("no answer in time");
        store.audit.append(alone([record(6)])).await.expect("by a new connection");
        store.audit.probe().await.expect("by a new connection");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_before_the_answer_costs_one_connection_and_no_other() {
    with_database(async |database| {
        let (store, client) = (Place(database.url()).open().await, database.client().await);
        let blocker = database.client().await;
        let several = async || {
            let found = (0..4).map(|_| store.audit.find_issued(&[0; 32]));
            assert!(futures_util::future::join_all(found).await.iter().all(Result::is_ok));
            let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()";
            let rows = client.query(sql, &[]).await.expect("rows");
            rows.iter().map(|row| row.get(0)).collect::<BTreeSet<i32>>()
        };
        let before = several().await;
        blocker.batch_execute("BEGIN; LOCK TABLE audit, audit_token").await.expect("locked");
        let left = tokio::time::timeout(Duration::from_millis(50), store.audit.find_issued(&[0; 32])).await;
        assert!(left.is_err(), "left before the answer");
        blocker.batch_execute("ROLLBACK").await.expect("unlocked");
        let after = several().await;
        assert!(before.difference(&after).count() <= 1, "{before:?} became {after:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_not_shown() {
    with_database(async |database| {
        if !database.asks_for_passwords() {
            return;
        }
        let url = database.url();
        let (user, server) = url.split_once('@').expect("a user");
        let (user, _password) = user.rsplit_once(':').expect("a password");
        let wrong = shown(Place(format!("{user}:hunter2@{server}")).try_open(&[STORE_KEY]).await);
        assert!(wrong.contains("password authentication failed") && !wrong.contains("hunter2"), "{wrong}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_the_password() {
    let port = free_port();
    let away = shown(Place(format!("postgres://u:hunter2@127.0.0.1:{port}/d")).try_open(&[STORE_KEY]).await);
    assert!(away.contains(&format!("cannot open the store postgres://u@127.0.0.1:{port}/d")), "{away}");
    assert!(away.contains("refused") && !away.contains("hunter2"), "{away}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_an_error_and_no_hang() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = silent.local_addr().expect("an address");
    let error = shown(Place(format!("postgres://u:hunter2@{address}/d")).try_open(&[STORE_KEY]).await);
    assert!(error.contains(&address.to_string()) && !error.contains("hunter2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_servers_certificate_and_name_are_verified() {
    with_database(async |database| {
        let Some(authority) = database.authority() else { return };
        let by = |host: &str, more: &str| {
            Place(format!("{}&sslmode=verify-full{more}", database.url().replace("127.0.0.1", host)))
        };
        let trusting = format!("&sslrootcert={}", authority.display());
        let store = by("localhost", &trusting).open().await;
        store.audit.append(alone([record(1)])).await.expect("written");
        let sql = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                   WHERE ssl AND datname = current_database()";
        let encrypted: i64 = database.client().await.query_one(sql, &[]).await.expect("a row").get(0);
        assert!(encrypted > 0);
        let stranger = shown(by("localhost", "").try_open(&[STORE_KEY]).await);
        assert!(stranger.contains("UnknownIssuer"), "{stranger}");
        let misnamed = shown(by("127.0.0.1", &trusting).try_open(&[STORE_KEY]).await);
        assert!(misnamed.contains("not valid for name"), "{misnamed}");
    })
    .await;
}

/// Everything that an error shows, in either way.
fn shown(opened: Result<Stores, OpenError>) -> String {
    let error = opened.expect_err("not opened");
    let debug = format!("{error:?}");
    format!("{:#} {debug}", anyhow::Error::new(error))
}
