//! CEL expressions of rules: checked and compiled once, evaluated on variables that are made when they are read.

mod parts;
mod prepared;
mod reading;

pub(super) use reading::{Always, Reading};

pub(super) use self::parts::{How, Unmet};

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::SystemTime;

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue};
use cel::common::types::{CelBool, CelDuration, CelString, CelTimestamp};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, IdedExpr, Program, Value};

use self::prepared::{HAS_EXPECTED_DURATION, HAS_JOB_ID, HAS_JOB_NAME, HAS_LIFETIME, Prepared};
use super::Ask;
use crate::subject::{Groups, Identity};
use crate::target::{Job, Target};

/// What an expression can see.
pub(super) struct Facts<'a> {
    pub subject: &'a Identity,
    pub job: &'a Job,
    pub target: &'a Target,
    pub ask: &'a Ask,
    pub now: SystemTime,
}

/// A compiled expression.
pub(super) struct Condition {
    /// As it was written, for those who ask why it does not hold.
    source: Box<str>,
    prepared: Prepared,
    /// What it can read: `job.name`, or all of `job.*` where it takes the job as a whole.
    reads: BTreeSet<String>,
}

impl Condition {
    /// # Errors
    /// A sentence that says what to change.
    pub fn compile(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(format!("an expression has at most {MAX_SOURCE_BYTES} bytes"));
        }
        let program = parse(source.to_owned())?;
        let mut check = Check::default();
        check.expression(program.expression())?;
        let mut reads = check.reads;
        for (root, members) in VARIABLES {
            if reads.contains(root) {
                reads.extend(members.iter().map(|member| format!("{root}.{member}")));
            }
        }
        Ok(Self { source: source.into(), prepared: Prepared::of(program.expression())?, reads })
    }

    /// `None` where the expression fails on these facts.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Option<Value> {
        self.outcome(facts).ok()
    }

    /// As [`evaluate`](Self::evaluate), with the reason where there is no value.
    fn outcome(&self, facts: &Facts<'_>) -> Result<Value, ExecutionError> {
        self.with_value(facts, |value| value.try_into())?
    }

    /// `None` where the expression fails or is not a truth value.
    pub fn holds(&self, facts: &Facts<'_>) -> Option<bool> {
        self.with_value(facts, |value| value.downcast_ref::<CelBool>().map(|truth| *truth.inner())).ok()?
    }

    fn with_value<T>(&self, facts: &Facts<'_>, read: impl FnOnce(&dyn Val) -> T) -> Result<T, ExecutionError> {
        let variables = Variables { facts, reads: &self.reads, prepared: &self.prepared };
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.set_variable_resolver(&variables);
        let value = Value::resolve_val(&self.prepared.expression, &context)?;
        Ok(read(value.as_ref()))
    }
}

/// The standard library, built once: building it costs more than a thousand evaluations.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));

/// The parser recurses deeply; on a stack of its own it cannot overflow the caller's.
fn parse(source: String) -> Result<Program, String> {
    let compile = move || ENVIRONMENT.compile(&source).map_err(|errors| errors.to_string());
    let parser = thread::Builder::new().name("cel-parser".to_owned()).stack_size(PARSER_STACK_BYTES);
    let parsed = parser.spawn(compile).map_err(|error| format!("no thread for the parser: {error}"))?.join();
    parsed.unwrap_or_else(|_panic| Err("the parser gave up on this expression".to_owned()))
}

/// Refuses what could take long or mean something else than it seems.
#[derive(Default)]
struct Check {
    depth: usize,
    comprehensions: usize,
    local: Vec<String>,
    reads: BTreeSet<String>,
}

