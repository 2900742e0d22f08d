//! An expression as it is evaluated: what is the same every time is worked out once, when it is compiled.

use cel::common::ast::operators::{CONDITIONAL, LOGICAL_NOT};
use cel::common::ast::{CallExpr, Expr, LiteralValue};
use cel::common::types::{CelBool, CelDuration};
use cel::{Context, IdedExpr, Value};

use super::{ENVIRONMENT, VARIABLES};

/// Means what the checked expression means, with other words for its parts that the interpreter takes long to read.
#[derive(Default)]
pub(super) struct Prepared {
    pub expression: IdedExpr,
    constants: Vec<(String, CelDuration)>,
}

impl Prepared {
    /// # Errors
    /// A literal duration that is none.
    pub fn of(checked: &IdedExpr) -> Result<Self, String> {
        let mut prepared = Self::default();
        prepared.expression = prepared.node(checked)?;
        Ok(prepared)
    }

    /// The value of a name that [`of`](Self::of) gave.
    pub fn constant(&self, name: &str) -> Option<&CelDuration> {
        self.constants.iter().find(|(constant, _value)| constant == name).map(|(_name, value)| value)
    }

    fn node(&mut self, node: &IdedExpr) -> Result<IdedExpr, String> {
        let expr = match &node.expr {
            Expr::Select(select) => match (&select.operand.expr, select.test) {
                // One name in place of a path that is put together at each evaluation.
                (Expr::Ident(root), false) if is_member(root, &select.field) => {
                    Expr::Ident(format!("{root}.{}", select.field))
                }
                // Without it, the whole job is made to be asked for one member.
                (Expr::Ident(root), true) => match presence(root, &select.field) {
                    Some(name) => Expr::Ident(name.to_owned()),
                    None => node.expr.clone(),
                },
                _ => {
                    let mut select = select.clone();
                    select.operand = Box::new(self.node(&select.operand)?);
                    Expr::Select(select)
                }
            },
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                ("duration", [argument]) if call.target.is_none() && matches!(argument.expr, Expr::Literal(_)) => {
                    self.duration(node, argument)?
                }
                _ => self.call(call)?,
            },
            // The variables of a comprehension may hide others of the same name: it is left as it was written.
            _ => node.expr.clone(),
        };
        Ok(IdedExpr { id: node.id, expr })
    }

    fn call(&mut self, call: &CallExpr) -> Result<Expr, String> {
        let mut args = call.args.iter().map(|argument| self.node(argument)).collect::<Result<Vec<_>, _>>()?;
        let target = call.target.as_ref().map(|target| self.node(target).map(Box::new)).transpose()?;
        let mut func_name = call.func_name.clone();
        if func_name == LOGICAL_NOT && args.len() == 1 {
            // The interpreter makes the error of `!` before it looks whether there is one.
            CONDITIONAL.clone_into(&mut func_name);
            args.extend([CelBool::FALSE, CelBool::TRUE].map(literal));
        }
        Ok(Expr::Call(CallExpr { func_name, target, args }))
    }

    fn duration(&mut self, call: &IdedExpr, text: &IdedExpr) -> Result<Expr, String> {
        let value = Value::resolve(call, &Context::with_env(ENVIRONMENT.clone()));
        let Ok(Value::Duration(value)) = value else {
            let text = match &text.expr {
                Expr::Literal(LiteralValue::String(text)) => text.inner().to_owned(),
                _ => "what it is given".to_owned(),
            };
            return Err(format!("`duration` does not take `{text}`: write it like \"90s\", \"15m\" or \"72h\""));
        };
        let name = format!("constant {}", self.constants.len());
        self.constants.push((name.clone(), CelDuration::from(value)));
        Ok(Expr::Ident(name))
    }
}

fn literal(truth: CelBool) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Boolean(truth)) }
}

fn is_member(root: &str, member: &str) -> bool {
    VARIABLES.iter().any(|(name, members)| *name == root && members.contains(&member))
}

/// The name under which [`Variables`](super::Variables) tells whether a member is there: no name of an expression has a
/// blank.
fn presence(root: &str, member: &str) -> Option<&'static str> {
    Some(match (root, member) {
        ("job", "id") => HAS_JOB_ID,
        ("job", "name") => HAS_JOB_NAME,
        ("job", "expected_duration") => HAS_EXPECTED_DURATION,
        ("request", "lifetime") => HAS_LIFETIME,
        _ => return None,
    })
}

pub(super) const HAS_JOB_ID: &str = "has job.id";
pub(super) const HAS_JOB_NAME: &str = "has job.name";
pub(super) const HAS_EXPECTED_DURATION: &str = "has job.expected_duration";
pub(super) const HAS_LIFETIME: &str = "has request.lifetime";
