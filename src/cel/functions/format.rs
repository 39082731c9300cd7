//! `"%d of %s".format([1, "x"])`.

use super::{Context, Function, list, member, text};
use crate::error::Error;
use crate::value::{List, Value};
use std::fmt::Write as _;

pub(super) static FUNCTIONS: &[Function] = &[
    member("format", &["string list<A> : string"], format),
    super::global("jsonpatch.escapeKey", &["string : string"], escape_key),
];

/// Digits after the point at most.
const MOST_DIGITS: usize = 100;

fn format<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (pattern, items) = (text(a, 0)?, list(a, 1)?);
    c.budget.pay_bytes(pattern.len())?;
    let mut out = String::new();
    let mut next = 0;
    let mut rest = pattern.chars();
    while let Some(ch) = rest.next() {
        if ch != '%' {
            out.push(ch);
            continue;
        }
        let mut digits: Option<usize> = None;
        let mut verb = rest.next();
        if verb == Some('.') {
            let mut n = 0_usize;
            verb = rest.next();
            while let Some(d) = verb.and_then(|v| v.to_digit(10)) {
                n = n.saturating_mul(10).saturating_add(d as usize);
                verb = rest.next();
            }
            if n > MOST_DIGITS {
                return Err(Error::new("precision is too large"));
            }
            digits = Some(n);
        }
        let Some(verb) = verb else { return Err(Error::new("unexpected end of string")) };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let item = items.get(next).ok_or_else(|| Error::new(format!("index {next} out of range")))?;
        next += 1;
        let before = out.len();
        clause(verb, digits, &item, &mut out, c)?;
        c.budget.pay_bytes(out.len() - before)?;
    }
    Ok(Value::owned(out))
}

fn clause(
    verb: char,
    digits: Option<usize>,
    item: &Value<'_>,
    out: &mut String,
    c: &mut Context<'_>,
) -> Result<(), Error> {
    let wrong =
        || Error::new(format!("error during formatting: %{verb} clause cannot be used on {}", item.type_name()));
    let precision = digits.unwrap_or(6);
    let written = match (verb, item) {
        ('s', item) => return plain(item, out, c),
        ('d', Value::Int(n)) => write!(out, "{n}"),
        ('d', Value::Uint(n)) => write!(out, "{n}"),
        ('d', Value::Double(n)) if !n.is_finite() => write!(out, "{item}"),
        ('f', Value::Double(n)) => write!(out, "{n:.precision$}"),
        ('f', Value::Int(n)) => write!(out, "{:.precision$}", *n as f64),
        ('e', Value::Double(n)) => {
            let text = format!("{n:.precision$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |p| ('-', p));
            write!(out, "{mantissa}e{sign}{power:0>2}")
        }
        ('b', Value::Int(n)) => signed(out, *n, |n| format!("{n:b}")),
        ('b', Value::Uint(n)) => write!(out, "{n:b}"),
        ('b', Value::Bool(b)) => write!(out, "{}", u8::from(*b)),
        ('o', Value::Int(n)) => signed(out, *n, |n| format!("{n:o}")),
        ('o', Value::Uint(n)) => write!(out, "{n:o}"),
        ('x', Value::Int(n)) => signed(out, *n, |n| format!("{n:x}")),
        ('X', Value::Int(n)) => signed(out, *n, |n| format!("{n:X}")),
        ('x', Value::Uint(n)) => write!(out, "{n:x}"),
        ('X', Value::Uint(n)) => write!(out, "{n:X}"),
        ('x', Value::String(t)) => t.bytes().try_for_each(|b| write!(out, "{b:02x}")),
        ('X', Value::String(t)) => t.bytes().try_for_each(|b| write!(out, "{b:02X}")),
        ('x', Value::Bytes(t)) => t.iter().try_for_each(|b| write!(out, "{b:02x}")),
        ('X', Value::Bytes(t)) => t.iter().try_for_each(|b| write!(out, "{b:02X}")),
        ('d' | 'f' | 'e' | 'b' | 'o' | 'x' | 'X', _) => return Err(wrong()),
        _ => {
            return Err(Error::new(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{verb}\""
            )));
        }
    };
    written.map_err(|_| wrong())
}

fn signed(out: &mut String, n: i64, digits: impl Fn(u64) -> String) -> std::fmt::Result {
    write!(out, "{}{}", if n < 0 { "-" } else { "" }, digits(n.unsigned_abs()))
}

/// As `%s` has it: lists and maps with what is in them.
fn plain(item: &Value<'_>, out: &mut String, c: &mut Context<'_>) -> Result<(), Error> {
    c.budget.pay(1)?;
    match item {
        Value::List(items) => {
            out.push('[');
            each(items, out, c)?;
            out.push(']');
        }
        Value::Map(map) => {
            c.budget.pay(map.len() as u64)?;
            out.push('{');
            for (i, (key, value)) in map.entries().iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                plain(key, out, c)?;
                out.push_str(": ");
                plain(value, out, c)?;
            }
            out.push('}');
        }
        Value::Bytes(bytes) => out.push_str(&String::from_utf8_lossy(bytes)),
        item => {
            let _ = write!(out, "{item}");
        }
    }
    c.budget.pay(1)
}

fn each(items: &List<'_>, out: &mut String, c: &mut Context<'_>) -> Result<(), Error> {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        plain(&item, out, c)?;
    }
    Ok(())
}

fn escape_key<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let key = text(a, 0)?;
    c.budget.pay_bytes(key.len())?;
    Ok(Value::owned(key.replace('~', "~0").replace('/', "~1")))
}
