//! Functions of text; places are counted in characters.

use super::{Context, Function, int, list, member, text};
use crate::error::Error;
use crate::value::Value;

pub(super) static FUNCTIONS: &[Function] = &[
    member("contains", &["string string : bool"], contains),
    member("startsWith", &["string string : bool"], starts_with),
    member("endsWith", &["string string : bool"], ends_with),
    member("charAt", &["string int : string"], char_at),
    member("indexOf", &["string string : int", "string string int : int", "list<A> A : int"], index_of),
    member("lastIndexOf", &["string string : int", "string string int : int", "list<A> A : int"], last_index_of),
    member("lowerAscii", &["string : string"], lower),
    member("upperAscii", &["string : string"], upper),
    member("replace", &["string string string : string", "string string string int : string"], replace),
    member("split", &["string string : list<string>", "string string int : list<string>"], split),
    member("join", &["list<string> : string", "list<string> string : string"], join),
    member("substring", &["string int : string", "string int int : string"], substring),
    member("trim", &["string : string"], trim),
    member("reverse", &["string : string", "list<A> : list<A>"], reverse),
    super::global("strings.quote", &["string : string"], quote),
];

type Out<'a> = Result<Value<'a>, Error>;

/// Two texts, paid for.
fn two<'v, 'a>(c: &mut Context<'_>, a: &'v [Value<'a>]) -> Result<(&'v str, &'v str), Error> {
    let (this, other) = (text(a, 0)?, text(a, 1)?);
    c.budget.pay_bytes(this.len())?;
    Ok((this, other))
}

fn contains<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (this, other) = two(c, a)?;
    Ok(Value::Bool(this.contains(other)))
}

fn starts_with<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let other = text(a, 1)?;
    c.budget.pay_bytes(other.len())?;
    Ok(Value::Bool(text(a, 0)?.starts_with(&**other)))
}

fn ends_with<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let other = text(a, 1)?;
    c.budget.pay_bytes(other.len())?;
    Ok(Value::Bool(text(a, 0)?.ends_with(&**other)))
}

fn out_of_range(i: i64) -> Error {
    Error::new(format!("index out of range: {i}"))
}

/// The byte at which a character begins; also the end.
fn byte_of(text: &str, chars: i64) -> Result<usize, Error> {
    let n = usize::try_from(chars).map_err(|_| out_of_range(chars))?;
    text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(n).ok_or_else(|| out_of_range(chars))
}

fn chars_before<'a>(text: &str, byte: Option<usize>) -> Value<'a> {
    let count = byte.and_then(|b| text.get(..b)).map(|t| t.chars().count());
    Value::Int(count.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1))
}

fn char_at<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (this, at) = (text(a, 0)?, int(a, 1)?);
    c.budget.pay_bytes(this.len())?;
    let from = byte_of(this, at)?;
    let found: String = this.get(from..).unwrap_or_default().chars().take(1).collect();
    Ok(Value::owned(found))
}

fn index_of<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    if matches!(a.first(), Some(Value::List(_))) {
        return super::lists::index_of(c, a, false);
    }
    let (this, other) = two(c, a)?;
    let from = match a.get(2) {
        None => 0,
        Some(_) if other.is_empty() => return Ok(Value::Int(int(a, 2)?)),
        Some(_) => byte_of(this, int(a, 2)?)?,
    };
    let found = this.get(from..).and_then(|t| t.find(other)).map(|i| i + from);
    Ok(chars_before(this, found))
}

fn last_index_of<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    if matches!(a.first(), Some(Value::List(_))) {
        return super::lists::index_of(c, a, true);
    }
    let (this, other) = two(c, a)?;
    // it may begin there at the latest
    let until = match a.get(2) {
        None => this.len(),
        Some(_) => (byte_of(this, int(a, 2)?)? + other.len()).min(this.len()),
    };
    let mut until = until;
    while !this.is_char_boundary(until) {
        until -= 1;
    }
    Ok(chars_before(this, this.get(..until).and_then(|t| t.rfind(other))))
}

fn lower<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    Ok(Value::owned(this.to_ascii_lowercase()))
}

fn upper<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    Ok(Value::owned(this.to_ascii_uppercase()))
}

fn replace<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (this, old) = two(c, a)?;
    let new = text(a, 2)?;
    let most = if a.len() > 3 { int(a, 3)? } else { -1 };
    let places = if old.is_empty() { this.chars().count() + 1 } else { this.matches(old).count() };
    let count = usize::try_from(most).unwrap_or(usize::MAX).min(places);
    c.budget.pay_bytes(this.len() + count.saturating_mul(new.len()))?;
    Ok(Value::owned(this.replacen(old, new, count)))
}

fn split<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (this, by) = two(c, a)?;
    let most = if a.len() > 2 { int(a, 2)? } else { -1 };
    if most == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let parts: Vec<Value<'a>> = if by.is_empty() {
        let count = this.chars().count();
        c.budget.pay(count as u64)?;
        let first = this.char_indices().take(count.min(most).saturating_sub(1));
        let mut parts: Vec<Value<'a>> = first.clone().map(|(_, ch)| Value::owned(ch.to_string())).collect();
        let rest = first.last().map_or(0, |(i, ch)| i + ch.len_utf8());
        parts.extend(this.get(rest..).filter(|r| !r.is_empty()).map(Value::owned));
        parts
    } else {
        c.budget.pay(this.matches(by).take(most).count() as u64)?;
        this.splitn(most, by).map(Value::owned).collect()
    };
    Ok(Value::list(parts))
}

fn join<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let items = list(a, 0)?;
    let by = if a.len() > 1 { &**text(a, 1)? } else { "" };
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let Value::String(item) = item else { return Err(Error::no_overload()) };
        c.budget.pay_bytes(item.len() + by.len())?;
        if i > 0 {
            out.push_str(by);
        }
        out.push_str(&item);
    }
    Ok(Value::owned(out))
}

fn substring<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    let from = byte_of(this, int(a, 1)?)?;
    let until = if a.len() > 2 { byte_of(this, int(a, 2)?)? } else { this.len() };
    let found = this.get(from..until);
    found.map(Value::owned).ok_or_else(|| {
        Error::new(format!(
            "invalid substring range. start: {}, end: {}",
            int(a, 1).unwrap_or(0),
            int(a, 2).unwrap_or(0)
        ))
    })
}

fn trim<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    Ok(Value::owned(this.trim()))
}

fn reverse<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    if let Some(Value::List(items)) = a.first() {
        c.budget.pay(items.len() as u64)?;
        let mut items: Vec<Value<'a>> = items.iter().collect();
        items.reverse();
        return Ok(Value::list(items));
    }
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    Ok(Value::owned(this.chars().rev().collect::<String>()))
}

fn quote<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    let mut out = String::from("\"");
    for ch in this.chars() {
        match ch {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            ch => out.push(ch),
        }
    }
    out.push('"');
    Ok(Value::owned(out))
}
