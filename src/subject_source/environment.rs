//! The variables that a source is configured by, as a value: the process's own, or those of a test.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Values may be secrets: there is no way to print them.
#[derive(Clone, Default)]
pub struct Environment(Option<Arc<BTreeMap<String, String>>>);

impl Environment {
    /// These variables and no others.
    pub fn of<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(Some(Arc::new(variables.collect())))
    }

    /// Set, be it to nothing. A value that is no text counts as not set.
    pub fn set(&self, name: &str) -> Option<String> {
        match &self.0 {
            Some(variables) => variables.get(name).cloned(),
            None => std::env::var(name).ok(),
        }
    }

    /// Without blanks around it; nothing but blanks counts as not set, as Azure's libraries have it.
    pub fn text(&self, name: &str) -> Option<String> {
        let value = self.set(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "variables given" } else { "the process's variables" })
    }
}
