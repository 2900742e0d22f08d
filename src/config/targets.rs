//! The `targets` section as targets.

use std::collections::BTreeMap;
use std::time::Duration;

use super::document::{
    AzureDocument, GoogleDocument, SharingDocument, SourceDocument, SubjectTokenDocument, TargetDocument,
};
use crate::entra::assertion_audience;
use crate::http::Endpoint;
use crate::policy::{FLOOR, GOOGLE_EXTENDED, GOOGLE_USUAL, Mistake};
use crate::secret::{FieldDigest, Secret};
use crate::target::{
    AppServiceHeader, AzureSource, AzureTarget, GoogleSubjectToken, GoogleTarget, ManagedIdentityEndpoint, Name,
    Platform, Sharing, Target,
};

/// `None` where a target is wrong; the mistakes say which.
pub(super) fn compile(
    documents: &BTreeMap<Name, TargetDocument>,
    authority: &Endpoint,
    environment: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<Vec<Target>> {
    let before = mistakes.len();
    let mut targets = Vec::new();
    for (name, document) in documents {
        let mut at = Place { at: format!("targets.{name}"), mistakes };
        let built = match (&document.google, &document.azure) {
            (Some(google), None) => at.below("google").google(name, google),
            (None, Some(azure)) => at.below("azure").azure(name, azure, authority, environment),
            (Some(_), Some(_)) | (None, None) => at.mistake("", "has one of `google` and `azure`"),
        };
        let sharing = match document.sharing {
            SharingDocument::Subject => Sharing::Subject,
            SharingDocument::Target => Sharing::Target,
        };
        let redeems = matches!(&document.google, Some(google) if matches!(google.subject_token, SubjectTokenDocument::Entra))
            || matches!(&document.azure, Some(azure) if azure.source == SourceDocument::OnBehalfOf);
        if sharing == Sharing::Target && redeems {
            at.mistake::<()>(
                "sharing",
                "is subject here: a credential that is made from one caller's own token is not for others",
            );
        }
        let mut revision = FieldDigest::new("target");
        revision.field(format!("{document:?} {authority:?}").as_bytes());
        let revision = revision.finish();
        targets.extend(built.map(|target| Target { sharing, revision, ..target }));
    }
    (mistakes.len() == before).then_some(targets)
}

/// A part of the file, and where its mistakes go.
struct Place<'a> {
    at: String,
    mistakes: &'a mut Vec<Mistake>,
}

