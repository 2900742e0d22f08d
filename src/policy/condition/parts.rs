//! An expression in parts, for people: which of them does not hold, and with what values.

use std::fmt;

use cel::common::ast::operators::{INDEX, LOGICAL_OR};
use cel::common::ast::{EntryExpr, Expr, LiteralValue};
use cel::{ExecutionError, IdedExpr, Value};

use super::{Condition, Facts, VARIABLES, parse};
use crate::policy::shown::{length, text};

/// The part of an expression that keeps it from holding: one of those that `&&` joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) struct Unmet {
    /// As the rule writes it.
    pub part: String,
    pub how: How,
    /// What it reads, by path, with the value; `None` where there is none.
    pub reads: Vec<(String, Option<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum How {
    False,
    /// It is an `||`.
    NoAlternative,
    /// With the interpreter's reason.
    Fails(String),
    /// It has a value that is neither true nor false.
    NoTruth,
}

impl Condition {
    /// Why the expression does not hold on these facts; `None` where it does.
    pub fn unmet(&self, facts: &Facts<'_>) -> Option<Unmet> {
        if self.holds(facts) == Some(true) {
            return None;
        }
        // Where one part is false, the whole is, whatever becomes of the others.
        let parts: Vec<Unmet> = conjuncts(&self.source).into_iter().filter_map(|part| unmet(part, facts)).collect();
        let decided = |part: &&Unmet| matches!(part.how, How::False | How::NoAlternative);
        let found = match self.holds(facts) {
            Some(_) => parts.iter().find(decided),
            None => parts.iter().find(|part| !decided(part)),
        };
        // Where the parts do not tell, the whole does.
        found.cloned().or_else(|| unmet(&self.source, facts))
    }
}

fn unmet(part: &str, facts: &Facts<'_>) -> Option<Unmet> {
    let condition = Condition::compile(part).ok()?;
    let parsed = parse(part.to_owned()).ok()?;
    let how = match (condition.outcome(facts), &parsed.expression().expr) {
        (Ok(Value::Bool(true)), _) => return None,
        (Ok(Value::Bool(false)), Expr::Call(call)) if call.func_name == LOGICAL_OR => How::NoAlternative,
        (Ok(Value::Bool(false)), _) => How::False,
        (Ok(_other), _) => How::NoTruth,
        (Err(error), _) => How::Fails(reason(&error)),
    };
    let mut paths = Vec::new();
    collect(parsed.expression(), &mut Vec::new(), &mut paths);
    let read = |path: String| {
        let value = Condition::compile(&path).ok().and_then(|condition| condition.evaluate(facts));
        (path, value.map(|value| shown(&value)))
    };
    Some(Unmet { part: part.trim().to_owned(), how, reads: paths.into_iter().map(read).collect() })
}

fn reason(error: &ExecutionError) -> String {
    match error {
        ExecutionError::UndeclaredReference(name) => format!("{name} is not there"),
        ExecutionError::NoSuchKey(name) => format!("there is no key {name}"),
        other => text(&other.to_string()),
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = text(&self.part);
        match &self.how {
            How::False => write!(f, "when: `{part}` is false")?,
            How::NoAlternative => write!(f, "when: no alternative of `{part}` holds")?,
            How::Fails(reason) => write!(f, "when: `{part}` fails ({reason})")?,
            How::NoTruth => write!(f, "when: `{part}` is neither true nor false")?,
        }
        for (position, (path, value)) in self.reads.iter().enumerate() {
            f.write_str(if position == 0 { "; " } else { ", " })?;
            match value {
                Some(value) => write!(f, "{path} = {value}")?,
                None => write!(f, "{path} is not there")?,
            }
        }
        Ok(())
    }
}

/// The parts that `&&` joins at the top, parentheses around them taken off. One that holds a weaker operator is whole.
fn conjuncts(source: &str) -> Vec<&str> {
    let source = bare(source);
    match top_level(source) {
        Some(parts) => parts.into_iter().flat_map(conjuncts).collect(),
        None => vec![source],
    }
}

/// Without the parentheses that enclose the whole.
fn bare(source: &str) -> &str {
    let source = source.trim();
    let inner = source.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    match inner {
        Some(inner) if is_balanced(inner) => bare(inner),
        _ => source,
    }
}

/// The texts between the `&&` of the outermost level; `None` where there is none, or where `||` or `?` joins them.
fn top_level(source: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut begin, mut depth) = (0, 0_usize);
    for (at, token) in tokens(source) {
        match token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            "||" | "?" if depth == 0 => return None,
            "&&" if depth == 0 => {
                parts.push(source.get(begin..at)?);
                begin = at + token.len();
            }
            _ => {}
        }
    }
    parts.push(source.get(begin..)?);
    (parts.len() > 1).then_some(parts)
}

