//! `carnet trust`: what it prints is run by a shell, applied to the stand-ins, and then one exchange goes through and
//! others do not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use carnet::sandbox::{FederatedCredential, PoolProvider};
use serde_json::Value;

use crate::command_line::{carnet, run, text};
use crate::postgres::say;
use crate::support::{Broker, ML, PROVIDER, Setup, TENANT, TRAINER, with_setup};

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    attributes: { team: 'job.labels[\"team\"]' }
  - name: pooled
    targets: [shared]
    subject: { roles: [Training.Submit] }
";

const SHARED: &str = "
  shared: { google: { audience: 'PROVIDER', service_account: ACCOUNT, sts_endpoint: GOOGLE, iam_credentials_endpoint: GOOGLE }, sharing: target }
";

fn setup() -> Setup {
    let targets = SHARED.replace("PROVIDER", PROVIDER).replace("ACCOUNT", TRAINER);
    Setup { rules: Some(RULES), targets: targets.leak(), ..Setup::default() }
}

/// Standard output of `carnet trust`.
async fn printed(broker: &Broker, arguments: &[&str]) -> String {
    let mut command = carnet(&["trust"]);
    command.args(arguments).arg("--config").arg(broker.config_path());
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a script in a shell whose `gcloud`, `az` and `carnet` write down what they are told; their arguments.
fn run_script(folder: &Path, script: &str) -> Vec<Vec<String>> {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    let log = folder.join("said");
    let _ = std::fs::remove_file(&log);
    for tool in ["gcloud", "az", "carnet"] {
        let path = bin.join(tool);
        // az is asked for names, too.
        let text = format!(
            "#!/bin/sh\n{{ printf '{tool}\\0'; printf '%s\\0' \"$@\"; printf '\\n\\0'; }} >> '{}'\necho answer\n",
            log.display()
        );
        std::fs::write(&path, text).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("executable");
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh").args(["-eu", "-c", script]).current_dir(folder).env("PATH", path).output();
    let output = output.expect("a shell");
    assert!(output.status.success(), "{}\n{script}", text(&output.stderr));
    let said = std::fs::read_to_string(log).expect("something was said");
    let calls = said.split("\n\0").filter(|call| !call.is_empty());
    calls.map(|call| call.split_terminator('\0').map(str::to_owned).collect()).collect()
}

/// `--name=value` and `--name value`.
fn flags(call: &[String]) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    for (at, word) in call.iter().enumerate().filter(|(_, word)| word.starts_with("--")) {
        match word.split_once('=') {
            Some((name, value)) => flags.insert(name.to_owned(), value.to_owned()),
            None => flags.insert(word.clone(), call.get(at + 1).cloned().unwrap_or_default()),
        };
    }
    flags
}

fn find<'a>(calls: &'a [Vec<String>], words: &str) -> Vec<&'a Vec<String>> {
    calls.iter().filter(|call| call.join(" ").starts_with(words)).collect()
}

/// What gcloud would tell Google.
fn apply_to_google(broker: &Broker, calls: &[Vec<String>]) {
    for call in find(calls, "gcloud iam workload-identity-pools providers create-oidc") {
        let flags = flags(call);
        let mut provider = PoolProvider::new(format!("//iam.googleapis.com/{}", call[5]), &flags["--issuer-uri"]);
        for audience in flags["--allowed-audiences"].split(',') {
            provider = provider.allowed_audience(audience);
        }
        let mapping = &flags["--attribute-mapping"];
        let (separator, mapping) = match mapping.strip_prefix('^').and_then(|rest| rest.split_once('^')) {
            Some(other) => other,
            None => (",", mapping.as_str()),
        };
        for pair in mapping.split(separator) {
            let (key, expression) = pair.split_once('=').expect("a pair");
            provider = provider.map(key, expression);
        }
        provider = provider.condition_in_cel(&flags["--attribute-condition"]);
        if let Some(path) = flags.get("--jwk-json-path") {
            assert_eq!(path, "jwks.json");
        }
        broker.google.register_provider(provider).expect("a provider that Google takes");
    }
    for call in find(calls, "gcloud iam service-accounts add-iam-policy-binding") {
        let flags = flags(call);
        assert_eq!(flags["--role"], "roles/iam.workloadIdentityUser");
        broker.google.bind(&call[4], &flags["--member"]);
    }
}

