//! Text of others on a terminal or in a log: it stays in its line, and neither moves a cursor nor turns the writing round.

use std::borrow::Cow;

/// `text` as one line, its unprintable characters replaced.
pub fn plain(text: &str) -> Cow<'_, str> {
    shown(text, &[])
}

/// As [`plain`], with the line ends that it has.
pub fn plain_lines(text: &str) -> Cow<'_, str> {
    shown(text, &['\n'])
}

/// As [`plain`], cut to `most` characters.
pub fn one_line(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => plain(text.get(..end).unwrap_or_default()),
        None => plain(text),
    }
    .into_owned()
}

/// The value of a `name=value`: in quotes, where it could be taken for more than one.
pub fn value(text: &str) -> Cow<'_, str> {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_.:/@,+~*".contains(c);
    if !text.is_empty() && text.chars().all(bare) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("\"{}\"", plain(text).replace('\\', "\\\\").replace('"', "\\\"")))
}

/// JSON with the same meaning, whose texts hold no unprintable character: each is written as its escape.
pub fn plain_json(json: String) -> String {
    if is_plain_ascii(&json) || !json.chars().any(|c| is_unprintable(c) && c != '\n') {
        return json;
    }
    let mut plain = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_unprintable(character) && character != '\n' {
            let mut units = [0; 2];
            plain.extend(character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Whether it shows nothing of its own, and may change how what stands beside it is shown: controls, line and paragraph
/// separators, and the format characters of Unicode (general category Cf): marks and overrides of direction, joiners,
/// the soft hyphen, tags.
pub const fn is_unprintable(character: char) -> bool {
    matches!(
        character,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

fn shown<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let bad = |c: char| is_unprintable(c) && !kept.contains(&c);
    if is_plain_ascii(text) || !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if bad(c) { char::REPLACEMENT_CHARACTER } else { c }).collect())
}

/// Most texts.
fn is_plain_ascii(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn every_control_separator_and_format_character_of_unicode_is_unprintable_and_nothing_else() {
        let bad = Regex::new(r"^[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]$").expect("an expression");
        for character in '\u{0}'..=char::MAX {
            let expected = bad.is_match(character.encode_utf8(&mut [0; 4]));
            // Unicode keeps these for more of the same.
            let reserved = character == '\u{2065}' || ('\u{e0000}'..='\u{e007f}').contains(&character);
            assert_eq!(is_unprintable(character), expected || reserved, "U+{:04X}", u32::from(character));
        }
    }

    #[test]
    fn text_of_others_stays_in_its_line_and_in_its_direction() {
        assert_eq!(plain("a\u{202e}b\u{1b}[2J\nc\u{2066}\u{ad}"), "a\u{fffd}b\u{fffd}[2J\u{fffd}c\u{fffd}\u{fffd}");
        assert_eq!(plain_lines("a\r\nb\u{feff}"), "a\u{fffd}\nb\u{fffd}");
        assert_eq!(plain("Žluťoučký kůň 馬"), "Žluťoučký kůň 馬");
        assert_eq!(one_line("äöü\n!", 4), "äöü\u{fffd}");
        assert_eq!(one_line("short", 10), "short");
    }

    #[test]
    fn a_value_is_one_whatever_it_says() {
        assert_eq!(value("run-1"), "run-1");
        assert_eq!(value(""), "\"\"");
        assert_eq!(value("x rule=admin"), "\"x rule=admin\"");
        assert_eq!(value("x\" rule=\"admin"), "\"x\\\" rule=\\\"admin\"");
        assert_eq!(value("back\\slash\u{202e}"), "\"back\\\\slash\u{fffd}\"");
    }

    #[test]
    fn json_keeps_its_meaning_without_an_unprintable_character() {
        let value = serde_json::json!({"a\u{202e}": ["\u{9b}2J", "\u{e0041}\u{7f}", "\n", "ä"]});
        for json in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
            let plain = plain_json(json);
            assert!(!plain.chars().any(|c| is_unprintable(c) && c != '\n'), "{plain}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).expect("JSON"), value);
        }
    }
}
