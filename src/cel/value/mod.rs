//! Values while an expression runs. What comes from JSON or from the expression is borrowed, what was made is shared.

mod compare;
mod json;
mod map;

pub(crate) use compare::{compare, equal};
pub use map::{Key, Map};

use crate::functions::authorizer::Asking;
use crate::types::{DYN, Type};
use edge_api::Quantity;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

/// Text.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    /// Of the data or the expression.
    Borrowed(&'a str),
    /// Made by the evaluation.
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

/// A list.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// Of the data, and the type of its items.
    Json(&'a [serde_json::Value], &'a Type),
    /// Made by the evaluation.
    Shared(Arc<Vec<Value<'a>>>),
}

impl<'a> List<'a> {
    /// How many items.
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Shared(items) => items.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One item.
    pub fn get(&self, i: usize) -> Option<Value<'a>> {
        match self {
            List::Json(items, ty) => items.get(i).map(|item| Value::from_json(item, ty)),
            List::Shared(items) => items.get(i).cloned(),
        }
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

/// A value of one of the types of Kubernetes' libraries.
#[derive(Clone, Debug)]
pub enum Opaque<'a> {
    /// An amount.
    Quantity(Quantity),
    /// An address.
    Ip(IpAddr),
    /// A network: an address and the length of its prefix.
    Cidr(IpAddr, u8),
    /// A URL.
    Url(Box<url::Url>),
    /// A version: its three numbers, and what follows.
    Semver(Box<crate::functions::semver::Semver>),
    /// A format of text, by name.
    Format(&'static str),
    /// A question about rights, as far as it is said.
    Authorizer(Box<Asking<'a>>),
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// 64 bits.
    Int(i64),
    /// 64 bits without a sign.
    Uint(u64),
    /// A floating point number.
    Double(f64),
    /// Text.
    String(Text<'a>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A list.
    List(List<'a>),
    /// A map, or an object.
    Map(Map<'a>),
    /// A moment.
    Timestamp(Timestamp),
    /// A length of time, in nanoseconds.
    Duration(i64),
    /// A type, by its name.
    Type(&'static str),
    /// Perhaps a value.
    Optional(Option<Arc<Value<'a>>>),
    /// Of one of Kubernetes' types.
    Opaque(Arc<Opaque<'a>>),
}

/// The names of Kubernetes' types, as the table of functions and as messages write them.
pub(crate) const OPAQUE: [(&str, &str); 11] = [
    ("quantity", "kubernetes.Quantity"),
    ("ip", "net.IP"),
    ("cidr", "net.CIDR"),
    ("url", "kubernetes.URL"),
    ("semver", "kubernetes.Semver"),
    ("format", "kubernetes.NamedFormat"),
    ("authorizer", "kubernetes.authorization.Authorizer"),
    ("pathcheck", "kubernetes.authorization.PathCheck"),
    ("groupcheck", "kubernetes.authorization.GroupCheck"),
    ("resourcecheck", "kubernetes.authorization.ResourceCheck"),
    ("decision", "kubernetes.authorization.Decision"),
];

/// Types that expressions may name.
pub(crate) const TYPE_NAMES: [&str; 22] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "kubernetes.Quantity",
    "net.IP",
    "net.CIDR",
    "kubernetes.URL",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.Decision",
    "dyn",
];

impl<'a> Value<'a> {
    /// Borrowed text.
    pub fn text(text: &'a str) -> Self {
        Value::String(Text::Borrowed(text))
    }

    /// Text that was made.
    pub fn owned(text: impl Into<Arc<str>>) -> Self {
        Value::String(Text::Shared(text.into()))
    }

    /// A list that was made.
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Shared(Arc::new(items)))
    }

    /// JSON of which nothing is known.
    pub fn json(json: &'a serde_json::Value) -> Self {
        Self::from_json(json, &DYN)
    }

    /// An object of which nothing is known.
    pub fn object(fields: &'a serde_json::Map<String, serde_json::Value>) -> Self {
        Value::Map(Map::Json(fields, &DYN))
    }

    /// A map that was made.
    pub fn map(entries: BTreeMap<Key<'a>, Value<'a>>) -> Self {
        Value::Map(Map::Shared(Arc::new(entries)))
    }

    /// An amount, if the text is one.
    pub fn quantity(text: &str) -> Option<Self> {
        Quantity::parse(text).ok().map(|q| Value::opaque(Opaque::Quantity(q)))
    }

    /// A version, if the text is one.
    pub fn semver(text: &str) -> Option<Self> {
        crate::functions::semver::Semver::parse(text).map(|v| Value::opaque(Opaque::Semver(Box::new(v))))
    }

    pub(crate) fn opaque(value: Opaque<'a>) -> Self {
        Value::Opaque(Arc::new(value))
    }

    pub(crate) fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Arc::new(value)))
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = self { Some(text) } else { None }
    }

    /// The truth, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Type(_) => "type",
            Value::Optional(_) => "optional_type",
            Value::Opaque(opaque) => match &**opaque {
                Opaque::Quantity(_) => "kubernetes.Quantity",
                Opaque::Ip(_) => "net.IP",
                Opaque::Cidr(..) => "net.CIDR",
                Opaque::Url(_) => "kubernetes.URL",
                Opaque::Semver(_) => "kubernetes.Semver",
                Opaque::Format(_) => "kubernetes.NamedFormat",
                Opaque::Authorizer(asking) => asking.type_name(),
            },
        }
    }

    /// Whether it is what its type has when nothing is said: what `optional.ofNonZeroValue` leaves out.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Int(n) | Value::Duration(n) => *n == 0,
            Value::Uint(n) => *n == 0,
            Value::Double(n) => *n == 0.0,
            Value::String(t) => t.is_empty(),
            Value::Bytes(b) => b.is_empty(),
            Value::List(l) => l.is_empty(),
            Value::Map(m) => m.is_empty(),
            Value::Optional(o) => o.is_none(),
            Value::Timestamp(_) | Value::Type(_) | Value::Opaque(_) => false,
        }
    }
}

impl fmt::Display for Value<'_> {
    /// As `string()` has it where that is defined, as JSON otherwise.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(text) => f.write_str(text),
            Value::Int(n) => write!(f, "{n}"),
            Value::Uint(n) => write!(f, "{n}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Double(n) => f.write_str(&crate::functions::convert::double(*n)),
            Value::Timestamp(t) => write!(f, "{t}"),
            Value::Duration(d) => f.write_str(&crate::functions::convert::seconds(*d)),
            Value::Type(name) => f.write_str(name),
            Value::Opaque(opaque) => match &**opaque {
                Opaque::Quantity(q) => write!(f, "{q}"),
                Opaque::Ip(ip) => write!(f, "{ip}"),
                Opaque::Cidr(ip, bits) => write!(f, "{ip}/{bits}"),
                Opaque::Url(url) => f.write_str(url.as_str()),
                Opaque::Semver(version) => write!(f, "{version}"),
                Opaque::Format(name) => f.write_str(name),
                Opaque::Authorizer(asking) => f.write_str(asking.type_name()),
            },
            other => write!(f, "{}", other.to_json().unwrap_or_default()),
        }
    }
}
