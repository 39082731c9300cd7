//! Looks up names and functions, and finds what cannot be right whatever the data: partly typed, as far as types are known.

use crate::ast::{Call, Expr, Fold, FoldKind, Kind, Literal, Op};
use crate::env::Env;
use crate::error::Issue;
use crate::functions::{self, Function};
use crate::types::{Type, assignable, substitute};
use crate::value;
use std::collections::HashMap;
use std::sync::Arc;

/// The types of a tree's nodes. A node is known by its address, so the tree must not move as long as they are used.
#[derive(Default)]
pub(crate) struct Types(HashMap<usize, Type>);

fn address(expr: &Expr) -> usize {
    std::ptr::from_ref(expr).addr()
}

impl Types {
    pub(crate) fn of(&self, expr: &Expr) -> Option<&Type> {
        self.0.get(&address(expr))
    }
}

/// Resolves the names of a tree in place; its type. `types`: where the types of all nodes go.
///
/// # Errors
/// Everything that does not fit.
pub(crate) fn check(expr: &mut Expr, env: &Env, types: Option<&mut Types>) -> Result<Type, Vec<Issue>> {
    let mut checker = Checker { env, types, scope: Vec::new(), issues: Vec::new() };
    let ty = checker.expr(expr);
    if checker.issues.is_empty() { Ok(ty) } else { Err(checker.issues) }
}

/// Of a hopeless text not everything is told.
const MAX_ISSUES: usize = 20;

struct Checker<'e> {
    env: &'e Env,
    types: Option<&'e mut Types>,
    scope: Vec<(Box<str>, Type)>,
    issues: Vec<Issue>,
}

fn join(a: Option<Type>, b: Type) -> Type {
    match a {
        None => b,
        Some(a) if a == b => a,
        Some(_) => Type::Dyn,
    }
}

