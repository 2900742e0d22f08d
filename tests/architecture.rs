//! The dependency rule and the shape of the house, read from the sources: a breach fails with file, line and modules.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Path from the crate's root to text.
type Sources = BTreeMap<String, String>;

#[test]
fn the_sources_keep_the_rules_of_the_house() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Sources::new();
    read(root, &root.join("src"), &mut sources);
    assert!(sources.len() > 20, "read only {} files", sources.len());
    assert!(modules(&sources).len() > 10, "lib.rs declares only {:?}", modules(&sources));
    let breaches = breaches(&sources);
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn every_kind_of_breach_is_found() {
    let cases = [
        ("src/low.rs", "use crate::high::Thing;", "src/low.rs:2: low uses high, which lib.rs declares below it"),
        ("src/low/deep.rs", "fn f() { crate::high::g() }", "src/low/deep.rs:2: low uses high, which lib.rs declares"),
        ("src/low.rs", "#[cfg(test)]\nuse crate::high::Thing;", "src/low.rs:3: low uses high, which lib.rs declares"),
        ("src/low.rs", "fn f() {\n    let x: <'a> = ('\"', crate::high::X);\n}", "src/low.rs:3: low uses high"),
        ("src/low.rs", "use super::high::Thing;", "src/low.rs:2: low uses high, which lib.rs declares below it"),
        ("src/low.rs", "macro_rules! m { () => { $crate::high::g() } }", "src/low.rs:2: low uses high, which lib.rs"),
        (
            "src/high.rs",
            "use crate::missing::Thing;",
            "src/high.rs:2: high uses missing, which lib.rs does not declare",
        ),
        ("src/stray.rs", "", "src/stray.rs:1: lib.rs does not declare stray"),
        ("src/grpc.rs", "use crate::store::Store;", "src/grpc.rs:2: grpc never uses store"),
        ("src/oauth/x.rs", "use crate::store::Store;", "src/oauth/x.rs:2: oauth never uses store"),
        ("src/agent.rs", "use crate::store::Store;", "src/agent.rs:2: agent never uses store"),
        ("src/agent.rs", "use crate::subject::X;", "src/agent.rs:2: agent never uses subject"),
        ("src/agent.rs", "use crate::policy::X;", "src/agent.rs:2: agent never uses policy"),
        ("src/agent.rs", "use crate::exchange::X;", "src/agent.rs:2: agent never uses exchange"),
        ("src/exchange.rs", "use crate::http::Client;", "src/exchange.rs:2: exchange never uses http"),
        ("src/high.rs", "use crate::{low, grpc};", "src/high.rs:2: `crate::` is followed by a module"),
        ("src/high.rs", "use crate::*;", "src/high.rs:2: `crate::` is followed by a module"),
        ("src/high/x.rs", "use super::super::low::X;", "src/high/x.rs:2: `super::super`"),
        ("src/high.rs", "pub mod x;", "src/high.rs:2: only lib.rs has a `pub mod`"),
        ("src/high.rs", "pub(crate) mod x;", "src/high.rs:2: only lib.rs has a `pub mod`"),
        ("src/high/mod.rs", "", "src/high/mod.rs:1: high.rs stands beside high/"),
        ("src/high.rs", &"\n".repeat(600), "src/high.rs:601: a file has at most 600 lines"),
    ];
    for (path, text, expected) in cases {
        let mut sources = house();
        sources.insert(path.to_owned(), format!("//! What this file is for.\n{text}\n"));
        let found = breaches(&sources);
        assert!(matches!(&found[..], [one] if one.starts_with(expected)), "{path} {text:?}: {found:?}");
    }
    let mut headless = house();
    headless.insert("src/low.rs".to_owned(), "use std::fmt;\n".to_owned());
    assert_eq!(breaches(&headless), ["src/low.rs:1: the first line is a `//!` that says what the file is for"]);
}