fn forget_google(broker: &Broker) {
    let pool = PROVIDER.split("/providers/").next().expect("a pool");
    broker.google.unbind(TRAINER, &format!("principalSet:{pool}/attribute.tid/{TENANT}"));
    broker.google.register_provider(PoolProvider::new(PROVIDER, "https://nobody.example")).expect("a provider");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_for_google_lets_the_rules_callers_in_and_nobody_else() {
    with_setup(setup(), async |broker| {
        forget_google(broker);
        let script = printed(broker, &["google", "--target", "vertex"]).await;
        let calls = run_script(broker.folder.path(), &script);
        apply_to_google(broker, &calls);
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        // The provider serves the other target too, whose bindings are its own.
        assert!(!script.contains("attribute.rule/pooled"), "{script}");
        let script = printed(broker, &["google", "--target", "shared"]).await;
        apply_to_google(broker, &run_script(broker.folder.path(), &script));
        broker.exchange(broker.request(&["shared"])).await.expect("a credential");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i19_a_provider_as_printed_refuses_what_no_rule_leads_to() {
    with_setup(setup(), async |broker| {
        let script = printed(broker, &["google", "--target", "vertex"]).await;
        let calls = run_script(broker.folder.path(), &script);
        let create = find(&calls, "gcloud iam workload-identity-pools providers create-oidc");
        let condition = &flags(create[0])["--attribute-condition"];
        assert_eq!(
            *condition,
            format!(
                "(has(assertion.tid) && assertion.tid == \"{TENANT}\" && assertion.rule == \"training\") || \
                 (assertion.sub == \"carnet:shared\" && assertion.rule == \"pooled\")"
            )
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_for_azure_makes_the_credential_that_entra_finds() {
    with_setup(setup(), async |broker| {
        broker.entra.distrust(ML, &broker.http, "carnet:azure-ml");
        let mut printed_for = Vec::new();
        for holder in ["managed-identity", "application"] {
            let script = printed(broker, &["azure", "--target", "azure-ml", "--holder", holder]).await;
            let calls = run_script(broker.folder.path(), &script);
            let credential = match holder {
                "managed-identity" => {
                    let flags = flags(find(&calls, "az identity federated-credential create")[0]);
                    assert_eq!(
                        (flags["--identity-name"].as_str(), flags["--name"].as_str()),
                        ("answer", "carnet-azure-ml")
                    );
                    FederatedCredential {
                        issuer: flags["--issuer"].clone(),
                        subject: flags["--subject"].clone(),
                        audience: flags["--audiences"].clone(),
                    }
                }
                _ => {
                    let flags = flags(find(&calls, "az ad app federated-credential create")[0]);
                    assert_eq!(flags["--id"], ML);
                    let parameters: Value = serde_json::from_str(&flags["--parameters"]).expect("JSON");
                    let text = |value: &Value| value.as_str().expect("a text").to_owned();
                    FederatedCredential {
                        issuer: text(&parameters["issuer"]),
                        subject: text(&parameters["subject"]),
                        audience: text(&parameters["audiences"][0]),
                    }
                }
            };
            printed_for.push(credential);
        }
        assert_eq!(printed_for[0], printed_for[1]);
        broker.entra.trust(ML, printed_for.remove(0)).expect("a credential that Entra takes");
        broker.exchange(broker.request(&["azure-ml"])).await.expect("a credential");
    })
    .await;
}

/// Every kind of target, in both forms: whatever stands in the configuration, a shell and Terraform can read it.
const TARGETS: &str = "
  long: { google: { audience: 'PROVIDER', service_account: ACCOUNT, max_lifetime: 12h } }
  direct-entra: { google: { audience: 'PROVIDER2', subject_token: entra } }
  in-file: { azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, source: token_file, token_file: '/run/a b', scopes: [https://storage.azure.com/.default] } }
  machine: { azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, source: managed_identity, scopes: [https://ml.azure.com/.default] } }
  for-people: { azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, source: on_behalf_of, subject: \"it's %{y} \\\\ \\\"z\\\"\", scopes: [https://ml.azure.com/user_impersonation] } }
";

const HOSTILE_RULES: &str = "
rules:
  - { name: a, targets: [vertex, direct, long, direct-entra, in-file, machine, for-people], subject: { roles: ['it''s \"$HOME\" `x`'], groups: [44444444-4444-4444-4444-444444444444] }, attributes: { team: job.name } }
";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_target_prints_what_a_shell_and_terraform_can_read() {
    let targets = TARGETS.replace("PROVIDER2", &PROVIDER.replace("ml-pool", "entra")).replace("PROVIDER", PROVIDER);
    let setup =
        Setup { targets: targets.replace("ACCOUNT", TRAINER).leak(), rules: Some(HOSTILE_RULES), ..Setup::default() };
    with_setup(setup, async |broker| {
        let google = ["vertex", "direct", "long", "direct-entra"];
        let azure = ["azure-ml", "in-file", "machine", "for-people"];
        let all = google.map(|target| ("google", target)).into_iter().chain(azure.map(|target| ("azure", target)));
        let terraform = terraform();
        for (cloud, target) in all.filter(|(_, target)| *target != "azure-ml") {
            let script = printed(broker, &[cloud, "--target", target]).await;
            let calls =
                run_script(broker.folder.path(), &script.replace("cut -d.", "true -d.").replace("| jq", "| true"));
            assert!(!calls.is_empty(), "{target}");
            if target == "machine" {
                continue;
            }
            let hcl = printed(broker, &[cloud, "--target", target, "--format", "terraform"]).await;
            match &terraform {
                Some(program) => is_formatted(program, &broker.folder.path().join("main.tf"), &hcl),
                None => say(&format!("left out: terraform is not here to read {target}")),
            }
            assert_eq!(hcl.matches('{').count(), hcl.matches('}').count(), "{hcl}");
        }
        let people = printed(broker, &["azure", "--target", "for-people", "--format", "terraform"]).await;
        assert!(people.contains(r#"subject        = "it's %%{y} \\ \"z\"""#), "{people}");
    })
    .await;
}

/// `terraform fmt` parses, and changes nothing where the layout is its own.
fn is_formatted(program: &Path, path: &Path, hcl: &str) {
    std::fs::write(path, format!("{hcl}\n")).expect("written");
    let output = Command::new(program).args(["fmt", "-check", "-diff", "-no-color"]).arg(path).output();
    let output = output.expect("a run");
    assert!(output.status.success(), "{}{}\n{hcl}", text(&output.stdout), text(&output.stderr));
}

fn terraform() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders = std::env::split_paths(&path);
    folders
        .find_map(|folder| ["terraform", "tofu"].map(|name| folder.join(name)).into_iter().find(|path| path.exists()))
}