fn is_balanced(source: &str) -> bool {
    let mut depth = 0_i32;
    for (_at, token) in tokens(source) {
        match token {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// Where brackets and operators stand; what is inside of texts and comments is left out.
fn tokens(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = source.get(at..).filter(|rest| !rest.is_empty()) {
        at += match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                found.push((at, *sign));
                sign.len()
            }
            None if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            None => match QUOTES.iter().find(|quote| rest.starts_with(**quote)) {
                Some(quote) => literal(rest, quote, is_raw(source, at)),
                None => rest.chars().next().map_or(1, char::len_utf8),
            },
        };
    }
    found
}

/// The length of the text that `rest` begins with.
fn literal(rest: &str, quote: &str, raw: bool) -> usize {
    let mut at = quote.len();
    while let Some(inside) = rest.get(at..).filter(|inside| !inside.is_empty()) {
        if inside.starts_with(quote) {
            return at + quote.len();
        }
        let mut characters = inside.chars();
        let first = characters.next();
        let escaped = if first == Some('\\') && !raw { characters.next() } else { None };
        at += [first, escaped].into_iter().flatten().map(char::len_utf8).sum::<usize>();
    }
    rest.len()
}

/// Whether the quote at `at` begins a text in which a backslash is itself: `r'\d'`, `br"..."`.
fn is_raw(source: &str, at: usize) -> bool {
    let before = source.get(..at).unwrap_or_default();
    let prefix: String =
        before.chars().rev().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>().to_lowercase();
    matches!(prefix.as_str(), "r" | "rb" | "br")
}

const SIGNS: [&str; 9] = ["&&", "||", "?", "(", ")", "[", "]", "{", "}"];

/// The longest first.
const QUOTES: [&str; 4] = ["\"\"\"", "'''", "\"", "'"];

/// The paths from a variable as far as they are literal: `job.labels["team"]`.
fn collect(node: &IdedExpr, local: &mut Vec<String>, paths: &mut Vec<String>) {
    if let Some(path) = path(node, local) {
        if !paths.contains(&path) && path != "now" {
            paths.push(path);
        }
        return;
    }
    match &node.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => {}
        Expr::Select(select) => collect(&select.operand, local, paths),
        Expr::Call(call) => {
            call.target.iter().map(AsRef::as_ref).chain(&call.args).for_each(|part| collect(part, local, paths));
        }
        Expr::List(list) => list.elements.iter().for_each(|element| collect(element, local, paths)),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    collect(&entry.key, local, paths);
                    collect(&entry.value, local, paths);
                }
            }
        }
        Expr::Comprehension(comprehension) => {
            collect(&comprehension.iter_range, local, paths);
            let outer = local.len();
            local.push(comprehension.iter_var.clone());
            local.extend(comprehension.iter_var2.clone());
            local.push(comprehension.accu_var.clone());
            collect(&comprehension.loop_step, local, paths);
            local.truncate(outer);
        }
    }
}

fn path(node: &IdedExpr, local: &[String]) -> Option<String> {
    match &node.expr {
        Expr::Ident(name) => {
            let known = VARIABLES.iter().any(|(variable, _members)| variable == name);
            (known && !local.contains(name)).then(|| name.clone())
        }
        Expr::Select(select) => Some(format!("{}.{}", path(&select.operand, local)?, select.field)),
        Expr::Call(call) if call.func_name == INDEX => match call.args.as_slice() {
            [indexed, index] => match &index.expr {
                Expr::Literal(LiteralValue::String(key)) => {
                    Some(format!("{}[{}]", path(indexed, local)?, serde_json::Value::from(key.inner())))
                }
                Expr::Literal(LiteralValue::Int(number)) => {
                    Some(format!("{}[{}]", path(indexed, local)?, number.inner()))
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn shown(value: &Value) -> String {
    text(&whole(value))
}

fn whole(value: &Value) -> String {
    let listed = |items: Vec<String>| items.join(", ");
    match value {
        Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null => "null".to_owned(),
        Value::Duration(span) => span.to_std().map_or_else(|_negative| span.to_string(), length),
        Value::Timestamp(time) => time.to_rfc3339(),
        Value::List(items) => format!("[{}]", listed(items.iter().take(SHOWN_ITEMS).map(whole).collect())),
        Value::Map(map) => {
            let mut entries: Vec<String> =
                map.map.iter().map(|(key, value)| format!("{key}: {}", whole(value))).collect();
            entries.sort_unstable();
            entries.truncate(SHOWN_ITEMS);
            format!("{{{}}}", listed(entries))
        }
        other => format!("{other:?}"),
    }
}

/// More would be cut anyway.
const SHOWN_ITEMS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_taken_apart_where_its_and_stands_and_nowhere_else() {
        for (source, parts) in [
            ("a && b", &["a", "b"][..]),
            ("(a && b) && c", &["a", "b", "c"]),
            ("(a) && (b || c)", &["a", "b || c"]),
            ("a && b || c", &["a && b || c"]),
            ("a ? b && c : d", &["a ? b && c : d"]),
            ("f(a && b) && [a && b] == {'x': a && b}", &["f(a && b)", "[a && b] == {'x': a && b}"]),
            ("a == ' && ' && b == \" && \\\" && \"", &["a == ' && '", "b == \" && \\\" && \""]),
            ("a == r'\\' && b", &["a == r'\\'", "b"]),
            ("a == 'it\\'s && ' && b", &["a == 'it\\'s && '", "b"]),
            ("a == '''x' && ''' && b", &["a == '''x' && '''", "b"]),
            ("a // && (\n && b", &["a // && (", "b"]),
            ("((a && b))", &["a", "b"]),
            ("(a) || (b)", &["(a) || (b)"]),
            ("(a) && (b)", &["a", "b"]),
            ("ä == 'ö' && ü", &["ä == 'ö'", "ü"]),
            ("a", &["a"]),
        ] {
            assert_eq!(conjuncts(source), parts, "{source}");
        }
    }
}
