//! Steps for people and programs: marked, within a hundred columns, the remedy below the step that failed.

use std::fmt::Write as _;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::step::{Step, StepOutcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// Everything, as one JSON object
    Json,
}

pub(super) fn json(allowed: bool, steps: &[Step]) -> Value {
    let step = |step: &Step| json!({"name": step.name, "outcome": word(step.outcome), "detail": step.detail, "remedy": step.remedy});
    json!({"allowed": allowed, "steps": steps.iter().map(step).collect::<Vec<_>>()})
}

const fn word(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Passed => "passed",
        StepOutcome::Failed => "failed",
        StepOutcome::Skipped => "skipped",
    }
}

const fn mark(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Passed => "ok  ",
        StepOutcome::Failed => "FAIL",
        StepOutcome::Skipped => "-   ",
    }
}

/// One step below the other.
pub(super) fn table(steps: &[Step]) -> String {
    let names = steps.iter().map(|step| step.name.chars().count()).max().unwrap_or_default().min(NAME_COLUMNS);
    let indent = 4 + 2 + names + 2;
    let mut text = String::new();
    for step in steps {
        // A long name has a line of its own.
        let long = step.name.chars().count() > names;
        let mut lines = wrapped(&step.detail, COLUMNS.saturating_sub(indent)).into_iter();
        let first = if long { String::new() } else { lines.next().unwrap_or_default() };
        let _ = writeln!(text, "{}", format!("{}  {:names$}  {first}", mark(step.outcome), step.name).trim_end());
        for line in lines {
            let _ = writeln!(text, "{:indent$}{line}", "");
        }
        let mut arrow = "-> ";
        for line in step.remedy.lines().flat_map(remedy_lines) {
            let _ = writeln!(text, "{:6}{arrow}{line}", "");
            arrow = "   ";
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// Prose begins with a capital letter and is wrapped; commands and lines for a file stay as they can be copied.
fn remedy_lines(line: &str) -> Vec<String> {
    match line.chars().next() {
        Some(first) if first.is_uppercase() => wrapped(line, COLUMNS - 9),
        Some(_) | None => vec![line.to_owned()],
    }
}

/// Broken at blanks; what has none may be longer.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

const COLUMNS: usize = 100;

/// `rule:` and most names.
const NAME_COLUMNS: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_has_its_remedy_below_and_everything_fits_into_a_hundred_columns() {
        let prose = format!("Change {}\n- name: r\n  when: {}", "a word ".repeat(30), "x ".repeat(60));
        let steps = [
            Step::passed("tenant", "good"),
            Step::failed("rule:a-rule", "seen ".repeat(40).trim_end(), prose),
            Step::skipped(format!("target:{}", "x".repeat(60)), "not reached"),
        ];
        let text = table(&steps);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok    tenant                          good");
        assert!(lines[1].starts_with("FAIL  rule:a-rule                     seen seen"), "{text}");
        assert!(lines.iter().any(|line| line.starts_with("      -> Change a word")), "{text}");
        assert!(lines.contains(&"         - name: r"), "{text}");
        let copied = |line: &&&str| line.contains("when: x x");
        assert!(lines.iter().all(|line| line.chars().count() <= 100 || copied(&line)), "{text}");
        assert_eq!(lines.iter().filter(|line| line.contains("when: x x")).count(), 1, "what is copied is one line");
        assert!(text.ends_with("not reached"));
    }
}
