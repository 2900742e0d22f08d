//! The set-up of one target's trust as Terraform configuration.

use std::fmt::{self, Write as _};

use super::azure::{Azure, Holder, Place, credential_name};
use super::google::Google;
use super::remedy::lifetime;
use super::shell::comment;
use super::{CannotSetUp, Keys, Wishes};
use crate::line::is_unprintable;
use crate::policy::GOOGLE_USUAL;

/// A block with its arguments and blocks, laid out as `terraform fmt` does.
struct Block {
    head: String,
    body: Vec<Item>,
}

enum Item {
    Argument(String, Value),
    Block(Block),
}

enum Value {
    /// As it stands: a reference, a function, a number.
    Raw(String),
    Text(String),
    Texts(Vec<String>),
    /// From text to text.
    Map(Vec<(String, String)>),
    /// From name to text: an object.
    Object(Vec<(&'static str, String)>),
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn raw(value: &str) -> Value {
    Value::Raw(value.to_owned())
}

fn texts<V: ToString>(values: impl IntoIterator<Item = V>) -> Value {
    Value::Texts(values.into_iter().map(|value| value.to_string()).collect())
}

impl Block {
    fn new(kind: &str, labels: &[&str]) -> Self {
        let labels = labels.iter().map(|label| format!(" {}", quoted(label)));
        Self { head: format!("{kind}{}", labels.collect::<String>()), body: Vec::new() }
    }

    fn set(mut self, name: &str, value: Value) -> Self {
        self.body.push(Item::Argument(name.to_owned(), value));
        self
    }

    fn block(mut self, block: Self) -> Self {
        self.body.push(Item::Block(block));
        self
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        let margin = "  ".repeat(indent);
        writeln!(f, "{margin}{} {{", self.head)?;
        let simple = |item: &Item| matches!(item, Item::Argument(_, Value::Raw(_) | Value::Text(_) | Value::Texts(_)));
        // Neighbours that have one line each are aligned.
        for run in self.body.chunk_by(|one, other| simple(one) && simple(other)) {
            let names = run.iter().map(|item| match item {
                Item::Argument(name, _) => name.len(),
                Item::Block(_) => 0,
            });
            let width = names.max().unwrap_or_default();
            for item in run {
                match item {
                    Item::Argument(name, value) => {
                        write!(f, "{margin}  {name:width$} = ")?;
                        value.write(f, indent + 1)?;
                        writeln!(f)?;
                    }
                    Item::Block(block) => block.write(f, indent + 1)?,
                }
            }
        }
        writeln!(f, "{margin}}}")
    }
}

impl Value {
    fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        match self {
            Self::Raw(raw) => f.write_str(raw),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Texts(texts) => {
                write!(f, "[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
            }
            Self::Map(pairs) => {
                let pairs = pairs.iter().map(|(key, value)| (quoted(key), quoted(value)));
                write_pairs(f, pairs.collect(), indent)
            }
            Self::Object(pairs) => {
                let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), quoted(value)));
                write_pairs(f, pairs.collect(), indent)
            }
        }
    }
}

