//! The table of refusals: for each what it means, who can act, and the commands that repair it.

use super::azure::{Azure, Holder};
use super::google::Google;
use super::shell::{Command, comment, quoted};
use super::{Asked, CloudError, Remedy, Trust, Who};
use crate::credential::{Hop, SetUpFault};
use crate::entra;
use crate::target::{AzureSource, GoogleSubjectToken, ManagedIdentityEndpoint, Platform};

pub(super) fn remedy(trust: &Trust<'_>, error: CloudError<'_>, asked: Asked<'_>) -> Remedy {
    let number = error.code.and_then(|code| code.strip_prefix("AADSTS")).and_then(|number| number.parse().ok());
    match (error.fault, number) {
        (Some(fault), _) => of_fault(trust, error.hop, fault, asked),
        (None, Some(number)) => of_entra(trust, number),
        (None, None) => of_hop(trust, error),
    }
}

/// A row's remedy.
pub(super) struct Row {
    pub who: Who,
    pub advice: String,
    pub commands: Vec<String>,
}

fn row(who: Who, advice: impl Into<String>, commands: Vec<Command>) -> Row {
    Row { who, advice: advice.into(), commands: commands.iter().map(Command::to_string).collect() }
}

impl Row {
    fn remedy(self, meaning: &str) -> Remedy {
        let Self { who, advice, commands } = self;
        Remedy { meaning: meaning.to_owned(), who, advice, commands }
    }
}

fn of_fault(trust: &Trust<'_>, hop: Hop, fault: SetUpFault, asked: Asked<'_>) -> Remedy {
    let google = Google::of(trust);
    let found = match (google, fault) {
        (Some(google), _) if hop != Hop::Broker => of_google(&google, fault, asked),
        _ => of_others(trust, fault),
    };
    let otherwise = || row(Who::Broker, "see the target's settings", Vec::new());
    found.unwrap_or_else(otherwise).remedy(fault.meaning())
}

