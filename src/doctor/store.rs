//! The store and the issuer's keys, wherever they are.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Finding, Severity};
use crate::app::{KeySource, rfc3339};
use crate::config::{Config, IssuerSettings};
use crate::issuer::{Algorithm, Keyring, StoredKey};
use crate::secret::SealingKeys;
use crate::store::{Look, LookError, look};
use crate::telemetry::Causes;

/// With the keys that sign, where they could be read.
pub(super) async fn examine(config: &Config, now: SystemTime) -> (Vec<Finding>, Option<Keyring>) {
    let sealing = match &config.store_key[..] {
        [] => SealingKeys::random(),
        keys => SealingKeys::from_base64(keys),
    };
    let sealing = match sealing {
        Ok(sealing) => Arc::new(sealing),
        Err(error) => return (vec![Finding::new(Severity::Error, "store_key", "store_key", error.to_string())], None),
    };
    let looked = tokio::time::timeout(DEADLINE, look(&config.store, sealing)).await;
    let looked = looked.unwrap_or_else(|_elapsed| {
        let late = format!("no answer within {}s", DEADLINE.as_secs());
        Err(LookError::Open { store: "store".to_owned(), source: late.into() })
    });
    let files = config.issuer.as_ref().filter(|issuer| !issuer.key_files.is_empty());
    let (mut findings, stored) = match looked {
        Ok(look) => judge(look, config.issuer.as_ref().filter(|issuer| issuer.key_files.is_empty()), now),
        Err(error) => (vec![missing(&error)], None),
    };
    let Some(files) = files else { return (findings, stored) };
    match KeySource::Files(files.key_files.clone()).load().await {
        Ok(keys) => (findings, Some(keys)),
        Err(error) => {
            let finding = Finding::new(Severity::Error, "issuer_keys", "issuer.key_files", Causes(&error).to_string());
            let advice =
                "they hold an EC key on P-256 for Google and an RSA key of 2048 bits or more for Entra, in PEM";
            findings.push(
                finding.repair(advice, &["openssl ecparam -name prime256v1 -genkey -noout", "openssl genrsa 2048"]),
            );
            (findings, None)
        }
    }
}

fn missing(error: &LookError) -> Finding {
    match error {
        LookError::Missing(_) => Finding::new(Severity::Warning, "store_missing", "store", error.to_string()),
        _ => {
            let finding = Finding::new(Severity::Error, "store_unreachable", "store", Causes(error).to_string());
            let advice = "no exchange is answered without its record: see that the file, or the database, is there for \
                          the broker's own user";
            finding.repair(advice, &[])
        }
    }
}

/// `rotated`: the issuer's settings, where its keys are in the store.
fn judge(look: Look, rotated: Option<&IssuerSettings>, now: SystemTime) -> (Vec<Finding>, Option<Keyring>) {
    let Look { store, schema: (version, known), written, keys, free_bytes, loose_mode } = look;
    let mut findings = Vec::new();
    let finding = |severity, code, seen: String| Finding::new(severity, code, "store", seen);
    if version > known {
        let seen = format!("{store} has schema version {version}, this program knows {known}");
        findings.push(finding(Severity::Error, "store_schema", seen).repair("use a newer carnet", &[]));
    } else if version < known {
        let seen = format!("{store} has schema version {version}; a broker of this program brings it to {known}");
        findings.push(finding(Severity::Note, "store_schema", seen));
    }
    if let Err(error) = written {
        let advice = "nothing is released without its record: give the broker's user the right to write, and look for \
                      whoever holds a lock";
        findings
            .push(finding(Severity::Error, "store_write", format!("{store}: {}", Causes(&error))).repair(advice, &[]));
    }
    if let Some(free) = free_bytes {
        findings.extend(disk(free));
    }
    if let Some(mode) = loose_mode {
        let seen = format!("{store} has the mode {mode:o}: others can read who used what");
        let command = format!("chmod 600 '{}'", store.replace('\'', r"'\''"));
        findings.push(finding(Severity::Warning, "store_mode", seen).repair("", &[&command]));
    }
    let keys = match keys {
        Err(error @ LookError::Sealed(_)) => {
            let seen = format!("it does not open what {store} keeps: {}", Causes(&error));
            let advice = "put the key that it was sealed with behind the new one: `store_key: [NEW, OLD]`. If it is lost, \
                          the issuer's keys are lost with it: new ones are made when the table issuer_key is empty";
            findings.push(Finding::new(Severity::Error, "store_key", "store_key", seen).repair(advice, &[]));
            None
        }
        Err(error) => {
            findings.push(finding(Severity::Error, "issuer_keys", Causes(&error).to_string()));
            None
        }
        Ok(keys) => rotated.and_then(|settings| {
            findings.extend(overdue(&keys, settings, now));
            ring(&keys, &mut findings)
        }),
    };
    if findings.iter().all(|finding| finding.severity < Severity::Warning) {
        findings.insert(0, finding(Severity::Ok, "store", format!("{store} opens and takes records")));
    }
    (findings, keys)
}

