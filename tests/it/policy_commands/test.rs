//! `carnet policy test`: what people read, what pipelines read, and when they stop.

use std::process::Command;

use super::*;

const CASES: &str = "subjects:
  runner: { kind: service_principal, roles: [Training.Submit] }
cases:
  - name: runners train for as long as their job takes
    subject: runner
    job: { name: vision, duration: 9h }
    target: vertex-training
    expect: { decision: allowed, rule: vision-training, lifetime: 1h, bound: rule, lease: 594m }
  - name: people do not
    subject: { kind: user, scopes: [jobs.submit] }
    targets: [vertex-training, azure-ml]
    expect: denied
";

#[tokio::test]
async fn cases_that_hold_pass_and_stand_beside_the_rules_by_default() {
    let repository = Repository::new();
    let file = repository.write("carnet.yaml", &std::fs::read_to_string(deployed()).expect("the file"));
    repository.write("policy.test.yaml", CASES);
    let output = policy(&["test", &file]).await;
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    assert!(shown.starts_with("ok      runners train for as long"), "{shown}");
    assert!(shown.ends_with("cases: 2, ok: 2, failed: 0\n"), "{shown}");
}

#[tokio::test]
async fn a_case_that_fails_shows_what_differs_and_why() {
    let repository = Repository::new();
    let wrong = CASES.replace("expect: denied", "expect: allowed").replace("594m", "10h");
    let cases = repository.write("cases.yaml", &wrong);
    let output = policy(&["test", &deployed(), "--cases", &cases]).await;
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for line in [
        "FAILED  runners train for as long as their job takes",
        "          lease: expected 10h, is 594m",
        "          because: rule vision-training allows it: 1h, bound by rule",
        "          decision: expected allowed, is denied",
        "          because: DENIED: no rule allows it; rule:vision-training: does not match: subject.kinds",
        "          the case stands at line 9",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
}

#[tokio::test]
async fn rules_that_no_case_is_decided_by_are_named() {
    let repository = Repository::new();
    let rule = "  - { name: others, targets: [azure-ml], subject: { roles: [Other] } }";
    let config = std::fs::read_to_string(deployed()).expect("the file");
    let config = config.replace("\n# Who may list", &format!("\n{rule}\n# Who may list"));
    let file = repository.write("carnet.yaml", &config);
    let cases = repository.write("cases.yaml", CASES);
    let output = policy(&["test", &file, "--cases", &cases]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("\nno case is decided by: others\n"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn a_wrong_file_is_a_wrong_use() {
    let repository = Repository::new();
    let cases = repository.write("cases.yaml", &CASES.replace("targets:", "target_names:"));
    let output = policy(&["test", &deployed(), "--cases", &cases]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("line 11: cases[1].target_names: unknown field"), "{}", text(&output.stderr));
    let missing = policy(&["test", &deployed(), "--cases", "/nowhere.yaml"]).await;
    assert_eq!(missing.status.code(), Some(2));
    let rules = policy(&["test", "/nowhere.yaml"]).await;
    assert_eq!(rules.status.code(), Some(2));
}

/// Read back by a parser of somebody else's.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "says what was left out")]
async fn junit_says_the_same_in_xml_whatever_the_names_are() {
    let repository = Repository::new();
    let names =
        CASES.replace("people do not", "'<people> & \"bots\" ]]> ü'").replace("expect: denied", "expect: allowed");
    let cases = repository.write("cases.yaml", &names);
    let junit = repository.path("junit.xml");
    let file = junit.to_str().expect("a path");
    let output = policy(&["test", &deployed(), "--cases", &cases, "--junit", file]).await;
    assert_eq!(output.status.code(), Some(1));
    let script = "import sys, json, xml.etree.ElementTree as tree
suites = tree.parse(sys.argv[1]).getroot()
print(json.dumps([dict(suites.attrib), [
    [dict(case.attrib), [[failure.attrib['message'], failure.text] for failure in case]] for case in suites[0]
]]))";
    let parsed = Command::new("python3").args(["-c", script, file]).output();
    let Ok(parsed) = parsed else {
        eprintln!("LEFT OUT: JUnit's XML; its parser is python3's");
        return;
    };
    let read: Value = serde_json::from_slice(&parsed.stdout).unwrap_or_else(|_| panic!("{}", text(&parsed.stderr)));
    assert_eq!((&read[0]["tests"], &read[0]["failures"]), (&"2".into(), &"1".into()));
    let [good, bad] = [&read[1][0], &read[1][1]];
    assert_eq!((&good[0]["line"], &good[1]), (&"4".into(), &serde_json::json!([])));
    assert_eq!(bad[0]["name"], "<people> & \"bots\" ]]> ü");
    assert_eq!(bad[1][0][0], "decision: expected allowed, is denied");
    let all = bad[1][0][1].as_str().expect("a text");
    assert!(all.starts_with("decision: expected allowed, is denied\nbecause: DENIED: no rule allows it; "), "{all}");
}

#[tokio::test]
async fn the_example_of_the_help_holds_for_the_configuration_of_the_readme() {
    let help = text(&policy(&["test", "--help"]).await.stdout);
    let (_before, example) = help.split_once("A file of cases:\n").expect("an example");
    let example: Vec<&str> = example.lines().take_while(|line| line.starts_with("  ")).collect();
    let repository = Repository::new();
    let cases = repository.write("cases.yaml", &example.join("\n"));
    let output = policy(&["test", &deployed(), "--cases", &cases]).await;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