/// `None` for a fault that Google does not have.
fn of_google(google: &Google<'_>, fault: SetUpFault, asked: Asked<'_>) -> Option<Row> {
    let by_broker = google.google.subject_token == GoogleSubjectToken::Issuer;
    let update = || google.provider("update-oidc");
    // The name may have led to somebody else's provider, which nobody must rewrite unseen.
    let own = |advice: String, change: Vec<Command>| {
        let own = "look first; only if this provider is the broker's own, run the lines after `#`";
        let advice = if advice.is_empty() { own.to_owned() } else { format!("{advice}; {own}") };
        let look = google.provider("describe").to_string();
        let commands = std::iter::once(look).chain(change.iter().map(Command::commented)).collect();
        Row { who: Who::Google, advice, commands }
    };
    Some(match fault {
        SetUpFault::GoogleAudience => {
            let advice = format!("`aud` is {}", google.audiences().join(" or "));
            own(advice, vec![update().flag("allowed-audiences", &google.audiences().join(","))])
        }
        SetUpFault::GoogleIssuer => {
            let advice = match by_broker {
                true => format!("`iss` is {}, the broker's issuer.url", google.issuer()),
                false => format!(
                    "`iss` of v2.0 tokens is {}; of v1.0 tokens https://sts.windows.net/{}/ with a slash: the application \
                     chooses (requestedAccessTokenVersion)",
                    google.issuer(),
                    google.tenant()
                ),
            };
            own(advice, vec![update().flag("issuer-uri", &google.issuer())])
        }
        SetUpFault::GoogleClock => clock(),
        SetUpFault::GoogleSubjectLength | SetUpFault::GoogleMapping => {
            own(String::new(), vec![google.mapping_flag(update())])
        }
        SetUpFault::GoogleKey if by_broker => {
            let upload = update().flag("jwk-json-path", "jwks.json");
            let advice = "where the keys are fetched instead of uploaded, Google has old ones: wait, or upload them";
            own(advice.to_owned(), vec![jwks(CONFIG), upload])
        }
        SetUpFault::GoogleKey => {
            let advice = "Entra's keys are fetched: the provider must hold no uploaded ones; make it anew without";
            row(Who::Google, advice, vec![google.provider("describe")])
        }
        SetUpFault::GoogleToken | SetUpFault::GoogleSubject => {
            let advice = format!(
                "compare issuer {}, audience {} and the attribute condition",
                google.issuer(),
                google.audiences().join(", ")
            );
            row(Who::Google, advice, vec![google.provider("describe")])
        }
        SetUpFault::GoogleProvider => {
            let on = |command: Command| command.raw("--no-disabled");
            let commands =
                vec![google.pool("describe"), google.provider("describe"), on(google.pool("update")), on(update())];
            let name = &google.trust.target.name;
            let advice = format!(
                "look, then turn on what is disabled; what was deleted comes back with `undelete`; what never was is made \
                 by `carnet trust google --target {name}`. The configuration names {}",
                google.google.provider
            );
            row(Who::Google, advice, commands)
        }
        SetUpFault::GoogleProviderName => {
            let numbers = Command::new("gcloud projects list").flag("format", "table(projectId,projectNumber)");
            row(Who::Broker, format!("targets.{}.google.audience", google.trust.target.name), vec![numbers])
        }
        SetUpFault::GoogleCondition => {
            let advice = match by_broker {
                true => {
                    let rule = asked.rule.map(|rule| format!(" and rule {rule}")).unwrap_or_default();
                    format!("it must let the configured tenants{rule} pass")
                }
                false => "it must let the callers of the target's rules pass".to_owned(),
            };
            let mut row = own(advice, vec![update().flag("attribute-condition", &google.condition())]);
            row.commands.extend(google.warnings().iter().map(|warning| comment(&format!("WARNING: {warning}"))));
            row
        }
        SetUpFault::GoogleScope | SetUpFault::GoogleArgument => {
            row(Who::Broker, format!("targets.{}.google.scopes", google.trust.target.name), Vec::new())
        }
        SetUpFault::GoogleApi => Row {
            who: Who::Google,
            advice: "it takes some minutes to be known everywhere".to_owned(),
            commands: google.apis(),
        },
        SetUpFault::GoogleImpersonation => impersonation(google, asked),
        SetUpFault::GoogleServiceAccount => {
            let account = google.google.service_account.as_ref();
            let create = account.and_then(|account| Some((account.short_name()?, account.project()?)));
            let create = create.map(|(name, project)| {
                Command::new("gcloud iam service-accounts create").word(name).flag("project", &project)
            });
            let commands = create.into_iter().chain(google.impersonation(None)).collect();
            row(Who::Google, "it was deleted, or the target names another one", commands)
        }
        SetUpFault::GoogleLifetime => lifetime(google),
        SetUpFault::GoogleFederatedToken => Row {
            who: Who::Nobody,
            advice: "the next call gets a new one; if it stays so, check that the API is enabled".to_owned(),
            commands: google.apis(),
        },
        SetUpFault::IssuerUnreachable if by_broker => {
            let upload = update().flag("jwk-json-path", "jwks.json");
            let look = discovery(&google.issuer());
            let advice = "the URL must answer from the internet as it stands, over https; or upload the keys, after \
                          which Google never asks";
            let commands = vec![look.to_string(), jwks(CONFIG).to_string(), upload.commented()];
            Row { who: Who::Broker, advice: advice.to_owned(), commands }
        }
        SetUpFault::IssuerUnreachable => row(Who::Google, "", vec![discovery(&google.issuer())]),
        SetUpFault::ManagedIdentity
        | SetUpFault::ManagedIdentityHeader
        | SetUpFault::NoIssuer
        | SetUpFault::NoSignature
        | SetUpFault::TokenFile => return None,
    })
}

fn impersonation(google: &Google<'_>, asked: Asked<'_>) -> Row {
    let Some(look) = google.service_account("describe") else { return row(Who::Google, "", Vec::new()) };
    let mut advice = "a new binding takes up to some minutes".to_owned();
    if let Some(subject) = asked.subject {
        advice = format!("the caller is {}; {advice}", google.google.provider.principal(subject));
    }
    let mut commands = google.impersonation(asked.rule);
    commands.extend(google.service_account("enable"));
    commands.push(look);
    row(Who::Google, advice, commands)
}

