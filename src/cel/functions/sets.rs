//! Lists as sets.

use super::{Context, Function, global, list};
use crate::error::Error;
use crate::value::{List, Value, equal};

pub(super) static FUNCTIONS: &[Function] = &[
    global("sets.contains", &["list<A> list<A> : bool"], contains),
    global("sets.equivalent", &["list<A> list<A> : bool"], equivalent),
    global("sets.intersects", &["list<A> list<A> : bool"], intersects),
];

fn has(c: &mut Context<'_>, items: &List<'_>, wanted: &Value<'_>) -> Result<bool, Error> {
    for item in items.iter() {
        c.budget.pay(1)?;
        if equal(&item, wanted, c.budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_all(c: &mut Context<'_>, items: &List<'_>, wanted: &List<'_>) -> Result<bool, Error> {
    for item in wanted.iter() {
        if !has(c, items, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn contains<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    has_all(c, list(a, 0)?, list(a, 1)?).map(Value::Bool)
}

fn equivalent<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (a, b) = (list(a, 0)?, list(a, 1)?);
    Ok(Value::Bool(has_all(c, a, b)? && has_all(c, b, a)?))
}

fn intersects<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (a, b) = (list(a, 0)?, list(a, 1)?);
    for item in a.iter() {
        if has(c, b, &item)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
