//! Columns for people: as wide as what stands in them.

use std::fmt::Write as _;

use crate::line::plain;

/// The first row is the head. What others wrote cannot move a terminal's cursor.
pub(super) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let rows: Vec<[String; COLUMNS]> =
        rows.iter().map(|row| row.each_ref().map(|cell| plain(cell).into_owned())).collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_hold_no_control_characters() {
        let rows = [["A", "B"], ["läng", "x"], ["\u{1b}[2J", "\u{202e}"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     B\nläng  x\n\u{fffd}[2J  \u{fffd}");
    }
}
