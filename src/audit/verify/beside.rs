//! What stands beside the chains and is found by digests that records name: what decisions were made of, and by which tokens
//! their hand-outs are found.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::walk::time_of;
use super::{Fault, FaultKind, Verification};
use crate::audit::{AuditError, Group, facts_digest};
use crate::proto;
use crate::secret::sha256;

/// Sets of facts by the digests that the store has for them.
#[derive(Debug, Default)]
pub(super) struct Beside {
    whole: HashSet<[u8; 32]>,
    /// Others than their digests say, or without a digest.
    changed: BTreeSet<Vec<u8>>,
    /// Of which is told already.
    told: BTreeSet<Vec<u8>>,
}

/// The digest of the token that the record says was handed out.
pub(super) fn token_of(record: &proto::AuditRecord) -> Option<[u8; 32]> {
    BASE64_URL_SAFE_NO_PAD.decode(&record.token_sha256).ok()?.try_into().ok()
}

impl Verification {
    /// Computes the digest of every set of facts.
    pub(super) async fn fact_sets(&mut self) -> Result<(), AuditError> {
        let mut behind = Vec::new();
        loop {
            let page = self.reader.fact_sets(&behind, AT_ONCE).await?;
            let Some((last, _facts)) = page.last() else { return Ok(()) };
            behind.clone_from(last);
            for (digest, facts) in page {
                self.report.facts += 1;
                let computed = sha256(facts.as_bytes());
                if computed[..] == digest[..] {
                    self.beside.whole.insert(computed);
                } else {
                    self.beside.changed.insert(digest);
                }
            }
        }
    }

    /// Whether the store has what the record names.
    pub(super) async fn facts_of(
        &mut self,
        chain: Uuid,
        position: u64,
        record: &proto::AuditRecord,
    ) -> Result<(), AuditError> {
        let Some(digest) = facts_digest(record).filter(|digest| !self.beside.whole.contains(digest)) else {
            return Ok(());
        };
        let time = time_of(record);
        let (kind, detail) = if self.beside.changed.contains(&digest[..]) {
            (FaultKind::FactsContradict, "what it was decided about is no longer what the record names: it was changed")
        } else if self.reader.facts(&digest).await?.is_some_and(|facts| sha256(facts.as_bytes()) == digest) {
            // Added while this looks on.
            self.beside.whole.insert(digest);
            return Ok(());
        } else if time.and_then(|time| time.checked_add(self.scope.retention)).is_some_and(|end| end <= self.scope.now)
        {
            return Ok(());
        } else {
            (FaultKind::FactsMissing, "what it was decided about is gone, unless it waits in a broker's spool")
        };
        if self.beside.told.insert(digest.to_vec()) {
            let exchange_id = record.exchange_id.clone();
            self.told(Fault { exchange_id, time, ..Fault::of(kind, chain, position, detail.to_owned()) });
        }
        Ok(())
    }

    /// Whether the store finds `group` by the tokens that its records handed out, and by no others. `handed_out`: where
    /// each token is named, and whether it had been minted for an earlier call.
    pub(super) async fn tokens_of(
        &mut self,
        chain: Uuid,
        group: &Group,
        handed_out: &BTreeMap<[u8; 32], (u64, bool)>,
    ) -> Result<(), AuditError> {
        if group.tokens.iter().any(|token| !handed_out.contains_key(token)) {
            let detail = "the store finds it by a token that none of its records handed out".to_owned();
            self.told(Fault::of(FaultKind::TokenContradicts, chain, group.position, detail));
        }
        for (token, (position, cached)) in handed_out {
            // Of two callers who waited for one token, the other may have been recorded first; and that record dropped.
            let elsewhere = *cached || group.tokens.contains(token) || self.begins_near(chain, *position);
            if !elsewhere && !self.reader.has_token(token).await? {
                let detail = "the store no longer finds it by the token that it handed out: introspection does not \
                              know that token";
                self.told(Fault::of(FaultKind::TokenMissing, chain, *position, detail.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether the chain was dropped up to shortly before `position`.
    fn begins_near(&self, chain: Uuid, position: u64) -> bool {
        let anchor = self.anchors.get(&chain);
        anchor.is_some_and(|anchor| position.saturating_sub(anchor.head.position) <= NEAR)
    }

    /// What no record that was walked named.
    pub(super) async fn what_nothing_names(&mut self) -> Result<(), AuditError> {
        for digest in self.beside.changed.difference(&self.beside.told).cloned().collect::<Vec<_>>() {
            let digest = BASE64_URL_SAFE_NO_PAD.encode(digest);
            let detail = format!("the facts that are kept under the digest {digest} are not those with that digest");
            self.told(Fault { chain: None, ..Fault::of(FaultKind::FactsContradict, Uuid::nil(), 0, detail) });
        }
        let (mut behind, mut stray) = (i64::MIN, 0);
        while let Some((last, missing)) = self.reader.found_by_tokens(behind, AT_ONCE).await? {
            (behind, stray) = (last, stray + missing);
        }
        if stray > 0 {
            let detail = format!("tokens lead to {stray} groups of records that are not there");
            self.told(Fault { chain: None, ..Fault::of(FaultKind::TokenContradicts, Uuid::nil(), 0, detail) });
        }
        Ok(())
    }
}

const AT_ONCE: u32 = 1000;

/// More than callers who wait for one token have between them in a chain.
const NEAR: u64 = 1024;
