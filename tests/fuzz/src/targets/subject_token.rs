//! A subject token, to the whole verifier: `{header}`, `{claims}` and `{signature}` stand for those of a good one. After a
//! first line `sign` come a header and claims that are signed with the tenant's key.

use std::cell::LazyCell;

use carnet::secret::Secret;
use carnet::subject::{EntraVerifier, SubjectError, SubjectToken, VerifiedIdentity, Verifier as _};

use crate::world::{KEY, TENANT, TOKEN, assert_silent, block_on, now, settings, show, verifier};

thread_local! {
    static VERIFIER: LazyCell<EntraVerifier> = LazyCell::new(verifier);
}

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.strip_prefix("sign\n").map(|rest| rest.split_once('\n').unwrap_or((rest, ""))) {
        Some((header, claims)) => look(&KEY.sign_text(header, claims), Signed::ByTheKey),
        None => {
            let parts = ["{header}", "{claims}", "{signature}"].into_iter().zip(TOKEN.split('.'));
            let token = parts.fold(text.to_owned(), |text, (name, part)| text.replace(name, part));
            look(&token, Signed::ByNobody);
        }
    }
}

#[derive(PartialEq)]
enum Signed {
    ByTheKey,
    ByNobody,
}

fn look(text: &str, signed: Signed) {
    let token = match SubjectToken::new(Secret::new(text)) {
        Ok(token) => token,
        Err(error) => return assert_silent(&error.to_string(), text),
    };
    for (name, value) in token.unverified_trace() {
        assert!(value.len() <= 128 && !value.chars().any(char::is_control), "{name}");
    }
    VERIFIER.with(|verifier| {
        let verdict = block_on(verifier.verify(&token));
        show(|| format!("{verdict:?}"));
        match &verdict {
            Ok(identity) => {
                assert!(signed == Signed::ByTheKey || text == *TOKEN, "a token that nobody signed was taken");
                accepted(identity);
            }
            Err(error) => assert_silent(&format!("{error} {error:?}"), text),
        }
        let explained = block_on(verifier.explain(&token));
        let reason = |verdict: &Result<_, SubjectError>| verdict.as_ref().err().map(SubjectError::reason);
        assert_eq!(reason(&explained.result), reason(&verdict));
        assert_silent(&format!("{explained:?}"), text);
    });
}

fn accepted(identity: &VerifiedIdentity) {
    assert_eq!(identity.tenant().to_string(), TENANT);
    assert!(identity.expires_at() + settings().clock_skew > now());
    let restored = VerifiedIdentity::restore(&identity.snapshot()).expect("a snapshot comes back");
    assert_eq!((restored.subject(), restored.claims()), (identity.subject(), identity.claims()));
    assert!(restored.expires_at() == identity.expires_at() && restored.kind() == identity.kind());
}
