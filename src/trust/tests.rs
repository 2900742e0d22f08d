//! Row by row: every refusal, whose it is to repair, and the command with this configuration's own values.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::policy::RuleDocument;
use crate::target::{AppServiceHeader, AzureSource, GoogleSubjectToken, ManagedIdentityEndpoint, Sharing};

const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool";
const TENANT: &str = "00000000-0000-0000-0000-000000000001";
const CLIENT: &str = "00000000-0000-0000-0000-00000000001e";

struct World {
    policy: Policy,
    entra: subject::Settings,
}

impl World {
    fn of(targets: Vec<Target>, rules: serde_json::Value) -> Self {
        let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
        let policy = Policy::compile(&rules, targets).expect("a good policy");
        let entra = subject::Settings {
            authority: "https://login.microsoftonline.com".parse().expect("a URL"),
            tenants: vec![Uuid::from_u128(1), Uuid::from_u128(7)],
            audiences: vec!["api://carnet".to_owned(), "22222222-2222-2222-2222-222222222222".to_owned()],
            clock_skew: std::time::Duration::from_secs(300),
        };
        Self { policy, entra }
    }

    fn with(target: Target) -> Self {
        let rules = json!([{"name": "vision", "targets": [target.name.as_str()], "subject": {"tenants": [TENANT]},
            "attributes": {"team": "job.labels['team']"}}]);
        Self::of(vec![target], rules)
    }

    fn trust(&self, target: &str) -> Trust<'_> {
        let target = self.policy.targets().find(|one| one.name.as_str() == target).expect("a target");
        Trust { target, issuer: Some("https://carnet.example.com"), entra: &self.entra, policy: &self.policy }
    }
}

fn issuer_source() -> AzureSource {
    AzureSource::Issuer { subject: "carnet:ml".to_owned(), audience: "api://AzureADTokenExchange".to_owned() }
}

