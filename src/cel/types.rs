//! What is known of values before they are there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The type of an expression or of a part of a JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Nothing is known; everything is decided when the value is there.
    Dyn,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// 64 bits.
    Int,
    /// 64 bits without a sign.
    Uint,
    /// A floating point number; in JSON also a whole one.
    Double,
    /// Text.
    String,
    /// Bytes; in JSON in base64.
    Bytes,
    /// A moment; in JSON as RFC 3339 has it, or a date alone.
    Timestamp,
    /// A length of time; in JSON as Go writes it.
    Duration,
    /// A type.
    Type,
    /// A list of these.
    List(Arc<Type>),
    /// A map from these to those.
    Map(Arc<Type>, Arc<Type>),
    /// A JSON object with known fields.
    Object(Arc<ObjectType>),
    /// Perhaps one of these.
    Optional(Arc<Type>),
    /// One of the types of Kubernetes' libraries, by its name.
    Opaque(&'static str),
    /// A parameter of a function's type.
    #[doc(hidden)]
    Param(u8),
}

/// A known field.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name in JSON.
    pub json: Box<str>,
    /// Its type.
    pub ty: Type,
}

/// What is known of a JSON object.
#[derive(Debug, Default)]
pub struct ObjectType {
    /// How messages call it.
    pub name: String,
    /// By the names that expressions use ([`escape`]).
    pub fields: BTreeMap<String, Field>,
}

impl PartialEq for ObjectType {
    // by identity: types may be large, and are made once
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (!self.name.is_empty() && self.name == other.name)
    }
}

impl ObjectType {
    /// An object type with the fields as JSON names them; fields that expressions cannot name are left out.
    pub fn new(name: impl Into<String>, fields: impl IntoIterator<Item = (String, Type)>) -> Self {
        let field = |(json, ty): (String, Type)| Some((escape(&json)?, Field { json: json.into(), ty }));
        Self { name: name.into(), fields: fields.into_iter().filter_map(field).collect() }
    }
}

pub(crate) static DYN: Type = Type::Dyn;

impl Type {
    /// A list of these.
    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }

    /// A map with keys of text.
    pub fn map(of: Type) -> Type {
        Type::Map(Arc::new(Type::String), Arc::new(of))
    }

    /// Perhaps one of these.
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    /// What is inside of an optional, or the type itself.
    pub(crate) fn unwrapped(&self) -> &Type {
        if let Type::Optional(inner) = self { inner } else { self }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::Type => f.write_str("type"),
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Object(object) => f.write_str(&object.name),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Opaque(name) => f.write_str(name),
            Type::Param(n) => write!(f, "{}", char::from(b'A' + n % 26)),
        }
    }
}

/// How an expression names a field of a known object: words of the language and signs are written around. `None` for what cannot be
/// written at all.
pub fn escape(name: &str) -> Option<String> {
    const WORDS: [&str; 18] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
    ];
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if WORDS.contains(&name) || name == "void" {
        return Some(format!("__{name}__"));
    }
    let signs_are_known = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    if !starts_well || !signs_are_known {
        return None;
    }
    let escaped = name.replace("__", "__underscores__").replace('.', "__dot__");
    Some(escaped.replace('-', "__dash__").replace('/', "__slash__"))
}

/// A type as the table of functions writes it: `list<A>`, `map<string,B>`, `ip`.
pub(crate) fn parse_type(text: &str) -> Type {
    let (name, inner) = match text.split_once('<') {
        Some((name, inner)) => (name, inner.strip_suffix('>').unwrap_or(inner)),
        None => (text, ""),
    };
    match name {
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        "list" => Type::list(parse_type(inner)),
        "optional" => Type::optional(parse_type(inner)),
        "map" => {
            let (key, value) = inner.split_once(',').unwrap_or((inner, "dyn"));
            Type::Map(Arc::new(parse_type(key)), Arc::new(parse_type(value)))
        }
        _ => crate::value::OPAQUE
            .iter()
            .find(|(short, _)| *short == name)
            .map_or(Type::Dyn, |(_, long)| Type::Opaque(long)),
    }
}

/// Whether a value of one type may stand where the other is wanted; parameters take what they are given first.
pub(crate) fn assignable(wanted: &Type, given: &Type, params: &mut [Option<Type>; 2]) -> bool {
    match (wanted, given) {
        (Type::Param(n), given) => {
            let n = usize::from(*n);
            match params.get(n).cloned().flatten() {
                None | Some(Type::Dyn | Type::Null) => {
                    if let Some(slot) = params.get_mut(n) {
                        *slot = Some(given.clone());
                    }
                    true
                }
                Some(bound) => assignable(&bound, given, params),
            }
        }
        (Type::Dyn, _) | (_, Type::Dyn) => true,
        (Type::Null, Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration | Type::Optional(_))
        | (Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration | Type::Optional(_), Type::Null) => {
            true
        }
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => assignable(a, b, params),
        (Type::Map(ka, va), Type::Map(kb, vb)) => assignable(ka, kb, params) && assignable(va, vb, params),
        (a, b) => a == b,
    }
}

/// The type with what its parameters were given.
pub(crate) fn substitute(ty: &Type, params: &[Option<Type>; 2]) -> Type {
    match ty {
        Type::Param(n) => params.get(usize::from(*n)).cloned().flatten().unwrap_or(Type::Dyn),
        Type::List(of) => Type::list(substitute(of, params)),
        Type::Optional(of) => Type::optional(substitute(of, params)),
        Type::Map(k, v) => Type::Map(Arc::new(substitute(k, params)), Arc::new(substitute(v, params))),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_in_kubernetes() {
        for (name, want) in [
            ("spec", Some("spec")),
            ("a-b", Some("a__dash__b")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("a__b", Some("a__underscores__b")),
            ("namespace", Some("__namespace__")),
            ("int", Some("int")),
            ("1a", None),
            ("", None),
            ("ä", None),
        ] {
            assert_eq!(escape(name).as_deref(), want, "{name}");
        }
    }
}
