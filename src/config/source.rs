//! A YAML file as typed settings: every mistake at once, each with its line, and no value from outside in any message.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

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
}

impl Source {
    /// `${env:NAME}` and `${file:PATH}` are replaced on the way.
    pub fn read(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Fault>> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        read.map_err(|error| vec![Fault::nowhere(format!("cannot be read: {error}"))])?;
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
        if faults.is_empty() { Ok(Self { value, lines, outside }) } else { Err(faults) }
    }

    /// Reads as `T`. A part that is wrong is taken out and the rest read again, until nothing wrong is left to find.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, Vec<Fault>> {
        let mut rest = self.value.clone();
        let mut faults: Vec<Fault> = Vec::new();
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(rest.clone()) {
                Ok(typed) if faults.is_empty() => return Ok(typed),
                Ok(_) => return Err(faults),
                Err(error) => error,
            };
            let (mut at, mut message) = (place(&error.path().to_string()), error.inner().to_string());
            if let Some(name) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
                let parent =
                    if at.ends_with(&format!(".{name}")) || at == name { at.clone() } else { below(&at, name) };
                (at, message) = (parent, message.clone());
            }
            // What is missing because it was taken out before is no mistake of its own.
            let consequence =
                message.starts_with("missing field") && faults.iter().any(|fault| is_below(&fault.at, &at));
            if !consequence {
                faults.push(self.fault(at.clone(), self.harmless(&at, message)));
            }
            if !remove(&mut rest, &at) {
                return Err(faults);
            }
        }
    }

    /// A fault found later, at a place of this file.
    pub fn fault(&self, at: String, message: String) -> Fault {
        let mut known = at.as_str();
        let line = loop {
            match (self.lines.get(known), known.rfind(['.', '['])) {
                (Some(line), _) => break Some(*line),
                (None, Some(end)) => known = known.get(..end).unwrap_or_default(),
                (None, None) => break None,
            }
        };
        Fault { line, at, message }
    }

    fn harmless(&self, at: &str, message: String) -> String {
        if self.outside.iter().any(|outside| is_below(outside, at)) {
            return "what the environment or the file holds is not accepted here".to_owned();
        }
        message
    }
}

impl Fault {
    fn nowhere(message: String) -> Self {
        Self { line: None, at: String::new(), message }
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

/// Takes the value at `path` out; a list keeps its length, so that later places keep their numbers.
fn remove(value: &mut Value, path: &str) -> bool {
    fn walk(value: &mut Value, at: &str, path: &str) -> bool {
        match value {
            Value::Object(fields) => {
                let Some(name) = fields.keys().find(|name| is_below(path, &below(at, name))).cloned() else {
                    return false;
                };
                let here = below(at, &name);
                if here == path || !fields.get_mut(&name).is_some_and(|inner| walk(inner, &here, path)) {
                    fields.remove(&name);
                }
                true
            }
            Value::Array(items) => {
                let Some(index) = (0..items.len()).find(|index| is_below(path, &format!("{at}[{index}]"))) else {
                    return false;
                };
                let here = format!("{at}[{index}]");
                if here != path && items.get_mut(index).is_some_and(|inner| walk(inner, &here, path)) {
                    return true;
                }
                // No hole fits a typed list: the list as a whole goes.
                false
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
    !path.is_empty() && walk(value, "", path)
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
        let Some(reference) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else { return text };
        let found = match reference.split_once(':') {
            Some(("env", name)) => (self.environment)(name).ok_or_else(|| format!("the environment has no {name}")),
            Some(("file", path)) => {
                let mut text = String::new();
                let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
                read.map(|_length| text.trim_end_matches(['\r', '\n']).to_owned())
                    .map_err(|error| format!("{path} cannot be read: {error}"))
            }
            _ => Err("a value from outside is ${env:NAME} or ${file:PATH}".to_owned()),
        };
        self.outside.insert(at.to_owned());
        found.unwrap_or_else(|message| {
            self.faults.push(Fault { line: Some(line), at: at.to_owned(), message });
            String::new()
        })
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

/// A hundred times any real configuration.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
