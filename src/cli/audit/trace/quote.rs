//! Values as literals of query languages and of shells: whatever stands in them, they stay one literal.

use crate::line::plain;

/// A string literal of the Kusto query language (Microsoft: the string data type).
pub(super) fn kql(value: &str) -> String {
    escaped(value)
}

/// A string literal of Google's logging query language, in which the same characters are escaped (Google: logging query
/// language, values).
pub(super) fn logging(value: &str) -> String {
    escaped(value)
}

fn escaped(value: &str) -> String {
    let mut literal = String::with_capacity(value.len() + 2);
    literal.push('"');
    for character in line(value).chars() {
        if matches!(character, '"' | '\\') {
            literal.push('\\');
        }
        literal.push(character);
    }
    literal.push('"');
    literal
}

/// One word of a POSIX shell.
pub(super) fn shell(value: &str) -> String {
    format!("'{}'", line(value).replace('\'', r"'\''"))
}

/// Without what ends a line or moves a terminal's cursor. No id that a cloud knows holds such a character, so a query
/// with one in it finds nothing either way.
pub(super) fn line(value: &str) -> String {
    plain(value).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a reader of the literal makes of it; `None` where it ends early or never.
    fn read(literal: &str) -> Option<String> {
        let mut characters = literal.strip_prefix('"')?.chars();
        let mut value = String::new();
        loop {
            match characters.next()? {
                '\\' => value.push(characters.next()?),
                '"' => return characters.next().is_none().then_some(value),
                '\n' | '\r' => return None,
                other => value.push(other),
            }
        }
    }

    /// What a shell makes of single-quoted parts with escaped quotes between them.
    fn word(text: &str) -> Option<String> {
        let parts = text.strip_prefix('\'')?.strip_suffix('\'')?;
        let read: Vec<&str> = parts.split(r"'\''").collect();
        read.iter().all(|part| !part.contains('\'')).then(|| read.join("'"))
    }

    #[test]
    fn hostile_values_stay_literals() {
        for hostile in [
            r#"" or 1 == 1 //"#,
            r"\",
            r#"\" | union * "#,
            "a\"\n| take 1",
            "'; rm -rf / #",
            "$(id)`id`",
            "\u{0}\u{1b}[2J\u{2028}",
            "",
        ] {
            assert_eq!(read(&kql(hostile)), Some(line(hostile)), "{hostile:?}");
            assert_eq!(read(&logging(hostile)), Some(line(hostile)), "{hostile:?}");
            assert_eq!(word(&shell(&logging(hostile))), Some(logging(hostile)), "{hostile:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_value_is_it_stays_one_literal(value in any::<String>()) {
            prop_assert_eq!(read(&kql(&value)), Some(line(&value)));
            prop_assert_eq!(read(&logging(&value)), Some(line(&value)));
            prop_assert_eq!(word(&shell(&value)), Some(line(&value)));
        }
    }
}
