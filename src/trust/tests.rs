//! Row by row: every refusal, whose it is to repair, and the command with this configuration's own values.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::policy::RuleDocument;
use crate::target::{AppServiceHeader, AzureSource, GoogleSubjectToken, ManagedIdentityEndpoint, Platform, Sharing};

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
        sts("PERMISSION_DENIED", Fault::GoogleApi, Who::Google, &["gcloud services enable iam.googleapis.com sts."]),
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
    let condition = format!("--attribute-condition='assertion.tid == \"{TENANT}\"'");
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
    let made: &[&str] = &[credential, &identity, "# az ad app federated-credential create"];
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
fn i19_a_condition_on_entras_tokens_asks_what_the_rules_ask() {
    let client = "55555555-5555-5555-5555-555555555555";
    let entra =
        || Target::google_for_test("google").with_google(|google| google.subject_token = GoogleSubjectToken::Entra);
    let one = World::of(
        vec![entra()],
        json!([{"name": "a", "targets": ["google"],
            "subject": {"clients": [client], "roles": ["Train\"ing"], "kinds": ["service_principal"]}}]),
    );
    let demands = format!(
        "assertion.azp == \"{client}\" && has(assertion.roles) && (\"Train\\\"ing\" in assertion.roles) && \
         !has(assertion.scp)"
    );
    assert_eq!(condition(&one), format!("assertion.tid == \"{TENANT}\" && {demands}"));
    let two = World::of(
        vec![entra()],
        json!([
            {"name": "a", "targets": ["google"], "subject": {"clients": [client]}},
            {"name": "b", "targets": ["google"], "subject": {"kinds": ["user"]}}
        ]),
    );
    assert_eq!(
        condition(&two),
        format!("assertion.tid == \"{TENANT}\" && (assertion.azp == \"{client}\" || has(assertion.scp))")
    );
    let wide = World::of(vec![entra()], json!([{"name": "a", "targets": ["google"], "when": "true"}]));
    assert_eq!(condition(&wide), format!("assertion.tid == \"{TENANT}\""));
    assert!(matches!(wide.trust("google").target.platform, Platform::Google(_)));
}