fn ring(keys: &[StoredKey], findings: &mut Vec<Finding>) -> Option<Keyring> {
    if keys.is_empty() {
        let seen = "the store has no keys yet: the broker makes them when it first starts";
        findings.push(Finding::new(Severity::Warning, "issuer_keys", "issuer", seen));
        return None;
    }
    let ring = Keyring::stored(keys, None);
    ring.map_err(|error| {
        findings.push(Finding::new(Severity::Error, "issuer_keys", "issuer", Causes(&error).to_string()))
    })
    .ok()
}

/// A running broker makes and takes keys within half a minute of their time.
fn overdue(keys: &[StoredKey], settings: &IssuerSettings, now: SystemTime) -> Vec<Finding> {
    let schedule = settings.schedule;
    let mut findings = Vec::new();
    for algorithm in Algorithm::ALL {
        let line: Vec<&StoredKey> = keys.iter().filter(|key| key.algorithm == algorithm).collect();
        let (Some(first), Some(last)) = (line.first(), line.last()) else { continue };
        let due = last.signs_from + schedule.rotate_every.saturating_sub(schedule.publish_ahead);
        if now.duration_since(due).is_ok_and(|late| late > GRACE) {
            let seen = format!("a new {} key was due at {}", algorithm.as_str(), rfc3339(due));
            let advice = "a running broker makes it by itself: start it, or make one";
            let finding = Finding::new(Severity::Warning, "issuer_rotation", "issuer", seen);
            findings.push(finding.repair(advice, &["carnet issuer rotate --config carnet.yaml"]));
        }
        if first.signs_from > now + GRACE {
            let seen = format!(
                "its first {} key signs only from {}: a clock is wrong",
                algorithm.as_str(),
                rfc3339(first.signs_from)
            );
            findings.push(Finding::new(Severity::Error, "clock", "issuer", seen));
        }
    }
    findings
}

fn disk(free: u64) -> Option<Finding> {
    let severity = match free {
        0..FULL => Severity::Error,
        FULL..NEARLY_FULL => Severity::Warning,
        NEARLY_FULL.. => return None,
    };
    let seen = format!("its disk has {} MB left", free / 1_000_000);
    let advice =
        "nothing is released when no record can be written: make room, or keep records for less (audit.retention)";
    Some(Finding::new(severity, "store_disk", "store", seen).repair(advice, &["df -h"]))
}

const DEADLINE: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(3600);

/// Hours of records at a busy broker.
const FULL: u64 = 200_000_000;
/// Days of them.
const NEARLY_FULL: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_nearly_full_is_called_out_before_it_is() {
        let found = |free| disk(free).map(|finding| (finding.severity, finding.code));
        assert_eq!(found(50_000_000_000), None);
        assert_eq!(found(900_000_000), Some((Severity::Warning, "store_disk".to_owned())));
        assert_eq!(found(10_000_000), Some((Severity::Error, "store_disk".to_owned())));
        assert!(disk(10_000_000).expect("a finding").seen.contains("10 MB"));
    }
}
