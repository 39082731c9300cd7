//! What functions and operators cost, beside what their arguments do.

use super::{Estimate, Estimator, LIST, Range, TRAVERSAL, scaled};
use crate::ast::{Call, Expr, Kind, Literal, Op};
use crate::types::Type;

/// Of a character of a pattern.
const PATTERN: f64 = 0.25;
/// Characters of the longest pattern behind a named format.
const FORMAT_PATTERN: f64 = 128.0;
/// Characters of a format's name at most.
const FORMAT: u64 = 64;
/// What comparing two addresses costs, of 16 bytes each, and masking one.
const ADDRESSES: Range = Range { min: 0, max: 32 };
const ADDRESS: Range = Range { min: 0, max: 16 };

/// What a function or operator costs, and how large what it makes is, where that follows.
#[derive(Clone, Copy)]
pub(super) struct Own {
    pub(super) cost: u64,
    pub(super) size: Option<Range>,
}

fn costs(cost: u64) -> Own {
    Own { cost, size: None }
}

fn makes(cost: u64, size: Range) -> Own {
    Own { cost, size: Some(size) }
}

/// One of two, of which the data decides.
fn either(a: Own, b: Own) -> Own {
    let size = a.size.zip(b.size).map(|(a, b)| a.union(b)).or(a.size).or(b.size);
    Own { cost: a.cost.max(b.cost), size }
}

fn is_text(ty: &Type) -> bool {
    matches!(ty, Type::String | Type::Bytes)
}

/// What comparing costs: going through the shorter one.
fn compared(a: Range, b: Range) -> u64 {
    scaled(a.max.min(b.max), TRAVERSAL)
}

pub(super) fn operator(op: Op, a: &Type, b: &Type, left: Range, right: Range) -> Own {
    match op {
        Op::Eq if a == b => costs(equality(a, right).unwrap_or_else(|| compared(left, right))),
        Op::Eq | Op::Ne => costs(compared(left, right)),
        Op::Lt | Op::Le | Op::Gt | Op::Ge => match (a, b) {
            (Type::Dyn, Type::Dyn) => costs(compared(left, right).max(1)),
            (a, b) if is_text(a) || is_text(b) => costs(compared(left, right)),
            _ => costs(1),
        },
        Op::In => match b {
            Type::List(_) => costs(right.max),
            Type::Dyn => costs(right.max.max(1)),
            _ => costs(1),
        },
        Op::Add => {
            let sum = left.plus(right);
            let (text, list) = (makes(sum.traversed(), sum), makes(1, sum));
            match (a, b) {
                (Type::Dyn, Type::Dyn) => either(text, list),
                (a, b) if is_text(a) || is_text(b) => text,
                (Type::List(_), _) | (_, Type::List(_)) => list,
                _ => costs(1),
            }
        }
        Op::Sub | Op::Mul | Op::Div | Op::Rem => costs(1),
    }
}

/// What comparing values of Kubernetes' types costs.
fn equality(ty: &Type, right: Range) -> Option<u64> {
    let Type::Opaque(name) = ty else { return None };
    Some(match *name {
        "kubernetes.NamedFormat" => scaled(FORMAT, TRAVERSAL),
        "kubernetes.URL" => right.traversed(),
        _ => 1,
    })
}

/// A number that the expression says.
fn literal(expr: Option<&Expr>) -> Option<i64> {
    match expr.map(|e| &e.kind) {
        Some(Kind::Literal(Literal::Int(n))) => Some(*n),
        _ => None,
    }
}

/// The same, not below zero; or else what it may be.
fn literal_or(expr: Option<&Expr>, other: u64) -> u64 {
    literal(expr).map_or(other, |n| u64::try_from(n).unwrap_or(0))
}

/// What makes a list out of one, with so much for each item.
fn list(factor: f64, size: Range) -> Own {
    makes(scaled(size.max, factor).saturating_add(1 + LIST), size)
}

/// What applying a pattern costs.
fn pattern(text: Range, pattern: Range) -> u64 {
    text.plus(Range::exactly(1)).traversed().saturating_mul(scaled(pattern.max, PATTERN))
}

