//! A YAML file as typed settings: every mistake at once, each with its line, and no value from outside in any message.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::secret::sha256;

/// What is wrong with a file: one sentence, the place, and its line where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub line: Option<u64>,
    pub at: String,
    pub message: String,
}

/// A parsed file, its places known.
pub(super) struct Source {
    value: Value,
    lines: HashMap<String, u64>,
    /// Places whose text came from the environment or a file: it could be a secret.
    outside: HashSet<String>,
    /// References that lead nowhere.
    faults: Vec<Fault>,
    /// Places of references that lead nowhere and need not.
    absent: Vec<String>,
    /// SHA-256 of the file.
    pub digest: [u8; 32],
}

/// What could be read as `T`, and everything that could not.
pub(super) struct Typed<T> {
    /// Without the parts that are wrong; `None` where nothing is left.
    pub value: Option<T>,
    pub faults: Vec<Fault>,
    gone: Gone,
}

impl Source {
    /// `${env:NAME}` and `${file:PATH}` are replaced on the way.
    pub fn read(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Fault>> {
        let text = read(path).map_err(|message| vec![Fault { line: None, at: String::new(), message }])?;
        Self::parse(&text, environment)
    }

    pub fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Fault>> {
        // Snippets of the file in a message could show a secret.
        let options = serde_saphyr::options! { with_snippet: false };
        let root: Spanned<Node> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map(|location| location.line());
            vec![Fault { line, at: String::new(), message: format!("is not YAML: {}", error.without_snippet()) }]
        })?;
        let mut reading = Reading { lines: HashMap::new(), outside: HashSet::new(), faults: Vec::new(), environment };
        let value = reading.value(root, "");
        let Reading { lines, outside, faults, .. } = reading;
        Ok(Self { value, lines, outside, faults, absent: Vec::new(), digest: sha256(text.as_bytes()) })
    }

    /// References outside of `sections` may lead nowhere: what holds one then counts as left out.
    pub fn needs_only(&mut self, sections: &[&str]) {
        let needed = |fault: &Fault| sections.iter().any(|section| is_below(&fault.at, section));
        let (faults, absent): (Vec<_>, Vec<_>) = self.faults.drain(..).partition(needed);
        self.faults = faults;
        self.absent.extend(absent.into_iter().map(|fault| fault.at));
    }

    /// Whether the file has this key.
    pub fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// Reads as `T`. A part that is wrong is taken out and the rest read again, until nothing wrong is left to find.
    pub fn typed<T: DeserializeOwned>(&self) -> Typed<T> {
        let (mut rest, mut gone) = (self.value.clone(), Gone::default());
        let mut faults = self.faults.clone();
        let lead_nowhere: Vec<String> =
            faults.iter().map(|fault| fault.at.clone()).chain(self.absent.clone()).collect();
        for at in lead_nowhere.iter().rev() {
            gone.remove(&mut rest, at);
        }
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(rest.clone()) {
                Ok(value) => return Typed { value: Some(value), faults, gone },
                Err(error) => error,
            };
            let (mut at, message) = (place(&error.path().to_string()), error.inner().to_string());
            if let Some(name) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
                let named = at == name || at.ends_with(&format!(".{name}"));
                at = if named { at } else { below(&at, name) };
            }
            let original = gone.original(&at);
            // What is missing because it was taken out before is no mistake of its own.
            let consequence = message.starts_with("missing field")
                && (faults.iter().any(|fault| is_below(&fault.at, &original))
                    || self.absent.iter().any(|absent| is_below(absent, &original)));
            if !consequence {
                faults.push(self.fault(original.clone(), self.harmless(&original, message)));
            }
            if !gone.remove(&mut rest, &at) {
                return Typed { value: None, faults, gone };
            }
        }
    }

    /// A fault at a place of this file.
    pub fn fault(&self, at: String, message: String) -> Fault {
        Fault { line: self.line(&at), at, message }
    }

    /// The line of a place, or of the nearest part around it.
    pub fn line(&self, at: &str) -> Option<u64> {
        let mut known = at;
        loop {
            match (self.lines.get(known), known.rfind(['.', '['])) {
                (Some(line), _) => break Some(*line),
                (None, Some(end)) => known = known.get(..end).unwrap_or_default(),
                (None, None) => break None,
            }
        }
    }

    fn harmless(&self, at: &str, message: String) -> String {
        if self.outside.iter().any(|outside| is_below(outside, at)) {
            return "what the environment or the file holds is not accepted here".to_owned();
        }
        message
    }
}

impl<T> Typed<T> {
    /// Adds what was found wrong with the value later. A mistake about a part that was taken out is none.
    pub fn add(&mut self, source: &Source, at: &str, message: String) {
        let at = self.gone.original(at);
        let related = |fault: &Fault| {
            let target_is_gone = fault.at.starts_with("targets") && at.contains(".targets[");
            is_below(&fault.at, &at) || is_below(&at, &fault.at) || target_is_gone
        };
        if !self.faults.iter().any(related) {
            self.faults.push(source.fault(at, message));
        }
    }
}

/// Items that were taken out of lists, by the list's place in the file: the places of those behind them have moved.
#[derive(Default)]
struct Gone(HashMap<String, BTreeSet<usize>>);

