//! Evaluation: one walk over the tree.
//!
//! Each kind of node has a function of its own, so that the frame of the recursive one stays small.

use crate::ast::{Call, Expr, Kind, Literal, Op};
use crate::budget::Budget;
use crate::error::Error;
use crate::functions::{Context, arithmetic};
use crate::program::Variables;
use crate::value::{Key, Map, Text, Value, compare, equal};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) struct Machine<'a, 'v> {
    pub(crate) variables: &'v dyn Variables<'a>,
    pub(crate) budget: &'v mut Budget,
    pub(crate) locals: Vec<Value<'a>>,
}

fn not_bool() -> Error {
    Error::no_overload()
}

fn no_such_key(key: &Value<'_>) -> Error {
    Error::new(format!("no such key: {key}"))
}

impl<'a> Machine<'a, '_> {
    pub(crate) fn eval(&mut self, expr: &'a Expr) -> Result<Value<'a>, Error> {
        self.budget.enter()?;
        let value = self.eval_kind(expr);
        self.budget.leave();
        value
    }

    fn eval_kind(&mut self, expr: &'a Expr) -> Result<Value<'a>, Error> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(of_literal(literal)),
            Kind::Variable(place) => {
                self.budget.pay(1)?;
                self.variables.get(usize::from(*place), self.budget)
            }
            Kind::Local(place) => {
                self.budget.pay(1)?;
                self.locals.get(usize::from(*place)).cloned().ok_or_else(|| Error::new("no such attribute"))
            }
            // the check leaves none
            Kind::Name(name) => Err(Error::new(format!("no such attribute: {name}"))),
            Kind::Select { operand, field, optional } => self.select(operand, field, *optional),
            Kind::Has { operand, field } => self.has(operand, field),
            Kind::Index { operand, key, optional } => self.index(operand, key, *optional),
            Kind::Call(call) => self.call(call),
            Kind::Binary(op, both) => self.binary(*op, &both[0], &both[1]),
            Kind::And(all) => self.logic(all, false),
            Kind::Or(all) => self.logic(all, true),
            Kind::Not(operand) => {
                self.budget.pay(1)?;
                self.eval(operand)?.as_bool().map(|b| Value::Bool(!b)).ok_or_else(not_bool)
            }
            Kind::Negate(operand) => {
                self.budget.pay(1)?;
                let value = self.eval(operand)?;
                arithmetic::negate(&value)
            }
            Kind::Ternary(three) => match self.eval(&three[0])? {
                Value::Bool(true) => self.eval(&three[1]),
                Value::Bool(false) => self.eval(&three[2]),
                _ => Err(not_bool()),
            },
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct(name, fields) => self.structure(name, fields),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { value, body, .. } => {
                let value = self.eval(value)?;
                self.with(value, body)
            }
            Kind::OptionalMap { operand, body, flat, .. } => self.optional_map(operand, body, *flat),
        }
    }

    /// Evaluates with one more variable of a macro.
    pub(crate) fn with(&mut self, value: Value<'a>, body: &'a Expr) -> Result<Value<'a>, Error> {
        self.locals.push(value);
        let out = self.eval(body);
        self.locals.pop();
        out
    }

    #[inline(never)]
    fn select(&mut self, operand: &'a Expr, field: &'a str, optional: bool) -> Result<Value<'a>, Error> {
        let of = self.eval(operand)?;
        self.budget.pay(1)?;
        match of {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => maybe(select_from(&inner, field)),
            of if optional => maybe(select_from(&of, field)),
            of => select_from(&of, field)?.ok_or_else(|| Error::new(format!("no such key: {field}"))),
        }
    }

    #[inline(never)]
    fn has(&mut self, operand: &'a Expr, field: &'a str) -> Result<Value<'a>, Error> {
        let of = self.eval(operand)?;
        self.budget.pay(1)?;
        match of {
            Value::Optional(None) => Ok(Value::Bool(false)),
            Value::Optional(Some(inner)) => Ok(Value::Bool(select_from(&inner, field)?.is_some())),
            of => Ok(Value::Bool(select_from(&of, field)?.is_some())),
        }
    }

    #[inline(never)]
    fn index(&mut self, operand: &'a Expr, key: &'a Expr, optional: bool) -> Result<Value<'a>, Error> {
        let of = self.eval(operand)?;
        let key = self.eval(key)?;
        self.budget.pay(1)?;
        match of {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => maybe(index_of(&inner, &key)),
            of if optional => maybe(index_of(&of, &key)),
            Value::List(list) => match place(&key)? {
                Some(i) if i < list.len() => list.get(i).ok_or_else(Error::no_overload),
                _ => Err(Error::new(format!("index out of bounds: {key}"))),
            },
            of => index_of(&of, &key)?.ok_or_else(|| no_such_key(&key)),
        }
    }

    #[inline(never)]
    fn call(&mut self, call: &'a Call) -> Result<Value<'a>, Error> {
        let Some(function) = call.function else { return Err(Error::no_overload()) };
        let mut arguments = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            // what is absent is not worked out
            if let (true, Some(Value::Optional(Some(_)))) = (function.is_or, arguments.first()) {
                break;
            }
            arguments.push(self.eval(argument)?);
        }
        self.budget.pay(1)?;
        (function.run)(&mut Context { budget: self.budget, regex: call.regex.as_deref() }, &arguments)
    }

    #[inline(never)]
    fn binary(&mut self, op: Op, left: &'a Expr, right: &'a Expr) -> Result<Value<'a>, Error> {
        let (a, b) = (self.eval(left)?, self.eval(right)?);
        self.budget.pay(1)?;
        let order =
            |m: &mut Self, fits: fn(Ordering) -> bool| Ok(Value::Bool(compare(&a, &b, m.budget)?.is_some_and(fits)));
        match op {
            Op::Eq => Ok(Value::Bool(equal(&a, &b, self.budget)?)),
            Op::Ne => Ok(Value::Bool(!equal(&a, &b, self.budget)?)),
            Op::Lt => order(self, Ordering::is_lt),
            Op::Le => order(self, Ordering::is_le),
            Op::Gt => order(self, Ordering::is_gt),
            Op::Ge => order(self, Ordering::is_ge),
            Op::In => contains(&b, &a, self.budget).map(Value::Bool),
            Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Rem => arithmetic::apply(op, &a, &b, self.budget),
        }
    }

    /// `||` and `&&`: one that decides makes up for errors of others.
    #[inline(never)]
    fn logic(&mut self, all: &'a [Expr], decides: bool) -> Result<Value<'a>, Error> {
        let mut error = None;
        for expr in all {
            match self.eval(expr) {
                Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => error = error.or(Some(not_bool())),
                Err(e) if e.is_final() => return Err(e),
                Err(e) => error = error.or(Some(e)),
            }
        }
        error.map_or(Ok(Value::Bool(!decides)), Err)
    }

    #[inline(never)]
    fn list(&mut self, items: &'a [(Expr, bool)]) -> Result<Value<'a>, Error> {
        let mut out = Vec::with_capacity(items.len());
        self.budget.pay(10)?;
        for (item, optional) in items {
            match (self.eval(item)?, optional) {
                (Value::Optional(Some(inner)), true) => out.push((*inner).clone()),
                (Value::Optional(None), true) => {}
                (_, true) => return Err(Error::no_overload()),
                (value, false) => out.push(value),
            }
        }
        Ok(Value::list(out))
    }

    #[inline(never)]
    fn map(&mut self, entries: &'a [(Expr, Expr, bool)]) -> Result<Value<'a>, Error> {
        self.budget.pay(30)?;
        let mut out = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let Some(place) = Key::of(&key) else { return Err(Error::new("unsupported key type")) };
            let value = match (self.eval(value)?, optional) {
                (Value::Optional(Some(inner)), true) => (*inner).clone(),
                (Value::Optional(None), true) => continue,
                (_, true) => return Err(Error::no_overload()),
                (value, false) => value,
            };
            if out.insert(place, value).is_some() {
                return Err(Error::new(format!("Failed with repeated key: {key}")));
            }
        }
        Ok(Value::Map(Map::Shared(Arc::new(out))))
    }

    #[inline(never)]
    fn structure(&mut self, name: &str, fields: &'a [(Box<str>, Expr, bool)]) -> Result<Value<'a>, Error> {
        self.budget.pay(40)?;
        let mut out = BTreeMap::new();
        for (field, value, optional) in fields {
            let value = match (self.eval(value)?, optional) {
                (Value::Optional(Some(inner)), true) => (*inner).clone(),
                (Value::Optional(None), true) => continue,
                (value, _) => value,
            };
            out.insert(Key::Text(Text::Borrowed(field)), value);
        }
        if name == "JSONPatch" && !out.contains_key(&Key::Text(Text::Borrowed("op"))) {
            return Err(Error::new("JSONPatch needs an op"));
        }
        Ok(Value::Map(Map::Shared(Arc::new(out))))
    }

    #[inline(never)]
    fn optional_map(&mut self, operand: &'a Expr, body: &'a Expr, flat: bool) -> Result<Value<'a>, Error> {
        match self.eval(operand)? {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => {
                let out = self.with((*inner).clone(), body)?;
                match out {
                    out @ Value::Optional(_) if flat => Ok(out),
                    _ if flat => Err(Error::no_overload()),
                    out => Ok(Value::some(out)),
                }
            }
            _ => Err(Error::no_overload()),
        }
    }
}

fn of_literal(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(n) => Value::Double(*n),
        Literal::String(text) => Value::text(text),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Literal::Type(name) => Value::Type(name),
    }
}

