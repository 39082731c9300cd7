//! Which values are equal, and which come first.

use super::{List, Map, Opaque, Value};
use crate::budget::Budget;
use crate::error::Error;
use std::cmp::Ordering;

/// Values nested deeper than this are not compared.
const DEEPEST: u16 = 200;

/// Whether two values are equal; numbers of different types may be, values of different kinds are not.
pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>, budget: &mut Budget) -> Result<bool, Error> {
    equal_at(a, b, budget, 0)
}

fn equal_at(a: &Value<'_>, b: &Value<'_>, budget: &mut Budget, depth: u16) -> Result<bool, Error> {
    if depth > DEEPEST {
        return Err(Error::new("values are nested too deeply"));
    }
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => {
            budget.pay_bytes(a.len().min(b.len()))?;
            **a == **b
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.pay_bytes(a.len().min(b.len()))?;
            a == b
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => equal_at(a, b, budget, depth + 1)?,
            (a, b) => a.is_none() && b.is_none(),
        },
        (Value::List(a), Value::List(b)) => lists(a, b, budget, depth)?,
        (Value::Map(a), Value::Map(b)) => maps(a, b, budget, depth)?,
        (Value::Opaque(a), Value::Opaque(b)) => match (&**a, &**b) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a, x), Opaque::Cidr(b, y)) => (a, x) == (b, y),
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a == b,
            (Opaque::Format(a), Opaque::Format(b)) => a == b,
            _ => false,
        },
        _ => numbers(a, b) == Some(Ordering::Equal),
    })
}

fn lists(a: &List<'_>, b: &List<'_>, budget: &mut Budget, depth: u16) -> Result<bool, Error> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b.iter()) {
        budget.pay(1)?;
        if !equal_at(&a, &b, budget, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn maps(a: &Map<'_>, b: &Map<'_>, budget: &mut Budget, depth: u16) -> Result<bool, Error> {
    if a.len() != b.len() {
        return Ok(false);
    }
    budget.pay(a.len() as u64)?;
    for (key, value) in a.entries() {
        // the lifetimes of the two maps differ: a key is looked up by what it says
        let other = match &key {
            Value::String(name) => by_name(b, name),
            key => by_entry(b, key),
        };
        match other {
            Some(other) if equal_at(&value, &other, budget, depth + 1)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn by_name<'b>(map: &Map<'b>, name: &str) -> Option<Value<'b>> {
    match map {
        // the names are those of JSON here, not those of expressions
        Map::Json(fields, crate::types::Type::Object(object)) => {
            let json = fields.get(name)?;
            let known = object.fields.values().find(|f| *f.json == *name);
            Some(Value::from_json(json, known.map_or(&crate::types::DYN, |f| &f.ty)))
        }
        map => map.field(name),
    }
}

fn by_entry<'b>(map: &Map<'b>, key: &Value<'_>) -> Option<Value<'b>> {
    let key = match key {
        Value::Bool(b) => Value::Bool(*b),
        Value::Int(n) => Value::Int(*n),
        Value::Uint(n) => Value::Uint(*n),
        _ => return None,
    };
    map.get(&key)
}

fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    let whole = |v: &Value<'_>| match v {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    match (whole(a), whole(b), a, b) {
        (Some(a), Some(b), ..) => Some(a.cmp(&b)),
        (_, _, Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Some(a), _, _, Value::Double(b)) => mixed(a, *b),
        (_, Some(b), Value::Double(a), _) => mixed(b, *a).map(Ordering::reverse),
        _ => None,
    }
}

/// A whole number and a floating point number, exactly.
fn mixed(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    // saturates, far outside what whole numbers here can be
    let below = b.floor() as i128;
    Some(a.cmp(&below).then(if b.fract() == 0.0 || b.is_infinite() { Ordering::Equal } else { Ordering::Less }))
}

/// Which of two values comes first.
///
/// # Errors
/// When there is no order between them.
pub(crate) fn compare(a: &Value<'_>, b: &Value<'_>, budget: &mut Budget) -> Result<Option<Ordering>, Error> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::String(a), Value::String(b)) => {
            budget.pay_bytes(a.len().min(b.len()))?;
            Some((**a).cmp(&**b))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.pay_bytes(a.len().min(b.len()))?;
            Some(a.cmp(b))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            numbers(a, b)
        }
        _ => return Err(Error::no_overload()),
    })
}
