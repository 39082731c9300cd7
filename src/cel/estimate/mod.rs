//! What an expression could cost at worst, worked out before there is any data.
//!
//! In: a checked tree, the types of its nodes, and how large the values of its variables may be ([`Sizes`]). Out: units, the same to the last
//! one as Kubernetes comes to, since definitions are taken or refused by them. So this follows cel-go also where that is odd: what macros
//! become is paid for as cel-go writes them out, and a size that is looked up below an unnamed value is looked up from the root.

mod calls;
mod sizes;

use crate::ast::{Expr, Fold, FoldKind, Kind, Literal, Op};
use crate::check::Types;
use crate::types::{DYN, Type};
use sizes::Path;
pub use sizes::{Size, Sizes, Within};

/// At least and at most so many characters, bytes, items or entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    min: u64,
    max: u64,
}

impl Range {
    const UNKNOWN: Range = Range { min: 0, max: u64::MAX };

    fn exactly(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn up_to(max: u64) -> Self {
        Self { min: 0, max }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// What going through it costs at most.
    fn traversed(self) -> u64 {
        scaled(self.max, TRAVERSAL)
    }
}

/// Of a character or byte that is gone through.
const TRAVERSAL: f64 = 0.1;
/// Of making a list, a map, an object.
const LIST: u64 = 10;
const MAP: u64 = 30;
const STRUCT: u64 = 40;

/// Rounded up; what is too much is the most.
fn scaled(n: u64, by: f64) -> u64 {
    (n as f64 * by).ceil() as u64
}

/// The sizes of what is in a container.
#[derive(Clone, Copy, Debug)]
struct Entry {
    is_list: bool,
    key: Range,
    value: Range,
}

impl Entry {
    fn union(self, other: Self) -> Self {
        Self { is_list: self.is_list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

/// What is known of a node.
#[derive(Clone, Debug)]
struct Estimate<'s> {
    cost: u64,
    path: Path<'s>,
    size: Option<Range>,
    entry: Option<Entry>,
}

impl Estimate<'_> {
    fn size(&self) -> Range {
        self.size.unwrap_or(Range::UNKNOWN)
    }
}

/// A variable of a macro.
struct Local<'s> {
    path: Path<'s>,
    size: Option<Range>,
    entry: Option<Entry>,
}

/// What evaluating a checked tree costs at most.
pub(crate) fn estimate(expr: &Expr, types: &Types, sizes: Sizes<'_>) -> u64 {
    Estimator { types, sizes, locals: Vec::new() }.expr(expr).cost
}

struct Estimator<'s> {
    types: &'s Types,
    sizes: Sizes<'s>,
    locals: Vec<Local<'s>>,
}

/// The size of what always has the same.
fn of_type(ty: &Type) -> Option<Range> {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => {
            Some(Range::exactly(1))
        }
        Type::Optional(of) => of_type(of),
        _ => None,
    }
}

