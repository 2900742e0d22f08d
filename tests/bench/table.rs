//! What is printed: the machine, then one line per figure.

use anyhow::Result;

use crate::machine;

/// One figure: what was measured, and what it is hoped to be.
pub struct Row {
    pub figure: String,
    pub measured: String,
    pub goal: &'static str,
}

/// A figure with a goal.
pub fn row(figure: impl Into<String>, measured: impl Into<String>, goal: &'static str) -> Row {
    Row { figure: figure.into(), measured: measured.into(), goal }
}

/// A figure that explains another one.
pub fn aside(figure: impl Into<String>, measured: impl Into<String>) -> Row {
    row(format!("  {}", figure.into()), measured, "")
}

#[expect(clippy::print_stdout, reason = "the result")]
pub fn head() -> Result<()> {
    println!("machine: {}", machine::description()?);
    println!("commit:  {}", machine::commit());
    line("figure", "measured", "goal");
    line(&"-".repeat(FIGURE), &"-".repeat(MEASURED), "----");
    Ok(())
}

pub fn print(part: &str, rows: &[Row]) {
    for Row { figure, measured, goal } in rows {
        line(&format!("{part}: {figure}"), measured, goal);
    }
}

#[expect(clippy::print_stdout, reason = "the result")]
fn line(figure: &str, measured: &str, goal: &str) {
    println!("{}", format!("{figure:FIGURE$} | {measured:MEASURED$} | {goal}").trim_end());
}

const FIGURE: usize = 70;
const MEASURED: usize = 34;

/// Median, least and greatest of some measurements of one thing.
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |position: usize| values.get(position).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), least: at(0), greatest: at(values.len().saturating_sub(1)) }
    }

    /// With its range, so that a lucky round is seen as one.
    pub fn show(&self, unit: &str) -> String {
        format!("{:.2}{unit} ({:.2} to {:.2})", self.median, self.least, self.greatest)
    }
}
