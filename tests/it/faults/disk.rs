//! The store's disk is full, takes no writes, or is locked by somebody else.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use tokio::time::{Instant, sleep};

use super::*;
use crate::postgres::say_skipped;
use crate::support::{Setup, groups_of, records_of, with_broker};

/// Refused, cached or not, for as long as it lasts; then served with the next call, and ready again.
async fn nothing_is_released(
    broker: &Broker,
    client: &mut TokenExchangeClient<Channel>,
    handed_out: &mut HandedOut,
    mended: impl FnOnce(),
) {
    for target in ["vertex", "azure-ml", "vertex"] {
        let refused = client.exchange(broker.request(&[target])).await.err().expect("no record, no credential");
        assert_eq!(Seen::of(&refused), Seen::store_unavailable(), "{target}");
    }
    // A disk that is nearly full may take what is less than a record, and the broker tries that.
    eventually("unreadiness", async || {
        client.exchange(broker.request(&["vertex"])).await.err().expect("no record, no credential");
        reqwest::get(format!("{}/readyz", broker.http)).await.is_ok_and(|answer| answer.status().as_u16() == 503)
    })
    .await;
    mended();
    for target in ["vertex", "azure-ml"] {
        let answer = client.exchange(broker.request(&[target])).await.expect("with the next call").into_inner();
        assert!(answer.credentials[0].cached, "{target}: what was minted meanwhile is not lost");
        handed_out.add(broker, &answer);
    }
    readiness_is(broker, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_takes_no_writes_nothing_is_released_and_the_next_call_after_it_is_served() {
    let mut broker = Broker::start_for(Setup::default()).await;
    // Whoever does not ignore the signal is ended by it, where a disk only fails.
    let Replacement { process, mut client, .. } = in_its_place(&mut broker, "trap '' XFSZ").await;
    let mut handed_out = HandedOut::default();
    let first = client.exchange(broker.request(&["vertex"])).await.expect("a credential").into_inner();
    handed_out.add(&broker, &first);
    // Not a byte more in any file, the log's included.
    limit(&process, "fsize", "1");
    nothing_is_released(&broker, &mut client, &mut handed_out, || limit(&process, "fsize", "unlimited")).await;
    handed_out.is_on_record(&broker.audit_records());
    drop(process);
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_is_full_nothing_is_released_and_the_next_call_after_it_is_served() {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        return say_skipped("a file system of its own takes an administrator's rights");
    }
    let mut broker = Broker::start_for(Setup::default()).await;
    let (folder, disk) = (broker.folder.path().to_owned(), broker.folder.path().join("disk"));
    std::fs::create_dir(&disk).expect("a folder");
    let text = std::fs::read_to_string(broker.config_path()).expect("the file");
    std::fs::write(broker.config_path(), text.replace("/carnet.db'", "/disk/carnet.db'")).expect("written");
    // The broker before leaves its journal behind for a moment.
    let first = format!(
        "until [ ! -e {folder}/carnet.db-wal ]; do sleep 0.02; done
         exec unshare --mount sh -ec 'mount -t tmpfs -o size=4m,mode=700 none {disk}; cp {folder}/carnet.db {disk}; exec \"$@\"' sh \"$@\"",
        disk = disk.display(),
        folder = folder.display()
    );
    let Replacement { process, mut client, .. } = in_its_place(&mut broker, &first).await;
    let inside =
        PathBuf::from(format!("/proc/{}/root", process.child.id())).join(disk.strip_prefix("/").expect("absolute"));
    let mut handed_out = HandedOut::default();
    let answer = client.exchange(broker.request(&["vertex"])).await.expect("a credential").into_inner();
    handed_out.add(&broker, &answer);

    let mut ballast = std::fs::File::create(inside.join("ballast")).expect("a file");
    while ballast.write_all(&[0; 4096]).is_ok() {}
    drop(ballast);
    // What the store had set aside before is written again and again; whatever does not fit is refused.
    let (mut served, mut refused) = (0, 0);
    while refused < 5 {
        match client.exchange(broker.request(&["vertex"])).await {
            Ok(answer) => {
                handed_out.add(&broker, &answer.into_inner());
                served += 1;
            }
            Err(status) => {
                assert_eq!(Seen::of(&status), Seen::store_unavailable());
                refused += 1;
            }
        }
        assert!(served < 1000, "the disk is not full");
    }
    std::fs::remove_file(inside.join("ballast")).expect("removed");
    let answer = client.exchange(broker.request(&["vertex"])).await.expect("with the next call").into_inner();
    handed_out.add(&broker, &answer);
    readiness_is(&broker, 200).await;

    // SQLite would look for it outside.
    for file in ["carnet.db", "carnet.db-wal"] {
        std::fs::copy(inside.join(file), folder.join(format!("copy-of-{file}"))).expect("a copy");
    }
    let store = rusqlite::Connection::open(folder.join("copy-of-carnet.db")).expect("the store");
    let groups = groups_of(&store).expect("a table");
    let records: Vec<AuditRecord> = groups.iter().flat_map(|group| records_of(group)).collect();
    handed_out.is_on_record(&records);
    drop(process);
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_does_not_start_on_a_store_that_it_cannot_write_and_says_which() {
    let mut broker = Broker::start_for(Setup::default()).await;
    broker.take_app().drain().await;
    let folder = broker.folder.path();
    let mode = |path: PathBuf, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
    };
    mode(broker.config_path(), 0o644);
    mode(broker.store_path(), 0o444);
    mode(folder.to_owned(), 0o555);
    // Nothing is read-only to root.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let mut command = Command::new(if is_root { "setpriv" } else { "env" });
    if is_root {
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    }
    command.args([env!("CARGO_BIN_EXE_carnet"), "serve", "--config"]).arg(broker.config_path());
    let output = command.stdin(Stdio::null()).output().expect("a run");
    mode(folder.to_owned(), 0o700);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot open the store") && said.contains("carnet.db"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_somebody_else_locks_the_store_nothing_is_released_and_the_next_call_after_it_is_served() {
    with_broker(async |broker| {
        for target in ["vertex", "azure-ml"] {
            broker.exchange(broker.request(&[target])).await.expect("a credential");
        }
        let other = rusqlite::Connection::open(broker.store_path()).expect("the store");
        other.execute_batch("BEGIN IMMEDIATE").expect("locked");
        let both = [broker.request(&["vertex"]), broker.request(&["azure-ml"])];
        let refused = futures_util::future::join_all(both.map(|request| broker.exchange(request))).await;
        for refused in refused {
            assert_eq!(Seen::of(&refused.err().expect("no record, no credential")), Seen::store_unavailable());
        }
        other.execute_batch("ROLLBACK").expect("unlocked");
        for target in ["vertex", "azure-ml"] {
            let answer = broker.exchange(broker.request(&[target])).await.expect("with the next call");
            assert!(answer.credentials[0].cached, "{target}");
        }
        // A lock that is held for a moment is waited for.
        other.execute_batch("BEGIN IMMEDIATE").expect("locked");
        let unlocking = async {
            sleep(SECOND).await;
            let unlocked = Instant::now();
            other.execute_batch("ROLLBACK").expect("unlocked");
            unlocked
        };
        let waiting = async {
            broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            Instant::now()
        };
        let (answered, unlocked) = tokio::join!(waiting, unlocking);
        assert!(answered > unlocked, "nobody waited");
    })
    .await;
}
