//! Types out of OpenAPI documents.

use crate::types::{ObjectType, Type};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Levels of schemas at most.
const DEEPEST: usize = 64;

/// The types of a document, made as they are asked for.
pub struct Document<'d> {
    document: &'d Value,
    made: BTreeMap<String, Type>,
    under_way: BTreeSet<String>,
}

impl<'d> Document<'d> {
    /// An OpenAPI v3 document as the API server publishes one for each group and version.
    pub fn new(document: &'d Value) -> Self {
        Self { document, made: BTreeMap::new(), under_way: BTreeSet::new() }
    }

    /// The kind of a resource, by its plural.
    pub fn kind_of(&self, plural: &str) -> Option<String> {
        let paths = self.document["paths"].as_object()?;
        let suffix = format!("/{plural}");
        let all = paths.iter().filter(|(path, _)| path.ends_with(&suffix)).map(|(_, path)| path);
        let kind = |path: &Value| {
            ["post", "get"]
                .iter()
                .find_map(|verb| path[verb]["x-kubernetes-group-version-kind"]["kind"].as_str().map(str::to_owned))
        };
        all.filter_map(kind).next()
    }

    /// The type of a kind.
    pub fn kind(&mut self, group: &str, version: &str, kind: &str) -> Option<Type> {
        let document = self.document;
        let schemas = document["components"]["schemas"].as_object()?;
        let is_it = |schema: &&Value| {
            let mut kinds = schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
            kinds.any(|k| k["group"] == group && k["version"] == version && k["kind"] == kind)
        };
        let (name, _) = schemas.iter().find(|(_, schema)| is_it(schema))?;
        Some(self.named(name))
    }

    fn named(&mut self, name: &str) -> Type {
        if let Some(made) = self.made.get(name) {
            return made.clone();
        }
        // amounts and ports are text or numbers
        if name.ends_with(".Quantity") || name.ends_with(".IntOrString") {
            return Type::Dyn;
        }
        // what contains itself is not known all the way down
        if self.under_way.len() >= DEEPEST || !self.under_way.insert(name.to_owned()) {
            return Type::Dyn;
        }
        let document = self.document;
        let made = self.schema(&document["components"]["schemas"][name], name, 0);
        self.under_way.remove(name);
        self.made.insert(name.to_owned(), made.clone());
        made
    }

    fn schema(&mut self, schema: &'d Value, name: &str, depth: usize) -> Type {
        if depth > DEEPEST {
            return Type::Dyn;
        }
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        if let Some(of) = reference.and_then(|r| r.strip_prefix("#/components/schemas/")) {
            return self.named(of);
        }
        if schema["x-kubernetes-int-or-string"] == true || schema["x-kubernetes-preserve-unknown-fields"] == true {
            return Type::Dyn;
        }
        match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("string"), Some("date-time" | "date")) => Type::Timestamp,
            (Some("string"), Some("duration")) => Type::Duration,
            (Some("string"), Some("byte")) => Type::Bytes,
            (Some("string"), Some("int-or-string")) => Type::Dyn,
            (Some("string"), _) => Type::String,
            (Some("integer"), _) => Type::Int,
            (Some("number"), _) => Type::Double,
            (Some("boolean"), _) => Type::Bool,
            (Some("array"), _) => Type::list(self.schema(&schema["items"], &format!("{name}.@idx"), depth + 1)),
            (Some("object"), _) => match (schema["properties"].as_object(), schema.get("additionalProperties")) {
                (Some(properties), _) => {
                    let mut fields = Vec::new();
                    for (field, of) in properties {
                        fields.push((field.clone(), self.schema(of, &format!("{name}.{field}"), depth + 1)));
                    }
                    Type::Object(Arc::new(ObjectType::new(name, fields)))
                }
                (None, Some(values @ Value::Object(_))) => {
                    Type::map(self.schema(values, &format!("{name}.@elem"), depth + 1))
                }
                _ => Type::Dyn,
            },
            _ => Type::Dyn,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_become_types() {
        let gvk = json!({"group": "g", "version": "v1", "kind": "K"});
        let document = json!({
            "paths": {"/apis/g/v1/ks": {"get": {"x-kubernetes-group-version-kind": gvk}}},
            "components": {"schemas": {
                "g.K": {"type": "object", "x-kubernetes-group-version-kind": [gvk], "properties": {
                    "n": {"type": "integer"}, "t": {"type": "string", "format": "date-time"}, "self": {"$ref": "#/components/schemas/g.K"},
                    "m": {"type": "object", "additionalProperties": {"type": "string"}}, "l": {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/g.I"}]}}, "any": {"type": "object"}}},
                "g.I": {"type": "object", "properties": {"a-b": {"type": "boolean"}}},
            }},
        });
        let mut document = Document::new(&document);
        assert_eq!(document.kind_of("ks").as_deref(), Some("K"));
        let Some(Type::Object(object)) = document.kind("g", "v1", "K") else { panic!("an object") };
        let ty = |field: &str| object.fields.get(field).unwrap().ty.to_string();
        for (field, want) in [
            ("n", "int"),
            ("t", "timestamp"),
            ("self", "dyn"),
            ("m", "map(string, string)"),
            ("l", "list(g.I)"),
            ("any", "dyn"),
        ] {
            assert_eq!(ty(field), want, "{field}");
        }
        assert_eq!(document.kind("g", "v1", "Other"), None);
    }
}