pub(super) fn lifetime(google: &Google<'_>) -> Row {
    let constraint = "constraints/iam.allowServiceAccountCredentialLifetimeExtension";
    let advice = format!(
        "list the account in the organization policy {constraint}, or set targets.{}.google.max_lifetime to 1h",
        google.trust.target.name
    );
    let Some(account) = &google.google.service_account else { return row(Who::Google, advice, Vec::new()) };
    let project = account.project().unwrap_or_else(|| google.google.provider.project().to_owned());
    // From the project up to the organization, which is the last.
    let ancestors = Command::new("gcloud projects get-ancestors").word(&project).flag("format", "value(id)");
    let organization = format!("ORGANIZATION=$({ancestors} | tail -n 1)");
    let allow = Command::new("gcloud resource-manager org-policies allow").word(constraint).word(account.as_str());
    let allow = allow.raw("--organization=\"$ORGANIZATION\"").to_string();
    Row { who: Who::Google, advice, commands: vec![organization, allow] }
}

fn of_others(trust: &Trust<'_>, fault: SetUpFault) -> Option<Row> {
    let name = &trust.target.name;
    let azure = Azure::of(trust);
    Some(match (fault, &azure) {
        (SetUpFault::NoIssuer, _) => {
            row(Who::Broker, "add `issuer: { url: https://... }` to the configuration", vec![])
        }
        (SetUpFault::NoSignature, _) => row(Who::Broker, "look at the keys", vec![issuer_keys()]),
        (SetUpFault::TokenFile, Some(azure)) => {
            let AzureSource::TokenFile(path) = &azure.azure.source else { return None };
            let look = Command::new("ls -l").word(&path.display().to_string());
            let advice = format!(
                "targets.{name}.azure.token_file must be there for the broker's own user: in Kubernetes a projected \
                 serviceAccountToken with the audience {}",
                azure.audience()
            );
            row(Who::Broker, advice, vec![look])
        }
        (SetUpFault::IssuerUnreachable, Some(azure)) => {
            let issuer = match &azure.azure.source {
                AzureSource::TokenFile(_) => None,
                AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. } | AzureSource::ManagedIdentity(_) => {
                    trust.issuer
                }
            };
            let advice = "Entra fetches them from the internet, over https with a certificate of a public authority; keys \
                          cannot be uploaded there. Where that is not possible: `source: token_file` or \
                          `source: managed_identity`";
            row(Who::Broker, advice, issuer.map(discovery).into_iter().collect())
        }
        (SetUpFault::ManagedIdentity, Some(azure)) => managed_identity(azure),
        (SetUpFault::ManagedIdentityHeader, _) => row(
            Who::Broker,
            "start the broker with the IDENTITY_ENDPOINT and IDENTITY_HEADER that the platform sets",
            Vec::new(),
        ),
        _ => return None,
    })
}

pub(super) fn managed_identity(azure: &Azure<'_>) -> Row {
    let of_id = Command::new("az identity list");
    let of_id = of_id.option("query", &format!("[?clientId=='{}'].id", azure.azure.client_id)).raw("-o tsv");
    let assign = |what: &str| {
        let command = Command::new(&format!("az {what} identity assign"));
        command.raw("--name \"$NAME\"").raw("--resource-group \"$GROUP\"").raw("--identities \"$ID\"").to_string()
    };
    let (assign, kind) = match &azure.azure.source {
        AzureSource::ManagedIdentity(ManagedIdentityEndpoint::AppService { .. }) => {
            ([assign("webapp"), assign("containerapp").replace("--identities", "--user-assigned")], "app")
        }
        _ => ([assign("vm"), assign("vmss")], "machine"),
    };
    let [usual, other] = assign;
    let commands = vec![
        format!("ID=$({of_id})"),
        comment(&format!("Put the {kind} and its resource group here.")),
        "NAME=carnet".to_owned(),
        "GROUP=carnet".to_owned(),
        usual,
        comment(&format!("or: {other}")),
    ];
    let resource = azure.resource().map(|resource| format!(" The resource is {resource}.")).unwrap_or_default();
    let advice = format!("assign the identity to where the broker runs.{resource}");
    Row { who: Who::Entra, advice, commands }
}

/// Entra's refusals by number; what is not listed has its place in Microsoft's documentation.
fn of_entra(trust: &Trust<'_>, number: u64) -> Remedy {
    let meaning = entra::class(number).map_or("Entra refuses it", |(_class, meaning)| meaning);
    let row = Azure::of(trust).map(|azure| entra_row(&azure, number)).unwrap_or_else(|| unlisted(number));
    row.remedy(meaning)
}

