//! The set-up of one target's trust as shell commands, in the order in which they are run.

use super::azure::{Azure, Holder};
use super::google::Google;
use super::remedy::{jwks, lifetime, managed_identity, token_file_variables};
use super::shell::{Command, comment};
use super::{CannotSetUp, Keys, Trust, Wishes, terraform};
use crate::policy::GOOGLE_USUAL;
use crate::target::{AzureSource, GoogleSubjectToken, Name};

/// How the set-up is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For gcloud or az.
    Shell,
    Terraform,
}

pub(super) fn set_up(trust: &Trust<'_>, format: Format, wishes: &Wishes<'_>) -> Result<String, CannotSetUp> {
    if let Some(google) = Google::of(trust) {
        google.check(wishes)?;
        return Ok(match format {
            Format::Shell => script(of_google(&google, wishes)),
            Format::Terraform => terraform::of_google(&google, wishes),
        });
    }
    let azure = Azure::of(trust).ok_or(CannotSetUp::Cloud)?;
    azure.check()?;
    Ok(match format {
        Format::Shell => script(of_azure(&azure, wishes)),
        Format::Terraform => terraform::of_azure(&azure, wishes)?,
    })
}

/// One part of a script: what it is for, and its commands.
type Part = (String, Vec<String>);

fn script(parts: Vec<Part>) -> String {
    let part = |(purpose, commands): Part| {
        let lines = std::iter::once(comment(&purpose)).chain(commands);
        lines.collect::<Vec<_>>().join("\n")
    };
    parts.into_iter().map(part).collect::<Vec<_>>().join("\n\n")
}

fn part(purpose: impl Into<String>, commands: impl IntoIterator<Item = Command>) -> Part {
    (purpose.into(), commands.into_iter().map(|command| command.to_string()).collect())
}

fn of_google(google: &Google<'_>, wishes: &Wishes<'_>) -> Vec<Part> {
    let create = google.provider("create-oidc").flag("issuer-uri", &google.issuer());
    let create = create.flag("allowed-audiences", &google.audiences().join(","));
    let create = google.mapping_flag(create).flag("attribute-condition", &google.condition());
    let pool = google.pool("create").flag("display-name", "carnet");
    let (commands, upload) = match wishes.keys {
        Keys::Fetched => (vec![pool, create], ""),
        Keys::Uploaded => (
            vec![pool, jwks(wishes.config), create.flag("jwk-json-path", "jwks.json")],
            " Google never asks the issuer then: upload again before a new key signs (`carnet issuer keys`).",
        ),
    };
    let purpose = format!(
        "The pool and its provider. Of one that exists, `describe` shows the settings, and `update-oidc` in place of \
         `create-oidc` changes them.{}{upload}",
        google.shared_with()
    );
    let mut parts: Vec<Part> =
        google.warnings().iter().map(|warning| (format!("WARNING: {warning}"), Vec::new())).collect();
    parts.push(("The APIs that credentials come from.".to_owned(), google.apis()));
    parts.push(part(purpose, commands));
    if google.google.subject_token == GoogleSubjectToken::Entra && google.trust.entra.tenants.len() > 1 {
        let text = format!(
            "A provider of Entra's takes tokens of one tenant, {}; those of the others need a provider and a target each.",
            google.tenant()
        );
        parts.push((text, Vec::new()));
    }
    match &google.google.service_account {
        Some(account) => {
            let purpose = match google.google.subject_token {
                GoogleSubjectToken::Issuer => format!(
                    "Who may act as {account}, with access and with ID tokens: the callers of the target's rules, and \
                     nobody else of the pool."
                ),
                GoogleSubjectToken::Entra => format!(
                    "Who may act as {account}, with access and with ID tokens: those whom the `subject` of one of the \
                     target's rules admits. {WITHOUT_THE_BROKER}"
                ),
            };
            parts.push(part(purpose, google.impersonation(None)));
            if google.trust.target.max_lifetime > GOOGLE_USUAL {
                let lifetime = lifetime(google);
                parts.push((format!("Tokens of more than an hour: {}.", lifetime.advice), lifetime.commands));
            }
        }
        None => {
            let grant = |member: String| {
                let command = Command::new("gcloud projects add-iam-policy-binding \"$DATA_PROJECT\"");
                command.raw("--role=\"$ROLE\"").flag("member", &member).flag("condition", "None")
            };
            let shown = match google.google.subject_token {
                GoogleSubjectToken::Issuer => "",
                GoogleSubjectToken::Entra => WITHOUT_THE_BROKER,
            };
            let purpose = format!(
                "Direct access: the pool's principals hold roles themselves. Put your project and role here. {shown}"
            );
            let mut direct = part(purpose.trim_end(), google.members_of(None).into_iter().map(grant));
            let variables = ["DATA_PROJECT=my-project".to_owned(), "ROLE=roles/aiplatform.user".to_owned()];
            direct.1.splice(0..0, variables);
            parts.push(direct);
        }
    }
    parts.push((check_with(&google.trust.target.name, wishes), Vec::new()));
    parts
}

