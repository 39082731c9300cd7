//! Conversions between types, and `size`.

use super::{Context, Function, global, member};
use crate::error::Error;
use crate::value::{Text, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;

const SIZES: &[&str] = &["string : int", "bytes : int", "list<A> : int", "map<A,B> : int"];

pub(super) static FUNCTIONS: &[Function] = &[
    global("size", SIZES, size),
    member("size", SIZES, size),
    global(
        "int",
        &["int : int", "uint : int", "double : int", "string : int", "timestamp : int", "duration : int"],
        to_int,
    ),
    global("uint", &["uint : uint", "int : uint", "double : uint", "string : uint"], to_uint),
    global("double", &["double : double", "int : double", "uint : double", "string : double"], to_double),
    global(
        "string",
        &[
            "string : string",
            "bool : string",
            "int : string",
            "uint : string",
            "double : string",
            "bytes : string",
            "timestamp : string",
            "duration : string",
            "ip : string",
            "cidr : string",
        ],
        to_string,
    ),
    global("bytes", &["bytes : bytes", "string : bytes"], to_bytes),
    global("bool", &["bool : bool", "string : bool"], to_bool),
    global("dyn", &["A : dyn"], same),
    global("type", &["A : type"], type_of),
    global("timestamp", &["timestamp : timestamp", "string : timestamp", "int : timestamp"], to_timestamp),
    global("duration", &["duration : duration", "string : duration", "int : duration"], to_duration),
    global("base64.encode", &["bytes : string"], encode),
    global("base64.decode", &["string : bytes"], decode),
];

fn one<'v, 'a>(a: &'v [Value<'a>]) -> Result<&'v Value<'a>, Error> {
    a.first().ok_or_else(Error::no_overload)
}

fn length<'a>(n: usize) -> Value<'a> {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn size<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::String(text) => {
            c.budget.pay_bytes(text.len())?;
            Ok(length(text.chars().count()))
        }
        Value::Bytes(bytes) => Ok(length(bytes.len())),
        Value::List(list) => Ok(length(list.len())),
        Value::Map(map) => Ok(length(map.len())),
        _ => Err(Error::no_overload()),
    }
}

fn range(what: &str) -> Error {
    Error::new(format!("{what} overflow"))
}

fn conversion(text: &str, to: &str) -> Error {
    let shown: String = text.chars().take(100).collect();
    Error::new(format!("type conversion error from 'string' to '{to}': {shown:?}"))
}

fn to_int<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::Int(n) => Ok(Value::Int(*n)),
        Value::Uint(n) => i64::try_from(*n).map(Value::Int).map_err(|_| range("integer")),
        Value::Double(n) if n.is_finite() && *n > -9.223_372_036_854_776e18 && *n < 9.223_372_036_854_776e18 => {
            Ok(Value::Int(*n as i64))
        }
        Value::Double(_) => Err(range("integer")),
        Value::String(text) => text.parse().map(Value::Int).map_err(|_| conversion(text, "int")),
        Value::Timestamp(t) => Ok(Value::Int(t.as_second())),
        Value::Duration(d) => Ok(Value::Int(*d)),
        _ => Err(Error::no_overload()),
    }
}

fn to_uint<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::Uint(n) => Ok(Value::Uint(*n)),
        Value::Int(n) => u64::try_from(*n).map(Value::Uint).map_err(|_| range("unsigned integer")),
        Value::Double(n) if *n >= 0.0 && *n < 1.844_674_407_370_955_2e19 => Ok(Value::Uint(*n as u64)),
        Value::Double(_) => Err(range("unsigned integer")),
        Value::String(text) => text.parse().map(Value::Uint).map_err(|_| conversion(text, "uint")),
        _ => Err(Error::no_overload()),
    }
}

fn to_double<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::Double(n) => Ok(Value::Double(*n)),
        Value::Int(n) => Ok(Value::Double(*n as f64)),
        Value::Uint(n) => Ok(Value::Double(*n as f64)),
        Value::String(text) => text.parse().map(Value::Double).map_err(|_| conversion(text, "double")),
        _ => Err(Error::no_overload()),
    }
}

/// A floating point number as text.
pub(crate) fn double(n: f64) -> String {
    if n.is_nan() {
        return "NaN".to_owned();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if n != 0.0 && !(1e-4..1e21).contains(&n.abs()) {
        let text = format!("{n:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    n.to_string()
}

/// A length of time as text, in seconds.
pub(crate) fn seconds(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, rest) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{whole}s");
    }
    let digits = format!("{rest:09}");
    format!("{sign}{whole}.{}s", digits.trim_end_matches('0'))
}

fn to_string<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        text @ Value::String(_) => Ok(text.clone()),
        Value::Bytes(bytes) => {
            c.budget.pay_bytes(bytes.len())?;
            let text = std::str::from_utf8(bytes)
                .map_err(|_| Error::new("invalid UTF-8 in bytes, cannot convert to string"))?;
            Ok(Value::owned(text))
        }
        value @ (Value::Bool(_)
        | Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Timestamp(_)
        | Value::Duration(_)
        | Value::Opaque(_)) => Ok(Value::owned(value.to_string())),
        _ => Err(Error::no_overload()),
    }
}

fn to_bytes<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        bytes @ Value::Bytes(_) => Ok(bytes.clone()),
        Value::String(text) => {
            c.budget.pay_bytes(text.len())?;
            Ok(Value::Bytes(Arc::from(text.as_bytes())))
        }
        _ => Err(Error::no_overload()),
    }
}

fn to_bool<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::Bool(b) => Ok(Value::Bool(*b)),
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            text => Err(conversion(text, "bool")),
        },
        _ => Err(Error::no_overload()),
    }
}

fn same<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    one(a).cloned()
}

fn type_of<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    Ok(Value::Type(one(a)?.type_name()))
}

fn to_timestamp<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::Timestamp(t) => Ok(Value::Timestamp(*t)),
        Value::Int(n) => jiff::Timestamp::from_second(*n).map(Value::Timestamp).map_err(|_| range("timestamp")),
        Value::String(text) => {
            // RFC 3339 and nothing else that the library would take, too
            let b = text.as_bytes();
            let is_strict = b.len() >= 20 && b.get(10) == Some(&b'T') && !text.contains('[');
            let parsed = text.parse().ok().filter(|_| is_strict);
            parsed.map(Value::Timestamp).ok_or_else(|| conversion(text, "timestamp"))
        }
        _ => Err(Error::no_overload()),
    }
}

fn to_duration<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match one(a)? {
        Value::Duration(d) => Ok(Value::Duration(*d)),
        Value::Int(n) => Ok(Value::Duration(*n)),
        Value::String(text) => {
            edge_api::duration::parse(text).map(Value::Duration).ok_or_else(|| conversion(text, "duration"))
        }
        _ => Err(Error::no_overload()),
    }
}

fn encode<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let Value::Bytes(bytes) = one(a)? else { return Err(Error::no_overload()) };
    c.budget.pay_bytes(bytes.len())?;
    Ok(Value::owned(STANDARD.encode(bytes)))
}

fn decode<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let Value::String(Text::Borrowed(_) | Text::Shared(_)) = one(a)? else { return Err(Error::no_overload()) };
    let text = super::text(a, 0)?;
    c.budget.pay_bytes(text.len())?;
    STANDARD.decode(text.as_bytes()).map(|b| Value::Bytes(b.into())).map_err(|e| Error::new(e.to_string()))
}
