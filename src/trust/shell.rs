//! Commands for a POSIX shell: whatever stands in a value, it stays one word.

use std::fmt;

/// One command.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// Quoted where they need it; the first holds the program and its subcommands.
    words: Vec<String>,
}

impl Command {
    /// `program`: the program with its subcommands, all of them our own words.
    pub fn new(program: &str) -> Self {
        Self { words: vec![program.to_owned()] }
    }

    pub fn word(mut self, value: &str) -> Self {
        self.words.push(quoted(value));
        self
    }

    /// `--name=value`, as gcloud writes it.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.words.push(format!("--{name}={}", quoted(value)));
        self
    }

    /// `--name value`, as az writes it.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.words.push(format!("--{name} {}", quoted(value)));
        self
    }

    /// A part that the shell is meant to read: a variable, a redirection.
    pub fn raw(mut self, text: &str) -> Self {
        self.words.push(text.to_owned());
        self
    }
}

impl Command {
    /// For a line that somebody takes the `#` from, when it is right.
    pub fn commented(&self) -> String {
        comment(&self.words.join(" "))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length: usize = self.words.iter().map(|word| word.len() + 1).sum();
        f.write_str(&self.words.join(if length <= LINE { " " } else { " \\\n  " }))
    }
}

/// A comment of one line.
pub(super) fn comment(text: &str) -> String {
    format!("# {}", text.replace(char::is_control, " "))
}

/// Single quotes keep everything as it is but themselves (POSIX.1, shell command language, 2.2.2).
pub(super) fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:@,+-=%".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Longer commands have a line for each of their options.
const LINE: usize = 110;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_every_value_as_one_word() {
        let values =
            ["plain", "", "two words", "it's", "$HOME `id` $(id)", "a\"b", "line\nend", "'; rm -rf /; '", "ä\\"];
        let command = values.iter().fold(Command::new("printf '%s\\0'"), |command, value| command.word(value));
        let output = std::process::Command::new("sh").arg("-c").arg(command.to_string()).output().expect("a shell");
        let words: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
        let expected: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).chain([&b""[..]]).collect();
        assert_eq!(words, expected);
    }

    #[test]
    fn long_commands_have_a_line_for_each_option() {
        let short = Command::new("az identity list").option("query", "[].id");
        assert_eq!(short.to_string(), "az identity list --query '[].id'");
        let long = short.flag("a", &"x".repeat(80));
        assert_eq!(long.to_string(), format!("az identity list \\\n  --query '[].id' \\\n  --a={}", "x".repeat(80)));
    }
}
