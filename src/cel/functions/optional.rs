//! Perhaps a value.

use super::{Context, Function, global, member, or};
use crate::error::Error;
use crate::value::Value;

pub(super) static FUNCTIONS: &[Function] = &[
    global("optional.of", &["A : optional<A>"], |_, a| Ok(Value::some(first(a)?.clone()))),
    global("optional.none", &[" : optional<A>"], |_, _| Ok(Value::Optional(None))),
    global("optional.ofNonZeroValue", &["A : optional<A>"], of_non_zero),
    member("hasValue", &["optional<A> : bool"], has_value),
    member("value", &["optional<A> : A"], value),
    or(member("orValue", &["optional<A> A : A"], or_value)),
    or(member("or", &["optional<A> optional<A> : optional<A>"], or_else)),
];

type Out<'a> = Result<Value<'a>, Error>;

fn first<'v, 'a>(a: &'v [Value<'a>]) -> Result<&'v Value<'a>, Error> {
    a.first().ok_or_else(Error::no_overload)
}

fn of_non_zero<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let value = first(a)?;
    Ok(if value.is_zero() { Value::Optional(None) } else { Value::some(value.clone()) })
}

fn has_value<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let Value::Optional(inner) = first(a)? else { return Err(Error::no_overload()) };
    Ok(Value::Bool(inner.is_some()))
}

fn value<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let Value::Optional(inner) = first(a)? else { return Err(Error::no_overload()) };
    inner.as_deref().cloned().ok_or_else(|| Error::new("optional.none() dereference"))
}

fn or_value<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let Value::Optional(inner) = first(a)? else { return Err(Error::no_overload()) };
    inner.as_deref().or(a.get(1)).cloned().ok_or_else(Error::no_overload)
}

fn or_else<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    match (first(a)?, a.get(1)) {
        (this @ Value::Optional(Some(_)), _) => Ok(this.clone()),
        (Value::Optional(None), Some(other @ Value::Optional(_))) => Ok(other.clone()),
        _ => Err(Error::no_overload()),
    }
}