/// A refusal, who acts, and pieces that the remedy must hold.
struct Row {
    error: (Hop, &'static str, Option<SetUpFault>),
    who: Who,
    pieces: Vec<String>,
}

fn row(hop: Hop, code: &'static str, fault: Option<SetUpFault>, who: Who, pieces: &[&str]) -> Row {
    Row { error: (hop, code, fault), who, pieces: pieces.iter().map(ToString::to_string).collect() }
}

fn check(world: &World, target: &str, rows: &[Row]) {
    let asked = Asked { rule: Some("vision"), subject: Some("entra:t:o") };
    for Row { error: (hop, code, fault), who, pieces } in rows {
        let error = CloudError { hop: *hop, code: Some(code), fault: *fault };
        let remedy = world.trust(target).remedy(error, asked);
        // As one line, whatever the shell's line breaks.
        let shown = remedy.to_string().replace(" \\\n  ", " ");
        assert_eq!(remedy.who, *who, "{code} {fault:?}: {shown}");
        for piece in pieces {
            assert!(shown.contains(piece.as_str()), "{code} {fault:?} lacks {piece:?}:\n{shown}");
        }
    }
}

#[test]
fn every_refusal_of_google_has_its_command() {
    use SetUpFault as Fault;
    let sts = |code, fault, who, pieces: &[&str]| row(Hop::GoogleSts, code, Some(fault), who, pieces);
    let iam = |code, fault, who, pieces: &[&str]| row(Hop::GoogleIam, code, Some(fault), who, pieces);
    let update = "gcloud iam workload-identity-pools providers update-oidc \
                  projects/1/locations/global/workloadIdentityPools/pool/providers/carnet ";
    let with = |flags: &str| format!("{update}{flags}");
    let audience = with(&format!("--allowed-audiences={POOL}/providers/carnet"));
    let issuer = with("--issuer-uri=https://carnet.example.com");
    let mapping = with(
        "--attribute-mapping='google.subject=assertion.sub,attribute.rule=assertion.rule,attribute.tid=assertion.tid,\
         attribute.team=has(assertion.team) ? assertion.team : \"\"'",
    );
    let condition =
        with(&format!("--attribute-condition='assertion.tid == \"{TENANT}\" && assertion.rule == \"vision\"'"));
    let keys = with("--jwk-json-path=jwks.json");
    let enable = with("--no-disabled");
    let binding = format!(
        "gcloud iam service-accounts add-iam-policy-binding trainer@ml.iam.gserviceaccount.com --project=ml \
         --role=roles/iam.workloadIdentityUser --member=principalSet:{POOL}/attribute.rule/vision"
    );
    let caller = format!("principal:{POOL}/subject/entra:t:o");
    let upload = ["carnet issuer jwks --config carnet.yaml > jwks.json", keys.as_str()];
    let unreachable = [
        "curl -sS https://carnet.example.com/.well-known/openid-configuration",
        "carnet issuer jwks --config carnet.yaml > jwks.json",
        keys.as_str(),
    ];
    let rows = [
        sts("invalid_grant", Fault::GoogleAudience, Who::Google, &[&audience]),
        sts("invalid_grant", Fault::GoogleIssuer, Who::Google, &[&issuer, "issuer.url"]),
        sts("invalid_grant", Fault::GoogleClock, Who::Broker, &["timedatectl set-ntp true"]),
        sts("invalid_grant", Fault::GoogleSubjectLength, Who::Google, &[&mapping]),
        sts("invalid_grant", Fault::GoogleMapping, Who::Google, &[&mapping]),
        sts("invalid_grant", Fault::GoogleKey, Who::Google, &upload),
        sts(
            "invalid_grant",
            Fault::GoogleToken,
            Who::Google,
            &["providers describe projects/1/locations/global/workloadIdentityPools/pool/providers/carnet"],
        ),
        sts("invalid_target", Fault::GoogleProvider, Who::Google, &[&enable, "carnet trust google --target google"]),
        sts("invalid_request", Fault::GoogleProviderName, Who::Broker, &["gcloud projects list"]),
        sts(
            "access_denied",
            Fault::GoogleSubject,
            Who::Google,
            &["providers describe projects/1/locations/global/workloadIdentityPools/pool/providers/carnet"],
        ),
        sts("unauthorized_client", Fault::GoogleCondition, Who::Google, &[&condition, "rule vision"]),
        sts("invalid_scope", Fault::GoogleScope, Who::Broker, &["targets.google.google.scopes"]),
        sts(
            "PERMISSION_DENIED",
            Fault::GoogleApi,
            Who::Google,
            &[
                "PROJECT=$(gcloud projects describe 1 --format='value(projectId)')",
                "gcloud services enable iam.googleapis.com sts.googleapis.com iamcredentials.googleapis.com \
             --project=\"$PROJECT\"",
            ],
        ),
        sts("", Fault::IssuerUnreachable, Who::Broker, &unreachable),
        iam("PERMISSION_DENIED", Fault::GoogleImpersonation, Who::Google, &[&binding, &caller]),
        iam("PERMISSION_DENIED", Fault::GoogleApi, Who::Google, &["iamcredentials.googleapis.com --project=ml"]),
        iam(
            "NOT_FOUND",
            Fault::GoogleServiceAccount,
            Who::Google,
            &["service-accounts create trainer --project=ml", &binding],
        ),
        iam(
            "INVALID_ARGUMENT",
            Fault::GoogleLifetime,
            Who::Google,
            &[
                "ORGANIZATION=$(gcloud projects get-ancestors ml ",
                "org-policies allow constraints/iam.allowServiceAccountCredentialLifetimeExtension \
                 trainer@ml.iam.gserviceaccount.com --organization=\"$ORGANIZATION\"",
            ],
        ),
        iam("UNAUTHENTICATED", Fault::GoogleFederatedToken, Who::Nobody, &["gcloud services enable"]),
    ];
    check(&World::with(Target::google_for_test("google")), "google", &rows);
}

#[test]
fn where_entras_tokens_are_presented_the_values_are_entras() {
    let target = Target::google_for_test("google").with_google(|google| {
        google.subject_token = GoogleSubjectToken::Entra;
    });
    let sts = |fault, who, pieces: &[&str]| row(Hop::GoogleSts, "invalid_grant", Some(fault), who, pieces);
    let issuer = format!("--issuer-uri=https://login.microsoftonline.com/{TENANT}/v2.0");
    let condition = format!("--attribute-condition='assertion.tid == \"{TENANT}\" && has(assertion.azp) && ");
    let rows = [
        sts(SetUpFault::GoogleIssuer, Who::Google, &[&issuer, "https://sts.windows.net/"]),
        sts(
            SetUpFault::GoogleAudience,
            Who::Google,
            &["--allowed-audiences=api://carnet,22222222-2222-2222-2222-222222222222"],
        ),
        sts(SetUpFault::GoogleCondition, Who::Google, &[&condition]),
        sts(SetUpFault::GoogleKey, Who::Google, &["Entra's keys are fetched"]),
    ];
    check(&World::with(target), "google", &rows);
}

#[test]
fn every_refusal_of_entra_has_its_command() {
    let credential = "az identity federated-credential create --name carnet-ml --identity-name \"$IDENTITY\" --resource-group \
         \"$RESOURCE_GROUP\" --issuer https://carnet.example.com --subject carnet:ml --audiences \
         api://AzureADTokenExchange";
    let identity = format!("IDENTITY=$(az identity list --query '[?clientId=='\\''{CLIENT}'\\''].name' -o tsv)");
    let made: &[&str] = &[
        credential,
        &identity,
        "# az ad app federated-credential create",
        "# az ad app federated-credential update --id",
        "--federated-credential-id carnet-ml --parameters",
    ];
    let consent = format!("az ad app permission admin-consent --id {CLIENT}");
    let tenant = format!("az login --tenant {TENANT}");
    let metadata = format!("curl -sS https://login.microsoftonline.com/{TENANT}/v2.0/.well-known/openid-configuration");
    let entra = |code, who, pieces: &[&str]| row(Hop::EntraToken, code, None, who, pieces);
    let rows = [
        entra("AADSTS70021", Who::Entra, made),
        entra("AADSTS700211", Who::Entra, made),
        entra("AADSTS700212", Who::Entra, made),
        entra("AADSTS700213", Who::Entra, made),
        entra("AADSTS7002138", Who::Entra, made),
        entra("AADSTS700222", Who::Broker, &["targets.ml.azure.source"]),
        entra("AADSTS70023", Who::Broker, &["expirationSeconds"]),
        entra("AADSTS700024", Who::Broker, &["timedatectl"]),
        entra("AADSTS700027", Who::Broker, &["curl -sS https://carnet.example.com/keys", "carnet issuer keys"]),
        entra("AADSTS7000272", Who::Broker, &["carnet issuer keys"]),
        entra("AADSTS90061", Who::Broker, &["curl -sS https://carnet.example.com/.well-known/openid-configuration"]),
        entra("AADSTS50166", Who::Broker, &["curl -sS https://carnet.example.com/.well-known/openid-configuration"]),
        entra("AADSTS700016", Who::Broker, &[&tenant, "az identity list --query", "az ad app show --id"]),
        entra("AADSTS700011", Who::Broker, &[&tenant]),
        entra("AADSTS90002", Who::Broker, &[&metadata, "targets.ml.azure.tenant"]),
        entra("AADSTS500011", Who::Broker, &["az ad sp list --filter"]),
        entra("AADSTS50001", Who::Broker, &["az ad sp list --filter"]),
        entra("AADSTS70011", Who::Broker, &["targets.ml.azure.scopes"]),
        entra("AADSTS7000113", Who::Broker, &["kinds: [user]"]),
        entra("AADSTS500133", Who::Caller, &["fresh token"]),
        entra("AADSTS65001", Who::Entra, &[&consent]),
        entra("AADSTS50105", Who::Entra, &["az ad sp show --id"]),
        entra("AADSTS700025", Who::Entra, &["--is-fallback-public-client false"]),
        entra("AADSTS90055", Who::Nobody, &["wait"]),
        entra("AADSTS53003", Who::Caller, &["Conditional Access"]),
        entra("AADSTS1", Who::Entra, &["https://login.microsoftonline.com/error?code=1"]),
    ];
    check(&World::with(Target::azure_for_test("ml", issuer_source())), "ml", &rows);
}

#[test]
fn every_refusal_of_the_brokers_own_machine_has_its_command() {
    use SetUpFault as Fault;
    let endpoint = || "http://127.0.0.1:1".parse().expect("a URL");
    let machine = AzureSource::ManagedIdentity(ManagedIdentityEndpoint::Imds(endpoint()));
    let header = AppServiceHeader(crate::secret::Secret::new("x"));
    let app = AzureSource::ManagedIdentity(ManagedIdentityEndpoint::AppService { endpoint: endpoint(), header });
    let hop = Hop::ManagedIdentity;
    let assign = ["az vm identity assign --name \"$NAME\"", CLIENT];
    check(
        &World::with(Target::azure_for_test("ml", machine)),
        "ml",
        &[
            row(hop, "invalid_request", Some(Fault::ManagedIdentity), Who::Entra, &assign),
            row(hop, "", None, Who::Broker, &["curl -sS --noproxy '*' -H Metadata:true 'http://127.0.0.1:1/metadata/"]),
        ],
    );
    check(
        &World::with(Target::azure_for_test("ml", app)),
        "ml",
        &[
            row(hop, "x", Some(Fault::ManagedIdentity), Who::Entra, &["az webapp identity assign", "az containerapp"]),
            row(hop, "x", Some(Fault::ManagedIdentityHeader), Who::Broker, &["IDENTITY_HEADER"]),
        ],
    );
    let file = AzureSource::TokenFile(PathBuf::from("/var/run/a token"));
    check(
        &World::with(Target::azure_for_test("ml", file)),
        "ml",
        &[
            row(Hop::Broker, "token_file", Some(Fault::TokenFile), Who::Broker, &["ls -l '/var/run/a token'"]),
            row(Hop::EntraToken, "AADSTS700213", None, Who::Entra, &["SUBJECT=$(cut", "--subject \"$SUBJECT\""]),
        ],
    );
    check(
        &World::with(Target::azure_for_test("ml", issuer_source())),
        "ml",
        &[
            row(Hop::Broker, "no_issuer", Some(Fault::NoIssuer), Who::Broker, &["issuer: { url"]),
            row(Hop::Broker, "no_signature", Some(Fault::NoSignature), Who::Broker, &["carnet issuer keys"]),
            row(Hop::EntraToken, "HTTP 502", None, Who::Broker, &["HTTPS_PROXY", "refuses it: HTTP 502"]),
        ],
    );
}

#[test]
fn a_recorded_refusal_has_the_remedy_of_the_live_one() {
    let error = IssueError::Unavailable {
        hop: Hop::GoogleSts,
        cause: String::new(),
        fault: Some(SetUpFault::IssuerUnreachable),
        retry_after: std::time::Duration::ZERO,
        upstream: Vec::new(),
    };
    let attributes = [("cloud_hop", "google_sts"), ("cloud_fault", "issuer_unreachable")];
    let recorded =
        CloudError::recorded(|name| attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| *value));
    let world = World::with(Target::google_for_test("google"));
    let trust = world.trust("google");
    assert_eq!(
        trust.remedy(recorded.expect("a refusal"), Asked::default()),
        trust.remedy((&error).into(), Asked::default())
    );
    assert!(CloudError::recorded(|_name| None).is_none());
}

