//! Values as an explanation shows them: short, and in the words of the configuration file.

use std::fmt::Display;
use std::time::Duration;

/// `9h54m`, `6m`, `45s`.
pub(super) fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let shown: String =
        units.iter().filter(|(number, _unit)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if shown.is_empty() { "0s".to_owned() } else { shown }
}

/// The text, or its beginning.
pub(super) fn text(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _character)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// `[a, b]` as YAML writes it; of a long list the beginning, and how many there are.
pub(super) fn list<T: Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    let number = items.len();
    let shown: Vec<String> = items.take(MOST_ITEMS).map(|item| yaml(&text(&item.to_string()))).collect();
    match number.checked_sub(shown.len()) {
        None | Some(0) => format!("[{}]", shown.join(", ")),
        Some(_more) => format!("[{}, ... {number} in all]", shown.join(", ")),
    }
}

/// A text as YAML takes it within a list.
fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(plain) || is_guid(text) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// YAML could read some of them as numbers, but that a GUID has four dashes.
fn is_guid(text: &str) -> bool {
    crate::target::guid(text).is_ok()
}

const MOST_CHARACTERS: usize = 200;

/// Groups of a token are up to 200.
const MOST_ITEMS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_written_in_the_largest_units_that_fit() {
        let shown = [0, 45, 360, 35_640, 90_000, 259_200].map(|seconds| length(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0s", "45s", "6m", "9h54m", "1d1h", "3d"]);
    }

    #[test]
    fn a_list_is_what_a_configuration_file_may_hold() {
        let one = "44444444-4444-4444-4444-444444444444";
        assert_eq!(
            list([one, "Training.Submit", "it's: a", "true story", "7"].iter()),
            format!("[{one}, Training.Submit, 'it''s: a', 'true story', '7']")
        );
        assert_eq!(list((0..12).map(|number| format!("x{number}"))), "[x0, x1, x2, x3, x4, x5, x6, x7, ... 12 in all]");
        assert!(list([&"x".repeat(999)].into_iter()).len() < 300);
    }
}
