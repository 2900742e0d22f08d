//! What the clouds' services answer. The first line names a target and a kind of token; after each line `---` comes an
//! answer: its status, its headers, an empty line and its body. The last answer is given to all further calls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carnet::credential::{Call, Clouds, Credential, CredentialProvider as _, IssueError, Purpose};
use carnet::policy::{Ask, ExcessScopes, Inquiry, Tenure};
use carnet::secret::Secret;
use carnet::subject::SubjectToken;
use carnet::target::{Job, Scopes, TokenType};
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::world::{
    CLIENT, IDENTITIES, ISSUER, LONGEST, TOKEN, answer, assert_silent, block_on, clock, now, policy, show,
};

/// What a service would never repeat in an error word, which has no hyphens.
pub(super) const MARK: &str = "mark-of-a-secret";

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split("\n---\n");
    let mut asked = parts.next().unwrap_or_default().split(' ');
    let (target, kind) = (asked.next().unwrap_or_default(), asked.next().unwrap_or_default());
    let token_type = match kind {
        "id" => TokenType::IdToken,
        _ => TokenType::AccessToken,
    };
    let answers: Vec<_> = parts.map(parsed).collect();
    if answers.is_empty() {
        return;
    }
    let ask = Ask {
        target: target.to_owned(),
        scopes: Scopes::default(),
        excess: ExcessScopes::Drop,
        token_type,
        audience: (token_type == TokenType::IdToken).then(|| "https://service.example".parse().expect("an audience")),
        lifetime: Some(Duration::from_secs(3600)),
        beyond: None,
    };
    let [app, user] = &*IDENTITIES;
    let identity = if target == "azure-user" { user } else { app };
    let job = Job::default().into();
    let inquiry = Inquiry { identity, job: &job, learned: None, tenure: Tenure::Once, now: now() };
    let Ok(grant) = policy().decide(inquiry, &ask) else { return };
    let (calls, last) = (AtomicUsize::new(0), answers.len() - 1);
    let http = CLIENT.answered_by(move |_request| {
        let (status, headers, body) = &answers[calls.fetch_add(1, Ordering::Relaxed).min(last)];
        answer(*status, headers.clone(), body.clone())
    });
    let clouds = Clouds::new(http, Some(ISSUER.clone()), clock());
    let call = Call {
        grant: grant.into(),
        subject_token: SubjectToken::new(Secret::new(TOKEN.as_str())).ok(),
        exchange_id: Uuid::from_u128(1),
        purpose: Purpose::Exchange,
    };
    let answered = block_on(clouds.issue(&call));
    show(|| format!("{answered:?}"));
    match answered {
        Ok(credential) => issued(&credential),
        Err(error) => refused(&error),
    }
}

pub(super) fn parsed(text: &str) -> (u16, HeaderMap, Vec<u8>) {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|status| status.parse().ok()).unwrap_or(200);
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?))
    });
    (status, headers.collect(), body.as_bytes().to_vec())
}

fn issued(credential: &Credential) {
    let now = now();
    assert!(credential.expires_at > now, "a dead credential");
    assert!(credential.expires_at <= now + LONGEST, "a credential without an end");
    assert!(!credential.token.is_empty() && credential.token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
    assert_silent(&format!("{credential:?}"), credential.token.expose());
    ids(&credential.upstream);
}

fn refused(error: &IssueError) {
    assert!(error.retry_after().is_none_or(|wait| wait <= Duration::from_secs(3600)));
    assert_silent(&format!("{error} {error:?}"), TOKEN.as_str());
    // What Conditional Access asks for is handed on.
    if !matches!(error, IssueError::InsufficientClaims { .. }) {
        assert!(!error.to_string().contains(MARK), "{error}");
    }
    ids(error.upstream());
}

/// They become lines of logs and records.
fn ids(ids: &[(&'static str, String)]) {
    for (name, value) in ids {
        assert!(value.len() <= 512 && !value.chars().any(char::is_control), "{name}: {value:?}");
    }
}