impl Place<'_> {
    fn below(&mut self, name: &str) -> Place<'_> {
        Place { at: format!("{}.{name}", self.at), mistakes: self.mistakes }
    }

    fn mistake<T>(&mut self, field: &str, message: &str) -> Option<T> {
        let at = if field.is_empty() { self.at.clone() } else { format!("{}.{field}", self.at) };
        self.mistakes.push(Mistake { at, message: message.to_owned() });
        None
    }

    fn google(&mut self, name: &Name, document: &GoogleDocument) -> Option<Target> {
        let max_lifetime = document.max_lifetime.0;
        let default_lifetime = document.default_lifetime.map_or(GOOGLE_USUAL.min(max_lifetime), |span| span.0);
        if !(FLOOR..=GOOGLE_EXTENDED).contains(&max_lifetime) {
            self.mistake::<()>(
                "max_lifetime",
                "is between 6m, below which clients call a token stale, and 12h, Google's limit",
            );
        }
        if default_lifetime < FLOOR || default_lifetime > max_lifetime {
            self.mistake::<()>("default_lifetime", "is between 6m and max_lifetime");
        }
        if document.scopes.is_empty() {
            self.mistake::<()>("scopes", "names no scope");
        }
        let subject_token = match document.subject_token {
            SubjectTokenDocument::Issuer => GoogleSubjectToken::Issuer,
            SubjectTokenDocument::Entra => GoogleSubjectToken::Entra,
        };
        if document.hand_out_assertion && subject_token == GoogleSubjectToken::Entra {
            self.mistake::<()>("hand_out_assertion", "goes with `subject_token: issuer`: there is no assertion here");
        }
        Some(Target {
            name: name.clone(),
            platform: Platform::Google(GoogleTarget {
                provider: document.audience.clone(),
                subject_token,
                service_account: document.service_account.clone(),
                hand_out_assertion: document.hand_out_assertion,
                sts_endpoint: document.sts_endpoint.clone(),
                iam_credentials_endpoint: document.iam_credentials_endpoint.clone(),
            }),
            scopes: document.scopes.iter().cloned().collect(),
            sharing: Sharing::Subject,
            max_lifetime,
            default_lifetime,
            revision: [0; 32],
        })
    }

    fn azure(
        &mut self,
        name: &Name,
        document: &AzureDocument,
        authority: &Endpoint,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Target> {
        let authority = document.authority.clone().unwrap_or_else(|| authority.clone());
        if document.source != SourceDocument::TokenFile && document.token_file.is_some() {
            self.mistake::<()>("token_file", "goes with `source: token_file`");
        }
        if document.source != SourceDocument::ManagedIdentity && document.endpoint.is_some() {
            self.mistake::<()>("endpoint", "goes with `source: managed_identity`");
        }
        let default_only = document.scopes.iter().all(|scope| scope.as_str().ends_with("/.default"));
        if document.scopes.is_empty() {
            self.mistake::<()>("scopes", "names no scope");
        } else if document.source != SourceDocument::OnBehalfOf && !(default_only && document.scopes.len() == 1) {
            self.mistake::<()>(
                "scopes",
                "is one scope that ends in /.default: an application's token has one resource and no other form",
            );
        }
        let source = self.source(name, document, &authority, environment);
        Some(Target {
            name: name.clone(),
            platform: Platform::Azure(AzureTarget {
                tenant: document.tenant.0,
                client_id: document.client_id.0,
                authority,
                source: source?,
            }),
            scopes: document.scopes.iter().cloned().collect(),
            sharing: Sharing::Subject,
            max_lifetime: AZURE_LONGEST,
            default_lifetime: GOOGLE_USUAL,
            revision: [0; 32],
        })
    }

    fn source(
        &mut self,
        name: &Name,
        document: &AzureDocument,
        authority: &Endpoint,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<AzureSource> {
        let subject = document.subject.clone().unwrap_or_else(|| format!("carnet:{name}"));
        if subject.is_empty() || subject.len() > 127 || subject.trim() != subject {
            self.mistake::<()>(
                "subject",
                "has 1 to 127 bytes and no blanks around it: Entra compares it to the letter",
            );
        }
        let audience = assertion_audience(authority).to_owned();
        match document.source {
            SourceDocument::Issuer => Some(AzureSource::Issuer { subject, audience }),
            SourceDocument::OnBehalfOf => Some(AzureSource::OnBehalfOf { subject, audience }),
            SourceDocument::TokenFile => match &document.token_file {
                Some(path) => Some(AzureSource::TokenFile(path.clone())),
                None => self.mistake("token_file", "is missing: `source: token_file` reads it"),
            },
            SourceDocument::ManagedIdentity => {
                self.managed_identity(document.endpoint.as_deref(), environment).map(AzureSource::ManagedIdentity)
            }
        }
    }

    fn managed_identity(
        &mut self,
        endpoint: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<ManagedIdentityEndpoint> {
        let app_service = environment("IDENTITY_ENDPOINT").zip(environment("IDENTITY_HEADER"));
        match (endpoint, app_service) {
            (Some(endpoint), _) => match Endpoint::metadata(endpoint) {
                Ok(endpoint) => Some(ManagedIdentityEndpoint::Imds(endpoint)),
                Err(error) => self.mistake("endpoint", &error.to_string()),
            },
            (None, Some((endpoint, header))) => match Endpoint::metadata(&endpoint) {
                Ok(endpoint) => Some(ManagedIdentityEndpoint::AppService {
                    endpoint,
                    header: AppServiceHeader(Secret::new(header)),
                }),
                Err(error) => self.mistake("source", &format!("IDENTITY_ENDPOINT of the environment {error}")),
            },
            (None, None) => Endpoint::metadata("http://169.254.169.254").ok().map(ManagedIdentityEndpoint::Imds),
        }
    }
}

/// No bound of ours: Azure decides how long its tokens live, and the answer says so.
const AZURE_LONGEST: Duration = Duration::from_secs(86_400);
