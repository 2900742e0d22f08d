//! The table of faults: each row starts from one good set-up, spoils one thing, and `carnet doctor` names it with what
//! repairs it.

mod azure;
mod caller;
mod google;
mod issuer;
mod machine;
mod world;

use std::time::Duration;

use carnet::clock::{Clock as _, SystemClock};
use carnet::doctor::{Finding, Severity};

use self::world::World;

/// One fault.
struct Row {
    name: &'static str,
    spoil: fn(&mut World),
    code: &'static str,
    severity: Severity,
    /// A piece of its advice or of a command.
    repair: &'static str,
}

const fn error(name: &'static str, spoil: fn(&mut World), code: &'static str, repair: &'static str) -> Row {
    Row { name, spoil, code, severity: Severity::Error, repair }
}

const fn warning(name: &'static str, spoil: fn(&mut World), code: &'static str, repair: &'static str) -> Row {
    Row { name, spoil, code, severity: Severity::Warning, repair }
}

/// Each row in a world of its own.
async fn check(rows: &[Row]) {
    for row in rows {
        let mut world = World::good().await;
        (row.spoil)(&mut world);
        let findings = world.examine().await;
        expect(row, &findings);
        world.end().await;
    }
}

fn expect(row: &Row, findings: &[Finding]) {
    let Row { name, code, severity, repair, .. } = row;
    let found = findings.iter().find(|finding| finding.code == *code && finding.severity == *severity);
    let found = found.unwrap_or_else(|| panic!("{name}: no {code} among\n{}", shown(findings)));
    let whole = format!("{}\n{}", found.advice, found.commands.join("\n")).replace(" \\\n  ", " ");
    assert!(whole.contains(repair), "{name}: {repair:?} is not in\n{whole}");
}

fn shown(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        format!("{} {} {}: {}", finding.severity.as_str(), finding.about, finding.code, finding.seen)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_set_up_gives_no_finding_above_a_note() {
    let world = World::good().await;
    let findings = world.examine().await;
    let bad: Vec<Finding> = findings.iter().filter(|finding| finding.severity > Severity::Note).cloned().collect();
    assert!(bad.is_empty(), "{}", shown(&bad));
    for (about, code) in [
        ("clock", "clock"),
        ("store", "store"),
        ("issuer", "issuer"),
        ("tenant 11111111-1111-1111-1111-111111111111", "tenant"),
        ("target vertex", "target"),
        ("target azure-ml", "target"),
        ("target machine", "target"),
        ("target in-file", "target"),
        ("target for-people", "needs_token"),
        ("target through-entra", "needs_token"),
        ("target direct", "no_rule"),
    ] {
        let there = findings.iter().any(|finding| finding.about == about && finding.code == code);
        assert!(there, "no {code} of {about} among\n{}", shown(&findings));
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_hands_out_nothing_and_leaves_nothing() {
    let world = World::good().await;
    let before = world.broker.audit_records().len();
    world.examine().await;
    assert_eq!(world.broker.audit_records().len(), before, "no record is written");
    // What it asked for was the shortest life there is, but for the identities of machines, which nobody can shorten.
    let calls = world.broker.google.calls().all();
    let asked: Vec<String> = calls
        .iter()
        .filter(|call| call.path.ends_with(":generateAccessToken"))
        .map(|call| String::from_utf8_lossy(&call.body).into_owned())
        .collect();
    assert!(!asked.is_empty() && asked.iter().all(|body| body.contains("\"360s\"")), "{asked:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_ten_minutes_off_is_an_error() {
    let mut world = World::good().await;
    for off in [Duration::from_secs(600), Duration::from_secs(61)] {
        world.clock_is(SystemClock.now() + off);
        let row = if off > Duration::from_secs(500) {
            error("ahead", |_world| {}, "clock", "timedatectl set-ntp true")
        } else {
            warning("ahead a little", |_world| {}, "clock", "timedatectl set-ntp true")
        };
        expect(&row, &world.examine().await);
    }
    world.clock_is(SystemClock.now() - Duration::from_secs(600));
    expect(&error("behind", |_world| {}, "clock", "timedatectl set-ntp true"), &world.examine().await);
    world.end().await;
}
