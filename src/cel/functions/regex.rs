//! Patterns. Matching takes time in proportion to text and pattern, and both are paid for; the pattern as it is when its repetitions are
//! written out.

use super::{Context, Function, global, int, member, patterned, text};
use crate::error::Error;
use crate::value::Value;
use edge_api::pattern::{self, Regex};

/// Bytes that a compiled pattern may take.
const SIZE_LIMIT: usize = 1024 * 1024;
/// What a Unicode class weighs, of which the compiled form has some hundred states.
const CLASS: u64 = 50;

pub(super) static FUNCTIONS: &[Function] = &[
    patterned(member("matches", &["string string : bool"], matches)),
    patterned(global("matches", &["string string : bool"], matches)),
    patterned(member("find", &["string string : string"], find)),
    patterned(member("findAll", &["string string : list<string>", "string string int : list<string>"], find_all)),
];

/// Compiles a pattern.
///
/// # Errors
/// When it is none, or too large.
pub(crate) fn compile(pattern: &str) -> Result<Regex, Error> {
    pattern::compile(pattern, SIZE_LIMIT).map_err(|error| Error::new(error.to_string()))
}

/// About how long the pattern is with its repetitions written out.
fn weight(pattern: &str) -> u64 {
    let mut open: Vec<u64> = vec![0];
    let mut last = 0_u64;
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => last = if matches!(rest.next(), Some('p' | 'P')) { CLASS } else { 1 },
            '(' => {
                open.push(0);
                continue;
            }
            ')' if open.len() > 1 => last = open.pop().unwrap_or(0),
            '{' => {
                let inner = rest.as_str();
                let bounds = inner.split('}').next().unwrap_or_default();
                let most = bounds.split(',').filter_map(|n| n.trim().parse::<u64>().ok()).max().unwrap_or(1);
                last = last.saturating_mul(most.saturating_sub(1));
            }
            _ => last = 1,
        }
        if let Some(sum) = open.last_mut() {
            *sum = sum.saturating_add(last);
        }
        // what a repetition multiplies is what stands before it
    }
    open.iter().fold(0_u64, |sum, n| sum.saturating_add(*n)).max(1)
}

/// Runs a function with the pattern of the call.
fn with<'a, T>(c: &mut Context<'_>, a: &[Value<'a>], run: impl FnOnce(&Regex, &str) -> T) -> Result<T, Error> {
    let (this, pattern) = (text(a, 0)?, text(a, 1)?);
    let steps = (1 + this.len() as u64 / 10).saturating_mul(1 + weight(pattern) / 4);
    c.budget.pay(steps)?;
    if let Some(regex) = c.regex {
        return Ok(run(regex, this));
    }
    c.budget.pay_bytes(pattern.len() * 10)?;
    c.budget.pay(weight(pattern).saturating_mul(10))?;
    Ok(run(&compile(pattern)?, this))
}

fn matches<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    with(c, a, |regex, this| Value::Bool(regex.is_match(this)))
}

fn find<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    with(c, a, |regex, this| Value::owned(regex.find(this).map_or("", |m| m.as_str())))
}

fn find_all<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let most = if a.len() > 2 { int(a, 2)? } else { -1 };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    with(c, a, |regex, this| Value::list(regex.find_iter(this).take(most).map(|m| Value::owned(m.as_str())).collect()))
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn repetitions_weigh() {
        for (pattern, want) in [("abc", 3), ("a{10}", 18), ("(ab){10}", 28), ("((a{10}){10}){10}", 1000)] {
            assert!(weight(pattern) >= want / 2, "{pattern}: {}", weight(pattern));
        }
    }
}
