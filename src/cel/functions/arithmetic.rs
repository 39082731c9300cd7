//! `+ - * / %`: nothing wraps around.

use crate::ast::Op;
use crate::budget::Budget;
use crate::error::Error;
use crate::value::{List, Value};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

fn overflow(what: &str) -> Error {
    Error::new(format!("{what} overflow"))
}

/// `-value`.
pub(crate) fn negate<'a>(value: &Value<'a>) -> Result<Value<'a>, Error> {
    match value {
        Value::Int(n) => n.checked_neg().map(Value::Int).ok_or_else(|| overflow("integer")),
        Value::Double(n) => Ok(Value::Double(-n)),
        Value::Duration(n) => n.checked_neg().map(Value::Duration).ok_or_else(|| overflow("duration")),
        _ => Err(Error::no_overload()),
    }
}

fn shift(time: Timestamp, nanos: i64) -> Option<Timestamp> {
    time.checked_add(SignedDuration::from_nanos(nanos)).ok()
}

/// An operation of two values.
pub(crate) fn apply<'a>(op: Op, a: &Value<'a>, b: &Value<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => int(op, *a, *b),
        (Value::Uint(a), Value::Uint(b)) => uint(op, *a, *b),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match op {
            Op::Add => a + b,
            Op::Sub => a - b,
            Op::Mul => a * b,
            Op::Div => a / b,
            _ => return Err(Error::no_overload()),
        })),
        (Value::Duration(a), Value::Duration(b)) => {
            let sum = match op {
                Op::Add => a.checked_add(*b),
                Op::Sub => a.checked_sub(*b),
                _ => return Err(Error::no_overload()),
            };
            sum.map(Value::Duration).ok_or_else(|| overflow("duration"))
        }
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) if op == Op::Add => {
            shift(*t, *d).map(Value::Timestamp).ok_or_else(|| overflow("timestamp"))
        }
        (Value::Timestamp(t), Value::Duration(d)) if op == Op::Sub => {
            d.checked_neg().and_then(|d| shift(*t, d)).map(Value::Timestamp).ok_or_else(|| overflow("timestamp"))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) if op == Op::Sub => {
            let nanos = i64::try_from(a.duration_since(*b).as_nanos());
            nanos.map(Value::Duration).map_err(|_| overflow("duration"))
        }
        _ if op == Op::Add => concatenate(a, b, budget),
        _ => Err(Error::no_overload()),
    }
}

fn concatenate<'a>(a: &Value<'a>, b: &Value<'a>, budget: &mut Budget) -> Result<Value<'a>, Error> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => {
            budget.pay_bytes(a.len() + b.len())?;
            Ok(Value::owned(format!("{}{}", &**a, &**b)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            budget.pay_bytes(a.len() + b.len())?;
            Ok(Value::Bytes(Arc::from([&**a, &**b].concat())))
        }
        (Value::List(a), Value::List(b)) => {
            if a.is_empty() {
                return Ok(Value::List(b.clone()));
            }
            if b.is_empty() {
                return Ok(Value::List(a.clone()));
            }
            budget.pay((a.len() + b.len()) as u64)?;
            Ok(Value::List(List::Shared(Arc::new(a.iter().chain(b.iter()).collect()))))
        }
        _ => Err(Error::no_overload()),
    }
}

fn int<'a>(op: Op, a: i64, b: i64) -> Result<Value<'a>, Error> {
    let result = match op {
        Op::Add => a.checked_add(b),
        Op::Sub => a.checked_sub(b),
        Op::Mul => a.checked_mul(b),
        Op::Div if b == 0 => return Err(Error::new("division by zero")),
        Op::Div => a.checked_div(b),
        Op::Rem if b == 0 => return Err(Error::new("modulus by zero")),
        Op::Rem => a.checked_rem(b),
        _ => return Err(Error::no_overload()),
    };
    result.map(Value::Int).ok_or_else(|| overflow("integer"))
}

fn uint<'a>(op: Op, a: u64, b: u64) -> Result<Value<'a>, Error> {
    let result = match op {
        Op::Add => a.checked_add(b),
        Op::Sub => a.checked_sub(b),
        Op::Mul => a.checked_mul(b),
        Op::Div if b == 0 => return Err(Error::new("division by zero")),
        Op::Div => a.checked_div(b),
        Op::Rem if b == 0 => return Err(Error::new("modulus by zero")),
        Op::Rem => a.checked_rem(b),
        _ => return Err(Error::no_overload()),
    };
    result.map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
}