/// An assertion for nobody in particular is as good as one for somebody: it is made for a cloud's ears alone.
#[test]
fn assertions_without_a_grant_are_made_for_probes_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Sources::new();
    read(root, &root.join("src"), &mut sources);
    let users = |word: &str| -> Vec<&str> {
        let named = sources.iter().filter(|(_path, text)| without_comments_and_texts(text).contains(word));
        named.map(|(path, _text)| path.as_str()).collect()
    };
    assert_eq!(
        users("for_probe"),
        ["src/credential/google/probe.rs", "src/credential/probe.rs", "src/issuer.rs"],
        "only the probe makes them"
    );
    assert_eq!(
        users("probe_assertion"),
        ["src/credential/azure/probe.rs", "src/credential/google/probe.rs", "src/credential/probe.rs"],
        "only the probe signs them"
    );
}

#[test]
fn what_is_allowed_is_no_breach() {
    let mut sources = house();
    let text = r##"//! Uses [`crate::high`] in words only.
use crate::low::{Thing, other};

/* crate::high::x /* and */ crate::high::y */
fn f<'a>(text: &'a str) -> (char, &'static str, &'static str) {
    // crate::high::g();
    mycrate::high::g();
    ('"', "crate::high::\"g", r#"crate::high::"g""#)
}
pub(in crate::exchange) fn g() {}

#[cfg(test)]
mod tests {
    use super::*;
}
"##;
    sources.insert("src/exchange.rs".to_owned(), text.to_owned());
    sources.insert("src/exchange/tests.rs".to_owned(), "use super::*;\n".to_owned());
    sources.insert("src/main.rs".to_owned(), "//! Arguments in.\nuse carnet::high;\n".to_owned());
    assert_eq!(breaches(&sources), Vec::<String>::new());
}

/// A house in order, with the modules that the rules name.
fn house() -> Sources {
    let names = ["http", "low", "subject", "policy", "exchange", "store", "grpc", "oauth", "agent", "high"];
    let declared: String = names.iter().map(|name| format!("pub mod {name};\n")).collect();
    let mut sources = Sources::from([("src/lib.rs".to_owned(), format!("//! The map.\n{declared}"))]);
    sources.extend(names.map(|name| (format!("src/{name}.rs"), "//! What this file is for.\n".to_owned())));
    sources
}

fn read(root: &Path, folder: &Path, sources: &mut Sources) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8");
            sources.insert(name.replace('\\', "/"), fs::read_to_string(&path).expect("a source"));
        }
    }
}

fn breaches(sources: &Sources) -> Vec<String> {
    let order = modules(sources);
    sources.iter().flat_map(|(path, text)| breaches_in(path, text, &order)).collect()
}

/// The crate's modules, in the order in which `lib.rs` declares them.
fn modules(sources: &Sources) -> Vec<String> {
    let lib = without_comments_and_texts(&sources["src/lib.rs"]);
    lib.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")).map(identifier).collect()
}

fn breaches_in(path: &str, text: &str, order: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") && !path.ends_with("/tests.rs") {
        found.push(format!("{path}:1: the first line is a `//!` that says what the file is for"));
    }
    if text.lines().count() > MAX_LINES {
        found.push(format!("{path}:{}: a file has at most {MAX_LINES} lines", MAX_LINES + 1));
    }
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let module = identifier(inside);
    let is_face = !inside.contains('/');
    if inside.ends_with("/mod.rs") {
        found.push(format!("{path}:1: {module}.rs stands beside {module}/"));
    }
    let is_root = matches!(inside, "lib.rs" | "main.rs");
    if !is_root && !order.contains(&module) {
        found.push(format!("{path}:1: lib.rs does not declare {module}"));
    }
    for (at, line) in without_comments_and_texts(text).lines().enumerate() {
        let at = format!("{path}:{}", at + 1);
        if line.contains("super::super") {
            found.push(format!("{at}: `super::super` is written as a path from `crate::`"));
        }
        if inside != "lib.rs" && declares_visible_module(line) {
            found.push(format!("{at}: only lib.rs has a `pub mod`"));
        }
        for used in after(line, "crate::") {
            let verdict = if used.is_empty() {
                Some("`crate::` is followed by a module, not by a group or `*`".to_owned())
            } else if is_root {
                None
            } else {
                wrong_use(&module, &used, order)
            };
            found.extend(verdict.map(|wrong| format!("{at}: {wrong}")));
        }
        // From a face, `super` is the crate.
        let siblings = after(line, "super::").into_iter().filter(|used| is_face && !is_root && order.contains(used));
        found
            .extend(siblings.filter_map(|used| wrong_use(&module, &used, order)).map(|wrong| format!("{at}: {wrong}")));
    }
    found
}