/// The condition of a world's target `google`.
fn condition(world: &World) -> String {
    google::Google::of(&world.trust("google")).expect("a Google target").condition()
}

#[test]
fn i19_a_condition_names_the_tenants_and_rules_of_all_targets_of_the_provider() {
    let other = Target::google_for_test("other");
    let shared = Target { sharing: Sharing::Target, ..Target::google_for_test("shared") };
    let elsewhere = Target::google_for_test("elsewhere").with_google(|google| {
        google.provider = format!("{POOL}/providers/other").parse().expect("a provider");
    });
    let targets = vec![Target::google_for_test("google"), other, shared, elsewhere];
    let world = World::of(
        targets,
        json!([
            {"name": "a", "targets": ["google"], "subject": {"tenants": [TENANT]}},
            {"name": "b", "targets": ["other"], "when": "true"},
            {"name": "c", "targets": ["shared"], "when": "true"},
            {"name": "d", "targets": ["elsewhere"], "when": "true"},
            {"name": "e", "targets": ["google"], "when": "true", "deny": true}
        ]),
    );
    let seven = "00000000-0000-0000-0000-000000000007";
    assert_eq!(
        condition(&world),
        format!(
            "(has(assertion.tid) && assertion.tid in [\"{TENANT}\", \"{seven}\"] && assertion.rule in [\"a\", \"b\"]) || \
             (assertion.sub == \"carnet:shared\" && assertion.rule == \"c\")"
        )
    );
    let nobody = World::of(vec![Target::google_for_test("google")], json!([]));
    assert_eq!(condition(&nobody), "false");
}

