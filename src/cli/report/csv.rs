//! Comma-separated values (RFC 4180) that a spreadsheet takes for text, whatever stands in them.

/// The first row is the head.
pub(super) fn csv<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    rows.iter().map(|row| row.each_ref().map(|cell| field(cell)).join(",") + "\r\n").collect()
}

/// A cell that a spreadsheet would take for a formula gets an apostrophe before it (OWASP: CSV injection).
fn field(cell: &str) -> String {
    let formula =
        cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}']);
    let safe = if formula { format!("'{cell}") } else { cell.to_owned() };
    if formula || safe.contains([',', '"', '\r', '\n', ';', '\t']) || safe.trim() != safe {
        format!("\"{}\"", safe.replace('"', "\"\""))
    } else {
        safe
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_has_a_meaning_in_a_file_is_quoted() {
        let rows = [["HEAD", "B"], ["a,b", "say \"x\""], ["two\nlines", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(csv(&rows), "HEAD,B\r\n\"a,b\",\"say \"\"x\"\"\"\r\n\"two\nlines\",\r\n");
    }

    #[test]
    fn no_cell_is_a_formula() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "\u{ff1d}1"] {
            assert_eq!(field(formula), format!("\"'{}\"", formula.replace('"', "\"\"")));
        }
        assert_eq!(field("2026-11-21T00:00:00Z"), "2026-11-21T00:00:00Z");
    }

    /// A reader of RFC 4180.
    fn read(text: &str) -> Vec<Vec<String>> {
        let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match (quoted, character) {
                (true, '"') if characters.peek() == Some(&'"') => {
                    characters.next();
                    cell.push('"');
                }
                (_, '"') => quoted = !quoted,
                (false, ',') => row.push(std::mem::take(&mut cell)),
                (false, '\r') if characters.peek() == Some(&'\n') => {
                    characters.next();
                    row.push(std::mem::take(&mut cell));
                    rows.push(std::mem::take(&mut row));
                }
                (_, other) => cell.push(other),
            }
        }
        rows
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_cell_reads_back_as_one(cells in any::<[String; 3]>()) {
            let rows = read(&csv(std::slice::from_ref(&cells)));
            prop_assert_eq!(rows.len(), 1);
            for (read, cell) in rows[0].iter().zip(&cells) {
                prop_assert!(read == cell || *read == format!("'{cell}"), "{:?} {:?}", read, cell);
            }
        }
    }
}