impl Check {
    fn expression(&mut self, node: &IdedExpr) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("the expression is nested deeper than {MAX_DEPTH} levels"));
        }
        let checked = self.node(&node.expr);
        self.depth -= 1;
        checked
    }

    fn node(&mut self, expr: &Expr) -> Result<(), String> {
        match expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                self.reads.insert(name.clone());
                self.variable(name)
            }
            Expr::Select(select) => {
                if root(&select.operand.expr) != Some("job") {
                    refuse_mutable_name(&select.field)?;
                }
                match &select.operand.expr {
                    Expr::Ident(root) => self.member(root, &select.field),
                    _ => self.expression(&select.operand),
                }
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.expression(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.expression(&entry.key)?;
                    self.expression(&entry.value)
                }
                EntryExpr::StructField(_) => Err("messages cannot be made in an expression".to_owned()),
            }),
            Expr::Struct(_) => Err("messages cannot be made in an expression".to_owned()),
            Expr::Comprehension(comprehension) => {
                self.comprehensions += 1;
                if self.comprehensions > 1 {
                    return Err("`exists`, `all`, `map` and `filter` cannot be nested or repeated: the cost would have no bound".to_owned());
                }
                self.expression(&comprehension.iter_range)?;
                let outer = self.local.len();
                self.local.push(comprehension.iter_var.clone());
                self.local.extend(comprehension.iter_var2.clone());
                self.local.push(comprehension.accu_var.clone());
                for part in [
                    &comprehension.accu_init,
                    &comprehension.loop_cond,
                    &comprehension.loop_step,
                    &comprehension.result,
                ] {
                    self.expression(part)?;
                }
                self.local.truncate(outer);
                Ok(())
            }
        }
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), String> {
        if call.func_name == "matches" {
            let pattern = match call.args.last().map(|argument| &argument.expr) {
                Some(Expr::Literal(LiteralValue::String(pattern))) => pattern.inner().to_owned(),
                _ => return Err("`matches` takes its pattern as a literal".to_owned()),
            };
            regex::RegexBuilder::new(&pattern)
                .size_limit(REGEX_MAX_BYTES)
                .build()
                .map_err(|error| format!("the pattern of `matches` is refused: {error}"))?;
        }
        for argument in &call.args {
            if let Expr::Literal(LiteralValue::String(name)) = &argument.expr
                && call.func_name == cel::common::ast::operators::INDEX
                && call.args.first().and_then(|indexed| root(&indexed.expr)) != Some("job")
            {
                refuse_mutable_name(name.inner())?;
            }
        }
        call.target.iter().map(AsRef::as_ref).chain(&call.args).try_for_each(|part| self.expression(part))
    }

    fn variable(&self, name: &str) -> Result<(), String> {
        if VARIABLES.iter().any(|(root, _members)| *root == name) || self.local.iter().any(|local| local == name) {
            return Ok(());
        }
        let known: Vec<&str> = VARIABLES.iter().map(|(root, _members)| *root).collect();
        Err(format!("there is no variable `{name}`; an expression can use {}", known.join(", ")))
    }

    fn member(&mut self, root: &str, member: &str) -> Result<(), String> {
        self.variable(root)?;
        self.reads.insert(format!("{root}.{member}"));
        let Some((_root, members)) = VARIABLES.iter().find(|(name, _members)| *name == root) else { return Ok(()) };
        if self.local.iter().any(|local| local == root) || members.contains(&member) {
            return Ok(());
        }
        Err(format!("`{root}` has no `{member}`; it has {}", members.join(", ")))
    }
}

/// The variable that an expression like `job.labels` starts from.
fn root(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Ident(name) => Some(name),
        Expr::Select(select) => root(&select.operand.expr),
        _ => None,
    }
}

/// Names and addresses are settable by others and are given to somebody else later: no decision may hang on them.
fn refuse_mutable_name(claim: &str) -> Result<(), String> {
    if MUTABLE_NAMES.contains(&claim) {
        return Err(format!(
            "`{claim}` can be changed and reused, so it identifies nobody: use subject.tenant and subject.object, groups or roles"
        ));
    }
    Ok(())
}

/// Microsoft (claims-validation): never authorize on these.
const MUTABLE_NAMES: [&str; 7] = [
    "email",
    "upn",
    "preferred_username",
    "unique_name",
    "verified_primary_email",
    "verified_secondary_email",
    "login_hint",
];

const VARIABLES: [(&str, &[&str]); 5] = [
    ("subject", &["tenant", "object", "kind", "client", "groups", "roles", "scopes", "auth_contexts", "claims"]),
    ("job", &["id", "name", "expected_duration", "labels", "datasets"]),
    ("request", &["scopes", "lifetime"]),
    ("target", &[]),
    ("now", &[]),
];

/// Facts for one expression: what it cannot read is not made.
struct Variables<'a> {
    facts: &'a Facts<'a>,
    reads: &'a BTreeSet<String>,
    prepared: &'a Prepared,
}

