//! What is not set up, told apart as far as a cloud's refusal tells it: one closed list, for records and for remedies.

/// Entra's refusals are told apart by their numbers; this is for those whose code alone says too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetUpFault {
    GoogleAudience,
    GoogleIssuer,
    GoogleClock,
    GoogleSubjectLength,
    GoogleMapping,
    GoogleKey,
    GoogleToken,
    GoogleProvider,
    GoogleProviderName,
    GoogleSubject,
    GoogleCondition,
    GoogleScope,
    GoogleApi,
    GoogleImpersonation,
    GoogleServiceAccount,
    GoogleLifetime,
    GoogleFederatedToken,
    GoogleArgument,
    /// Of either cloud: it cannot fetch the issuer's discovery document or keys.
    IssuerUnreachable,
    ManagedIdentity,
    ManagedIdentityHeader,
    NoIssuer,
    NoSignature,
    TokenFile,
}

impl SetUpFault {
    pub const ALL: [Self; 24] = [
        Self::GoogleAudience,
        Self::GoogleIssuer,
        Self::GoogleClock,
        Self::GoogleSubjectLength,
        Self::GoogleMapping,
        Self::GoogleKey,
        Self::GoogleToken,
        Self::GoogleProvider,
        Self::GoogleProviderName,
        Self::GoogleSubject,
        Self::GoogleCondition,
        Self::GoogleScope,
        Self::GoogleApi,
        Self::GoogleImpersonation,
        Self::GoogleServiceAccount,
        Self::GoogleLifetime,
        Self::GoogleFederatedToken,
        Self::GoogleArgument,
        Self::IssuerUnreachable,
        Self::ManagedIdentity,
        Self::ManagedIdentityHeader,
        Self::NoIssuer,
        Self::NoSignature,
        Self::TokenFile,
    ];

    /// The same word in records and findings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GoogleAudience => "google_audience",
            Self::GoogleIssuer => "google_issuer",
            Self::GoogleClock => "google_clock",
            Self::GoogleSubjectLength => "google_subject_length",
            Self::GoogleMapping => "google_mapping",
            Self::GoogleKey => "google_key",
            Self::GoogleToken => "google_token",
            Self::GoogleProvider => "google_provider",
            Self::GoogleProviderName => "google_provider_name",
            Self::GoogleSubject => "google_subject",
            Self::GoogleCondition => "google_condition",
            Self::GoogleScope => "google_scope",
            Self::GoogleApi => "google_api",
            Self::GoogleImpersonation => "google_impersonation",
            Self::GoogleServiceAccount => "google_service_account",
            Self::GoogleLifetime => "google_lifetime",
            Self::GoogleFederatedToken => "google_federated_token",
            Self::GoogleArgument => "google_argument",
            Self::IssuerUnreachable => "issuer_unreachable",
            Self::ManagedIdentity => "managed_identity",
            Self::ManagedIdentityHeader => "managed_identity_header",
            Self::NoIssuer => "no_issuer",
            Self::NoSignature => "no_signature",
            Self::TokenFile => "token_file",
        }
    }

    /// The fault that a record names.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == word)
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Self::GoogleAudience => {
                "the provider's allowed audiences do not hold what was presented: allow it, or leave the list empty"
            }
            Self::GoogleIssuer => {
                "the provider's issuer is another text than the token's: they must be equal to the letter"
            }
            Self::GoogleClock => "the assertion is too old or too young for Google: check the broker's clock",
            Self::GoogleSubjectLength => "the mapped google.subject is too long: change the attribute mapping",
            Self::GoogleMapping => {
                "the attribute mapping does not fit the token: a claim is missing, of another type or too large"
            }
            Self::GoogleKey => "the provider does not know the issuer's key: upload the issuer's current keys",
            Self::GoogleToken => "the provider does not accept the presented token: compare issuer, audience and keys",
            Self::GoogleProvider => "the pool or provider does not exist, or is disabled",
            Self::GoogleProviderName => "the provider's name is wrong: it needs the project's number",
            Self::GoogleSubject => "the provider refuses this subject",
            Self::GoogleCondition => "the provider's attribute condition refuses this subject",
            Self::GoogleScope => "Google does not know one of the target's scopes",
            Self::GoogleApi => "one of the APIs that credentials come from is not enabled in the project",
            Self::GoogleImpersonation => {
                "the principal lacks roles/iam.workloadIdentityUser on the service account, or the account does not \
                 exist"
            }
            Self::GoogleServiceAccount => "the service account does not exist",
            Self::GoogleLifetime => "Google refuses even the shortest usual lifetime",
            Self::GoogleFederatedToken => "the federated token is not accepted",
            Self::GoogleArgument => "a scope or audience of the target is not accepted",
            Self::IssuerUnreachable => "it cannot fetch the issuer's discovery document or keys",
            Self::ManagedIdentity => "the machine has no identity with this client id, or the resource does not exist",
            Self::ManagedIdentityHeader => "IDENTITY_HEADER is not the one of this endpoint",
            Self::NoIssuer => "the configuration has no `issuer`, which this target needs",
            Self::NoSignature => "the issuer's key does not sign",
            Self::TokenFile => "the target's token file cannot be read",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_word() {
        for fault in SetUpFault::ALL {
            assert_eq!(SetUpFault::named(fault.as_str()), Some(fault));
        }
        assert_eq!(SetUpFault::named("google"), None);
    }
}
