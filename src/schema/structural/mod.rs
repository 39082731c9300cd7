//! Structural schemas of custom resources: what Kubernetes asks of such a schema ([`check`]), and what it asks of values ([`Rules`]).
//!
//! In: the `openAPIV3Schema` of one version of a CustomResourceDefinition. Out: field errors in Kubernetes' words. Fields, merge rules and
//! defaults of the same schema are [`crate::Schema::custom`]'s business; what `x-kubernetes-validations` say is that of the room `cel`.

mod check;
mod compile;
mod formats;
mod validate;

pub use check::{check, simple_path};

use edge_api::pattern::{self, Regex};
use serde_json::{Number, Value};
use std::sync::OnceLock;

/// The compiled form of a pattern may have so many bytes: what is larger is refused with the schema.
const MAX_PATTERN: usize = 4 << 20;

/// The value validation of one version of a custom resource, compiled.
#[derive(Debug)]
pub struct Rules {
    root: Node,
}

/// JSON types, as schemas name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Object,
    Array,
    String,
    Boolean,
    Integer,
    Number,
}

impl Type {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
        }
    }
}

/// How elements of a list are told apart.
#[derive(Debug, Default)]
enum Identity {
    #[default]
    Place,
    Value,
    Keys(Box<[Box<str>]>),
}

/// One place of a schema.
#[derive(Debug, Default)]
struct Node {
    ty: Option<Type>,
    int_or_string: bool,
    nullable: bool,
    embedded: bool,
    identity: Identity,
    /// Sorted by name.
    properties: Box<[(Box<str>, Node)]>,
    additional: Option<Box<Node>>,
    items: Option<Box<Node>>,
    checks: Option<Box<Checks>>,
}

impl Node {
    fn property(&self, name: &str) -> Option<&Node> {
        let at = self.properties.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        Some(&self.properties[at].1)
    }
}

/// What most places of a schema do not have.
#[derive(Debug, Default)]
struct Checks {
    format: Box<str>,
    pattern: Option<Pattern>,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    multiple_of: Option<Number>,
    length: Range,
    items: Range,
    properties: Range,
    unique: bool,
    choices: Box<[Value]>,
    required: Box<[Box<str>]>,
    all_of: Box<[Node]>,
    any_of: Box<[Node]>,
    one_of: Box<[Node]>,
    not: Option<Box<Node>>,
}

#[derive(Debug, Default)]
struct Range {
    least: Option<u64>,
    most: Option<u64>,
}

#[derive(Debug)]
struct Bound {
    value: Number,
    exclusive: bool,
}

/// A regular expression that is compiled when it is first needed.
#[derive(Debug)]
struct Pattern {
    text: Box<str>,
    regex: OnceLock<Option<Regex>>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        Self { text: text.into(), regex: OnceLock::new() }
    }

    /// Whether a text matches; a pattern that is none (of a schema that nobody has checked) matches everything.
    fn matches(&self, text: &str) -> bool {
        self.regex.get_or_init(|| regex(&self.text).ok()).as_ref().is_none_or(|regex| regex.is_match(text))
    }
}

fn regex(text: &str) -> Result<Regex, pattern::Error> {
    pattern::compile(text, MAX_PATTERN)
}
