//! Structural schemas as types.

use crate::types::{ObjectType, Type};
use serde_json::Value;
use std::cell::Cell;
use std::sync::Arc;

/// Levels of a schema that have a type.
const DEEPEST: usize = 64;

/// Makes types, each object's with a name of its own.
#[derive(Default)]
pub(super) struct Shapes {
    made: Cell<usize>,
}

impl Shapes {
    /// The type of a whole object, which has metadata in any case.
    pub(super) fn root(&self, schema: &Value) -> Type {
        self.object(schema, true, 0)
    }

    /// The type of a part.
    pub(super) fn of(&self, schema: &Value) -> Type {
        self.shape(schema, 0)
    }

    fn shape(&self, schema: &Value, depth: usize) -> Type {
        if depth > DEEPEST || schema["x-kubernetes-int-or-string"] == true {
            return Type::Dyn;
        }
        match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("string"), Some("date-time" | "date")) => Type::Timestamp,
            (Some("string"), Some("duration")) => Type::Duration,
            (Some("string"), Some("byte")) => Type::Bytes,
            (Some("string"), _) => Type::String,
            (Some("integer"), _) => Type::Int,
            (Some("number"), _) => Type::Double,
            (Some("boolean"), _) => Type::Bool,
            (Some("array"), _) => Type::list(self.shape(&schema["items"], depth + 1)),
            (Some("object"), _) => self.object(schema, schema["x-kubernetes-embedded-resource"] == true, depth),
            _ => Type::Dyn,
        }
    }

    fn object(&self, schema: &Value, is_resource: bool, depth: usize) -> Type {
        let additional = &schema["additionalProperties"];
        if additional.is_object() {
            return Type::map(self.shape(additional, depth + 1));
        }
        let properties = schema["properties"].as_object();
        if properties.is_none() && !is_resource {
            let any = schema["x-kubernetes-preserve-unknown-fields"] == true || *additional == true;
            return if any { Type::Dyn } else { self.named(Vec::new()) };
        }
        let mut fields: Vec<(String, Type)> = Vec::new();
        for (name, field) in properties.into_iter().flatten() {
            if !(is_resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata")) {
                fields.push((name.clone(), self.shape(field, depth + 1)));
            }
        }
        if is_resource {
            // of metadata expressions see the names
            let text = |name: &str| (name.to_owned(), Type::String);
            let metadata = self.named(vec![text("name"), text("generateName")]);
            fields.extend([text("apiVersion"), text("kind"), ("metadata".to_owned(), metadata)]);
        }
        self.named(fields)
    }

    fn named(&self, fields: Vec<(String, Type)>) -> Type {
        let n = self.made.get();
        self.made.set(n + 1);
        Type::Object(Arc::new(ObjectType::new(format!("selfType{n}"), fields)))
    }
}

/// `.a.b['c']` as names.
///
/// # Errors
/// When it is malformed, or leads to nothing that the schema knows.
pub(super) fn field_path(text: &str, schema: &Value) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let (mut rest, mut at) = (text, schema);
    while !rest.is_empty() {
        let name = if let Some(quoted) = rest.strip_prefix("['") {
            let end = quoted.find("']").ok_or("unterminated ['")?;
            rest = &quoted[end + 2..];
            &quoted[..end]
        } else if let Some(plain) = rest.strip_prefix('.') {
            let end = plain.find(['.', '[']).unwrap_or(plain.len());
            rest = &plain[end..];
            &plain[..end]
        } else {
            return Err("expected . or ['".to_owned());
        };
        at = if at["properties"][name].is_object() { &at["properties"][name] } else { &at["additionalProperties"] };
        if name.is_empty() || !at.is_object() {
            return Err(format!("fieldPath must be a valid path: {name:?} is no field"));
        }
        out.push(name.to_owned());
    }
    Ok(out)
}
