use super::*;

const MINIMAL: &str = "
entra:
  tenants: [11111111-1111-1111-1111-111111111111]
  audiences: [api://carnet]
";

/// The contract's example, as it is printed there, but for the secrets' places.
const WHOLE: &str = "
server:
  grpc: 127.0.0.1:7443
  http: 127.0.0.1:7080
  tls:
    certificate: /etc/carnet/tls.crt
    private_key: /etc/carnet/tls.key
    client_ca: /etc/carnet/ca.crt
entra:
  authority: https://login.microsoftonline.com
  tenants: [\"11111111-1111-1111-1111-111111111111\"]
  audiences: [\"22222222-2222-2222-2222-222222222222\", \"api://carnet\"]
  clock_skew: 300s
issuer:
  url: https://carnet.example.com
  key_files: []
  rotate_every: 30d
  publish_ahead: 24h
targets:
  vertex-training:
    google:
      audience: //iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet
      subject_token: issuer
      service_account: trainer@ml-prod.iam.gserviceaccount.com
      scopes: [https://www.googleapis.com/auth/cloud-platform]
      max_lifetime: 1h
      sts_endpoint: https://sts.googleapis.com
      iam_credentials_endpoint: https://iamcredentials.googleapis.com
  azure-ml:
    azure:
      tenant: 11111111-1111-1111-1111-111111111111
      client_id: 33333333-3333-3333-3333-333333333333
      source: issuer
      subject: carnet:azure-ml
      scopes: [https://ml.azure.com/.default]
      authority: https://login.microsoftonline.com
    sharing: subject
rules:
  - name: vision-training
    targets: [vertex-training, azure-ml]
    subject:
      tenants: [\"11111111-1111-1111-1111-111111111111\"]
      kinds: [service_principal, managed_identity]
      groups: [\"44444444-4444-4444-4444-444444444444\"]
      roles: [Training.Submit]
      scopes: [jobs.submit]
      clients: [\"55555555-5555-5555-5555-555555555555\"]
      objects: [\"66666666-6666-6666-6666-666666666666\"]
      auth_contexts: [c1]
    when: >
      job.expected_duration <= duration(\"72h\") && job.labels[\"team\"] == \"vision\"
    max_lifetime: 1h
    lease: { max_duration: 72h, heartbeat: 5m }
    attributes:
      team: job.labels[\"team\"]
    deny: false
operators:
  - permissions: [explain, audit.read, leases.read, leases.revoke]
    subject: { roles: [Carnet.Operator] }
outbound:
  ca_file: /etc/carnet/extra-ca.pem
store: sqlite:carnet.db
store_key: ${env:STORE_KEY}
audit:
  retention: 90d
telemetry:
  otlp: http://127.0.0.1:4317
  log: json
";

fn environment(name: &str) -> Option<String> {
    match name {
        "STORE_KEY" => Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        "SECRET" => Some("hunter2-hunter2".to_owned()),
        _ => None,
    }
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("carnet.yaml");
    std::fs::write(&path, text).expect("written");
    Config::load_with(&path, &environment)
}

/// The mistakes, without the first line that names the file.
fn faults(text: &str) -> Vec<String> {
    load(text).expect_err("a mistake").faults.iter().map(ToString::to_string).collect()
}

#[test]
fn the_contracts_example_is_accepted() {
    let config = load(WHOLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.policy.targets().count(), 2);
    assert_eq!(config.retention, Duration::from_secs(90 * 86_400));
}

#[test]
fn the_configuration_that_is_shipped_as_a_start_is_good() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/carnet.yaml");
    let environment =
        |name: &str| (name == "CARNET_STORE_KEY").then(|| "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned());
    let config = Config::load_with(&path, &environment).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.policy.targets().count(), 2);
}

#[test]
fn what_can_be_left_out_has_a_default_and_nothing_is_granted() {
    let config = load(MINIMAL).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.server.grpc, Some(Address::Tcp(([127, 0, 0, 1], 7443).into())));
    assert_eq!(config.entra.clock_skew, Duration::from_secs(300));
    assert_eq!(config.policy.targets().count(), 0);
}

#[test]
fn every_mistake_is_reported_with_its_line() {
    let found = faults(
        "
server:
  grpc: 10.0.0.1:7443
  htp: off
entra:
  tenants: [common]
  audiences: []
  clock_skew: 5 minutes
targets:
  vertex:
    google:
      audience: //iam.googleapis.com/projects/my-project/locations/global/workloadIdentityPools/ml-pool/providers/carnet
store: 7
",
    );
    let expected = [
        "line 3: server.grpc: is not loopback",
        "line 4: server.htp: unknown field `htp`",
        "line 6: entra.tenants[0]",
        "line 7: entra.audiences: name at least one",
        "line 8: entra.clock_skew: a duration is a whole number with a unit",
        "line 12: targets.vertex.google.audience: a provider is named",
        "line 13: store: invalid type",
    ];
    for expected in expected {
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "{expected} is not in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn mistakes_between_sections_are_reported_together_with_their_lines() {
    let found = faults(
        &WHOLE
            .replace("127.0.0.1:7443", "0.0.0.0:7443")
            .replace("  tls:\n    certificate: /etc/carnet/tls.crt\n    private_key: /etc/carnet/tls.key\n    client_ca: /etc/carnet/ca.crt\n", "")
            .replace("targets: [vertex-training, azure-ml]", "targets: [vertex-trainin, azure-ml]")
            .replace("max_lifetime: 1h\n      sts", "max_lifetime: 13h\n      sts")
            .replace("https://ml.azure.com/.default", "https://ml.azure.com/")
            .replace("store: sqlite:carnet.db", "store: postgres://db.example.com/carnet?sslmode=disable"),
    );
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].starts_with("line 3: server.grpc: is not loopback"), "{found:#?}");
    assert!(found.iter().any(|fault| fault.contains("targets.vertex-training.google.max_lifetime")), "{found:#?}");
    assert!(found.iter().any(|fault| fault.contains("targets.azure-ml.azure.scopes")), "{found:#?}");
    assert!(
        found.iter().any(|fault| fault.contains("store: sslmode is disable, but the host is not loopback")),
        "{found:#?}"
    );
}

#[test]
fn several_mistakes_of_one_list_and_of_all_kinds_are_reported_at_once_in_the_order_of_the_file() {
    let found = faults(
        "
entra:
  tenants: [common, 11111111-1111-1111-1111-111111111111, organizations]
  audiences: ['']
rules:
  - name: bad name
    targets: [t]
    when: 'true'
  - name: good
    targets: [t]
    when: nobody == 1
  - name: kinds
    targets: [t]
    subject: { kinds: [robot] }
targets:
  t:
    google:
      audience: wrong
audit: { retention: 1h }
store_key: ${env:ABSENT}
",
    );
    let places: Vec<&str> = found.iter().filter_map(|fault| fault.split(": ").nth(1)).collect();
    assert_eq!(
        places,
        [
            "entra.tenants[0]",
            "entra.tenants[2]",
            "entra.audiences[0]",
            "rules[0].name",
            "rules[1].when",
            "rules[2].subject.kinds[0]",
            "targets.t.google.audience",
            "audit.retention",
            "store_key",
        ],
        "{found:#?}"
    );
}

#[test]
fn a_reference_inside_a_longer_text_is_refused_rather_than_taken_literally() {
    let found = faults(&format!("{MINIMAL}store: sqlite:/data/${{env:NAME}}.db\n"));
    assert!(found[0].contains("stands alone"), "{found:#?}");
}

#[test]
fn a_password_from_outside_stands_inside_the_url_of_a_database_escaped_and_unseen() {
    let environment = |name: &str| match name {
        "PASSWORD" => Some("p@ss/w?rd:100%".to_owned()),
        _ => environment(name),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("carnet.yaml");
    let load = |store: &str| {
        std::fs::write(&path, format!("{MINIMAL}store: {store}\nstore_key: ${{env:STORE_KEY}}\n")).expect("written");
        Config::load_with(&path, &environment).map(|config| config.store)
    };
    let store =
        load("postgres://carnet:${env:PASSWORD}@db.example.com/carnet").unwrap_or_else(|error| panic!("{error}"));
    let StoreSettings::Postgres { settings, .. } = &store else { panic!("{store:?}") };
    assert_eq!(settings.to_string(), "postgres://carnet@db.example.com:5432/carnet");
    assert!(!format!("{store:?}").contains("100%"));
    let faults = load("postgresql://carnet:${env:ABSENT}@db/carnet").expect_err("absent").faults;
    assert_eq!(faults[0].to_string(), "line 5: store: the environment has no ABSENT");
    let faults = load("postgresql://carnet:${env:PASSWORD@db/carnet").expect_err("no end").faults;
    assert_eq!(faults[0].to_string(), "line 5: store: a reference ends with `}`");
    let faults = load("postgresql://carnet:${env:PASSWORD}@db/carnet?sslmode=disable").expect_err("in clear").faults;
    assert!(faults[0].message.starts_with("sslmode") && !faults[0].message.contains("ss%2F"), "{faults:#?}");
}

#[test]
fn a_store_key_is_one_text_or_a_list_and_each_is_checked() {
    let keys = |text: &str| load(&format!("{MINIMAL}store_key: {text}\n")).map(|config| config.store_key.len());
    assert_eq!(keys("${env:STORE_KEY}").expect("one"), 1);
    assert_eq!(keys("['${env:STORE_KEY}', AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]").expect("two"), 2);
    let wrong = |text: &str| faults(&format!("{MINIMAL}store_key: {text}\n"));
    assert!(wrong("['${env:STORE_KEY}', AAAA]")[0].starts_with("line 5: store_key[1]: a store key is 32 bytes"));
    assert!(wrong("AAAA")[0].starts_with("line 5: store_key: a store key is 32 bytes"));
    assert!(wrong("7")[0].contains("a key or a list of keys"), "{:?}", wrong("7"));
}

#[test]
fn replicas_need_a_store_key() {
    let found = faults(&format!("{MINIMAL}store: postgres://carnet@db.example.com/carnet\n"));
    assert!(found[0].contains("store_key: is missing: replicas share credentials"), "{found:#?}");
}

#[test]
fn leases_need_a_store_key_wherever_the_issuers_keys_are() {
    let leasing = WHOLE.replace("key_files: []", "key_files: [/etc/carnet/issuer.pem]");
    let without_key = leasing.replace("store_key: ${env:STORE_KEY}\n", "");
    assert!(load(&leasing).is_ok());
    assert!(faults(&without_key)[0].contains("store_key: is missing: leases outlive the process"));
    let without_leases: Vec<&str> = without_key.lines().filter(|line| !line.trim().starts_with("lease:")).collect();
    assert!(load(&without_leases.join("\n")).is_ok());
}

#[test]
fn a_file_that_is_too_large_is_refused_rather_than_cut() {
    let text = format!("{MINIMAL}# {}\n", "x".repeat(5 * 1024 * 1024));
    assert!(faults(&text)[0].contains("is larger than"));
}

#[test]
fn i03_i04_without_tenants_or_audiences_nothing_starts() {
    for (good, bad) in [
        ("[11111111-1111-1111-1111-111111111111]", "[]"),
        ("[api://carnet]", "[]"),
        ("[api://carnet]", "['']"),
        ("[api://carnet]", "['https://graph.microsoft.com/']"),
        ("  audiences: [api://carnet]\n", ""),
        ("  tenants: [11111111-1111-1111-1111-111111111111]\n", ""),
    ] {
        assert_eq!(faults(&MINIMAL.replace(good, bad)).len(), 1, "{good} as {bad}");
    }
}

#[test]
fn a_value_from_outside_never_shows_in_a_message() {
    let found = faults(&format!("{MINIMAL}store_key: ${{env:SECRET}}\ntelemetry:\n  log: ${{env:SECRET}}\n"));
    assert!(found.iter().any(|fault| fault.contains("telemetry.log")), "{found:#?}");
    assert!(!found.concat().contains("hunter2"), "{found:#?}");
    let config = load(WHOLE).expect("a configuration");
    assert!(!format!("{config:?}").contains("AAAAAAAA"));
}

#[test]
fn a_reference_that_leads_nowhere_is_named() {
    let found = faults(&format!("{MINIMAL}store_key: ${{env:ABSENT}}\n"));
    assert_eq!(found, ["line 5: store_key: the environment has no ABSENT"]);
    let found = faults(&format!("{MINIMAL}store_key: ${{file:/nowhere/key}}\n"));
    assert!(found[0].starts_with("line 5: store_key: /nowhere/key cannot be read"), "{found:#?}");
}

#[test]
fn an_issuer_needs_a_place_for_its_keys_and_targets_that_need_it_need_an_issuer() {
    let without_key = WHOLE.replace("store_key: ${env:STORE_KEY}\n", "");
    assert!(faults(&without_key)[0].contains("store_key: is missing"));
    let issuer =
        "issuer:\n  url: https://carnet.example.com\n  key_files: []\n  rotate_every: 30d\n  publish_ahead: 24h\n";
    assert!(faults(&WHOLE.replace(issuer, ""))[0].contains("issuer: is missing"));
    assert!(
        faults(&WHOLE.replace("https://carnet.example.com", "http://carnet.example.com"))[0].contains("issuer.url")
    );
    assert!(
        faults(&WHOLE.replace("https://carnet.example.com", "https://carnet.example.com/"))[0].contains("issuer.url")
    );
}

#[test]
fn only_a_target_with_an_assertion_can_hand_it_out() {
    let target = |subject_token: &str| {
        format!(
            "{MINIMAL}targets:\n  t:\n    google:\n      audience: //iam.googleapis.com/projects/1/locations/global/\
             workloadIdentityPools/pool/providers/carnet\n      subject_token: {subject_token}\n      hand_out_assertion: true\n"
        )
    };
    let found = faults(&target("entra"));
    assert!(
        found.iter().any(|fault| fault.contains("hand_out_assertion: goes with `subject_token: issuer`")),
        "{found:?}"
    );
    assert!(!faults(&target("issuer")).iter().any(|fault| fault.contains("hand_out_assertion")));
}

#[test]
fn keys_rotate_monthly_unless_told_otherwise_and_are_always_published_before_they_sign() {
    let schedule =
        |text: &str| load(text).unwrap_or_else(|error| panic!("{error}")).issuer.expect("an issuer").schedule;
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
    let default = Schedule { rotate_every: 30 * day, publish_ahead: day };
    assert_eq!(schedule(&WHOLE.replace("  rotate_every: 30d\n  publish_ahead: 24h\n", "")), default);
    assert_eq!(schedule(&WHOLE.replace("rotate_every: 30d", "rotate_every: 7d")).rotate_every, 7 * day);
    assert_eq!(schedule(&WHOLE.replace("publish_ahead: 24h", "publish_ahead: 6h")).publish_ahead, 6 * hour);
    for (good, bad, said) in [
        ("rotate_every: 30d", "rotate_every: 23h", "is longer than rotate_every"),
        ("rotate_every: 30d\n  publish_ahead: 24h", "rotate_every: 23h", "is longer than rotate_every"),
        ("publish_ahead: 24h", "publish_ahead: 59s", "is at least 1m"),
    ] {
        let found = faults(&WHOLE.replace(good, bad));
        assert!(found.len() == 1 && found[0].contains(said), "{bad}: {found:#?}");
    }
}

#[test]
fn text_that_is_no_yaml_and_keys_that_stand_twice_are_named_with_their_line() {
    assert!(faults("entra: [")[0].contains("is not YAML"));
    assert!(faults(&format!("{MINIMAL}entra: {{}}\n"))[0].contains("line"));
    assert!(faults("")[0].contains("missing field") || faults("")[0].contains("invalid type"));
}

#[test]
fn app_service_is_found_in_the_environment() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("carnet.yaml");
    let text = format!(
        "{MINIMAL}targets:\n  t:\n    azure:\n      tenant: 11111111-1111-1111-1111-111111111111\n      client_id: 33333333-3333-3333-3333-333333333333\n      source: managed_identity\n      scopes: [https://ml.azure.com/.default]\n"
    );
    std::fs::write(&path, text).expect("written");
    let source = |environment: &dyn Fn(&str) -> Option<String>| {
        let config = Config::load_with(&path, environment).unwrap_or_else(|error| panic!("{error}"));
        format!("{:?}", config.policy.targets().next().expect("a target").platform)
    };
    assert!(source(&|_name| None).contains("Imds(http://169.254.169.254)"));
    let app_service = |name: &str| match name {
        "IDENTITY_ENDPOINT" => Some("http://127.0.0.1:41000/msi/token".to_owned()),
        "IDENTITY_HEADER" => Some("hunter2".to_owned()),
        _ => None,
    };
    let found = source(&app_service);
    assert!(found.contains("AppService") && !found.contains("hunter2"), "{found}");
}

#[test]
fn the_schema_names_every_section() {
    let schema = serde_json::to_value(Config::schema()).expect("JSON");
    let sections = schema["properties"].as_object().expect("properties");
    for section in [
        "server",
        "entra",
        "issuer",
        "targets",
        "rules",
        "operators",
        "outbound",
        "store",
        "store_key",
        "audit",
        "telemetry",
    ] {
        assert!(sections.contains_key(section), "{section}");
    }
}

#[test]
fn ways_out_of_audit_records_have_one_kind_each_and_a_name_of_their_own() {
    let good = load(&format!(
        "{MINIMAL}
audit:
  sinks:
    - stdout: {{ format: ocsf }}
    - otlp: {{ endpoint: http://127.0.0.1:4317 }}
    - name: siem
      otlp: {{ endpoint: https://siem.example.com, headers: {{ authorization: '${{env:SECRET}}' }} }}
"
    ));
    let names: Vec<String> = good.expect("a configuration").outlets.into_iter().map(|outlet| outlet.name).collect();
    assert_eq!(names, ["stdout", "otlp", "siem"]);
    let bad = faults(&format!(
        "{MINIMAL}
audit:
  sinks:
    - {{}}
    - {{ stdout: {{}}, otlp: {{ endpoint: http://127.0.0.1:4317 }} }}
    - {{ stdout: {{}} }}
    - {{ name: other, stdout: {{}} }}
    - {{ name: stdout, otlp: {{ endpoint: http://127.0.0.1:4317 }} }}
    - {{ otlp: {{ endpoint: http://127.0.0.1:4317, headers: {{ 'two words': x }} }} }}
"
    ));
    let said = [
        "audit.sinks[0]: is one of stdout and otlp",
        "audit.sinks[1]: is one of stdout and otlp",
        "audit.sinks[3]: is a second way to standard output",
        "audit.sinks[4]: is the second with the name stdout",
        "audit.sinks[5].otlp.headers: the header `two words` cannot be sent",
    ];
    assert_eq!(bad.len(), said.len(), "{bad:#?}");
    for (fault, said) in bad.iter().zip(said) {
        assert!(fault.contains(said), "{fault}");
    }
    let remote =
        faults(&format!("{MINIMAL}\naudit: {{ sinks: [ {{ otlp: {{ endpoint: 'http://siem.example.com' }} }} ] }}\n"));
    assert!(remote.len() == 1 && remote[0].contains("https://"), "{remote:?}");
}
