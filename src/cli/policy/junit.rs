//! Results of tests as JUnit XML, which the services that run pipelines read.

use std::fmt::Write as _;

use super::test::Judged;
use crate::line::is_unprintable;

/// `suite`: the file with the rules; `file`: the one with the cases.
pub(super) fn document(suite: &str, file: &str, results: &[Judged]) -> String {
    let (tests, failures) = (results.len(), results.iter().filter(|result| result.failed()).count());
    let counts = format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\" time=\"0\"");
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(xml, "<testsuites name=\"carnet policy test\" {counts}>");
    let _ = writeln!(xml, "  <testsuite name=\"{}\" {counts}>", escaped(suite));
    for result in results {
        let (name, class, file) = (escaped(&result.case.name), escaped(suite), escaped(file));
        let line = result.line.map(|line| format!(" line=\"{line}\"")).unwrap_or_default();
        let _ = write!(xml, "    <testcase name=\"{name}\" classname=\"{class}\" file=\"{file}\"{line} time=\"0\"");
        if result.failed() {
            let told = result.told();
            let first = told.first().map(|line| escaped(line)).unwrap_or_default();
            let all = escaped(&told.join("\n"));
            let _ = writeln!(xml, ">\n      <failure message=\"{first}\" type=\"decision\">{all}</failure>");
            let _ = writeln!(xml, "    </testcase>");
        } else {
            let _ = writeln!(xml, "/>");
        }
    }
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

/// For texts and for attributes in double quotes; what XML 1.0 has no way to write is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c if is_unprintable(c) => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}
