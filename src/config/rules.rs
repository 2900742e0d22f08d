//! A file's rules and what they are about, for those who judge rules without running a broker on them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

use super::document::{Document, TargetDocument, default_authority};
use super::source::{Source, Typed};
use super::{ConfigError, targets};
use crate::http::Endpoint;
use crate::policy::{Draft, Mistake, OperatorDocument, Policy, RuleDocument};
use crate::target::{Name, Target};

/// The part of a configuration that decides. A file of rules alone has `rules` and, where they differ from those of the
/// configuration beside it, `targets`.
pub struct PolicyFile {
    pub path: PathBuf,
    pub rules: Vec<RuleDocument>,
    pub operators: Vec<OperatorDocument>,
    pub targets: Vec<Target>,
    /// Whose tokens are taken; empty where neither file tells.
    pub tenants: Vec<Uuid>,
    documents: BTreeMap<Name, TargetDocument>,
    authority: Endpoint,
    source: Source,
}

/// Rules that are to come.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesDocument {
    #[serde(default)]
    targets: BTreeMap<Name, TargetDocument>,
    rules: Vec<RuleDocument>,
}

impl PolicyFile {
    /// What only a running broker needs, such as the store's key, need not be there. `beside`: the configuration with
    /// which a file of rules alone shares its targets and tenants.
    ///
    /// # Errors
    /// Every mistake of form; what is wrong with the rules themselves is for [`draft`](Self::draft) and
    /// [`policy`](Self::policy) to say.
    pub fn load(path: &Path, beside: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, beside, &|name| std::env::var(name).ok())
    }

    /// `environment` stands for the process's own.
    pub fn load_with(
        path: &Path,
        beside: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let failed = |faults| ConfigError { path: path.to_owned(), faults };
        let mut source = Source::read(path, environment).map_err(failed)?;
        if CONFIGURATION.iter().any(|section| source.has(section)) {
            source.needs_only(&NEEDED);
            let typed = source.typed::<Document>();
            return Self::built(path, source, typed, environment, |document| Parts {
                rules: document.rules,
                operators: document.operators,
                documents: document.targets,
                tenants: document.entra.tenants.iter().map(|tenant| tenant.0).collect(),
                authority: document.entra.authority,
            });
        }
        let beside = beside.map(|config| Self::load_with(config, None, environment)).transpose()?;
        let typed = source.typed::<RulesDocument>();
        Self::built(path, source, typed, environment, |document| {
            let (mut documents, tenants, authority) = match beside {
                Some(config) => (config.documents, config.tenants, config.authority),
                None => (BTreeMap::new(), Vec::new(), default_authority()),
            };
            documents.extend(document.targets);
            Parts { rules: document.rules, operators: Vec::new(), documents, tenants, authority }
        })
    }

    fn built<D>(
        path: &Path,
        source: Source,
        mut typed: Typed<D>,
        environment: &dyn Fn(&str) -> Option<String>,
        parts: impl FnOnce(D) -> Parts,
    ) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let built = typed.value.take().map(parts).and_then(|parts| {
            let targets = targets::compile(&parts.documents, &parts.authority, environment, &mut mistakes)?;
            Some((parts, targets))
        });
        mistakes.into_iter().for_each(|Mistake { at, message }| typed.add(&source, &at, message));
        typed.faults.sort_by_key(|fault| fault.line);
        match built {
            Some((parts, targets)) if typed.faults.is_empty() => {
                let Parts { rules, operators, documents, tenants, authority } = parts;
                Ok(Self { path: path.to_owned(), rules, operators, targets, tenants, documents, authority, source })
            }
            _ => Err(ConfigError { path: path.to_owned(), faults: typed.faults }),
        }
    }

    pub fn draft(&self) -> Draft<'_> {
        Draft { rules: &self.rules, operators: &self.operators, targets: &self.targets, tenants: &self.tenants }
    }

    /// The line of a place such as `rules[0].when`, or of the nearest part around it.
    pub fn line(&self, at: &str) -> Option<u64> {
        self.source.line(at)
    }

    /// # Errors
    /// Every mistake of the rules.
    pub fn policy(self) -> Result<Policy, ConfigError> {
        let Self { path, rules, targets, source, .. } = self;
        Policy::compile(&rules, targets).map_err(|mistakes| {
            let mut faults: Vec<_> =
                mistakes.into_iter().map(|Mistake { at, message }| source.fault(at, message)).collect();
            faults.sort_by_key(|fault| fault.line);
            ConfigError { path, faults }
        })
    }
}

/// What both forms of a file come to.
struct Parts {
    rules: Vec<RuleDocument>,
    operators: Vec<OperatorDocument>,
    documents: BTreeMap<Name, TargetDocument>,
    tenants: Vec<Uuid>,
    authority: Endpoint,
}

impl std::fmt::Debug for PolicyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PolicyFile({}, {} rules)", self.path.display(), self.rules.len())
    }
}

/// A file with one of these is a whole configuration.
const CONFIGURATION: [&str; 5] = ["entra", "server", "issuer", "store", "operators"];

/// The sections whose references to the environment and to files have to lead somewhere.
const NEEDED: [&str; 4] = ["entra", "targets", "rules", "operators"];