fn wrong_use(module: &str, used: &str, order: &[String]) -> Option<String> {
    let place = |name: &str| order.iter().position(|declared| declared == name);
    if STRANGERS.contains(&(module, used)) {
        return Some(format!("{module} never uses {used}"));
    }
    match (place(module), place(used)) {
        (_, None) => Some(format!("{module} uses {used}, which lib.rs does not declare")),
        (Some(user), Some(used_at)) if used_at > user => {
            Some(format!("{module} uses {used}, which lib.rs declares below it"))
        }
        _ => None,
    }
}

fn declares_visible_module(line: &str) -> bool {
    let Some(rest) = line.trim_start().strip_prefix("pub") else { return false };
    let rest = match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')').map_or("", |(_scope, rest)| rest),
        None => rest,
    };
    rest.trim_start().starts_with("mod ")
}

/// The identifier behind each `prefix` that is a path's start.
fn after(line: &str, prefix: &str) -> Vec<String> {
    let starts_a_path = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    let hits = line.match_indices(prefix).filter(|(at, _prefix)| starts_a_path(*at));
    hits.map(|(at, _prefix)| identifier(&line[at + prefix.len()..])).collect()
}

/// The identifier at the beginning of `text`; empty where there is none.
fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Same lines, with blanks for comments and for what stands in quotes.
fn without_comments_and_texts(source: &str) -> String {
    let mut rest = source;
    let mut kept = String::with_capacity(source.len());
    while let Some(next) = rest.chars().next() {
        let in_word = kept.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            'r' | 'b' | 'c' if !in_word => raw_text(rest),
            '\'' => character(rest),
            _ => 0,
        };
        let (gone, left) = rest.split_at(if skipped == 0 { next.len_utf8() } else { skipped });
        match skipped {
            0 => kept.push(next),
            _ => kept.extend(gone.chars().map(|c| if c == '\n' { c } else { ' ' })),
        }
        rest = left;
    }
    kept
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    for (at, _char) in rest.char_indices() {
        if rest[at..].starts_with("/*") {
            depth += 1;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            if depth == 0 {
                return at + 2;
            }
        }
    }
    rest.len()
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// 0 where no raw text begins: `r`, `br` or `cr`, any number of `#`, a quote.
fn raw_text(rest: &str) -> usize {
    let Some(opening) = rest.trim_start_matches(['b', 'c']).strip_prefix('r') else { return 0 };
    let hashes = opening.len() - opening.trim_start_matches('#').len();
    if !opening[hashes..].starts_with('"') {
        return 0;
    }
    let start = rest.len() - opening.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
}

/// 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let after = at + escaped.len_utf8();
            rest[after..].find('\'').map_or(0, |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// Pairs that the order alone would allow: fronts reach state through the stages, the agent talks to the broker only.
const STRANGERS: [(&str, &str); 7] = [
    ("grpc", "store"),
    ("oauth", "store"),
    ("agent", "store"),
    ("agent", "subject"),
    ("agent", "policy"),
    ("agent", "exchange"),
    ("exchange", "http"),
];

const MAX_LINES: usize = 600;