fn write_pairs(f: &mut fmt::Formatter<'_>, pairs: Vec<(String, String)>, indent: usize) -> fmt::Result {
    let margin = "  ".repeat(indent);
    let width = pairs.iter().map(|(key, _value)| key.len()).max().unwrap_or_default();
    writeln!(f, "{{")?;
    for (key, value) in pairs {
        writeln!(f, "{margin}  {key:width$} = {value}")?;
    }
    write!(f, "{margin}}}")
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

/// A text of HCL, in which nothing is a template (HCL native syntax, template expressions).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '$' | '%' if characters.peek() == Some(&'{') => quoted.extend([character, character]),
            // Writing to a text does not fail.
            unprintable if is_unprintable(unprintable) => match u32::from(unprintable) {
                beyond @ 0x1_0000.. => drop(write!(quoted, "\\U{beyond:08x}")),
                code => drop(write!(quoted, "\\u{code:04x}")),
            },
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn document(blocks: Vec<Block>) -> String {
    let blocks: Vec<String> = blocks.iter().map(Block::to_string).collect();
    blocks.join("\n").trim_end().to_owned()
}

fn providers(needed: &[(&str, &str)]) -> Block {
    let needed = needed.iter().fold(Block::new("required_providers", &[]), |block, (name, version)| {
        let source = vec![("source", format!("hashicorp/{name}")), ("version", (*version).to_owned())];
        block.set(name, Value::Object(source))
    });
    Block::new("terraform", &[]).block(needed)
}

pub(super) fn of_google(google: &Google<'_>, wishes: &Wishes<'_>) -> String {
    let provider = &google.google.provider;
    let name = provider.provider();
    let project = || raw("var.project");
    let apis = texts(["iam.googleapis.com", "iamcredentials.googleapis.com", "sts.googleapis.com"]);
    let Value::Texts(apis) = apis else { return String::new() };
    let list = apis.iter().map(|api| quoted(api)).collect::<Vec<_>>().join(", ");
    let oidc = Block::new("oidc", &[])
        .set("issuer_uri", text(google.issuer()))
        .set("allowed_audiences", texts(google.audiences()));
    let oidc = match wishes.keys {
        Keys::Fetched => oidc,
        // What `carnet issuer jwks` prints.
        Keys::Uploaded => oidc.set("jwks_json", raw("file(\"${path.module}/jwks.json\")")),
    };
    let mut blocks = vec![
        providers(&[("google", "~> 6.0")]),
        variable("project", &format!("Id of project {}, which has the pool", provider.project())),
        Block::new("resource", &["google_project_service", "carnet"])
            .set("for_each", Value::Raw(format!("toset([{list}])")))
            .set("project", project())
            .set("service", raw("each.value"))
            .set("disable_on_destroy", raw("false")),
        Block::new("resource", &["google_iam_workload_identity_pool", "carnet"])
            .set("project", project())
            .set("workload_identity_pool_id", text(provider.pool()))
            .set("depends_on", raw("[google_project_service.carnet]")),
        Block::new("resource", &["google_iam_workload_identity_pool_provider", "carnet"])
            .set("project", project())
            .set("workload_identity_pool_id", raw("google_iam_workload_identity_pool.carnet.workload_identity_pool_id"))
            .set("workload_identity_pool_provider_id", text(name))
            .set("attribute_condition", text(google.condition()))
            .set("attribute_mapping", Value::Map(google.mapping()))
            .block(oidc),
    ];
    let members: Vec<String> = google.members_of(None).iter().map(|member| quoted(member)).collect();
    let members = Value::Raw(format!("toset([{}])", members.join(", ")));
    let pool = "[google_iam_workload_identity_pool.carnet]";
    match &google.google.service_account {
        Some(account) => {
            let project = account.project().unwrap_or_else(|| "-".to_owned());
            blocks.push(
                Block::new("resource", &["google_service_account_iam_member", "carnet"])
                    .set("for_each", members)
                    .set("service_account_id", text(format!("projects/{project}/serviceAccounts/{account}")))
                    .set("role", text("roles/iam.workloadIdentityUser"))
                    .set("member", raw("each.value"))
                    .set("depends_on", raw(pool)),
            );
        }
        None => {
            blocks.extend([variable("data_project", "Where the pool's principals work"), variable("role", "What as")]);
            blocks.push(
                Block::new("resource", &["google_project_iam_member", "carnet"])
                    .set("for_each", members)
                    .set("project", raw("var.data_project"))
                    .set("role", raw("var.role"))
                    .set("member", raw("each.value"))
                    .set("depends_on", raw(pool)),
            );
        }
    }
    let mut parts: Vec<String> =
        google.warnings().iter().map(|warning| comment(&format!("WARNING: {warning}"))).collect();
    parts.push(document(blocks));
    if google.google.service_account.is_some() && google.trust.target.max_lifetime > GOOGLE_USUAL {
        parts.push(longer_lifetime(google));
    }
    parts.join("\n\n")
}

/// As commands: Terraform's resource would replace the whole policy, which lists every account of the organization.
fn longer_lifetime(google: &Google<'_>) -> String {
    let lifetime = lifetime(google);
    let purpose = format!("Tokens of more than an hour: {}. What adds the account to those that may:", lifetime.advice);
    let lines = std::iter::once(purpose).chain(lifetime.commands.iter().map(|command| command.replace(" \\\n  ", " ")));
    lines.map(|line| comment(&line)).collect::<Vec<_>>().join("\n")
}

fn variable(name: &str, description: &str) -> Block {
    Block::new("variable", &[name]).set("type", raw("string")).set("description", text(description))
}

pub(super) fn of_azure(azure: &Azure<'_>, wishes: &Wishes<'_>) -> Result<String, CannotSetUp> {
    let holder = wishes.holder.unwrap_or(azure.usual_holder());
    let federated = azure.federated(wishes.presented).ok_or(CannotSetUp::MachineIdentity)?;
    let client = azure.azure.client_id.to_string();
    let mut blocks = Vec::new();
    let mut place = |place: &Place, name: &str, description: &str| match place {
        Place::Known(value) => text(value.clone()),
        Place::Variable(_) => {
            blocks.push(variable(name, description));
            Value::Raw(format!("var.{name}"))
        }
    };
    let issuer = place(&federated.issuer, "issuer", "`iss` of the cluster's projected tokens");
    let subject = place(&federated.subject, "subject", "system:serviceaccount:NAMESPACE:NAME of the broker");
    let name = credential_name(&federated.subject.text());
    let audiences = texts([&federated.audience]);
    match holder {
        Holder::ManagedIdentity => {
            let same = format!("data.azurerm_user_assigned_identity.carnet.client_id == {}", quoted(&client));
            let precondition = Block::new("precondition", &[]).set("condition", Value::Raw(same)).set(
                "error_message",
                text(format!("The identity is not the one of target {}", azure.trust.target.name)),
            );
            blocks.splice(
                0..0,
                [
                    providers(&[("azurerm", "~> 4.0")]),
                    variable("identity", "Name of the managed identity"),
                    variable("resource_group", "Where the managed identity is"),
                ],
            );
            blocks.push(
                Block::new("data", &["azurerm_user_assigned_identity", "carnet"])
                    .set("name", raw("var.identity"))
                    .set("resource_group_name", raw("var.resource_group")),
            );
            blocks.push(
                Block::new("resource", &["azurerm_federated_identity_credential", "carnet"])
                    .set("name", text(name))
                    .set("resource_group_name", raw("var.resource_group"))
                    .set("parent_id", raw("data.azurerm_user_assigned_identity.carnet.id"))
                    .set("issuer", issuer)
                    .set("subject", subject)
                    .set("audience", audiences)
                    .block(Block::new("lifecycle", &[]).block(precondition)),
            );
        }
        Holder::Application => {
            blocks.insert(0, providers(&[("azuread", "~> 3.0")]));
            blocks.push(Block::new("data", &["azuread_application", "carnet"]).set("client_id", text(client)));
            blocks.push(
                Block::new("resource", &["azuread_application_federated_identity_credential", "carnet"])
                    .set("application_id", raw("data.azuread_application.carnet.id"))
                    .set("display_name", text(name))
                    .set("issuer", issuer)
                    .set("subject", subject)
                    .set("audiences", audiences),
            );
        }
    }
    Ok(document(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_a_template_or_ends_it() {
        assert_eq!(quoted("${a} %{b} $c %d \"e\" \\ \n\u{1}"), "\"$${a} %%{b} $c %d \\\"e\\\" \\\\ \\n\\u0001\"");
    }
}
