//! Functions of lists.

use super::{Context, Function, arithmetic, global, int, list, member};
use crate::ast::Op;
use crate::error::Error;
use crate::value::{Value, compare, equal};
use std::cmp::Ordering;

pub(super) static FUNCTIONS: &[Function] = &[
    member("isSorted", &["list<A> : bool"], is_sorted),
    member("sum", &["list<A> : A"], sum),
    member("min", &["list<A> : A"], min),
    member("max", &["list<A> : A"], max),
    member("slice", &["list<A> int int : list<A>"], slice),
    member("flatten", &["list<A> : list<dyn>", "list<A> int : list<dyn>"], flatten),
    member("sort", &["list<A> : list<A>"], sort),
    member("distinct", &["list<A> : list<A>"], distinct),
    member("first", &["list<A> : optional<A>"], first),
    member("last", &["list<A> : optional<A>"], last),
    global("lists.range", &["int : list<int>"], range),
];

type Out<'a> = Result<Value<'a>, Error>;

/// Where an item is, from the front or from the back.
pub(super) fn index_of<'a>(c: &mut Context<'_>, a: &[Value<'a>], from_back: bool) -> Out<'a> {
    let (items, wanted) = (list(a, 0)?, a.get(1).ok_or_else(Error::no_overload)?);
    for n in 0..items.len() {
        let i = if from_back { items.len() - 1 - n } else { n };
        c.budget.pay(1)?;
        if let Some(item) = items.get(i)
            && equal(&item, wanted, c.budget)?
        {
            return Ok(Value::Int(i64::try_from(i).unwrap_or(i64::MAX)));
        }
    }
    Ok(Value::Int(-1))
}

fn order<'a>(c: &mut Context<'_>, a: &Value<'a>, b: &Value<'a>) -> Result<Ordering, Error> {
    compare(a, b, c.budget)?.ok_or_else(Error::no_overload)
}

fn is_sorted<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let items = list(a, 0)?;
    let mut before: Option<Value<'a>> = None;
    for item in items.iter() {
        c.budget.pay(1)?;
        if let Some(before) = &before
            && order(c, before, &item)? == Ordering::Greater
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let mut sum: Option<Value<'a>> = None;
    for item in list(a, 0)?.iter() {
        c.budget.pay(1)?;
        if !matches!(item, Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_)) {
            return Err(Error::no_overload());
        }
        sum = Some(match sum {
            None => item,
            Some(sum) => arithmetic::apply(Op::Add, &sum, &item, c.budget)?,
        });
    }
    Ok(sum.unwrap_or(Value::Int(0)))
}

fn extreme<'a>(c: &mut Context<'_>, a: &[Value<'a>], name: &str, better: Ordering) -> Out<'a> {
    let mut best: Option<Value<'a>> = None;
    for item in list(a, 0)?.iter() {
        c.budget.pay(1)?;
        if best.as_ref().map_or(Ok(true), |best| order(c, &item, best).map(|o| o == better))? {
            best = Some(item);
        }
    }
    best.ok_or_else(|| Error::new(format!("{name} called on empty list")))
}

fn min<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    extreme(c, a, "min", Ordering::Less)
}

fn max<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    extreme(c, a, "max", Ordering::Greater)
}

fn slice<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (items, from, until) = (list(a, 0)?, int(a, 1)?, int(a, 2)?);
    let (Ok(from), Ok(until)) = (usize::try_from(from), usize::try_from(until)) else {
        return Err(Error::new(format!("cannot slice({from}, {until}), negative indexes not supported")));
    };
    if from > until || until > items.len() {
        return Err(Error::new(format!("cannot slice({from}, {until}), list is length {}", items.len())));
    }
    c.budget.pay((until - from) as u64)?;
    Ok(Value::list((from..until).filter_map(|i| items.get(i)).collect()))
}

fn flatten<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    fn into<'a>(c: &mut Context<'_>, value: Value<'a>, depth: i64, out: &mut Vec<Value<'a>>) -> Result<(), Error> {
        c.budget.pay(1)?;
        match value {
            Value::List(items) if depth > 0 => items.iter().try_for_each(|item| into(c, item, depth - 1, out)),
            value => {
                out.push(value);
                Ok(())
            }
        }
    }
    let depth = if a.len() > 1 { int(a, 1)? } else { 1 };
    if depth < 0 {
        return Err(Error::new("level must be non-negative"));
    }
    let mut out = Vec::new();
    for item in list(a, 0)?.iter() {
        into(c, item, depth.min(200), &mut out)?;
    }
    Ok(Value::list(out))
}

fn sort<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let mut items: Vec<Value<'a>> = list(a, 0)?.iter().collect();
    let mut error = None;
    items.sort_by(|a, b| {
        let order = c.budget.pay(1).and_then(|()| order(c, a, b));
        order.unwrap_or_else(|e| {
            error = error.take().or(Some(e));
            Ordering::Equal
        })
    });
    error.map_or_else(|| Ok(Value::list(items)), Err)
}

fn distinct<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let mut out: Vec<Value<'a>> = Vec::new();
    for item in list(a, 0)?.iter() {
        let mut is_new = true;
        for other in &out {
            c.budget.pay(1)?;
            if equal(other, &item, c.budget)? {
                is_new = false;
                break;
            }
        }
        if is_new {
            out.push(item);
        }
    }
    Ok(Value::list(out))
}

fn first<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::Optional(list(a, 0)?.get(0).map(std::sync::Arc::new)))
}

fn last<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let items = list(a, 0)?;
    Ok(Value::Optional(items.len().checked_sub(1).and_then(|i| items.get(i)).map(std::sync::Arc::new)))
}

fn range<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let n = int(a, 0)?;
    c.budget.pay(u64::try_from(n).unwrap_or(0))?;
    Ok(Value::list((0..n).map(Value::Int).collect()))
}
