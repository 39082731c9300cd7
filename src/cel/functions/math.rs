//! The `math` library.

use super::{Context, Function, global};
use crate::error::Error;
use crate::value::{Value, compare};
use std::cmp::Ordering;

const MANY: &[&str] = &["list<A> : A", "dyn* : dyn"];
const SAME: &[&str] = &["int : int", "uint : uint", "double : double"];
const BITS: &[&str] = &["int int : int", "uint uint : uint"];

pub(super) static FUNCTIONS: &[Function] = &[
    global("math.greatest", MANY, greatest),
    global("math.least", MANY, least),
    global("math.abs", SAME, abs),
    global("math.sign", SAME, sign),
    global("math.ceil", &["double : double"], |_, a| rounded(a, f64::ceil)),
    global("math.floor", &["double : double"], |_, a| rounded(a, f64::floor)),
    global("math.round", &["double : double"], |_, a| rounded(a, f64::round)),
    global("math.trunc", &["double : double"], |_, a| rounded(a, f64::trunc)),
    global("math.sqrt", &["double : double", "int : double", "uint : double"], sqrt),
    global("math.isNaN", &["double : bool"], |_, a| judged(a, f64::is_nan)),
    global("math.isInf", &["double : bool"], |_, a| judged(a, f64::is_infinite)),
    global("math.isFinite", &["double : bool"], |_, a| judged(a, f64::is_finite)),
    global("math.bitAnd", BITS, |_, a| bits(a, |x, y| x & y)),
    global("math.bitOr", BITS, |_, a| bits(a, |x, y| x | y)),
    global("math.bitXor", BITS, |_, a| bits(a, |x, y| x ^ y)),
    global("math.bitNot", &["int : int", "uint : uint"], bit_not),
    global("math.bitShiftLeft", &["int int : int", "uint int : uint"], |_, a| shift(a, true)),
    global("math.bitShiftRight", &["int int : int", "uint int : uint"], |_, a| shift(a, false)),
];

type Out<'a> = Result<Value<'a>, Error>;

fn extreme<'a>(c: &mut Context<'_>, a: &[Value<'a>], better: Ordering) -> Out<'a> {
    let all: Vec<Value<'a>> = match a {
        [Value::List(items)] => items.iter().collect(),
        a => a.to_vec(),
    };
    let mut best: Option<Value<'a>> = None;
    for item in all {
        c.budget.pay(1)?;
        if !matches!(item, Value::Int(_) | Value::Uint(_) | Value::Double(_)) {
            return Err(Error::no_overload());
        }
        let wins = match &best {
            None => true,
            Some(best) => compare(&item, best, c.budget)? == Some(better),
        };
        if wins {
            best = Some(item);
        }
    }
    best.ok_or_else(|| Error::new("math.@max(list) argument must not be empty"))
}

fn greatest<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    extreme(c, a, Ordering::Greater)
}

fn least<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    extreme(c, a, Ordering::Less)
}

fn abs<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    match a.first() {
        Some(Value::Int(n)) => n.checked_abs().map(Value::Int).ok_or_else(|| Error::new("integer overflow")),
        Some(Value::Uint(n)) => Ok(Value::Uint(*n)),
        Some(Value::Double(n)) => Ok(Value::Double(n.abs())),
        _ => Err(Error::no_overload()),
    }
}

fn sign<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    match a.first() {
        Some(Value::Int(n)) => Ok(Value::Int(n.signum())),
        Some(Value::Uint(n)) => Ok(Value::Uint(u64::from(*n > 0))),
        Some(Value::Double(n)) if *n == 0.0 || n.is_nan() => Ok(Value::Double(*n)),
        Some(Value::Double(n)) => Ok(Value::Double(n.signum())),
        _ => Err(Error::no_overload()),
    }
}

fn rounded<'a>(a: &[Value<'a>], how: fn(f64) -> f64) -> Out<'a> {
    if let Some(Value::Double(n)) = a.first() { Ok(Value::Double(how(*n))) } else { Err(Error::no_overload()) }
}

fn judged<'a>(a: &[Value<'a>], how: fn(f64) -> bool) -> Out<'a> {
    if let Some(Value::Double(n)) = a.first() { Ok(Value::Bool(how(*n))) } else { Err(Error::no_overload()) }
}

fn sqrt<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    match a.first() {
        Some(Value::Double(n)) => Ok(Value::Double(n.sqrt())),
        Some(Value::Int(n)) => Ok(Value::Double((*n as f64).sqrt())),
        Some(Value::Uint(n)) => Ok(Value::Double((*n as f64).sqrt())),
        _ => Err(Error::no_overload()),
    }
}

fn bits<'a>(a: &[Value<'a>], how: fn(u64, u64) -> u64) -> Out<'a> {
    match a {
        [Value::Int(x), Value::Int(y)] => Ok(Value::Int(how(x.cast_unsigned(), y.cast_unsigned()).cast_signed())),
        [Value::Uint(x), Value::Uint(y)] => Ok(Value::Uint(how(*x, *y))),
        _ => Err(Error::no_overload()),
    }
}

fn bit_not<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    match a.first() {
        Some(Value::Int(n)) => Ok(Value::Int(!n)),
        Some(Value::Uint(n)) => Ok(Value::Uint(!n)),
        _ => Err(Error::no_overload()),
    }
}

fn shift<'a>(a: &[Value<'a>], left: bool) -> Out<'a> {
    let (Some(value), Some(Value::Int(by))) = (a.first(), a.get(1)) else { return Err(Error::no_overload()) };
    let by = u32::try_from(*by).map_err(|_| Error::new(format!("math.bitShift() negative offset: {by}")))?;
    let shifted = |n: u64| if left { n.checked_shl(by) } else { n.checked_shr(by) }.unwrap_or(0);
    match value {
        Value::Int(n) => Ok(Value::Int(shifted(n.cast_unsigned()).cast_signed())),
        Value::Uint(n) => Ok(Value::Uint(shifted(*n))),
        _ => Err(Error::no_overload()),
    }
}
