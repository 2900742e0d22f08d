//! One check on the way from a token to a credential, as the people who run the broker are shown it.

use crate::line::{plain, plain_lines};

/// What was checked, how it came out, and what would make it pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `tenant`, `target:NAME`, `rule:NAME`, `lifetime`, ...
    pub name: String,
    pub outcome: StepOutcome,
    /// What was seen: one line, never a token.
    pub detail: String,
    /// What would make it pass, in lines. Empty where it passed.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepOutcome {
    Passed,
    Failed,
    /// Not reached, or it did not apply.
    Skipped,
}

impl Step {
    pub fn passed(name: impl Into<String>, detail: impl AsRef<str>) -> Self {
        Self::new(name.into(), StepOutcome::Passed, detail.as_ref(), "")
    }

    pub fn failed(name: impl Into<String>, detail: impl AsRef<str>, remedy: impl AsRef<str>) -> Self {
        Self::new(name.into(), StepOutcome::Failed, detail.as_ref(), remedy.as_ref())
    }

    pub fn skipped(name: impl Into<String>, detail: impl AsRef<str>) -> Self {
        Self::new(name.into(), StepOutcome::Skipped, detail.as_ref(), "")
    }

    /// One that somebody else made.
    pub fn received(name: String, outcome: StepOutcome, detail: &str, remedy: &str) -> Self {
        Self::new(name, outcome, detail, remedy)
    }

    pub fn has_failed(&self) -> bool {
        self.outcome == StepOutcome::Failed
    }

    /// What others wrote can neither fill a screen nor move its cursor.
    fn new(name: String, outcome: StepOutcome, detail: &str, remedy: &str) -> Self {
        let cut = |text: &str, most: usize| match text.char_indices().nth(most) {
            Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
            None => text.to_owned(),
        };
        Self {
            name: plain(&cut(&name, NAME_CHARACTERS)).into_owned(),
            outcome,
            detail: plain(&cut(detail, DETAIL_CHARACTERS)).into_owned(),
            remedy: plain_lines(&cut(remedy, REMEDY_CHARACTERS)).into_owned(),
        }
    }
}

/// A target's name as anybody may write it, with what stands before it.
const NAME_CHARACTERS: usize = 100;

/// An expression and the values that it reads.
const DETAIL_CHARACTERS: usize = 1200;

/// A command with all its arguments, and a sentence or two.
const REMEDY_CHARACTERS: usize = 4000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_cut_and_steers_no_terminal() {
        let step = Step::failed("target:\u{1b}[2J\u{202e}", "x".repeat(5000), "one\ntwo\u{7}");
        assert_eq!((step.name.as_str(), step.remedy.as_str()), ("target:\u{fffd}[2J\u{fffd}", "one\ntwo\u{fffd}"));
        assert!(step.detail.len() < 1300 && step.detail.ends_with("x..."));
    }
}