fn of_azure(azure: &Azure<'_>, wishes: &Wishes<'_>) -> Vec<Part> {
    let holder = wishes.holder.unwrap_or(azure.usual_holder());
    let mut parts = vec![part("The cloud and the tenant.", azure.sign_in())];
    match azure.federated(wishes.presented) {
        None => {
            let machine = managed_identity(azure);
            parts.push(("The identity belongs to the machine that the broker runs on.".to_owned(), machine.commands));
        }
        Some(federated) => {
            let mut commands = match (&azure.azure.source, wishes.presented) {
                (AzureSource::TokenFile(_), None) => token_file_variables(azure),
                _ => Vec::new(),
            };
            let purpose = match holder {
                Holder::ManagedIdentity => {
                    commands.extend(azure.variables());
                    "One federated identity credential for the managed identity; Entra compares it to the letter."
                }
                Holder::Application => {
                    "One federated identity credential for the application; Entra compares it to the letter."
                }
            };
            commands.push(azure.make_credential(holder, &federated).to_string());
            parts.push((purpose.to_owned(), commands));
        }
    }
    if let AzureSource::OnBehalfOf { .. } = azure.azure.source {
        parts.extend(on_behalf_of(azure));
    } else if let Some((role, scope)) = azure.role() {
        let principal = match (holder, &azure.azure.source) {
            (Holder::Application, _) => {
                let show = Command::new("az ad sp show").option("id", &azure.azure.client_id.to_string());
                show.option("query", "id")
            }
            (Holder::ManagedIdentity, _) => {
                let query = format!("[?clientId=='{}'].principalId", azure.azure.client_id);
                Command::new("az identity list").option("query", &query)
            }
        };
        let assign = Command::new("az role assignment create").option("role", role).raw("--scope \"$SCOPE\"");
        let assign = assign.raw("--assignee-object-id \"$PRINCIPAL\" --assignee-principal-type ServicePrincipal");
        let commands =
            vec![format!("PRINCIPAL=$({})", principal.raw("-o tsv")), format!("SCOPE={scope}"), assign.to_string()];
        parts.push(("What it may do there: a role on a resource. Put your own here.".to_owned(), commands));
    }
    parts.push((check_with(&azure.trust.target.name, wishes), Vec::new()));
    parts
}

fn on_behalf_of(azure: &Azure<'_>) -> Vec<Part> {
    let client = azure.azure.client_id.to_string();
    let version = Command::new("az ad app update").option("id", &client);
    let version = version.option("set", "api.requestedAccessTokenVersion=2");
    let consent = Command::new("az ad app permission admin-consent").option("id", &client);
    let look = azure.resource().map(Azure::resource_principal);
    let scopes = azure.trust.target.scopes.joined();
    let mut parts = vec![part(
        format!(
            "The application redeems people's tokens, so theirs are for it: {client} is one of entra.audiences, and it has \
             delegated permissions for {scopes} with the tenant's consent (az ad app permission add)."
        ),
        [version].into_iter().chain(look).chain([consent]),
    )];
    if !azure.trust.entra.audiences.iter().any(|audience| audience.contains(&client)) {
        let warning =
            format!("WARNING: {client} is not in entra.audiences: Entra refuses tokens for others (AADSTS50013).");
        parts.push((warning, Vec::new()));
    }
    parts
}

