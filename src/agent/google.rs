//! Google's metadata server: the part of it that client libraries ask (Compute Engine: view and query VM metadata).

use std::time::Duration;

use http::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, SERVER};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::source::{Cloud, Credential, Kind, Refusal, Wanted};
use super::{Agent, Answer, Known, Target, expires_in, parameters, text};
use crate::secret::sha256;

/// A service account that the server knows.
struct Account<'a> {
    known: Known<'a>,
    email: String,
    is_default: bool,
}

/// A file or folder of the server.
enum Node {
    Leaf(Value),
    /// In listings only.
    Secret,
    Folder(Vec<(Label, Node)>),
}

enum Label {
    /// In JSON it is written in camel case.
    Word(&'static str),
    Account(String),
}

/// What is answered, before the headers that all answers have.
type Reply = (StatusCode, &'static str, String);

/// `segments` is the path; `folder` says that it ended in a slash.
pub(super) async fn answer(agent: &Agent, request: &Parts, segments: &[&str], folder: bool) -> Answer {
    let reply = match guard(request, segments.is_empty()) {
        Some(refused) => refused,
        None => reply(agent, request, segments, folder).await,
    };
    let (status, content_type, body) = reply;
    let etag = hex::encode(sha256(body.as_bytes()).get(..8).unwrap_or_default());
    let location = status.is_redirection().then(|| HeaderValue::try_from(&body).ok()).flatten();
    let mut answer = text(status, body);
    let headers = answer.headers_mut();
    headers.insert(FLAVOR, HeaderValue::from_static("Google"));
    headers.insert(SERVER, HeaderValue::from_static("Metadata Server for VM"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.extend(HeaderValue::try_from(etag).ok().map(|etag| (ETAG, etag)));
    headers.extend(location.map(|location| (LOCATION, location)));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(super::RETRY_AFTER));
    }
    answer
}

/// The project of the default account.
pub(super) fn project(agent: &Agent) -> Option<String> {
    accounts(agent).into_iter().find(|account| account.is_default)?.project_id()
}

/// A program that was tricked into a request cannot set the header, and a proxy says that it is one.
fn guard(request: &Parts, is_root: bool) -> Option<Reply> {
    if request.headers.contains_key("x-forwarded-for") {
        return Some(html(StatusCode::FORBIDDEN, "requests through a proxy are not served"));
    }
    match flavor(&request.headers) {
        (Some("Google"), 1) => None,
        (_, 0) if is_root => None,
        (_, 1) => Some(html(StatusCode::NOT_FOUND, "unknown Metadata-Flavor")),
        _ => Some(html(StatusCode::FORBIDDEN, r#"Missing required header "Metadata-Flavor": "Google""#)),
    }
}

fn flavor(headers: &HeaderMap) -> (Option<&str>, usize) {
    let mut all = headers.get_all(FLAVOR).iter();
    (all.next().and_then(|first| first.to_str().ok()), headers.get_all(FLAVOR).iter().count())
}

async fn reply(agent: &Agent, request: &Parts, segments: &[&str], folder: bool) -> Reply {
    let is_token = matches!(segments, [_, "v1", "instance", "service-accounts", _, "token" | "identity"]);
    let allowed = match request.method {
        Method::GET => true,
        Method::HEAD => !is_token,
        // Some clients send what the token is to be bound to.
        Method::POST => is_token && segments.ends_with(&["token"]),
        _ => false,
    };
    if !allowed {
        return html(StatusCode::METHOD_NOT_ALLOWED, "GET is what is served");
    }
    let below = match segments {
        [] => return plain("computeMetadata/\n"),
        [_] if !folder => return redirect(request),
        [_] => return plain("v1/\n"),
        [_, "v1", below @ ..] => below,
        _ => return not_found(),
    };
    // A ping: nobody has to be asked for the answer.
    if matches!(below, [] | ["instance" | "project" | "universe"]) && !folder {
        return redirect(request);
    }
    let names_an_account = matches!(below, ["instance", "service-accounts", name, ..] if *name != "default");
    let is_found = |agent| !accounts(agent).is_empty() && (names_an_account || awaited_default(agent).is_none());
    let learned = agent.learn(is_found(agent), HOLD).await;
    if !names_an_account
        && let Some(awaited) = awaited_default(agent)
        && let Err(refusal) = agent.held.get(&awaited.wanted, Duration::ZERO).await
        && (awaited.settings.is_default || matches!(refusal.kind, Kind::Away(_)))
    {
        return refused(&refusal);
    }
    let accounts = accounts(agent);
    if let (true, Err(refusal)) = (accounts.is_empty(), learned) {
        return refused(&refusal);
    }
    if let ["instance", "service-accounts", account, what @ ("token" | "identity")] = below {
        let account = account.replace("%40", "@");
        return match (accounts.iter().find(|candidate| candidate.is(&account)), *what) {
            (None, _) => html(StatusCode::NOT_FOUND, "there is no such service account"),
            (Some(account), "token") => token(agent, account).await,
            (Some(account), _) => identity(agent, account, request).await,
        };
    }
    let tree = tree(&accounts);
    let node = below.iter().try_fold(&tree, |node, segment| node.child(&segment.replace("%40", "@")));
    match node {
        Some(Node::Folder(_)) if !folder => redirect(request),
        Some(node) => show(node, request),
        None => not_found(),
    }
}

async fn token(agent: &Agent, account: &Account<'_>) -> Reply {
    match agent.held.get(&account.known.target.wanted, HOLD).await {
        Ok(credential) => {
            let expires_in = expires_in(&credential, agent.clock.as_ref());
            let token = credential.token.expose();
            json_text(&json!({ "access_token": token, "expires_in": expires_in, "token_type": "Bearer" }))
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn identity(agent: &Agent, account: &Account<'_>, request: &Parts) -> Reply {
    let audience = match parameters(request, "audience").as_slice() {
        [audience] if !audience.trim().is_empty() => audience.clone(),
        _ => return html(StatusCode::BAD_REQUEST, "non-empty audience parameter required"),
    };
    if !account.has_service_account() {
        return html(StatusCode::NOT_FOUND, "the target has no service account, and so no ID tokens");
    }
    let wanted = Wanted { id_token_audience: Some(audience), ..account.known.target.wanted.clone() };
    match agent.held.get(&wanted, HOLD).await {
        Ok(credential) => (StatusCode::OK, "text/html", credential.token.expose().to_owned()),
        Err(refusal) => refused(&refusal),
    }
}

/// In the order of the targets, the default first.
fn accounts(agent: &Agent) -> Vec<Account<'_>> {
    let google = agent.known().filter_map(|known| match &known.last.cloud {
        Cloud::Google { service_account, .. } => {
            // Direct access has no account: the target's own name stands for it.
            let email = if service_account.is_empty() { &known.target.settings.name } else { service_account };
            Some(Account { email: email.clone(), known, is_default: false })
        }
        Cloud::Azure { .. } => None,
    });
    let mut accounts: Vec<_> = google.collect();
    accounts.sort_by_key(|account| !account.known.target.settings.is_default);
    if let Some(first) = accounts.first_mut() {
        first.is_default = true;
    }
    accounts
}

/// The target that is perhaps the default account, and not known yet: another one must not stand in for it.
fn awaited_default(agent: &Agent) -> Option<&Target> {
    let last = |target: &Target| agent.held.last(&target.wanted);
    if let Some(said) = agent.targets.iter().find(|target| target.settings.is_default) {
        return Some(said).filter(|said| last(said).is_none());
    }
    let is_google = |known: &Credential| matches!(known.cloud, Cloud::Google { .. });
    let before = agent.targets.iter().take_while(|target| !last(target).is_some_and(|known| is_google(&known)));
    before.into_iter().find(|target| !target.settings.is_azure && last(target).is_none())
}

impl Account<'_> {
    fn is(&self, name: &str) -> bool {
        match name {
            "default" => self.is_default,
            name => self.email == name || self.known.target.settings.name == name,
        }
    }

    fn has_service_account(&self) -> bool {
        matches!(&self.known.last.cloud, Cloud::Google { service_account, .. } if !service_account.is_empty())
    }

    /// As configured, else the project that the service account belongs to.
    fn project_id(&self) -> Option<String> {
        let configured = self.known.target.settings.project_id.clone();
        let (_name, domain) = self.email.split_once('@').unwrap_or_default();
        configured.or_else(|| domain.strip_suffix(".iam.gserviceaccount.com").map(str::to_owned))
    }

    /// As configured, else that of the workload identity pool.
    fn project_number(&self) -> Option<u64> {
        let Cloud::Google { principal, .. } = &self.known.last.cloud else { return None };
        let (_, behind) = principal.split_once("/projects/").unwrap_or_default();
        let number = behind.split('/').next().and_then(|number| number.parse().ok());
        self.known.target.settings.project_number.or(number)
    }

    fn folder(&self) -> Node {
        let aliases: &[&str] = if self.is_default { &["default"] } else { &[] };
        Node::folder([
            ("aliases", Node::Leaf(json!(aliases))),
            ("email", Node::Leaf(json!(self.email))),
            ("identity", Node::Secret),
            ("scopes", Node::Leaf(json!(self.known.last.scopes))),
            ("token", Node::Secret),
        ])
    }
}

fn tree(accounts: &[Account<'_>]) -> Node {
    let default = accounts.iter().find(|account| account.is_default);
    let listed = default.map(|account| (Label::Word("default"), account.folder()));
    let named = accounts.iter().map(|account| (Label::Account(account.email.clone()), account.folder()));
    let mut project = vec![(Label::Word("attributes"), Node::folder([]))];
    let mut known = |name, value: Option<Value>| {
        project.extend(value.map(|value| (Label::Word(name), Node::Leaf(value))));
    };
    known("numeric-project-id", default.and_then(Account::project_number).map(Value::from));
    known("project-id", default.and_then(Account::project_id).map(Value::from));
    Node::folder([
        (
            "instance",
            Node::folder([
                ("attributes", Node::folder([])),
                ("service-accounts", Node::Folder(listed.into_iter().chain(named).collect())),
            ]),
        ),
        ("project", Node::Folder(project)),
        ("universe", Node::folder([("universe-domain", Node::Leaf(json!("googleapis.com")))])),
    ])
}

impl Node {
    fn folder<const N: usize>(children: [(&'static str, Self); N]) -> Self {
        Self::Folder(children.into_iter().map(|(name, node)| (Label::Word(name), node)).collect())
    }

    fn child(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Folder(children) => children.iter().find(|(label, _)| label.as_str() == name).map(|(_, node)| node),
            Self::Leaf(_) | Self::Secret => None,
        }
    }

    /// Without what is secret.
    fn json(&self) -> Option<Value> {
        match self {
            Self::Leaf(value) => Some(value.clone()),
            Self::Secret => None,
            Self::Folder(children) => {
                let named = children.iter().filter_map(|(label, node)| Some((label.in_json(), node.json()?)));
                Some(Value::Object(Map::from_iter(named)))
            }
        }
    }

    /// One line for each leaf below.
    fn lines(&self, path: &str, into: &mut String) {
        match self {
            Self::Leaf(value) => into.push_str(&format!("{path} {}\n", leaf(value).replace('\n', ","))),
            Self::Secret => {}
            Self::Folder(children) => {
                for (label, node) in children {
                    let separator = if path.is_empty() { "" } else { "/" };
                    node.lines(&format!("{path}{separator}{}", label.as_str()), into);
                }
            }
        }
    }
}

impl Label {
    fn as_str(&self) -> &str {
        match self {
            Self::Word(name) => name,
            Self::Account(email) => email,
        }
    }

    fn in_json(&self) -> String {
        match self {
            Self::Account(email) => email.clone(),
            Self::Word(name) => {
                let mut words = name.split('-');
                let first = words.next().unwrap_or_default().to_owned();
                words.fold(first, |text, word| {
                    let (initial, rest) = word.split_at_checked(1).unwrap_or_default();
                    text + &initial.to_ascii_uppercase() + rest
                })
            }
        }
    }
}

fn show(node: &Node, request: &Parts) -> Reply {
    let is = |name: &str, value: &str| parameters(request, name).iter().any(|given| given.eq_ignore_ascii_case(value));
    match node {
        // Answered before, where they stand for something.
        Node::Secret => not_found(),
        Node::Leaf(value) if is("alt", "json") => json_text(value),
        Node::Leaf(value) => (StatusCode::OK, "application/text", leaf(value)),
        Node::Folder(_) if is("recursive", "true") && is("alt", "text") => {
            let mut lines = String::new();
            node.lines("", &mut lines);
            plain(&lines)
        }
        Node::Folder(_) if is("recursive", "true") => json_text(&node.json().unwrap_or_default()),
        Node::Folder(children) => {
            let line = |(label, node): &(Label, Node)| {
                let slash = if matches!(node, Node::Folder(_)) { "/" } else { "" };
                format!("{}{slash}\n", label.as_str())
            };
            plain(&children.iter().map(line).collect::<String>())
        }
    }
}

/// A list has an item on each line.
fn leaf(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(|item| leaf(item) + "\n").collect(),
        other => other.to_string(),
    }
}

/// In a form that libraries do not retry, unless time may mend it.
fn refused(refusal: &Refusal) -> Reply {
    match refusal.kind {
        Kind::Denied | Kind::Failed => html(StatusCode::FORBIDDEN, &refusal.message),
        Kind::Away(_) => html(StatusCode::SERVICE_UNAVAILABLE, &refusal.message),
    }
}

fn redirect(request: &Parts) -> Reply {
    let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let to = format!("/{}/{query}", request.uri.path().trim_matches('/'));
    (StatusCode::MOVED_PERMANENTLY, HTML, to)
}

fn plain(body: &str) -> Reply {
    (StatusCode::OK, "application/text", body.to_owned())
}

fn json_text(value: &Value) -> Reply {
    (StatusCode::OK, "application/json", value.to_string())
}

fn html(status: StatusCode, body: &str) -> Reply {
    (status, HTML, body.to_owned())
}

fn not_found() -> Reply {
    html(StatusCode::NOT_FOUND, "there is nothing here")
}

const HTML: &str = "text/html; charset=UTF-8";

const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");

/// Python's libraries give up after 3 s, Go's after 5 s, and both come again.
const HOLD: Duration = Duration::from_millis(2500);

#[cfg(test)]
mod tests;
