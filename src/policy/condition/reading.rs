//! What an expression reads and compares, for those who judge a rule before there are facts.

use std::collections::BTreeSet;
use std::time::Duration;

use cel::common::ast::operators::{GREATER, GREATER_EQUALS, IN, INDEX, LESS, LESS_EQUALS};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr};
use cel::common::types::CelBool;
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use cel::{Context, IdedExpr, Value};

use super::prepared::Prepared;
use super::{Condition, ENVIRONMENT, MUTABLE_NAMES, parse};

/// An expression, read.
pub(in crate::policy) struct Reading {
    /// `job.labels`, `subject.groups`, `now`; the root alone where it is taken as a whole.
    pub reads: BTreeSet<String>,
    /// Claims of the token, by name.
    pub claims: BTreeSet<String>,
    /// Claims are read by names that nobody can tell from the expression.
    pub hides_claims: bool,
    /// What an expression fails without, and which it does not ask for with `has` or `in` first.
    pub unguarded: BTreeSet<String>,
    /// Literal texts.
    pub texts: BTreeSet<String>,
    /// The longest expected duration that a comparison lets a job have.
    pub longest_job: Option<Duration>,
    /// What it comes to, whatever the facts are.
    pub always: Option<Always>,
    tree: IdedExpr,
}

/// The value of an expression that hangs on nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum Always {
    True,
    False,
    /// It fails, or is no truth value.
    Fails,
}

impl Reading {
    /// `None` for what no rule can have as its condition.
    pub fn of(source: &str) -> Option<Self> {
        let condition = Condition::compile(source).ok()?;
        let tree = parse(source.to_owned()).ok()?.expression().clone();
        let mut walk = Walk::default();
        walk.node(&tree);
        let Walk { reads, claims, hides_claims, used, asked_for, texts, longest_job, .. } = walk;
        let unguarded = used.difference(&asked_for).cloned().collect();
        let always = always(&condition, &tree);
        Some(Self { reads, claims, hides_claims, unguarded, texts, longest_job, always, tree })
    }

    /// Names and addresses that an expression tries to read, though it is refused for them.
    pub fn mutable_names(source: &str) -> BTreeSet<String> {
        let mut walk = Walk::default();
        if let Ok(program) = parse(source.to_owned()) {
            walk.node(program.expression());
        }
        walk.claims.into_iter().filter(|claim| MUTABLE_NAMES.contains(&claim.as_str())).collect()
    }

    /// However it is written.
    pub fn means_the_same(&self, other: &Self) -> bool {
        self.tree == other.tree
    }
}

/// Nothing is known: what has a value all the same has it always.
struct Unknown<'a>(&'a Prepared);

impl VariableResolver for Unknown<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        Some(CowVal::Borrowed(self.0.constant(variable)?))
    }
}

fn always(condition: &Condition, tree: &IdedExpr) -> Option<Always> {
    let unknown = Unknown(&condition.prepared);
    let mut context = Context::with_env(ENVIRONMENT.clone());
    context.set_variable_resolver(&unknown);
    let value = Value::resolve_val(&condition.prepared.expression, &context);
    match value.map(|value| value.downcast_ref::<CelBool>().map(|truth| *truth.inner())) {
        Ok(Some(true)) => Some(Always::True),
        Ok(Some(false)) => Some(Always::False),
        Ok(None) => Some(Always::Fails),
        Err(_hangs_on_facts) if !condition.reads.is_empty() => is_a_member(&tree.expr).then_some(Always::Fails),
        Err(_fails) => Some(Always::Fails),
    }
}

/// A text, a list or a time by itself, which is no truth value.
fn is_a_member(expr: &Expr) -> bool {
    match path(expr).as_deref() {
        Some([root]) => root != "subject",
        Some([root, member, ..]) => (root.as_str(), member.as_str()) != ("subject", "claims"),
        Some([]) | None => false,
    }
}

/// The names from a variable to what is read of it: `job`, `labels`, `team`. `None` where one is computed.
fn path(expr: &Expr) -> Option<Vec<String>> {
    let (inner, name) = match expr {
        Expr::Ident(name) => return Some(vec![name.clone()]),
        Expr::Select(SelectExpr { operand, field, test: false }) => (operand, field.clone()),
        Expr::Call(CallExpr { func_name, args, .. }) if func_name == INDEX => match args.as_slice() {
            [indexed, key] => return Some([path(&indexed.expr)?, vec![text(key)?]].concat()),
            _ => return None,
        },
        _ => return None,
    };
    Some([path(&inner.expr)?, vec![name]].concat())
}

fn text(node: &IdedExpr) -> Option<String> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
        _ => None,
    }
}

