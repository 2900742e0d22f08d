//! The closed list of reasons for a refusal, shared by the wire, the metrics and the audit record.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)+) => {
        /// Why an exchange was refused. The same word is the `google.rpc.ErrorInfo` reason, the metric's
        /// label and the audit record's `reason`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)+ }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// The request itself is wrong: the message names the field.
    InvalidRequest = "INVALID_REQUEST",
    SubjectTokenMalformed = "SUBJECT_TOKEN_MALFORMED",
    /// Not signed by a key that the tenant publishes, or not with RS256.
    SubjectTokenSignature = "SUBJECT_TOKEN_SIGNATURE",
    SubjectTokenExpired = "SUBJECT_TOKEN_EXPIRED",
    SubjectTokenNotYetValid = "SUBJECT_TOKEN_NOT_YET_VALID",
    SubjectTokenIssuer = "SUBJECT_TOKEN_ISSUER",
    SubjectTokenAudience = "SUBJECT_TOKEN_AUDIENCE",
    SubjectTokenTenant = "SUBJECT_TOKEN_TENANT",
    /// A token for Microsoft Graph or Azure Resource Manager.
    SubjectTokenNotForUs = "SUBJECT_TOKEN_NOT_FOR_US",
    /// Entra left the groups out of the token because there are too many.
    GroupsOverage = "GROUPS_OVERAGE",
    /// Entra wants the user to satisfy a Conditional Access policy before the on-behalf-of flow goes on.
    InsufficientClaims = "INSUFFICIENT_CLAIMS",
    /// No rule, a deny rule, or no such target: a caller cannot tell which.
    Denied = "DENIED",
    /// Or the lease token is a wrong one: a caller cannot tell which.
    LeaseNotFound = "LEASE_NOT_FOUND",
    LeaseEnded = "LEASE_ENDED",
    RateLimited = "RATE_LIMITED",
    /// The cloud's own permanent refusal: trust or permission is not set up.
    CloudRefused = "CLOUD_REFUSED",
    CloudUnavailable = "CLOUD_UNAVAILABLE",
    KeysUnavailable = "KEYS_UNAVAILABLE",
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The broker, or only the connection that was used.
    ShuttingDown = "SHUTTING_DOWN",
    /// A fault of the broker itself.
    Internal = "INTERNAL",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