impl<'s> Estimator<'s> {
    pub(super) fn call(&mut self, expr: &Expr, call: &Call) -> Estimate<'s> {
        let arguments: Vec<Estimate<'s>> = call.arguments.iter().map(|a| self.expr(a)).collect();
        if let ("dyn", false, [of]) = (&*call.name, call.is_member, arguments.as_slice()) {
            return Estimate { cost: of.cost.saturating_add(1), path: super::Path::Nowhere, ..of.clone() };
        }
        let own = if call.is_member { self.member(call, &arguments) } else { self.global(call, &arguments) };
        let cost = arguments.iter().fold(own.cost, |sum, a| sum.saturating_add(a.cost));
        self.made(expr, cost, own.size)
    }

    fn argument_type(&self, call: &Call, i: usize) -> &'s Type {
        call.arguments.get(i).map_or(&crate::types::DYN, |a| self.ty(a))
    }

    fn global(&self, call: &Call, arguments: &[Estimate<'s>]) -> Own {
        let size = |i: usize| arguments.get(i).map_or(Range::UNKNOWN, Estimate::size);
        let through = || size(0).traversed();
        match &*call.name {
            "url" | "jsonpatch.escapeKey" => makes(through(), size(0)),
            "ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => costs(through()),
            "ip.isCanonical" => costs(scaled(size(0).max, 2.0 * TRAVERSAL)),
            "bytes" => {
                // a character has up to four bytes; cel-go lets the number go round
                let text = makes(through(), Range { min: size(0).min, max: size(0).max.wrapping_mul(4) });
                match self.argument_type(call, 0) {
                    Type::String => text,
                    Type::Dyn => either(text, costs(1)),
                    _ => costs(1),
                }
            }
            "string" => {
                let bytes = makes(through(), Range { min: size(0).min / 4, max: size(0).max });
                match self.argument_type(call, 0) {
                    Type::Bytes => bytes,
                    Type::Dyn => either(bytes, costs(1)),
                    _ => costs(1),
                }
            }
            "strings.quote" => {
                let quoted = |n: u64, by: u64| n.wrapping_mul(by).wrapping_add(2);
                makes(through(), Range { min: quoted(size(0).min, 1), max: quoted(size(0).max, 2) })
            }
            "sets.contains" | "sets.intersects" => costs(size(0).times(size(1)).max.saturating_add(1)),
            "sets.equivalent" => costs(scaled(size(0).times(size(1)).max, 2.0).saturating_add(1)),
            "lists.range" => list(1.0, Range::exactly(literal_or(call.arguments.first(), u64::MAX))),
            _ => costs(1),
        }
    }

    fn member(&self, call: &Call, arguments: &[Estimate<'s>]) -> Own {
        let size = |i: usize| arguments.get(i).map_or(Range::UNKNOWN, Estimate::size);
        let (of, ty) = (size(0), self.argument_type(call, 0));
        match &*call.name {
            // asking about rights
            "check" => costs(350_000),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => match self.item(ty, arguments) {
                Some((item, each)) => {
                    let each = if is_text(item) { each.traversed().saturating_add(1) } else { 1 };
                    costs(of.max.saturating_mul(each))
                }
                None => costs(of.traversed()),
            },
            "lowerAscii" | "upperAscii" | "substring" | "trim" => makes(of.traversed(), of),
            "replace" => makes(scaled(of.max, 2.0 * TRAVERSAL), replaced(of, size(1), size(2))),
            "split" => {
                let most = literal(call.arguments.get(2)).map_or(of.max, i64::cast_unsigned);
                makes(scaled(of.max, 2.0 * TRAVERSAL), Range::up_to(most))
            }
            "join" => {
                let joined = self.item(ty, arguments).map_or(Range::exactly(0), |(_, each)| of.times(each));
                let separators = Range { min: of.min.saturating_sub(1), max: of.max.saturating_sub(1) };
                let between = if arguments.len() > 1 { size(1).times(separators) } else { Range::exactly(0) };
                let joined = joined.plus(between);
                makes(joined.traversed(), joined)
            }
            "find" | "findAll" => makes(pattern(of, size(1)), Range::up_to(of.max)),
            "matches" => costs(pattern(of, size(1))),
            "contains" => costs(of.traversed().saturating_mul(size(1).traversed())),
            "startsWith" | "endsWith" => costs(size(1).traversed()),
            "format" => costs(of.traversed()),
            "validate" => costs(scaled(size(1).traversed(), FORMAT_PATTERN * PATTERN)),
            "containsIP" => costs(ADDRESSES.traversed().saturating_add(self.parsed(call, size(1)))),
            "containsCIDR" => {
                let compared = ADDRESSES.traversed() + ADDRESS.traversed() + 1;
                costs(compared.saturating_add(self.parsed(call, size(1))))
            }
            "slice" => {
                let (from, until) = (literal_or(call.arguments.get(1), 0), literal_or(call.arguments.get(2), of.max));
                list(1.0, Range::exactly(until.wrapping_sub(from)))
            }
            "flatten" => {
                let depth = if arguments.len() > 1 { literal_or(call.arguments.get(1), u64::MAX) } else { 1 };
                list(depth as f64, of)
            }
            "reverse" if *ty != Type::String => list(1.0, of),
            "distinct" => list(2.0, of.times(of)),
            "sort" => {
                let is_plain = matches!(ty, Type::List(item) if !is_text(item) && **item != Type::Dyn);
                list(if is_plain { 2.0 } else { 2.0 + TRAVERSAL }, of.times(of))
            }
            _ => costs(1),
        }
    }

    /// The type of a list's items and their sizes.
    fn item(&self, of: &'s Type, arguments: &[Estimate<'s>]) -> Option<(&'s Type, Range)> {
        let (Type::List(item) | Type::Optional(item) | Type::Map(item, _)) = of else { return None };
        let size = match arguments.first()?.path {
            super::Path::Nowhere => None,
            path => self.sizes.element(path).size(),
        };
        Some((item, size.unwrap_or(Range::UNKNOWN)))
    }

    /// What it costs to read an argument that is text.
    fn parsed(&self, call: &Call, size: Range) -> u64 {
        if matches!(self.argument_type(call, 1), Type::String | Type::Dyn) { size.traversed() } else { 0 }
    }
}

/// The size of a text in which something is replaced.
fn replaced(text: Range, old: Range, new: Range) -> Range {
    let times = |text: u64, old: u64| (text as f64 / old as f64).ceil() as u64;
    let (most, most_kept) = if old.min == 0 {
        // between all characters
        (text.max.saturating_add(1), text.max)
    } else if new.max <= old.min {
        (0, text.max)
    } else {
        (times(text.max, old.min), 0)
    };
    let (least, least_kept) = if old.max == 0 {
        (text.min.saturating_add(1), text.min)
    } else if old.max <= new.min {
        (0, text.min)
    } else {
        (times(text.min, old.max), 0)
    };
    Range { min: least, max: most }.times(new).plus(Range { min: least_kept, max: most_kept })
}