fn entra_row(azure: &Azure<'_>, number: u64) -> Row {
    let name = &azure.trust.target.name;
    let (client_id, tenant) = (azure.azure.client_id.to_string(), azure.azure.tenant);
    match number {
        70021 | 700_211 | 700_212 | 700_213 | 7_002_138 => credential(azure),
        700_222 => {
            let advice = format!("targets.{name}.azure.source is `issuer`, or the file holds a cluster's token");
            row(Who::Broker, advice, vec![])
        }
        70023 => {
            let advice =
                "the projected token's expirationSeconds is at most 86400, and the cluster's issuer writes `iat`";
            row(Who::Broker, advice, vec![])
        }
        700_024 => clock(),
        700_027 | 7_000_272 => {
            let look = azure.trust.issuer.map(|issuer| Command::new("curl -sS").word(&format!("{issuer}/keys")));
            let keys = issuer_keys();
            let advice = "both must name the same keys; Entra keeps what it fetched for some time, so a key is published \
                          before it signs (issuer.publish_ahead)";
            row(Who::Broker, advice, look.into_iter().chain([keys]).collect())
        }
        90061 | 50166 => of_others(azure.trust, SetUpFault::IssuerUnreachable).unwrap_or_else(|| unlisted(number)),
        700_016 | 700_011 => {
            let advice = format!("targets.{name}.azure.client_id is of tenant {tenant}; these show what there is");
            row(Who::Broker, advice, azure.sign_in().into_iter().chain(azure.find()).collect())
        }
        90002 => {
            let look = discovery(&format!("{}/{tenant}/v2.0", azure.azure.authority));
            let advice = format!("targets.{name}.azure.tenant, or the cloud in targets.{name}.azure.authority");
            row(Who::Broker, advice, vec![look])
        }
        500_011 | 50001 | 650_057 => {
            let look = azure.resource().map(Azure::resource_principal);
            let advice =
                format!("targets.{name}.azure.scopes must name a resource that has a service principal in {tenant}");
            row(Who::Broker, advice, look.into_iter().collect())
        }
        70011 | 1_002_012 => row(Who::Broker, format!("targets.{name}.azure.scopes"), vec![]),
        7_000_113 => {
            let advice = "give the rule `subject: { kinds: [user] }`, and callers without a user a target with \
                          `source: issuer`";
            row(Who::Broker, advice, vec![])
        }
        50013 | 500_133 => {
            let advice = format!("get a fresh token; its audience must be {client_id}, the client that redeems it");
            row(Who::Caller, advice, vec![])
        }
        65001 => {
            let consent = Command::new("az ad app permission admin-consent").option("id", &client_id);
            row(Who::Entra, "an administrator consents for the tenant", vec![consent])
        }
        50105 => {
            let look = Command::new("az ad sp show").option("id", &client_id);
            row(Who::Entra, "assign the user or the group to the application", vec![look])
        }
        700_025 => {
            let command = Command::new("az ad app update").option("id", &client_id);
            row(Who::Entra, "", vec![command.option("is-fallback-public-client", "false")])
        }
        90055 | 50196 | 90033 | 90024 | 90006 | 50000 => row(Who::Nobody, "wait and try again", vec![]),
        50076 | 50079 | 50158 | 53000..=53004 | 70043 => {
            row(Who::Caller, "sign in again and satisfy what Conditional Access asks for", vec![])
        }
        _ => unlisted(number),
    }
}

fn unlisted(number: u64) -> Row {
    row(Who::Entra, format!("see https://login.microsoftonline.com/error?code={number}"), vec![])
}