#[test]
fn no_remedy_rewrites_a_provider_that_nobody_has_looked_at() {
    let world = World::with(Target::google_for_test("google"));
    for fault in SetUpFault::ALL {
        let error = CloudError { hop: Hop::GoogleSts, code: None, fault: Some(fault) };
        let remedy = world.trust("google").remedy(error, Asked::default());
        for command in remedy.commands.iter().filter(|command| command.contains("update-oidc")) {
            let only_on = command.contains("--no-disabled");
            assert!(only_on || command.starts_with("# "), "{fault:?}: {command}");
        }
    }
}

/// A target `name` of a provider of Entra's, with an account of its own.
fn through_entra(name: &str) -> Target {
    Target::google_for_test(name).with_google(|google| {
        google.subject_token = GoogleSubjectToken::Entra;
        google.service_account = Some(format!("{name}@ml.iam.gserviceaccount.com").parse().expect("an account"));
    })
}

fn entra_world(rules: serde_json::Value) -> World {
    World::of(vec![through_entra("google")], rules)
}

/// What a mapping makes of a token, by attribute, and whether the condition holds.
fn evaluate(world: &World, target: &str, token: &serde_json::Value) -> (Vec<String>, bool) {
    let trust = world.trust(target);
    let google = google::Google::of(&trust).expect("a Google target");
    let run = |source: &str| {
        let mut context = cel::Context::default();
        context.add_variable("assertion", token.clone()).expect("claims");
        cel::Program::compile(source).unwrap_or_else(|error| panic!("{source}: {error}")).execute(&context)
    };
    let holds = matches!(run(&google.condition()), Ok(cel::Value::Bool(true)));
    let mut admitted = Vec::new();
    for (key, expression) in google.mapping().iter().filter(|(key, _)| key.starts_with("attribute.r_")) {
        match run(expression).unwrap_or_else(|error| panic!("{expression}: {error}")) {
            cel::Value::String(text) if text.as_str() == "y" => admitted.push(key.clone()),
            other => assert_eq!(other, cel::Value::String("n".to_owned().into()), "{expression}"),
        }
    }
    (admitted, holds)
}

