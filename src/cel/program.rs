//! A compiled expression.

use crate::ast::{Expr, Kind};
use crate::budget::Budget;
use crate::check::{Types, check};
use crate::env::Env;
use crate::error::{CompileError, Error, Issue};
use crate::estimate::{Sizes, estimate};
use crate::eval::Machine;
use crate::parse::parse;
use crate::types::Type;
use crate::value::Value;

/// Where an evaluation gets the values of its variables from.
pub trait Variables<'a> {
    /// The value of the variable at a place of the [`Env`]. Called each time that the expression names it; what it costs to make goes off
    /// the budget.
    ///
    /// # Errors
    /// Why it has no value.
    fn get(&self, place: usize, budget: &mut Budget) -> Result<Value<'a>, Error>;
}

impl<'a, F: Fn(usize, &mut Budget) -> Result<Value<'a>, Error>> Variables<'a> for F {
    fn get(&self, place: usize, budget: &mut Budget) -> Result<Value<'a>, Error> {
        self(place, budget)
    }
}

/// A compiled expression; evaluating it compiles nothing but patterns that only the data says.
#[derive(Clone, Debug)]
pub struct Program {
    expr: Expr,
    ty: Type,
    source: Box<str>,
}

impl Program {
    /// Compiles.
    ///
    /// # Errors
    /// Everything that is wrong with it: the first error of syntax, or all names, fields and functions that do not fit.
    pub fn compile(text: &str, env: &Env) -> Result<Self, CompileError> {
        Self::build(text, env, None).map(|(program, _)| program)
    }

    /// Compiles, and works out what evaluating it costs at most when variables are of these sizes.
    ///
    /// # Errors
    /// As for [`Self::compile`].
    pub fn compile_estimated(text: &str, env: &Env, sizes: Sizes<'_>) -> Result<(Self, u64), CompileError> {
        Self::build(text, env, Some(sizes))
    }

    fn build(text: &str, env: &Env, sizes: Option<Sizes<'_>>) -> Result<(Self, u64), CompileError> {
        let error = |issues| CompileError { source_text: text.to_owned(), issues };
        let mut expr = parse(text).map_err(|issue| error(vec![issue]))?;
        let mut types = sizes.map(|_| Types::default());
        let ty = check(&mut expr, env, types.as_mut()).map_err(error)?;
        // before the tree moves
        let cost = types.zip(sizes).map_or(0, |(types, sizes)| estimate(&expr, &types, sizes));
        Ok((Self { expr, ty, source: text.into() }, cost))
    }

    /// Compiles what must come to one of these types; an expression of which the type is known only later will do.
    ///
    /// # Errors
    /// As for [`Self::compile`], and when it comes to something else.
    pub fn compile_as(text: &str, env: &Env, wanted: &[Type]) -> Result<Self, CompileError> {
        Self::compile(text, env)?.of_type(wanted)
    }

    /// The same, if it comes to one of these types.
    ///
    /// # Errors
    /// When it comes to something else.
    pub fn of_type(self, wanted: &[Type]) -> Result<Self, CompileError> {
        if self.ty == Type::Dyn || wanted.contains(&self.ty) {
            return Ok(self);
        }
        let names: Vec<String> = wanted.iter().map(Type::to_string).collect();
        let message = match names.as_slice() {
            [name] => format!("must evaluate to {name}"),
            _ => format!("must evaluate to one of: [{}]", names.join(" ")),
        };
        Err(CompileError { source_text: self.source.into(), issues: vec![Issue { at: self.expr.at, message }] })
    }

    /// What it comes to, as far as that is known.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// The text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it names a variable.
    pub fn uses(&self, env: &Env, name: &str) -> bool {
        env.place(name).is_some_and(|place| uses(&self.expr, u16::try_from(place).unwrap_or(u16::MAX)))
    }

    /// Evaluates.
    ///
    /// # Errors
    /// [`Error`]: what the data made impossible, or what it would have cost too much.
    pub fn run<'a>(&'a self, variables: &dyn Variables<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
        let around = budget.begin();
        let value = Machine { variables, budget: &mut *budget, locals: Vec::new() }.eval(&self.expr);
        budget.resume(around);
        value
    }
}

fn uses(expr: &Expr, place: u16) -> bool {
    let any = |of: &[Expr]| of.iter().any(|e| uses(e, place));
    match &expr.kind {
        Kind::Variable(p) => *p == place,
        Kind::Literal(_) | Kind::Name(_) | Kind::Local(_) => false,
        Kind::Select { operand, .. } | Kind::Has { operand, .. } | Kind::Not(operand) | Kind::Negate(operand) => {
            uses(operand, place)
        }
        Kind::Index { operand, key, .. } => uses(operand, place) || uses(key, place),
        Kind::Call(call) => any(&call.arguments),
        Kind::Binary(_, both) => any(&both[..]),
        Kind::Ternary(three) => any(&three[..]),
        Kind::And(all) | Kind::Or(all) => any(all),
        Kind::List(items) => items.iter().any(|(e, _)| uses(e, place)),
        Kind::Map(entries) => entries.iter().any(|(k, v, _)| uses(k, place) || uses(v, place)),
        Kind::Struct(_, fields) => fields.iter().any(|(_, e, _)| uses(e, place)),
        Kind::Fold(fold) => {
            uses(&fold.range, place) || uses(&fold.body, place) || fold.filter.as_ref().is_some_and(|e| uses(e, place))
        }
        Kind::Bind { value, body, .. } => uses(value, place) || uses(body, place),
        Kind::OptionalMap { operand, body, .. } => uses(operand, place) || uses(body, place),
    }
}