impl<'s> Estimator<'s> {
    fn ty(&self, expr: &Expr) -> &'s Type {
        self.types.of(expr).unwrap_or(&DYN)
    }

    /// A node whose size follows from where it is, or from its type.
    fn placed(&self, expr: &Expr, cost: u64, path: Path<'s>) -> Estimate<'s> {
        let size = path.size().or_else(|| of_type(self.ty(expr)));
        Estimate { cost, path, size, entry: None }
    }

    /// A node that is no part of any variable.
    fn made(&self, expr: &Expr, cost: u64, size: Option<Range>) -> Estimate<'s> {
        let size = size.or_else(|| of_type(self.ty(expr)));
        Estimate { cost, path: Path::Nowhere, size, entry: None }
    }

    fn sum<'e>(&mut self, all: impl IntoIterator<Item = &'e Expr>) -> u64 {
        all.into_iter().fold(0, |sum: u64, e| sum.saturating_add(self.expr(e).cost))
    }

    fn expr(&mut self, expr: &Expr) -> Estimate<'s> {
        match &expr.kind {
            Kind::Literal(Literal::Type(name)) => self.placed(expr, 1, self.sizes.variable(name)),
            Kind::Literal(literal) => self.made(expr, 0, Some(of_literal(literal))),
            // the check leaves none
            Kind::Name(name) => self.placed(expr, 1, self.sizes.variable(name)),
            Kind::Variable(place) => self.placed(expr, 1, self.sizes.variable_at(usize::from(*place))),
            Kind::Local(place) => match self.locals.get(usize::from(*place)) {
                Some(local) => {
                    let (path, size, entry) = (local.path, local.size, local.entry);
                    let found = self.placed(expr, 1, path);
                    Estimate { size: found.size.or(size), entry, ..found }
                }
                None => self.placed(expr, 1, Path::Nowhere),
            },
            Kind::Select { operand, optional: true, .. } => {
                let cost = self.expr(operand).cost.saturating_add(1);
                self.made(expr, cost, None)
            }
            Kind::Select { operand, field, .. } => {
                let of = self.expr(operand);
                let own = u64::from(matches!(self.ty(operand), Type::Map(..) | Type::Object(_)));
                self.placed(expr, of.cost.saturating_add(own), self.sizes.field(of.path, field))
            }
            Kind::Has { operand, .. } => {
                let cost = self.expr(operand).cost;
                self.made(expr, cost, None)
            }
            Kind::Index { operand, key, optional } => self.index(expr, operand, key, *optional),
            Kind::Call(call) => self.call(expr, call),
            Kind::Binary(op, both) => self.binary(expr, *op, both),
            Kind::And(all) | Kind::Or(all) => {
                let cost = self.sum(all);
                self.made(expr, cost, None)
            }
            Kind::Not(operand) | Kind::Negate(operand) => {
                let cost = self.expr(operand).cost.saturating_add(1);
                self.made(expr, cost, None)
            }
            Kind::Ternary(three) => {
                let [condition, yes, no] = three.each_ref().map(|e| self.expr(e));
                let cost = condition.cost.saturating_add(yes.cost.max(no.cost));
                let entry = yes.entry.zip(no.entry).map(|(a, b)| a.union(b));
                Estimate { entry, ..self.made(expr, cost, Some(yes.size().union(no.size()))) }
            }
            Kind::List(items) => {
                let parts: Vec<_> = items.iter().map(|(item, _)| self.expr(item)).collect();
                let entry = Entry { is_list: true, key: Range::exactly(1), value: of_all(&parts) };
                container(LIST, parts.len(), &parts, entry)
            }
            Kind::Map(entries) => {
                let keys: Vec<_> = entries.iter().map(|(key, ..)| self.expr(key)).collect();
                let values: Vec<_> = entries.iter().map(|(_, value, _)| self.expr(value)).collect();
                let entry = Entry { is_list: false, key: of_all(&keys), value: of_all(&values) };
                let parts: Vec<_> = keys.into_iter().chain(values).collect();
                container(MAP, entries.len(), &parts, entry)
            }
            Kind::Struct(_, fields) => {
                let cost = self.sum(fields.iter().map(|(_, value, _)| value)).saturating_add(STRUCT);
                self.made(expr, cost, None)
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { value, body, .. } => {
                let value = self.expr(value);
                self.bind(value, body)
            }
            Kind::OptionalMap { operand, body, flat, .. } => self.optional_map(operand, body, *flat),
        }
    }

    fn index(&mut self, expr: &Expr, operand: &Expr, key: &Expr, optional: bool) -> Estimate<'s> {
        let (of, by) = (self.expr(operand), self.expr(key));
        let cost = of.cost.saturating_add(by.cost).saturating_add(1);
        if optional || matches!(self.ty(operand), Type::Optional(_)) {
            return self.made(expr, cost, None);
        }
        // items and values are found in the same way
        let found = self.placed(expr, cost, self.sizes.element(of.path));
        Estimate { size: of.entry.map(|e| e.value).or(found.size), ..found }
    }

    fn binary(&mut self, expr: &Expr, op: Op, both: &[Expr; 2]) -> Estimate<'s> {
        let (a, b) = (self.expr(&both[0]), self.expr(&both[1]));
        let own = calls::operator(op, self.ty(&both[0]), self.ty(&both[1]), a.size(), b.size());
        let cost = a.cost.saturating_add(b.cost).saturating_add(own.cost);
        let entry = if op == Op::Add { a.entry.zip(b.entry).map(|(a, b)| a.union(b)) } else { None };
        Estimate { entry, ..self.made(expr, cost, own.size) }
    }

    /// A value that has a name in an expression: written out as a loop over nothing.
    fn bind(&mut self, value: Estimate<'s>, body: &Expr) -> Estimate<'s> {
        let before = value.cost.saturating_add(LIST);
        self.locals.push(Local { path: value.path, size: value.size, entry: value.entry });
        let body = self.expr(body);
        self.locals.pop();
        Estimate { cost: before.saturating_add(body.cost), path: Path::Nowhere, ..body }
    }

    /// Written out as `a.hasValue() ? optional.of(bind(a.value(), body)) : optional.none()`.
    fn optional_map(&mut self, operand: &Expr, body: &Expr, flat: bool) -> Estimate<'s> {
        let asked = self.expr(operand).cost.saturating_add(1);
        let size = of_type(self.ty(operand).unwrapped());
        let value = Estimate { cost: asked, path: Path::Nowhere, size, entry: None };
        let made = self.bind(value, body);
        let size = if flat { made.size() } else { of_type(self.ty(body)).unwrap_or(Range::UNKNOWN) };
        let none = of_type(self.ty(body)).unwrap_or(Range::UNKNOWN);
        let cost = asked.saturating_add(made.cost.saturating_add(u64::from(!flat)));
        Estimate { cost, path: Path::Nowhere, size: Some(size.union(none)), entry: None }
    }

    fn fold(&mut self, fold: &Fold) -> Estimate<'s> {
        let range = self.expr(&fold.range);
        let is_list = range.entry.map_or(matches!(self.ty(&fold.range), Type::List(_)), |e| e.is_list);
        let key = Local {
            path: if is_list { self.sizes.index(range.path) } else { self.sizes.key(range.path) },
            size: range.entry.map(|e| e.key),
            entry: None,
        };
        let value = Local { path: self.sizes.element(range.path), size: range.entry.map(|e| e.value), entry: None };
        let depth = self.locals.len();
        match (fold.second.is_some(), is_list) {
            (true, _) => self.locals.extend([key, value]),
            (false, true) => self.locals.push(value),
            (false, false) => self.locals.push(key),
        }
        let filter = fold.filter.as_ref().map(|filter| self.expr(filter).cost);
        let body = self.expr(&fold.body);
        // what is kept of a list that is filtered
        let kept = self.locals.get(depth).and_then(|local| local.path.size().or(local.size));
        let kept = kept.or_else(|| if let Type::List(item) = self.ty(&fold.range) { of_type(item) } else { None });
        self.locals.truncate(depth);

        // what the loop begins with, asks and does each time, and what is made of it
        let (initial, asked, step, result) = match fold.kind {
            FoldKind::All => (0, 2, body.cost.saturating_add(1), 1),
            FoldKind::Exists => (0, 3, body.cost.saturating_add(1), 1),
            FoldKind::ExistsOne => (0, 0, body.cost.saturating_add(2), 2),
            FoldKind::Map | FoldKind::TransformList => (LIST, 0, body.cost.saturating_add(2 + LIST), 1),
            FoldKind::Filter => (LIST, 0, body.cost.saturating_add(3 + LIST), 1),
            FoldKind::TransformMap => (MAP, 0, body.cost.saturating_add(3), 1),
            FoldKind::TransformMapEntry => (MAP, 0, body.cost.saturating_add(2), 1),
        };
        let each = filter.unwrap_or(0).saturating_add(step).saturating_add(asked);
        let cost = range.cost.saturating_add(initial).saturating_add(result);
        let cost = cost.saturating_add(range.size().max.saturating_mul(each));
        let list_of = |value: Range| {
            let empty = Entry { is_list: true, key: Range::exactly(1), value: Range::exactly(0) };
            Some(empty.union(Entry { value, ..empty }))
        };
        let (size, entry) = match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => (Range::exactly(1), None),
            FoldKind::Map | FoldKind::TransformList => (range.size(), list_of(body.size())),
            FoldKind::Filter => (range.size(), list_of(kept.unwrap_or(Range::UNKNOWN))),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => (range.size(), None),
        };
        Estimate { cost, path: Path::Nowhere, size: Some(size), entry }
    }
}

fn of_literal(literal: &Literal) -> Range {
    Range::exactly(match literal {
        Literal::String(text) => text.chars().count() as u64,
        Literal::Bytes(bytes) => bytes.len() as u64,
        _ => 1,
    })
}

/// The sizes of all together.
fn of_all(parts: &[Estimate<'_>]) -> Range {
    parts.iter().map(Estimate::size).reduce(Range::union).unwrap_or(Range::exactly(0))
}

fn container<'s>(base: u64, len: usize, parts: &[Estimate<'s>], entry: Entry) -> Estimate<'s> {
    let cost = parts.iter().fold(base, |sum, part| sum.saturating_add(part.cost));
    Estimate { cost, path: Path::Nowhere, size: Some(Range::exactly(len as u64)), entry: Some(entry) }
}

#[cfg(test)]
mod tests;