/// The credential as it must be, for whichever of the two has the client id.
fn credential(azure: &Azure<'_>) -> Row {
    let Some(federated) = azure.federated(None) else { return row(Who::Entra, "", vec![]) };
    let advice = format!(
        "it must have issuer {}, subject {} and audience {} to the letter; a new one takes some minutes to be known \
         everywhere",
        federated.issuer.text(),
        federated.subject.text(),
        federated.audience
    );
    let mut commands = match azure.azure.source {
        AzureSource::TokenFile(_) => token_file_variables(azure),
        AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. } | AzureSource::ManagedIdentity(_) => Vec::new(),
    };
    let of_application = [
        azure.list_credentials(Holder::Application).to_string(),
        azure.make_credential(Holder::Application, &federated).to_string(),
        comment("where one of that name exists:"),
        azure.update_credential(&federated).commented(),
    ];
    if azure.usual_holder() == Holder::ManagedIdentity {
        commands.extend(azure.variables());
        commands.push(azure.list_credentials(Holder::ManagedIdentity).to_string());
        commands.push(azure.make_credential(Holder::ManagedIdentity, &federated).to_string());
        commands.push(comment("for an app registration instead of a managed identity:"));
        let commented = of_application.iter().flat_map(|command| command.lines());
        commands.extend(
            commented
                .map(|line| if line.starts_with('#') { line.to_owned() } else { comment(line) })
                .collect::<Vec<_>>(),
        );
    } else {
        commands.extend(of_application);
    }
    Row { who: Who::Entra, advice, commands }
}

/// What the cluster's token says of itself.
pub(super) fn token_file_variables(azure: &Azure<'_>) -> Vec<String> {
    let AzureSource::TokenFile(path) = &azure.azure.source else { return Vec::new() };
    let claim = |variable: &str, claim: &str| {
        let read =
            format!("cut -d. -f2 {} | tr '_-' '/+' | base64 -d 2>/dev/null", quoted(&path.display().to_string()));
        format!("{variable}=$({read} | jq -r .{claim})")
    };
    vec![claim("ISSUER", "iss"), claim("SUBJECT", "sub")]
}

/// Nothing more is known than who said it.
fn of_hop(trust: &Trust<'_>, error: CloudError<'_>) -> Remedy {
    let reach = |url: &str| Command::new("curl -sS -o /dev/null -w '%{http_code}\\n'").word(url);
    let CloudError { hop, code, fault: _ } = error;
    let refused = code.map(|code| format!("{hop} refuses it: {code}"));
    let away = format!("{hop} does not answer, or not as it should");
    let meaning = refused.unwrap_or(away);
    let row = match (&trust.target.platform, hop) {
        (_, Hop::Broker) => row(Who::Broker, "see the broker's log", vec![]),
        (Platform::Google(google), Hop::GoogleSts) => network(reach(&google.sts_endpoint.join("v1/token"))),
        (Platform::Google(google), _) => network(reach(google.iam_credentials_endpoint.as_str())),
        (Platform::Azure(azure), Hop::ManagedIdentity) => {
            let base = match &azure.source {
                AzureSource::ManagedIdentity(ManagedIdentityEndpoint::Imds(endpoint)) => endpoint.as_str(),
                _ => "$IDENTITY_ENDPOINT",
            };
            let look = Command::new("curl -sS --noproxy '*' -H Metadata:true");
            let look = look.word(&format!("{base}/metadata/instance?api-version=2021-02-01"));
            let advice = "only machines of Azure have one, and it is never reached through a proxy";
            row(Who::Broker, advice, vec![look])
        }
        (Platform::Azure(azure), _) => network(discovery(&format!("{}/{}/v2.0", azure.authority, azure.tenant))),
    };
    row.remedy(&meaning)
}

fn network(look: Command) -> Row {
    let advice = "check the way there from the broker's machine: name, firewall, HTTPS_PROXY and NO_PROXY, \
                  outbound.ca_file behind a proxy that opens TLS";
    row(Who::Broker, advice, vec![look])
}

fn clock() -> Row {
    let advice = "the broker's clock is wrong: assertions live ten minutes and clouds take little difference";
    row(
        Who::Broker,
        advice,
        vec![Command::new("timedatectl set-ntp true"), Command::new("timedatectl timesync-status")],
    )
}

/// `config`: the path of the configuration file.
pub(super) fn jwks(config: &str) -> Command {
    Command::new("carnet issuer jwks").option("config", config).raw("> jwks.json")
}

fn discovery(issuer: &str) -> Command {
    Command::new("curl -sS").word(&format!("{issuer}/.well-known/openid-configuration"))
}

fn issuer_keys() -> Command {
    Command::new("carnet issuer keys").option("config", CONFIG)
}

/// What examples call the configuration file.
const CONFIG: &str = "carnet.yaml";
