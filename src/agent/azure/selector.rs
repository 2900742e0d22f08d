//! Which identity and which resource an SDK asks for, in all spellings, and the target that has both.

use http::request::Parts;

use crate::agent::{Known, parameters};

/// As the query says.
#[derive(Debug)]
pub(super) struct Selector {
    pub resource: String,
    client_id: Option<String>,
    object_id: Option<String>,
    resource_id: Option<String>,
}

pub(super) enum Choice<'a> {
    One(Known<'a>),
    NoIdentity,
    /// The identity is known, but not for this resource.
    NoResource(String),
    Several(String),
}

impl Selector {
    /// # Errors
    /// What is wrong with the query.
    pub fn read(request: &Parts) -> Result<Self, &'static str> {
        let one = |names: &[&str], complaint| {
            let mut values = names.iter().flat_map(|name| parameters(request, name)).filter(|value| !value.is_empty());
            let first = values.next();
            let agree = values.all(|other| first.as_ref().is_some_and(|first| first.eq_ignore_ascii_case(&other)));
            if agree { Ok(first) } else { Err(complaint) }
        };
        let resource = one(&["resource"], "resource is given twice")?;
        Ok(Self {
            resource: resource.ok_or("Required query variable 'resource' is missing")?,
            client_id: one(&["client_id", "clientid"], "the client id is given twice")?,
            object_id: one(&["object_id", "principal_id"], "the object id is given twice")?,
            resource_id: one(&["mi_res_id", "msi_res_id"], "the resource id is given twice")?,
        })
    }

    /// The one of these Azure targets that is asked for.
    pub fn choose<'a>(&self, known: Vec<Known<'a>>) -> Choice<'a> {
        let mut of_identity: Vec<_> = known.into_iter().filter(|known| self.is_identity(known)).collect();
        if of_identity.is_empty() {
            return Choice::NoIdentity;
        }
        let wanted = resource(&self.resource);
        let gives = |known: &Known<'_>| {
            known.last.scopes.iter().any(|scope| resource(of_scope(scope)).eq_ignore_ascii_case(wanted))
        };
        if !of_identity.iter().any(gives) {
            let given: Vec<_> =
                of_identity.iter().flat_map(|known| &known.last.scopes).map(|scope| of_scope(scope)).collect();
            return Choice::NoResource(format!(
                "no target gives tokens for this resource; there are targets for {}",
                given.join(", ")
            ));
        }
        of_identity.retain(gives);
        let mut identities: Vec<_> = of_identity.iter().map(|known| known.client_id().to_ascii_lowercase()).collect();
        identities.dedup();
        if identities.len() > 1 {
            let message = format!("Multiple identities exist: choose one by client_id, of {}", identities.join(", "));
            return Choice::Several(message);
        }
        // Several targets of one identity and resource are the same to whoever calls the resource.
        of_identity.into_iter().next().map_or(Choice::NoIdentity, Choice::One)
    }

    fn is_identity(&self, known: &Known<'_>) -> bool {
        let settings = &known.target.settings;
        let is = |wanted: &Option<String>, given: Option<&str>| match wanted {
            Some(wanted) => given.is_some_and(|given| given.eq_ignore_ascii_case(wanted)),
            None => true,
        };
        is(&self.client_id, Some(known.client_id()))
            && is(&self.object_id, settings.object_id.as_deref())
            && is(&self.resource_id, settings.resource_id.as_deref())
    }
}

/// The resource of a scope: what stands before `/.default`, or before the name of the permission.
fn of_scope(scope: &str) -> &str {
    let before = scope.rsplit_once('/').map_or(scope, |(before, _permission)| before);
    // `https://host` alone has no permission at its end.
    if before.ends_with(":/") || before.is_empty() { scope } else { before }
}

/// Without what makes no difference.
fn resource(text: &str) -> &str {
    text.strip_suffix("/.default").unwrap_or(text).trim_end_matches('/')
}