impl Checker<'_> {
    fn issue(&mut self, at: u32, message: impl Into<String>) -> Type {
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue { at, message: message.into() });
        }
        Type::Dyn
    }

    fn no_overload(&mut self, at: u32, name: &str, given: &[Type]) -> Type {
        let given: Vec<String> = given.iter().map(Type::to_string).collect();
        self.issue(at, format!("found no matching overload for '{name}' applied to '({})'", given.join(", ")))
    }

    fn no_member_overload(&mut self, at: u32, name: &str, given: &[Type]) -> Type {
        let rest: Vec<String> = given.iter().skip(1).map(Type::to_string).collect();
        let target = given.first().map_or_else(String::new, Type::to_string);
        self.issue(at, format!("found no matching overload for '{name}' applied to '{target}.({})'", rest.join(", ")))
    }

    fn is_local(&self, name: &str) -> bool {
        self.scope.iter().any(|(n, _)| n.as_ref() == name)
    }

    fn expr(&mut self, expr: &mut Expr) -> Type {
        let ty = self.judge(expr);
        if let Some(types) = &mut self.types {
            types.0.insert(address(expr), ty.clone());
        }
        ty
    }

    fn judge(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        if let Kind::Name(_) | Kind::Select { optional: false, .. } = &expr.kind
            && let Some(resolved) = self.resolve(expr)
        {
            return resolved;
        }
        match &mut expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Name(name) => {
                let name = name.clone();
                self.issue(at, format!("undeclared reference to '{name}' (in container '')"))
            }
            Kind::Variable(_) | Kind::Local(_) => Type::Dyn,
            Kind::Select { operand, field, optional } => {
                if let (Kind::Name(root), false) = (&operand.kind, *optional)
                    && !self.is_local(root)
                    && self.env.place(root).is_none()
                    && self.env.is_prefix(root)
                {
                    return self.issue(at, format!("undefined field '{field}'"));
                }
                let of = self.expr(operand);
                let found = self.field(at, &of, field);
                if *optional || matches!(of, Type::Optional(_)) {
                    Type::optional(found.unwrapped().clone())
                } else {
                    found
                }
            }
            Kind::Has { operand, field } => {
                if let Kind::Name(root) = &operand.kind
                    && !self.is_local(root)
                    && self.env.place(root).is_none()
                    && self.env.is_prefix(root)
                {
                    return self.issue(at, "invalid argument to has() macro");
                }
                let of = self.expr(operand);
                self.field(at, &of, field);
                Type::Bool
            }
            Kind::Index { operand, key, optional } => {
                let (of, by) = (self.expr(operand), self.expr(key));
                let found = match (of.unwrapped(), &by) {
                    (Type::Dyn, _) => Type::Dyn,
                    (Type::List(item), Type::Int | Type::Dyn | Type::Uint | Type::Double) => (**item).clone(),
                    (Type::Map(wanted, value), given) if assignable(wanted, given, &mut [None, None]) => {
                        (**value).clone()
                    }
                    _ => self.no_overload(at, "_[_]", &[of.clone(), by]),
                };
                if *optional || matches!(of, Type::Optional(_)) { Type::optional(found) } else { found }
            }
            Kind::Call(call) => self.call(at, call),
            Kind::Binary(op, both) => {
                let given = [self.expr(&mut both[0]), self.expr(&mut both[1])];
                self.binary(at, *op, &given)
            }
            Kind::And(all) => self.bools(at, all, "_&&_"),
            Kind::Or(all) => self.bools(at, all, "_||_"),
            Kind::Not(operand) => match self.expr(operand) {
                Type::Bool | Type::Dyn => Type::Bool,
                other => self.no_overload(at, "!_", &[other]),
            },
            Kind::Negate(operand) => match self.expr(operand) {
                found @ (Type::Int | Type::Double | Type::Dyn | Type::Duration) => found,
                other => self.no_overload(at, "-_", &[other]),
            },
            Kind::Ternary(three) => {
                let given = [self.expr(&mut three[0]), self.expr(&mut three[1]), self.expr(&mut three[2])];
                let [condition, yes, no] = &given;
                let mut params = [None, None];
                let fits =
                    assignable(&Type::Param(0), yes, &mut params) && assignable(&Type::Param(0), no, &mut params);
                if !matches!(condition, Type::Bool | Type::Dyn) || !fits {
                    return self.no_overload(at, "_?_:_", &given);
                }
                join(Some(yes.clone()), no.clone())
            }
            Kind::List(items) => {
                let mut of = None;
                for (item, optional) in items {
                    let ty = self.expr(item);
                    of = Some(join(of, if *optional { ty.unwrapped().clone() } else { ty }));
                }
                Type::list(of.unwrap_or(Type::Dyn))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    keys = Some(join(keys, self.expr(key)));
                    let ty = self.expr(value);
                    values = Some(join(values, if *optional { ty.unwrapped().clone() } else { ty }));
                }
                Type::Map(Arc::new(keys.unwrap_or(Type::Dyn)), Arc::new(values.unwrap_or(Type::Dyn)))
            }
            Kind::Struct(name, fields) => {
                let known = self.env.structures
                    && (name.as_ref() == "JSONPatch" || name.as_ref() == "Object" || name.starts_with("Object."));
                if !known {
                    return self.issue(at, format!("undeclared reference to '{name}' (in container '')"));
                }
                for (field, value, _) in fields {
                    if name.as_ref() == "JSONPatch" && !matches!(field.as_ref(), "op" | "path" | "from" | "value") {
                        self.issue(value.at, format!("undefined field '{field}'"));
                    }
                    self.expr(value);
                }
                Type::Dyn
            }
            Kind::Fold(fold) => self.fold(at, fold),
            Kind::Bind { name, value, body } => {
                let ty = self.expr(value);
                self.scope.push((name.clone(), ty));
                let out = self.expr(body);
                self.scope.pop();
                out
            }
            Kind::OptionalMap { operand, name, body, flat } => {
                let of = match self.expr(operand) {
                    Type::Optional(of) => (*of).clone(),
                    Type::Dyn => Type::Dyn,
                    other => {
                        return self.issue(operand.at, format!("expected type 'optional_type' but found '{other}'"));
                    }
                };
                self.scope.push((name.clone(), of));
                let out = self.expr(body);
                self.scope.pop();
                if *flat { out } else { Type::optional(out) }
            }
        }
    }

    /// Makes a variable, a macro's variable or a type of a name or a dotted name.
    fn resolve(&mut self, expr: &mut Expr) -> Option<Type> {
        let name = dotted(expr)?;
        let root = name.split('.').next().unwrap_or_default();
        if self.is_local(root) {
            if name != root {
                return None;
            }
            let place = self.scope.iter().rposition(|(n, _)| n.as_ref() == root)?;
            expr.kind = Kind::Local(u16::try_from(place).ok()?);
            return self.scope.get(place).map(|(_, ty)| ty.clone());
        }
        if let Some(place) = self.env.place(&name) {
            expr.kind = Kind::Variable(u16::try_from(place).ok()?);
            return self.env.variables.get(place).map(|(_, ty)| ty.clone());
        }
        let ty = value::TYPE_NAMES.iter().find(|n| **n == name)?;
        expr.kind = Kind::Literal(Literal::Type(ty));
        Some(Type::Type)
    }

    fn field(&mut self, at: u32, of: &Type, field: &str) -> Type {
        match of.unwrapped() {
            Type::Dyn => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(found) => found.ty.clone(),
                None => self.issue(at, format!("undefined field '{field}'")),
            },
            other => self.issue(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn bools(&mut self, at: u32, all: &mut [Expr], name: &str) -> Type {
        let given: Vec<Type> = all.iter_mut().map(|e| self.expr(e)).collect();
        if given.iter().all(|t| matches!(t, Type::Bool | Type::Dyn)) {
            return Type::Bool;
        }
        // of a chain the two around the first that is wrong
        let wrong = given.iter().position(|t| !matches!(t, Type::Bool | Type::Dyn)).unwrap_or(0);
        let from = wrong.saturating_sub(1);
        self.no_overload(at, name, &given[from..(from + 2).min(given.len())])
    }

    fn binary(&mut self, at: u32, op: Op, given: &[Type; 2]) -> Type {
        use Type::{Bool, Bytes, Double, Duration, Dyn, Int, List, Map, Timestamp, Uint};
        let [a, b] = given;
        let result = match (op, a, b) {
            (Op::Eq | Op::Ne, a, b) => {
                let mut params = [None, None];
                let fits = assignable(&Type::Param(0), a, &mut params) && assignable(&Type::Param(0), b, &mut params);
                fits.then_some(Bool)
            }
            (Op::In, a, List(of)) => assignable(of, a, &mut [None, None]).then_some(Bool),
            (Op::In, a, Map(of, _)) => assignable(of, a, &mut [None, None]).then_some(Bool),
            (Op::In, _, Dyn) => Some(Bool),
            (Op::Lt | Op::Le | Op::Gt | Op::Ge, a, b) => match (a, b) {
                (Dyn, _) | (_, Dyn) => Some(Bool),
                (Int | Uint | Double, Int | Uint | Double) => Some(Bool),
                (Bool | Type::String | Bytes | Timestamp | Duration, b) if a == b => Some(Bool),
                _ => None,
            },
            (Op::In, ..) => None,
            (_, Dyn, Dyn) => Some(Dyn),
            // what it is added to decides
            (Op::Add | Op::Sub, Dyn, Timestamp | Duration) | (Op::Add | Op::Sub, Timestamp | Duration, Dyn) => {
                Some(Dyn)
            }
            (Op::Add, Type::String | Bytes, Dyn) => Some(a.clone()),
            (Op::Add, Dyn, Type::String | Bytes) => Some(b.clone()),
            (Op::Add, List(_), Dyn) | (Op::Add, Dyn, List(_)) => Some(Type::list(Dyn)),
            (_, Dyn, Int | Uint | Double) if op != Op::Rem || *b != Double => Some(b.clone()),
            (_, Int | Uint | Double, Dyn) if op != Op::Rem || *a != Double => Some(a.clone()),
            (_, Int | Uint, b) if a == b => Some(a.clone()),
            (Op::Add | Op::Sub | Op::Mul | Op::Div, Double, Double) => Some(Double),
            (Op::Add, Type::String | Bytes, b) if a == b => Some(a.clone()),
            (Op::Add, List(x), List(y)) => Some(Type::list(join(Some((**x).clone()), (**y).clone()))),
            (Op::Add, Timestamp, Duration) | (Op::Add, Duration, Timestamp) | (Op::Sub, Timestamp, Duration) => {
                Some(Timestamp)
            }
            (Op::Add | Op::Sub, Duration, Duration) | (Op::Sub, Timestamp, Timestamp) => Some(Duration),
            _ => None,
        };
        result.unwrap_or_else(|| self.no_overload(at, op.name(), given))
    }

    fn fold(&mut self, at: u32, fold: &mut Fold) -> Type {
        let range = self.expr(&mut fold.range);
        let (first, second) = match (&range, fold.second.is_some()) {
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (Type::List(item), true) => (Type::Int, (**item).clone()),
            (Type::List(item), false) => ((**item).clone(), Type::Dyn),
            (Type::Map(key, value), _) => ((**key).clone(), (**value).clone()),
            (Type::Object(_), _) => (Type::String, Type::Dyn),
            (other, _) => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(fold.range.at, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let depth = self.scope.len();
        self.scope.push((fold.first.clone(), first.clone()));
        if let Some(name) = &fold.second {
            self.scope.push((name.clone(), second));
        }
        if let Some(filter) = &mut fold.filter {
            let ty = self.expr(filter);
            if !matches!(ty, Type::Bool | Type::Dyn) {
                self.no_overload(at, "_?_:_", &[ty]);
            }
        }
        let body = self.expr(&mut fold.body);
        self.scope.truncate(depth);
        let is_bool = matches!(body, Type::Bool | Type::Dyn);
        match fold.kind {
            FoldKind::All if !is_bool => self.no_overload(at, "_&&_", &[Type::Bool, body]),
            FoldKind::Exists if !is_bool => self.no_overload(at, "_||_", &[Type::Bool, body]),
            FoldKind::ExistsOne | FoldKind::Filter if !is_bool => self.no_overload(at, "_?_:_", &[body]),
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => Type::Bool,
            FoldKind::Filter => Type::list(first),
            FoldKind::Map | FoldKind::TransformList => Type::list(body),
            FoldKind::TransformMap => {
                let key = if matches!(range, Type::List(_)) { Type::Int } else { first };
                Type::Map(Arc::new(key), Arc::new(body))
            }
            FoldKind::TransformMapEntry => match body {
                body @ (Type::Map(..) | Type::Dyn) => body,
                other => self.issue(at, format!("expected a map but found '{other}'")),
            },
        }
    }

    fn call(&mut self, at: u32, call: &mut Call) -> Type {
        // `math.greatest(...)` is no member of anything
        if call.is_member
            && let Some(prefix) = call.arguments.first().and_then(dotted)
            && !self.is_local(prefix.split('.').next().unwrap_or_default())
        {
            let name = format!("{prefix}.{}", call.name);
            if functions::find(&name, false).is_some() {
                call.arguments.remove(0);
                (call.name, call.is_member) = (name.into(), false);
            }
        }
        let given: Vec<Type> = call.arguments.iter_mut().map(|e| self.expr(e)).collect();
        let Some(function) = functions::find(&call.name, call.is_member) else {
            let name = call.name.clone();
            return self.issue(at, format!("undeclared reference to '{name}' (in container '')"));
        };
        call.function = Some(function);
        if function.takes_pattern {
            self.pattern(call);
        }
        match overload(function, &given) {
            Some(result) => result,
            None if call.is_member => self.no_member_overload(at, &call.name, &given),
            None => self.no_overload(at, &call.name, &given),
        }
    }

    /// Compiles the pattern of a call, when the expression says it.
    fn pattern(&mut self, call: &mut Call) {
        let Some(Expr { at, kind: Kind::Literal(Literal::String(pattern)), .. }) = call.arguments.get(1) else {
            return;
        };
        match functions::regex::compile(pattern) {
            Ok(regex) => call.regex = Some(Arc::new(regex)),
            Err(error) => {
                let (at, message) = (*at, error.to_string());
                self.issue(at, message);
            }
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
        Literal::Type(_) => Type::Type,
    }
}

/// `a.b.c`, when nothing of it is looked up yet.
fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Name(name) => Some(name.to_string()),
        Kind::Select { operand, field, optional: false } => Some(format!("{}.{field}", dotted(operand)?)),
        _ => None,
    }
}

/// The type of a call, when the arguments fit.
fn overload(function: &Function, given: &[Type]) -> Option<Type> {
    let mut result = None;
    for signature in function.overloads {
        let (wanted, returned) = signature.split_once(':')?;
        let wanted: Vec<&str> = wanted.split_whitespace().collect();
        let is_variadic = wanted.last().is_some_and(|w| w.ends_with('*'));
        if wanted.len() != given.len() && !(is_variadic && given.len() >= wanted.len()) {
            continue;
        }
        let mut params = [None, None];
        let last = wanted.last().copied().unwrap_or("dyn");
        let fits = given.iter().enumerate().all(|(i, ty)| {
            let wanted = wanted.get(i).copied().unwrap_or(last).trim_end_matches('*');
            assignable(&crate::types::parse_type(wanted), ty, &mut params)
        });
        if fits {
            let ty = substitute(&crate::types::parse_type(returned.trim()), &params);
            // several fit only when something is not known
            result = Some(join(result, ty));
        }
    }
    result
}
