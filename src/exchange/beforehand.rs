//! What leases ask before anything is issued.

use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::record::Record;
use super::{Exchange, ExchangeError, ExchangeRequest};
use crate::credential::Key;
use crate::subject::VerifiedIdentity;

impl Exchange {
    /// What a cloud would have to be asked for; `None` where the answer is in the cache, or is a refusal.
    pub async fn missing(&self, request: &ExchangeRequest) -> Option<Key> {
        let mut record = Record::about(request, Uuid::nil(), self.clock.now());
        let (grants, _subject_token) = self.grants(request, &mut record).await.ok()?;
        self.credentials.missing(&grants)
    }

    /// Whom the request's token shows; issues nothing.
    pub async fn shown(&self, request: &ExchangeRequest) -> Result<Arc<VerifiedIdentity>, ExchangeError> {
        let mut record = Record::about(request, Uuid::nil(), self.clock.now());
        let (identity, _subject_token) = self.identify(request, &mut record).await?;
        self.charge(&identity)?;
        Ok(identity)
    }

    /// Until when the rules would let a lease of `identity` last that begins now; issues nothing. With it, how
    /// the shadow differs.
    pub async fn lease_end(
        &self,
        identity: &Arc<VerifiedIdentity>,
        request: &ExchangeRequest,
    ) -> (Result<SystemTime, ExchangeError>, Option<String>) {
        let mut record = Record::about(request, Uuid::nil(), self.clock.now());
        let end = self.end_of_lease(identity, request, &mut record).await;
        record.count_shadow();
        (end, record.shadow_difference())
    }

    async fn end_of_lease(
        &self,
        identity: &Arc<VerifiedIdentity>,
        request: &ExchangeRequest,
        record: &mut Record,
    ) -> Result<SystemTime, ExchangeError> {
        let grants = self.decide(identity, &request.check()?, request.tenure, record).await?;
        let ends_at = grants.iter().filter_map(|grant| grant.lease()).map(|terms| terms.ends_at).min();
        ends_at.ok_or(ExchangeError::Internal)
    }
}