/// Whether somebody with this token could act as the account of `target`.
fn is_let_in(world: &World, target: &str, token: &serde_json::Value) -> bool {
    let (admitted, holds) = evaluate(world, target, token);
    let trust = world.trust(target);
    let members = google::Google::of(&trust).expect("a Google target").members_of(None);
    holds && admitted.iter().any(|key| members.iter().any(|member| member.ends_with(&format!("/{key}/y"))))
}

const OTHER: &str = "99999999-9999-9999-9999-999999999999";

fn user(claims: serde_json::Value) -> serde_json::Value {
    let mut token = json!({"ver": "2.0", "tid": TENANT, "oid": OTHER, "sub": "pairwise", "azp": OTHER, "scp": "x"});
    let all = token.as_object_mut().expect("an object");
    all.extend(claims.as_object().expect("an object").clone());
    all.retain(|_name, value| !value.is_null());
    token
}

#[test]
fn every_field_of_a_subject_is_asked_of_entras_tokens() {
    const ID: &str = "55555555-5555-5555-5555-555555555555";
    let app = |claims: serde_json::Value| {
        let mut token = user(json!({"scp": null, "sub": OTHER}));
        token.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
        token
    };
    // A subject, a token that it admits, tokens that it does not.
    let none = || user(json!({}));
    let rows = [
        (json!({"clients": [ID]}), user(json!({"azp": ID})), vec![none(), user(json!({"azp": null}))]),
        (json!({"objects": [ID]}), user(json!({"oid": ID})), vec![none(), user(json!({"oid": null}))]),
        (
            json!({"groups": [ID, OTHER]}),
            user(json!({"groups": [ID]})),
            vec![none(), user(json!({"groups": [CLIENT]}))],
        ),
        (
            json!({"roles": ["Tr\"a, b"]}),
            user(json!({"roles": ["Tr\"a, b"]})),
            vec![none(), user(json!({"roles": ["b"]}))],
        ),
        (
            json!({"scopes": ["Jobs.Submit", "b"]}),
            user(json!({"scp": "a Jobs.Submit c"})),
            vec![none(), user(json!({"scp": "Jobs.SubmitAll xb"})), app(json!({}))],
        ),
        (json!({"auth_contexts": ["c1"]}), user(json!({"acrs": ["c1"]})), vec![none(), user(json!({"acrs": ["c2"]}))]),
        (json!({"kinds": ["user"]}), none(), vec![app(json!({})), app(json!({"xms_mirid": "/x"}))]),
        (json!({"kinds": ["service_principal"]}), app(json!({})), vec![none(), app(json!({"xms_mirid": "/x"}))]),
        (json!({"kinds": ["managed_identity"]}), app(json!({"xms_mirid": "/x"})), vec![none(), app(json!({}))]),
        (
            json!({"tenants": [TENANT]}),
            none(),
            vec![user(json!({"tid": OTHER})), user(json!({"scp": null})), user(json!({"azp": null}))],
        ),
    ];
    for (subject, admitted, others) in rows {
        let world = entra_world(json!([{"name": "a-b", "targets": ["google"], "subject": subject}]));
        assert!(is_let_in(&world, "google", &admitted), "{subject}: {}", condition(&world));
        for other in others {
            assert!(!is_let_in(&world, "google", &other), "{subject} lets in {other}: {}", condition(&world));
        }
        // The same subject, denied: what it does not name passes.
        let rules = json!([
            {"name": "all", "targets": ["google"], "subject": {"tenants": [TENANT]}},
            {"name": "not", "targets": ["google"], "subject": subject, "deny": true}
        ]);
        assert!(!is_let_in(&entra_world(rules), "google", &admitted), "{subject} denied");
    }
    let rules = json!([
        {"name": "all", "targets": ["google"], "subject": {"tenants": [TENANT]}},
        {"name": "not", "targets": ["google"], "subject": {"groups": [ID]}, "deny": true}
    ]);
    let world = entra_world(rules);
    assert!(is_let_in(&world, "google", &user(json!({"groups": [OTHER]}))));
    for overage in [json!({"hasgroups": true}), json!({"_claim_names": {"groups": "src1"}})] {
        assert!(!is_let_in(&world, "google", &user(overage.clone())), "{overage}");
    }
}