impl Gone {
    /// The place in the file of what is now at `path`.
    fn original(&self, path: &str) -> String {
        let mut original = String::new();
        let mut parts = path.split('[');
        original.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let (index, rest) = part.split_once(']').unwrap_or((part, ""));
            match index.parse::<usize>() {
                Ok(index) => {
                    let index = self.original_index(&original, index);
                    original.push_str(&format!("[{index}]{rest}"));
                }
                Err(_part_of_a_name) => original.push_str(&format!("[{part}")),
            }
        }
        original
    }

    fn original_index(&self, list: &str, index: usize) -> usize {
        let Some(gone) = self.0.get(list) else { return index };
        (0..).filter(|candidate| !gone.contains(candidate)).nth(index).unwrap_or(index)
    }

    /// Takes out what is at `path`; false where there is nothing to take.
    fn remove(&mut self, value: &mut Value, path: &str) -> bool {
        !path.is_empty() && self.remove_below(value, "", path)
    }

    fn remove_below(&mut self, value: &mut Value, at: &str, path: &str) -> bool {
        match value {
            Value::Object(fields) => {
                let Some(name) = fields.keys().find(|name| is_below(path, &below(at, name))).cloned() else {
                    return false;
                };
                let here = below(at, &name);
                if here == path || !fields.get_mut(&name).is_some_and(|inner| self.remove_below(inner, &here, path)) {
                    fields.remove(&name);
                }
                true
            }
            Value::Array(items) => {
                let Some(index) = (0..items.len()).find(|index| is_below(path, &format!("{at}[{index}]"))) else {
                    return false;
                };
                let here = format!("{at}[{index}]");
                if here == path || !items.get_mut(index).is_some_and(|inner| self.remove_below(inner, &here, path)) {
                    let list = self.original(at);
                    let original = self.original_index(&list, index);
                    items.remove(index);
                    self.0.entry(list).or_default().insert(original);
                }
                true
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.message)
    }
}

/// serde_path_to_error writes the root as `.`, and a part that it could not name as `?`.
fn place(path: &str) -> String {
    path.trim_start_matches('.').trim_end_matches(".?").trim_end_matches('?').to_owned()
}

fn below(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

fn is_below(inner: &str, outer: &str) -> bool {
    outer.is_empty() || inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The whole file, or why not: never a part of it, which could lack the rules at its end.
fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 > MAX_BYTES => Err(format!("is larger than {MAX_BYTES} bytes")),
        Ok(_length) => Ok(text),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

struct Reading<'a> {
    lines: HashMap<String, u64>,
    outside: HashSet<String>,
    faults: Vec<Fault>,
    environment: &'a dyn Fn(&str) -> Option<String>,
}

impl Reading<'_> {
    fn value(&mut self, node: Spanned<Node>, at: &str) -> Value {
        let line = node.referenced.line();
        self.lines.insert(at.to_owned(), line);
        match node.value {
            Node::Null => Value::Null,
            Node::Bool(truth) => Value::Bool(truth),
            Node::Number(number) => Value::Number(number),
            Node::Text(text) => Value::String(self.text(text, at, line)),
            Node::List(items) => {
                let items = items.into_iter().enumerate();
                items.map(|(index, item)| self.value(item, &format!("{at}[{index}]"))).collect()
            }
            Node::Map(fields) => {
                let mut map = Map::new();
                for (name, node) in fields {
                    let here = below(at, &name.value);
                    self.lines.insert(here.clone(), name.referenced.line());
                    let line = name.referenced.line();
                    let value = self.value(node, &here);
                    self.lines.insert(here, line);
                    map.insert(name.value, value);
                }
                Value::Object(map)
            }
        }
    }

    fn text(&mut self, text: String, at: &str, line: u64) -> String {
        let whole =
            text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).filter(|inner| !inner.contains("${"));
        let found = match whole {
            None if !text.contains("${") => return text,
            None if DATABASE_URLS.iter().any(|scheme| text.starts_with(scheme)) => self.within_url(&text),
            None => Err("a reference such as ${env:NAME} stands alone: it is no part of a longer text".to_owned()),
            Some(reference) => self.outside(reference),
        };
        self.outside.insert(at.to_owned());
        found.unwrap_or_else(|message| {
            self.faults.push(Fault { line: Some(line), at: at.to_owned(), message });
            String::new()
        })
    }

    /// What `env:NAME` or `file:PATH` stands for.
    fn outside(&self, reference: &str) -> Result<String, String> {
        match reference.split_once(':') {
            Some(("env", name)) => (self.environment)(name).ok_or_else(|| format!("the environment has no {name}")),
            Some(("file", path)) => match read(Path::new(path)) {
                Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
                Err(message) => Err(format!("{path} {message}")),
            },
            _ => Err("a value from outside is ${env:NAME} or ${file:PATH}".to_owned()),
        }
    }

    /// The URL with its references replaced, escaped: a password may hold what would end it in a URL.
    fn within_url(&self, text: &str) -> Result<String, String> {
        let mut parts = text.split("${");
        let mut url = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (reference, rest) = part.split_once('}').ok_or("a reference ends with `}`")?;
            for byte in self.outside(reference)?.bytes() {
                match byte {
                    b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
                    _ => url.push_str(&format!("%{byte:02X}")),
                }
            }
            url.push_str(rest);
        }
        Ok(url)
    }
}

/// YAML without its types: each part knows where it stood.
enum Node {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Node, E> {
                Ok(Node::Bool(truth))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
                Ok(Node::Number(number.into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
                Ok(Node::Number(number.into()))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Node, E> {
                Number::from_f64(number).map(Node::Number).ok_or_else(|| E::custom("not a finite number"))
            }

            fn visit_str<E>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut fields: Vec<(Spanned<String>, Spanned<Node>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<Spanned<String>, _>()? {
                    if fields.iter().any(|(other, _value)| other.value == name.value) {
                        return Err(A::Error::custom("a key stands twice"));
                    }
                    fields.push((name, value));
                }
                Ok(Node::Map(fields))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// The one kind of text that a reference may be a part of: a database's URL has a place for its password.
const DATABASE_URLS: [&str; 2] = ["postgres://", "postgresql://"];

/// A hundred times any real configuration.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
