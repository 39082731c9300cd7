//! Field paths and validation errors, in the wording of Kubernetes' `field` package.

use serde::Serialize;
use std::fmt;

/// A path into an object such as `spec.containers[0].name`, built piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path of one field.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// The empty path: the object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of a field below this one.
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() { Self(field.to_owned()) } else { Self(format!("{}.{field}", self.0)) }
    }

    /// The path of a list item.
    pub fn index(&self, i: usize) -> Self {
        Self(format!("{}[{i}]", self.0))
    }

    /// The path of a map entry.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a field; serializes as the `reason` of a `StatusCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorKind {
    /// A required value is absent.
    #[serde(rename = "FieldValueRequired")]
    Required,
    /// A value that must be unique occurs twice.
    #[serde(rename = "FieldValueDuplicate")]
    Duplicate,
    /// A value is malformed or out of bounds.
    #[serde(rename = "FieldValueInvalid")]
    Invalid,
    /// A value is none of an enumeration.
    #[serde(rename = "FieldValueNotSupported")]
    NotSupported,
    /// A value may not be set under these conditions.
    #[serde(rename = "FieldValueForbidden")]
    Forbidden,
    /// A value is too long.
    #[serde(rename = "FieldValueTooLong")]
    TooLong,
    /// A list has too many items.
    #[serde(rename = "FieldValueTooMany")]
    TooMany,
    /// A reference leads to nothing.
    #[serde(rename = "FieldValueNotFound")]
    NotFound,
    /// A value has the wrong JSON type.
    #[serde(rename = "FieldValueTypeInvalid")]
    TypeInvalid,
}

/// One validation error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// What kind of error.
    pub kind: ErrorKind,
    /// Where, for instance `spec.replicas`.
    pub field: String,
    /// What, without the field, for instance `Invalid value: -1: must be greater than or equal to 0`.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// The errors of one validation; empty means valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorList(pub Vec<FieldError>);

impl ErrorList {
    /// No error.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether everything is valid.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the errors of another validation.
    pub fn extend(&mut self, other: ErrorList) {
        self.0.extend(other.0);
    }

    /// Adds an error of any kind with its finished message.
    pub fn push(&mut self, kind: ErrorKind, path: &Path, message: impl Into<String>) {
        self.0.push(FieldError { kind, field: path.to_string(), message: message.into() });
    }

    /// `Required value: detail`.
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(ErrorKind::Required, path, with_detail("Required value", detail));
    }

    /// `Invalid value: value: detail`; strings are quoted, as Kubernetes does.
    pub fn invalid(&mut self, path: &Path, value: &serde_json::Value, detail: &str) {
        self.push(ErrorKind::Invalid, path, with_detail(&format!("Invalid value: {value}"), detail));
    }

    /// `Duplicate value: value`.
    pub fn duplicate(&mut self, path: &Path, value: &serde_json::Value) {
        self.push(ErrorKind::Duplicate, path, format!("Duplicate value: {value}"));
    }

    /// `Forbidden: detail`.
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(ErrorKind::Forbidden, path, with_detail("Forbidden", detail));
    }

    /// `Unsupported value: value: supported values: "a", "b"`.
    pub fn not_supported(&mut self, path: &Path, value: &serde_json::Value, supported: &[&str]) {
        let list = supported.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
        self.push(ErrorKind::NotSupported, path, format!("Unsupported value: {value}: supported values: {list}"));
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.push(ErrorKind::TooLong, path, format!("Too long: may not be more than {max} bytes"));
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

impl fmt::Display for ErrorList {
    /// One error as it is; several as `[a, b]`; none as nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            [one] => one.fmt(f),
            many => {
                f.write_str("[")?;
                for (i, e) in many.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    e.fmt(f)?;
                }
                f.write_str("]")
            }
        }
    }
}
