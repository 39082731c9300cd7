//! Amounts of resources.

use super::{Context, Function, global, member, opaque, text};
use crate::error::Error;
use crate::value::{Opaque, Value};
use edge_api::Quantity;

pub(super) static FUNCTIONS: &[Function] = &[
    global("quantity", &["string : quantity"], parse),
    global("isQuantity", &["string : bool"], is_quantity),
    member("sign", &["quantity : int"], sign),
    member("add", &["quantity quantity : quantity", "quantity int : quantity"], |_, a| sum(a, Quantity::add)),
    member("sub", &["quantity quantity : quantity", "quantity int : quantity"], |_, a| sum(a, Quantity::sub)),
    member("asInteger", &["quantity : int"], as_integer),
    member("isInteger", &["quantity : bool"], is_integer),
    member("asApproximateFloat", &["quantity : double"], as_float),
];

type Out<'a> = Result<Value<'a>, Error>;

fn parse<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let parsed = Quantity::parse(text(a, 0)?).map_err(|e| Error::new(e.to_string()))?;
    Ok(Value::opaque(Opaque::Quantity(parsed)))
}

fn is_quantity<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::Bool(Quantity::parse(text(a, 0)?).is_ok()))
}

fn of(a: &[Value<'_>], i: usize) -> Result<Quantity, Error> {
    if let Opaque::Quantity(q) = opaque(a, i)? { Ok(*q) } else { Err(Error::no_overload()) }
}

fn sign<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let q = of(a, 0)?;
    Ok(Value::Int(if q.is_zero() {
        0
    } else if q.is_negative() {
        -1
    } else {
        1
    }))
}

fn sum<'a>(a: &[Value<'a>], how: fn(&Quantity, &Quantity) -> Quantity) -> Out<'a> {
    let other = match a.get(1) {
        Some(Value::Int(n)) => Quantity::from_units(*n),
        _ => of(a, 1)?,
    };
    Ok(Value::opaque(Opaque::Quantity(how(&of(a, 0)?, &other))))
}

fn whole(q: &Quantity) -> Option<i64> {
    let units = q.value();
    (Quantity::from_units(units) == *q).then_some(units)
}

fn as_integer<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    whole(&of(a, 0)?).map(Value::Int).ok_or_else(|| Error::new("cannot convert value to integer"))
}

fn is_integer<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::Bool(whole(&of(a, 0)?).is_some()))
}

fn as_float<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::Double(of(a, 0)?.as_f64()))
}
