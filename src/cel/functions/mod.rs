//! The functions of expressions: for each name its types, and what it does.

pub(crate) mod arithmetic;
pub(crate) mod authorizer;
pub(crate) mod convert;
mod format;
mod formats;
mod lists;
mod math;
mod net;
mod optional;
mod quantity;
pub(crate) mod regex;
pub(crate) mod semver;
mod sets;
mod strings;
mod time;
mod urls;

use crate::budget::Budget;
use crate::error::Error;
use crate::value::{List, Opaque, Text, Value};
use edge_api::pattern::Regex;

/// What a function may use besides its arguments.
pub(crate) struct Context<'c> {
    pub(crate) budget: &'c mut Budget,
    /// The pattern, when it was known to the compiler.
    pub(crate) regex: Option<&'c Regex>,
}

pub(crate) type Run = for<'a> fn(&mut Context<'_>, &[Value<'a>]) -> Result<Value<'a>, Error>;

/// A function, or several of one name.
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// Whether the first argument stands before the dot.
    pub(crate) is_member: bool,
    /// `arguments : result`, one for each way of calling it.
    pub(crate) overloads: &'static [&'static str],
    pub(crate) run: Run,
    /// Whether the second argument is a pattern.
    pub(crate) takes_pattern: bool,
    /// Whether later arguments only matter when the first is nothing.
    pub(crate) is_or: bool,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn global(name: &'static str, overloads: &'static [&'static str], run: Run) -> Function {
    Function { name, is_member: false, overloads, run, takes_pattern: false, is_or: false }
}

const fn member(name: &'static str, overloads: &'static [&'static str], run: Run) -> Function {
    Function { is_member: true, ..global(name, overloads, run) }
}

const fn patterned(function: Function) -> Function {
    Function { takes_pattern: true, ..function }
}

const fn or(function: Function) -> Function {
    Function { is_or: true, ..function }
}

static TABLES: [&[Function]; 15] = [
    convert::FUNCTIONS,
    strings::FUNCTIONS,
    lists::FUNCTIONS,
    sets::FUNCTIONS,
    math::FUNCTIONS,
    regex::FUNCTIONS,
    time::FUNCTIONS,
    optional::FUNCTIONS,
    quantity::FUNCTIONS,
    net::FUNCTIONS,
    urls::FUNCTIONS,
    semver::FUNCTIONS,
    formats::FUNCTIONS,
    format::FUNCTIONS,
    authorizer::FUNCTIONS,
];

/// The function of a name.
pub(crate) fn find(name: &str, is_member: bool) -> Option<&'static Function> {
    TABLES.iter().copied().flatten().find(|f| f.is_member == is_member && f.name == name)
}

/// The argument at a place as text.
fn text<'v, 'a>(arguments: &'v [Value<'a>], i: usize) -> Result<&'v Text<'a>, Error> {
    if let Some(Value::String(text)) = arguments.get(i) { Ok(text) } else { Err(Error::no_overload()) }
}

/// The argument at a place as a number.
fn int(arguments: &[Value<'_>], i: usize) -> Result<i64, Error> {
    if let Some(Value::Int(n)) = arguments.get(i) { Ok(*n) } else { Err(Error::no_overload()) }
}

/// The argument at a place as a list.
fn list<'v, 'a>(arguments: &'v [Value<'a>], i: usize) -> Result<&'v List<'a>, Error> {
    if let Some(Value::List(list)) = arguments.get(i) { Ok(list) } else { Err(Error::no_overload()) }
}

/// The argument at a place as one of Kubernetes' types.
fn opaque<'v, 'a>(arguments: &'v [Value<'a>], i: usize) -> Result<&'v Opaque<'a>, Error> {
    if let Some(Value::Opaque(opaque)) = arguments.get(i) { Ok(opaque) } else { Err(Error::no_overload()) }
}
