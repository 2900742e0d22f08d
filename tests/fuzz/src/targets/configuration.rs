//! A configuration file, in each of the forms in which somebody could mean it: the broker's, the agent's, rules alone, and
//! cases of rules.

use std::fmt::{Debug, Display};

use carnet::config::{AgentConfig, Cases, Config, PolicyFile};

use crate::world::{scratch, show};

/// What the environment holds, whatever is asked for: it could be a secret.
const SECRET: &str = "secret+of+the+environment";

pub fn run(data: &[u8]) {
    // What a reference to a file would read is not the input's to choose.
    if data.windows(FILE.len()).any(|window| window.eq_ignore_ascii_case(FILE)) {
        return;
    }
    let path = scratch("input");
    std::fs::write(&path, data).expect("a scratch file");
    let environment = |_name: &str| Some(SECRET.to_owned());
    let broker = Config::load_with(&path, &environment);
    // What is accepted can be loaded again, and comes to the same.
    if let Ok(config) = &broker {
        let again = Config::load_with(&path, &environment).expect("the same file");
        assert_eq!((again.digest, again.fixed), (config.digest, config.fixed));
        assert!(!config.entra.tenants.is_empty() && !config.entra.audiences.is_empty(), "anybody's tokens are taken");
    }
    look(&broker);
    if AgentConfig::is_meant(&path) {
        look(&AgentConfig::load(&path).map(drop));
    }
    let rules = PolicyFile::load_with(&path, None, &environment);
    look(&rules);
    if let Ok(rules) = rules {
        let findings = rules.draft().check();
        let fatal = findings.iter().any(|finding| finding.code.as_str() == "P000" || finding.code.as_str() == "P001");
        let policy = rules.policy();
        assert!(policy.is_ok() || fatal, "rules that are no policy, without a finding");
        look(&policy);
    }
    look(&Cases::load(&path, None));
}

fn look<T: Debug, E: Display>(loaded: &Result<T, E>) {
    match loaded {
        Ok(loaded) => {
            let text = format!("{loaded:?}");
            show(|| text);
        }
        Err(error) => {
            let text = error.to_string();
            show(|| text.clone());
            assert!(!text.contains(SECRET), "an error shows what the environment holds: {text}");
        }
    }
}

const FILE: &[u8] = b"${file:";