impl VariableResolver for Variables<'_> {
    /// The interpreter asks for the longest name first, so `job.name` is made without the rest of the job.
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        Some(match variable {
            "target" => text(self.facts.target.name.as_str()),
            "now" => {
                let now = chrono::DateTime::from_timestamp_secs(
                    i64::try_from(crate::clock::unix_seconds(self.facts.now)).ok()?,
                )?;
                CowVal::owned(CelTimestamp::from(now.fixed_offset()))
            }
            "job.id" => text(self.facts.job.id.as_deref()?),
            "job.name" => text(self.facts.job.name.as_deref()?),
            "job.expected_duration" => duration(self.facts.job.expected_duration?)?,
            "request.lifetime" => duration(self.facts.ask.lifetime?)?,
            HAS_JOB_ID => truth(self.facts.job.id.is_some()),
            HAS_JOB_NAME => truth(self.facts.job.name.is_some()),
            HAS_EXPECTED_DURATION => truth(self.facts.job.expected_duration.is_some()),
            HAS_LIFETIME => truth(self.facts.ask.lifetime.is_some()),
            _ => match self.prepared.constant(variable) {
                Some(constant) => CowVal::Borrowed(constant),
                None => CowVal::Owned(self.value(variable)?.try_into().ok()?),
            },
        })
    }
}

impl Variables<'_> {
    fn value(&self, variable: &str) -> Option<Value> {
        let subject = self.facts.subject;
        Some(match variable {
            "subject.tenant" => string(&subject.tenant().to_string()),
            "subject.object" => string(&subject.object().to_string()),
            "subject.kind" => string(subject.kind().as_str()),
            "subject.client" => string(&subject.client().to_string()),
            "subject.groups" => match subject.groups() {
                Groups::Known(groups) => {
                    groups.iter().map(|group| string(&group.to_string())).collect::<Vec<_>>().into()
                }
                // Unknown is not empty: the expression fails.
                Groups::Overage => return None,
            },
            "subject.roles" => strings(subject.roles()),
            "subject.scopes" => strings(subject.scopes()),
            "subject.auth_contexts" => strings(subject.auth_contexts()),
            "subject.claims" => {
                let claims = subject.claims().iter();
                claims.map(|(name, claim)| (name.clone(), json(claim))).collect::<HashMap<_, _>>().into()
            }
            "job.labels" => {
                let labels = self.facts.job.labels.iter();
                labels.map(|(name, label)| (name.clone(), string(label))).collect::<HashMap<_, _>>().into()
            }
            "job.datasets" => strings(&self.facts.job.datasets),
            "request.scopes" => strings(&self.facts.ask.scopes.iter().map(ToString::to_string).collect::<Vec<_>>()),
            // Unknown groups are not absent ones: `has(subject.groups)` has no answer either.
            "subject" if *subject.groups() == Groups::Overage => return None,
            // Whole, for `has(job.name)` and the like.
            "subject" | "job" | "request" => {
                let present = self.reads.iter().filter_map(|name| {
                    let member = name.strip_prefix(variable)?.strip_prefix('.')?;
                    Some((member.to_owned(), Value::try_from(self.resolve(name)?.as_ref()).ok()?))
                });
                present.collect::<HashMap<_, _>>().into()
            }
            _ => return None,
        })
    }
}

fn truth<'b>(truth: bool) -> CowVal<'b, 'b> {
    CowVal::Borrowed(if truth { &CelBool::TRUE } else { &CelBool::FALSE })
}

fn text<'b>(text: &'b str) -> CowVal<'b, 'b> {
    CowVal::owned(CelString::from(text))
}

fn duration<'b>(duration: std::time::Duration) -> Option<CowVal<'b, 'b>> {
    Some(CowVal::owned(CelDuration::from(chrono::Duration::from_std(duration).ok()?)))
}

fn string(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn strings(texts: &[String]) -> Value {
    texts.iter().map(|text| string(text)).collect::<Vec<_>>().into()
}

fn json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int)
        }
        serde_json::Value::String(text) => string(text),
        serde_json::Value::Array(items) => items.iter().map(json).collect::<Vec<_>>().into(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), json(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

/// Google's own limit for attribute conditions.
const MAX_SOURCE_BYTES: usize = 4096;

/// Enough for any condition a person can read.
const MAX_DEPTH: usize = 24;

/// Measured: a debug build's parser overflows 2 MiB on expressions within the limits above.
const PARSER_STACK_BYTES: usize = 64 * 1024 * 1024;

/// A compiled pattern's memory: `matches` compiles at every evaluation.
const REGEX_MAX_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
