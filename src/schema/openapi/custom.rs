//! Schemas of custom resources, published as they were written, with what every object has.

use super::{Flavour, Published, schemas::meta_name};
use serde_json::{Map, Value, json};

/// What OpenAPI v2 has no words for.
const NOT_IN_V2: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "default", "nullable", "x-kubernetes-validations"];

/// A custom resource's schema.
pub(super) enum Custom<'a> {
    /// Of one object.
    Object(&'a dyn Published),
    /// Of a list.
    List {
        /// Name of the schema of one object.
        item: String,
    },
}

impl Custom<'_> {
    /// The schema; `reference` gives the reference to another one.
    pub(super) fn write(&self, flavour: Flavour, reference: impl Fn(&str) -> Value) -> Value {
        match self {
            Self::Object(published) => {
                let mut schema = published
                    .schema()
                    .filter(Value::is_object)
                    .unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
                if flavour == Flavour::V2 {
                    simplify(&mut schema);
                }
                complete(&mut schema, reference(&meta_name("ObjectMeta")));
                schema
            }
            Self::List { item } => {
                let mut schema = json!({"type": "object", "required": ["items"], "description": "A list of objects.",
                    "properties": {"items": {"type": "array", "items": reference(item), "description": "The objects."}}});
                complete(&mut schema, reference(&meta_name("ListMeta")));
                schema
            }
        }
    }
}

/// Adds `apiVersion`, `kind` and `metadata`.
fn complete(schema: &mut Value, metadata: Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    let Some(properties) = properties.as_object_mut() else { return };
    for (name, text) in [
        ("apiVersion", "APIVersion defines whose schema, and which version of it, the object follows."),
        ("kind", "Kind is the name of what the object stands for."),
    ] {
        properties.insert(name.to_owned(), json!({"type": "string", "description": text}));
    }
    let mut metadata = metadata;
    metadata["description"] = "The standard metadata of an object.".into();
    properties.insert("metadata".to_owned(), metadata);
}

/// Takes out what v2 cannot say. Where that leaves less than the truth, the type goes, too: clients then accept anything.
fn simplify(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let is = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
    let open = is(map, "nullable") || is(map, "x-kubernetes-int-or-string");
    let preserves = is(map, "x-kubernetes-preserve-unknown-fields");
    for name in NOT_IN_V2 {
        map.remove(name);
    }
    if open {
        for name in ["type", "format", "items", "properties", "required", "additionalProperties"] {
            map.remove(name);
        }
        return;
    }
    if preserves {
        map.remove("items");
        map.remove("properties");
    }
    for (name, below) in map.iter_mut() {
        match name.as_str() {
            "items" | "additionalProperties" => simplify(below),
            "properties" => below.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(simplify),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(Value);

    impl Published for Fixed {
        fn schema(&self) -> Option<Value> {
            Some(self.0.clone())
        }

        fn list_kind(&self) -> &str {
            "FooList"
        }
    }

    #[test]
    fn what_was_written_is_published() {
        let schema = json!({"type": "object", "description": "A foo.", "properties": {"spec": {"type": "object", "oneOf": [{"required": ["a"]}],
            "properties": {"a": {"type": "string", "pattern": "x", "default": "x"}, "b": {"x-kubernetes-int-or-string": true, "type": "string"}}}}});
        let published = Fixed(schema);
        let reference = |name: &str| json!({"$ref": name});
        let v3 = Custom::Object(&published).write(Flavour::V3, reference);
        assert_eq!(v3["properties"]["spec"], published.0["properties"]["spec"]);
        assert_eq!((&v3["description"], &v3["properties"]["kind"]["type"]), (&json!("A foo."), &json!("string")));
        assert_eq!(v3["properties"]["metadata"]["$ref"], "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        let v2 = Custom::Object(&published).write(Flavour::V2, reference);
        assert_eq!(
            v2["properties"]["spec"],
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}, "b": {"x-kubernetes-int-or-string": true}}})
        );
        let list = Custom::List { item: "foo".to_owned() }.write(Flavour::V3, reference);
        assert_eq!(list["properties"]["items"]["items"]["$ref"], "foo");
    }
}
