//! Azure's side of the trust: the federated identity credential, and the commands that make and show it.

use serde_json::json;
use uuid::Uuid;

use super::shell::Command;
use super::{Presented, Trust};
use crate::entra::assertion_audience;
use crate::secret::sha256;
use crate::target::{AzureSource, AzureTarget, Platform};

/// One Azure target.
pub(super) struct Azure<'a> {
    pub trust: &'a Trust<'a>,
    pub azure: &'a AzureTarget,
}

/// What holds a client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    ManagedIdentity,
    /// An app registration.
    Application,
}

/// What a federated identity credential is compared with, to the letter.
pub(super) struct Federated {
    pub issuer: Place,
    pub subject: Place,
    pub audience: String,
}

/// A value that is known, or a variable of the shell that holds it.
pub(super) enum Place {
    Known(String),
    Variable(&'static str),
}

impl Place {
    pub fn option(&self, command: Command, name: &str) -> Command {
        match self {
            Self::Known(value) => command.option(name, value),
            Self::Variable(variable) => command.raw(&format!("--{name} \"${variable}\"")),
        }
    }

    pub fn text(&self) -> String {
        match self {
            Self::Known(value) => value.clone(),
            Self::Variable(variable) => format!("${variable}"),
        }
    }
}

impl<'a> Azure<'a> {
    /// `None` for a target of another cloud.
    pub fn of(trust: &'a Trust<'a>) -> Option<Self> {
        match &trust.target.platform {
            Platform::Azure(azure) => Some(Self { trust, azure }),
            Platform::Google(_) => None,
        }
    }

    /// Who may have the client id: only an app registration redeems people's tokens.
    pub fn usual_holder(&self) -> Holder {
        match self.azure.source {
            AzureSource::OnBehalfOf { .. } => Holder::Application,
            AzureSource::Issuer { .. } | AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => {
                Holder::ManagedIdentity
            }
        }
    }

    /// `None` where the identity is the machine's own.
    pub fn federated(&self, presented: Option<&Presented>) -> Option<Federated> {
        match &self.azure.source {
            AzureSource::Issuer { subject, audience } | AzureSource::OnBehalfOf { subject, audience } => {
                let issuer = Place::Known(self.trust.issuer.unwrap_or_default().to_owned());
                Some(Federated { issuer, subject: Place::Known(subject.clone()), audience: audience.clone() })
            }
            AzureSource::TokenFile(_) => Some(match presented {
                Some(Presented { issuer, subject, audience }) => Federated {
                    issuer: Place::Known(issuer.clone()),
                    subject: Place::Known(subject.clone()),
                    audience: audience.clone(),
                },
                None => Federated {
                    issuer: Place::Variable("ISSUER"),
                    subject: Place::Variable("SUBJECT"),
                    audience: self.audience().to_owned(),
                },
            }),
            AzureSource::ManagedIdentity(_) => None,
        }
    }

    /// What Entra's cloud expects as `aud` of assertions.
    pub fn audience(&self) -> &'static str {
        assertion_audience(&self.azure.authority)
    }

    /// Names and ids of whatever has the client id.
    pub fn find(&self) -> Vec<Command> {
        let id = self.azure.client_id;
        vec![
            Command::new("az identity list").option("query", &format!("[?clientId=='{id}']")),
            Command::new("az ad app show").option("id", &id.to_string()),
        ]
    }

    /// What a managed identity is called by, in the variables that the other commands use.
    pub fn variables(&self) -> Vec<String> {
        let of = |field: &str| {
            let query = format!("[?clientId=='{}'].{field}", self.azure.client_id);
            Command::new("az identity list").option("query", &query).raw("-o tsv")
        };
        vec![format!("IDENTITY=$({})", of("name")), format!("RESOURCE_GROUP=$({})", of("resourceGroup"))]
    }

    pub fn list_credentials(&self, holder: Holder) -> Command {
        match holder {
            Holder::ManagedIdentity => of_identity(Command::new("az identity federated-credential list")),
            Holder::Application => {
                let id = self.azure.client_id.to_string();
                Command::new("az ad app federated-credential list").option("id", &id)
            }
        }
    }