#[test]
fn through_entra_nobody_becomes_another_targets_account() {
    let rules = json!([
        {"name": "wide", "targets": ["one"], "subject": {"tenants": [TENANT]}},
        {"name": "narrow", "targets": ["two"], "subject": {"roles": ["Two"]}},
        {"name": "elsewhere", "targets": ["two"], "subject": {"tenants": ["00000000-0000-0000-0000-000000000007"]}},
        {"name": "both", "targets": ["one", "two"], "subject": {"roles": ["Both"]}},
        {"name": "not-two", "targets": ["two"], "subject": {"objects": [CLIENT]}, "deny": true}
    ]);
    let world = World::of(vec![through_entra("one"), through_entra("two")], rules);
    let let_in = |token| (is_let_in(&world, "one", &token), is_let_in(&world, "two", &token));
    assert_eq!(let_in(user(json!({}))), (true, false));
    assert_eq!(let_in(user(json!({"roles": ["Two"]}))), (true, true));
    assert_eq!(let_in(user(json!({"roles": ["Both"]}))), (true, true));
    assert_eq!(let_in(user(json!({"roles": ["Both"], "oid": CLIENT}))), (true, false));
    assert_eq!(let_in(user(json!({"tid": "00000000-0000-0000-0000-000000000007"}))), (false, false));
    let nobody = entra_world(json!([
        {"name": "a", "targets": ["google"], "subject": {"tenants": [TENANT]}},
        {"name": "b", "targets": ["google"], "subject": {"tenants": [TENANT]}, "deny": true}
    ]));
    assert_eq!(condition(&nobody), "false");
}

