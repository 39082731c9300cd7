//! Versions, as semver.org has them; and the order of what has one, which quantities, versions and no others do.

use super::{Context, Function, global, member, opaque, text};
use crate::error::Error;
use crate::value::{Opaque, Value};
use std::cmp::Ordering;
use std::fmt;

const PAIRS_COMPARED: &[&str] = &["quantity quantity : int", "semver semver : int"];
const PAIRS_JUDGED: &[&str] = &["quantity quantity : bool", "semver semver : bool"];

pub(super) static FUNCTIONS: &[Function] = &[
    global("semver", &["string : semver", "string bool : semver"], parse),
    global("isSemver", &["string : bool", "string bool : bool"], is_semver),
    member("major", &["semver : int"], |_, a| number(a, 0)),
    member("minor", &["semver : int"], |_, a| number(a, 1)),
    member("patch", &["semver : int"], |_, a| number(a, 2)),
    member("compareTo", PAIRS_COMPARED, compare_to),
    member("isGreaterThan", PAIRS_JUDGED, |_, a| Ok(Value::Bool(order(a)? == Ordering::Greater))),
    member("isLessThan", PAIRS_JUDGED, |_, a| Ok(Value::Bool(order(a)? == Ordering::Less))),
];

/// A version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<Box<str>>,
    build: Box<str>,
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if self.build.is_empty() { Ok(()) } else { write!(f, "+{}", self.build) }
    }
}

fn is_number(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit())
}

fn is_word(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Semver {
    /// Reads a version strictly.
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(text, false)
    }

    /// Reads a version; `lenient`: with a `v` before it, fewer numbers, or zeros before numbers.
    fn read(text: &str, lenient: bool) -> Option<Self> {
        let text = if lenient { text.trim_start_matches('v') } else { text };
        let (rest, build) = text.split_once('+').map_or((text, ""), |(r, b)| (r, b));
        if text.contains('+') && !build.split('.').all(is_word) {
            return None;
        }
        let (core, pre) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
        let mut numbers = [0; 3];
        let mut count = 0;
        for part in core.split('.') {
            let padded = part.len() > 1 && part.starts_with('0') && !lenient;
            if !is_number(part) || padded {
                return None;
            }
            *numbers.get_mut(count)? = part.parse().ok()?;
            count += 1;
        }
        let pre: Vec<Box<str>> = pre.map(|p| p.split('.').map(Box::from).collect()).unwrap_or_default();
        let fine = pre.iter().all(|p| is_word(p) && !(is_number(p) && p.len() > 1 && p.starts_with('0')));
        (fine && (count == 3 || lenient)).then(|| Self { numbers, pre, build: build.into() })
    }

    fn compare(&self, other: &Self) -> Ordering {
        let words = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.pre.iter().zip(&other.pre);
                let differs = pairs.map(|(a, b)| word_order(a, b)).find(|o| o.is_ne());
                differs.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(words)
    }
}

fn word_order(a: &str, b: &str) -> Ordering {
    match (is_number(a), is_number(b)) {
        (true, true) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

fn read(a: &[Value<'_>]) -> Result<Option<Semver>, Error> {
    let lenient = matches!(a.get(1), Some(Value::Bool(true)));
    Ok(Semver::read(text(a, 0)?, lenient))
}

fn parse<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let version = read(a)?.ok_or_else(|| Error::new("invalid semantic version"))?;
    Ok(Value::opaque(Opaque::Semver(Box::new(version))))
}

fn is_semver<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    Ok(Value::Bool(read(a)?.is_some()))
}

fn number<'a>(a: &[Value<'a>], i: usize) -> Result<Value<'a>, Error> {
    let Opaque::Semver(version) = opaque(a, 0)? else { return Err(Error::no_overload()) };
    let number = version.numbers.get(i).copied().unwrap_or(0);
    Ok(Value::Int(i64::try_from(number).unwrap_or(i64::MAX)))
}

fn order(a: &[Value<'_>]) -> Result<Ordering, Error> {
    match (opaque(a, 0)?, opaque(a, 1)?) {
        (Opaque::Semver(a), Opaque::Semver(b)) => Ok(a.compare(b)),
        (Opaque::Quantity(a), Opaque::Quantity(b)) => Ok(a.cmp(b)),
        _ => Err(Error::no_overload()),
    }
}

fn compare_to<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    Ok(Value::Int(order(a)? as i64))
}