fn maybe<'a>(found: Result<Option<Value<'a>>, Error>) -> Result<Value<'a>, Error> {
    Ok(Value::Optional(found?.map(Arc::new)))
}

fn select_from<'a>(of: &Value<'a>, field: &str) -> Result<Option<Value<'a>>, Error> {
    match of {
        Value::Map(map) => Ok(map.field(field)),
        Value::Null => Err(Error::new(format!("no such key: {field}"))),
        _ => Err(Error::no_overload()),
    }
}

/// The place in a list that a number says.
fn place(key: &Value<'_>) -> Result<Option<usize>, Error> {
    Ok(match key {
        Value::Int(n) => usize::try_from(*n).ok(),
        Value::Uint(n) => usize::try_from(*n).ok(),
        Value::Double(n) if n.fract() == 0.0 && *n >= 0.0 && *n < 1e15 => Some(*n as usize),
        _ => return Err(Error::new(format!("unsupported index type '{}' in list", key.type_name()))),
    })
}

fn index_of<'a>(of: &Value<'a>, key: &Value<'a>) -> Result<Option<Value<'a>>, Error> {
    match of {
        Value::List(list) => Ok(place(key)?.and_then(|i| list.get(i))),
        Value::Map(map) => Ok(map.get(key)),
        _ => Err(Error::no_overload()),
    }
}

pub(crate) fn contains<'a>(within: &Value<'a>, wanted: &Value<'a>, budget: &mut Budget) -> Result<bool, Error> {
    match within {
        Value::List(list) => {
            for item in list.iter() {
                budget.pay(1)?;
                if equal(&item, wanted, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Map(map) => Ok(map.get(wanted).is_some()),
        _ => Err(Error::no_overload()),
    }
}