    /// Makes the credential; one of the same name on a managed identity is replaced.
    pub fn make_credential(&self, holder: Holder, federated: &Federated) -> Command {
        let name = credential_name(&federated.subject.text());
        match holder {
            Holder::ManagedIdentity => {
                let command = Command::new("az identity federated-credential create").option("name", &name);
                let command = federated.issuer.option(of_identity(command), "issuer");
                federated.subject.option(command, "subject").option("audiences", &federated.audience)
            }
            Holder::Application => {
                let command = Command::new("az ad app federated-credential create");
                let command = command.option("id", &self.azure.client_id.to_string());
                with_parameters(command, &name, federated)
            }
        }
    }

    /// Changes an application's credential of the same name, which `create` refuses to do.
    pub fn update_credential(&self, federated: &Federated) -> Command {
        let name = credential_name(&federated.subject.text());
        let command = Command::new("az ad app federated-credential update");
        let command = command.option("id", &self.azure.client_id.to_string());
        with_parameters(command.option("federated-credential-id", &name), &name, federated)
    }

    /// The commands' own sign-in: cloud and tenant.
    pub fn sign_in(&self) -> Vec<Command> {
        let cloud = match self.azure.authority.host() {
            "login.microsoftonline.us" => "AzureUSGovernment",
            "login.partner.microsoftonline.cn" | "login.chinacloudapi.cn" => "AzureChinaCloud",
            _ => "AzureCloud",
        };
        vec![
            Command::new("az cloud set").option("name", cloud),
            Command::new("az login").option("tenant", &self.azure.tenant.to_string()),
        ]
    }

    /// The resource of the target's first scope.
    pub fn resource(&self) -> Option<&'a str> {
        let scope = self.trust.target.scopes.iter().next()?.as_str();
        Some(scope.strip_suffix("/.default").unwrap_or(scope))
    }

    /// The service principal that stands for a resource in the tenant.
    pub fn resource_principal(resource: &str) -> Command {
        let filter = match Uuid::try_parse(resource) {
            Ok(id) => format!("appId eq '{id}'"),
            Err(_name) => format!("servicePrincipalNames/any(name:name eq '{}')", resource.replace('\'', "''")),
        };
        Command::new("az ad sp list").option("filter", &filter).option("query", "[].{name:displayName,appId:appId}")
    }
}

fn with_parameters(command: Command, name: &str, federated: &Federated) -> Command {
    let (issuer, subject) = (federated.issuer.text(), federated.subject.text());
    let audiences = [&federated.audience];
    let parameters = json!({"name": name, "issuer": issuer, "subject": subject, "audiences": audiences}).to_string();
    match (&federated.issuer, &federated.subject) {
        (Place::Known(_), Place::Known(_)) => command.option("parameters", &parameters),
        // The shell fills in its variables; no quote can be in what stands beside them.
        _ => command.raw(&format!("--parameters \"{}\"", parameters.replace('"', "\\\""))),
    }
}

fn of_identity(command: Command) -> Command {
    command.raw("--identity-name \"$IDENTITY\"").raw("--resource-group \"$RESOURCE_GROUP\"")
}

/// Entra (federated identity credentials): 3 to 120 of letters, digits, `-` and `_`. Two subjects never share a name:
/// making the second would replace the first.
pub(super) fn credential_name(subject: &str) -> String {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    match subject.strip_prefix("carnet:") {
        Some(rest) if plain(rest) && (1..=113).contains(&rest.len()) => format!("carnet-{rest}"),
        _ => format!("carnet-{}", hex::encode(sha256(subject.as_bytes()).first_chunk::<8>().unwrap_or(&[0; 8]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_that_differ_have_names_that_differ() {
        let subjects =
            ["carnet:a", "carnet:a.b", "carnet:a-b", "carnet:A", "system:serviceaccount:ml:carnet", "carnet:", "a"];
        let names: Vec<String> = subjects.iter().map(|subject| credential_name(subject)).collect();
        assert_eq!(names[0], "carnet-a");
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
            assert!((3..=120).contains(&name.len()), "{name}");
        }
    }
}