fn check_with(target: &Name, wishes: &Wishes<'_>) -> String {
    format!("Changes take some minutes to be known. Then: carnet doctor --config {} --target {target}", wishes.config)
}

impl Google<'_> {
    fn check(&self, wishes: &Wishes<'_>) -> Result<(), CannotSetUp> {
        let by_broker = self.google.subject_token == GoogleSubjectToken::Issuer;
        if by_broker && self.trust.issuer.is_none() {
            return Err(CannotSetUp::NoIssuer);
        }
        if !by_broker && wishes.keys == Keys::Uploaded {
            return Err(CannotSetUp::EntrasKeys);
        }
        let condition = self.condition();
        if condition == "false" || self.members_of(None).is_empty() {
            return Err(CannotSetUp::NoRule(self.trust.target.name.clone()));
        }
        if condition.len() > LONGEST_CONDITION {
            return Err(CannotSetUp::LongCondition(condition.len()));
        }
        let mapping = self.mapping();
        let attributes = mapping.iter().filter(|(key, _expression)| key.starts_with("attribute.")).count();
        if attributes > MOST_ATTRIBUTES {
            return Err(CannotSetUp::ManyAttributes(attributes));
        }
        match mapping.into_iter().find(|(_key, expression)| expression.len() > LONGEST_MAPPING) {
            Some((key, expression)) => Err(CannotSetUp::LongMapping(key, expression.len())),
            None => Ok(()),
        }
    }

    /// The other targets of the provider: its mapping and condition are for all of them.
    fn shared_with(&self) -> String {
        let names: Vec<&str> = self.targets().filter(|name| *name != self.trust.target.name.as_str()).collect();
        match names.as_slice() {
            [] => String::new(),
            names => format!(" It serves {} too.", names.join(", ")),
        }
    }
}

impl Azure<'_> {
    fn check(&self) -> Result<(), CannotSetUp> {
        match self.azure.source {
            AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. } if self.trust.issuer.is_none() => {
                Err(CannotSetUp::NoIssuer)
            }
            _ => Ok(()),
        }
    }

    /// The least that usually does for the target's resource, and what it is given on.
    fn role(&self) -> Option<(&'static str, &'static str)> {
        let resource = self.resource()?;
        let row = ROLES.iter().find(|(known, _role, _scope)| resource.trim_end_matches('/') == *known);
        row.map(|(_resource, role, scope)| (*role, *scope))
    }
}

/// Roles by resource (Microsoft: built-in roles), and where in a subscription they are given.
const ROLES: [(&str, &str, &str); 7] = [
    (
        "https://ml.azure.com",
        "AzureML Data Scientist",
        "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.MachineLearningServices/workspaces/NAME",
    ),
    (
        "https://storage.azure.com",
        "Storage Blob Data Reader",
        "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Storage/storageAccounts/NAME",
    ),
    (
        "https://vault.azure.net",
        "Key Vault Secrets User",
        "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.KeyVault/vaults/NAME",
    ),
    (
        "https://cognitiveservices.azure.com",
        "Cognitive Services OpenAI User",
        "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.CognitiveServices/accounts/NAME",
    ),
    (
        "https://containerregistry.azure.net",
        "AcrPull",
        "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.ContainerRegistry/registries/NAME",
    ),
    (
        "6dae42f8-4368-4678-94ff-3960e28e3630",
        "Azure Kubernetes Service RBAC Reader",
        "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.ContainerService/managedClusters/NAME",
    ),
    ("https://management.azure.com", "Reader", "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP"),
];

/// Google (attributeCondition).
const LONGEST_CONDITION: usize = 4096;

/// Google (attributeMapping).
const LONGEST_MAPPING: usize = 2048;
const MOST_ATTRIBUTES: usize = 50;

const WITHOUT_THE_BROKER: &str = "They can show their Entra tokens to Google themselves, without the broker: its lifetimes, \
                                  leases and records are not Google's.";
