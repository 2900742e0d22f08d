//! `carnet policy check`: exit codes, outputs, and what need not be there.

use super::*;

const RULES: &str = "rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
  - name: gpu
    targets: [vertex]
    subject:
      roles: [Training.Submit]
      kinds: [service_principal]
";

#[tokio::test]
async fn the_configuration_of_the_readme_has_no_finding() {
    let output = policy(&["check", &deployed(), "--strict"]).await;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("nothing found (1 rules)"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn a_finding_stands_at_its_line_with_its_code_and_what_to_change() {
    let repository = Repository::new();
    let file = repository.write("carnet.yaml", &format!("{CONFIGURATION}{RULES}"));
    let output = policy(&["check", &file]).await;
    assert_eq!(output.status.code(), Some(0), "warnings alone: {}", text(&output.stderr));
    let line = CONFIGURATION.lines().count() + 5;
    let shown = text(&output.stdout);
    assert!(shown.contains(&format!("{line}    warning   P006  rules[1]: rule gpu decides nothing")), "{shown}");
    assert!(shown.contains("Put it before rule training, or take it out."), "{shown}");
    assert!(text(&output.stderr).contains("errors: 0, warnings: 1, notes: 0"), "{}", text(&output.stderr));
    assert_eq!(policy(&["check", &file, "--strict"]).await.status.code(), Some(1));

    let listed = json(&policy(&["check", &file, "--output", "json"]).await);
    assert_eq!((&listed["findings"][0]["line"], &listed["findings"][0]["code"]), (&line.into(), &"P006".into()));
    let sarif = json(&policy(&["check", &file, "--output", "sarif"]).await);
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!((&result["ruleId"], &result["level"]), (&"P006".into(), &"warning".into()));
    assert_eq!(result["locations"][0]["physicalLocation"]["region"]["startLine"], line);
    let declared = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().expect("rules");
    assert!(declared.iter().any(|rule| rule["id"] == "P006"));
}

#[tokio::test]
async fn errors_fail_and_mistakes_of_form_are_told_as_config_check_tells_them() {
    let repository = Repository::new();
    let unknown = RULES.replace("[vertex, azure-ml]", "[vertex, azure]").replace("gpu", "training");
    let file = repository.write("carnet.yaml", &format!("{CONFIGURATION}{unknown}"));
    let output = policy(&["check", &file, "--output", "json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let found = json(&output);
    let codes: Vec<&str> =
        found["findings"].as_array().expect("findings").iter().filter_map(|finding| finding["code"].as_str()).collect();
    assert!(codes.contains(&"P000") && codes.contains(&"P001"), "{found}");

    let file = repository.write("carnet.yaml", &format!("{CONFIGURATION}{}", RULES.replace("roles:", "role:")));
    let output = policy(&["check", &file]).await;
    assert_eq!(output.status.code(), Some(1));
    let line = CONFIGURATION.lines().count() + 4;
    let said = text(&output.stderr);
    assert!(said.contains(&format!("line {line}: rules[0].subject.role: unknown field")), "{said}");
    assert!(!said.contains("CARNET_STORE_KEY") && !said.contains("/nowhere"), "{said}");
}

#[tokio::test]
async fn rules_alone_go_with_the_targets_and_tenants_of_a_configuration() {
    let repository = Repository::new();
    let config = repository.write("carnet.yaml", CONFIGURATION);
    let foreign = RULES.replace("kinds: [service_principal]", "tenants: [99999999-9999-9999-9999-999999999999]");
    let next = repository.write("rules.next.yaml", &foreign);
    let codes = async |arguments: &[&str]| {
        let found = json(&policy(&[&["check", &next, "--output", "json"][..], arguments].concat()).await);
        let findings = found["findings"].as_array().expect("findings").clone();
        findings.iter().map(|finding| finding["code"].as_str().expect("a code").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&["--config", &config]).await, ["P006", "P003"]);
    assert!(codes(&[]).await.contains(&"P001".to_owned()), "nobody knows the targets");
    let missing = policy(&["check", &next, "--config", "/nowhere.yaml"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere.yaml cannot be used"), "{}", text(&missing.stderr));
}

#[tokio::test]
async fn the_long_help_lists_every_code() {
    let help = text(&policy(&["check", "--help"]).await.stdout);
    for code in carnet::policy::Code::ALL {
        assert!(help.contains(&format!("{code}  {}", code.severity().as_str())), "{code} is not in\n{help}");
    }
}