fn wishes() -> Wishes<'static> {
    Wishes { config: "carnet.yaml", keys: Keys::Fetched, holder: None, presented: None }
}

#[test]
fn what_google_cannot_enforce_of_the_rules_is_said_in_the_output() {
    let world = entra_world(json!([
        {"name": "careful", "targets": ["google"], "subject": {"tenants": [TENANT]}, "when": "job.name == 'x'"},
        {"name": "never", "targets": ["google"], "when": "job.name == 'y'", "deny": true}
    ]));
    for format in [Format::Shell, Format::Terraform] {
        let printed = world.trust("google").set_up(format, &wishes()).expect("a set-up");
        for rule in ["rule careful", "rule never"] {
            let said = printed.lines().any(|line| line.starts_with("# WARNING: ") && line.contains(rule));
            assert!(said, "{rule} in\n{printed}");
        }
    }
    assert_eq!(world.trust("google").unenforced().len(), 2);
    let plain = entra_world(json!([{"name": "a", "targets": ["google"], "subject": {"tenants": [TENANT]}}]));
    let printed = plain.trust("google").set_up(Format::Shell, &wishes()).expect("a set-up");
    assert!(!printed.contains("WARNING") && printed.contains("without the broker"), "{printed}");
}

#[test]
fn what_google_would_not_take_is_refused() {
    let ids = |count: u128| (0..count).map(|id| Uuid::from_u128(id).to_string()).collect::<Vec<_>>();
    let long = entra_world(json!([{"name": "a", "targets": ["google"], "subject": {"clients": ids(60)}}]));
    let refused = long.trust("google").set_up(Format::Shell, &wishes()).expect_err("too long");
    assert!(matches!(refused, CannotSetUp::LongMapping(..)), "{refused}");
    let rules: Vec<_> = (0..50)
        .map(|rule| json!({"name": format!("r{rule}"), "targets": ["google"], "subject": {"roles": ["a"]}}))
        .collect();
    let refused = entra_world(json!(rules)).trust("google").set_up(Format::Shell, &wishes()).expect_err("too many");
    assert!(matches!(refused, CannotSetUp::ManyAttributes(51)), "{refused}");
}

#[test]
fn a_longer_lifetime_is_added_to_the_organizations_policy_and_never_replaces_it() {
    let target =
        Target { max_lifetime: std::time::Duration::from_secs(12 * 3600), ..Target::google_for_test("google") };
    let printed = World::with(target).trust("google").set_up(Format::Terraform, &wishes()).expect("a set-up");
    assert!(!printed.contains("google_organization_policy"), "{printed}");
    assert!(printed.contains("\n# gcloud resource-manager org-policies allow constraints/iam."), "{printed}");
}