#[derive(Default)]
struct Walk {
    reads: BTreeSet<String>,
    claims: BTreeSet<String>,
    hides_claims: bool,
    used: BTreeSet<String>,
    asked_for: BTreeSet<String>,
    texts: BTreeSet<String>,
    longest_job: Option<Duration>,
    local: Vec<String>,
}

impl Walk {
    fn node(&mut self, node: &IdedExpr) {
        if let Some(path) = path(&node.expr) {
            return self.read(&path);
        }
        match &node.expr {
            Expr::Select(SelectExpr { operand, field, test }) => match (path(&operand.expr), test) {
                (Some(asked_of), true) => self.ask_for(&[asked_of, vec![field.clone()]].concat()),
                _ => self.node(operand),
            },
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.elements.iter().for_each(|element| self.node(element)),
            Expr::Map(map) => map.entries.iter().for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.node(&entry.key);
                    self.node(&entry.value);
                }
                EntryExpr::StructField(_) => {}
            }),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Literal(LiteralValue::String(text)) => {
                self.texts.insert(text.inner().to_owned());
            }
            Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) | Expr::Unspecified => {}
        }
    }

    fn call(&mut self, call: &CallExpr) {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (IN, [key, within]) => {
                if let (Some(key), Some(of)) = (text(key), path(&within.expr))
                    && matches!(key_of(&of), Some("job.labels" | "subject.claims"))
                {
                    return self.ask_for(&[of, vec![key]].concat());
                }
            }
            // A computed key, else it would be part of a path.
            (INDEX, [indexed, key]) => {
                let of = path(&indexed.expr);
                let any = of.as_deref().and_then(key_of).map(|of| format!("{of}[...]"));
                let local = matches!(&key.expr, Expr::Ident(name) if self.local.contains(name));
                if let Some(any) = any
                    && !local
                {
                    self.used.insert(any);
                }
            }
            (LESS | LESS_EQUALS, [job, limit]) | (GREATER | GREATER_EQUALS, [limit, job]) => self.compare(job, limit),
            _ => {}
        }
        call.target.iter().map(AsRef::as_ref).chain(&call.args).for_each(|part| self.node(part));
    }

    /// `job` is at most `limit`.
    fn compare(&mut self, job: &IdedExpr, limit: &IdedExpr) {
        let is_duration = path(&job.expr).is_some_and(|path| path == ["job", "expected_duration"]);
        let limit = Value::resolve(limit, &Context::with_env(ENVIRONMENT.clone()));
        if let (true, Ok(Value::Duration(limit))) = (is_duration, limit) {
            self.longest_job = self.longest_job.max(limit.to_std().ok());
        }
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) {
        self.node(&comprehension.iter_range);
        let outer = self.local.len();
        self.local.push(comprehension.iter_var.clone());
        self.local.extend(comprehension.iter_var2.clone());
        self.local.push(comprehension.accu_var.clone());
        let ComprehensionExpr { accu_init, loop_cond, loop_step, result, .. } = comprehension;
        [accu_init, loop_cond, loop_step, result].into_iter().for_each(|part| self.node(part));
        self.local.truncate(outer);
    }

    fn read(&mut self, path: &[String]) {
        if path.first().is_none_or(|root| self.local.contains(root)) {
            return;
        }
        self.note(path);
        self.used.extend(presence(path));
    }

    fn ask_for(&mut self, path: &[String]) {
        if path.first().is_none_or(|root| self.local.contains(root)) {
            return;
        }
        self.note(path);
        self.asked_for.extend(presence(path));
    }

    fn note(&mut self, path: &[String]) {
        match path {
            [root, member, ..] => self.reads.insert(format!("{root}.{member}")),
            [root] => self.reads.insert(root.clone()),
            [] => return,
        };
        match path {
            [root, member, claim, ..] if (root.as_str(), member.as_str()) == ("subject", "claims") => {
                self.claims.insert(claim.clone());
            }
            [root] if root == "subject" => self.hides_claims = true,
            [root, member] if (root.as_str(), member.as_str()) == ("subject", "claims") => self.hides_claims = true,
            _ => {}
        }
    }
}

/// `job.labels` of the path to it.
fn key_of(path: &[String]) -> Option<&'static str> {
    let [root, member] = path else { return None };
    match (root.as_str(), member.as_str()) {
        ("job", "labels") => Some("job.labels"),
        ("subject", "claims") => Some("subject.claims"),
        _ => None,
    }
}

/// The name of what need not be there: without it, an expression fails.
fn presence(path: &[String]) -> Option<String> {
    let optional = match path {
        [root, member] => [("job", "id"), ("job", "name"), ("job", "expected_duration"), ("request", "lifetime")]
            .contains(&(root, member)),
        [root, member, _key, ..] => [("job", "labels"), ("subject", "claims")].contains(&(root, member)),
        _ => false,
    };
    optional.then(|| path.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("."))
}
