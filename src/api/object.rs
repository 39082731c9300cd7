//! An API object as a decoded tree: the form of the write path.

use crate::gvk::{GroupVersion, GroupVersionKind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A decoded API object: a JSON object with `apiVersion`, `kind` and `metadata`.
///
/// The accessors answer with the empty string (or `None`) where a field is absent or of the wrong type, so they are
/// safe on unvalidated input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Map<String, Value>);

impl Object {
    /// Takes a JSON value.
    ///
    /// # Errors
    /// Gives the value back when it is not a JSON object.
    pub fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(other),
        }
    }

    /// Reads JSON text.
    ///
    /// # Errors
    /// When the text is not JSON or not an object.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes).map(Self)
    }

    /// The tree.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// The top-level fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The top-level fields, to change them.
    pub fn fields_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// A top-level field such as `spec`; `Null` when it is absent.
    pub fn get(&self, field: &str) -> &Value {
        self.0.get(field).unwrap_or(&Value::Null)
    }

    /// A field by JSON pointer (RFC 6901), for instance `/spec/nodeName`.
    pub fn pointer(&self, pointer: &str) -> Option<&Value> {
        let (head, rest) = pointer.strip_prefix('/')?.split_once('/').unwrap_or((pointer.get(1..)?, ""));
        let top = self.0.get(head)?;
        if rest.is_empty() { Some(top) } else { top.pointer(&pointer[head.len() + 1..]) }
    }

    /// The string at a JSON pointer; empty when it is absent or no string.
    pub fn str_at(&self, pointer: &str) -> &str {
        self.pointer(pointer).and_then(Value::as_str).unwrap_or("")
    }

    /// `apiVersion`.
    pub fn api_version(&self) -> &str {
        self.get("apiVersion").as_str().unwrap_or("")
    }

    /// `kind`.
    pub fn kind(&self) -> &str {
        self.get("kind").as_str().unwrap_or("")
    }

    /// Group, version and kind; `None` when `apiVersion` or `kind` is absent or malformed.
    pub fn gvk(&self) -> Option<GroupVersionKind> {
        let gv = GroupVersion::parse(self.api_version())?;
        (!self.kind().is_empty()).then(|| gv.with_kind(self.kind()))
    }

    /// Sets `apiVersion` and `kind`.
    pub fn set_gvk(&mut self, gvk: &GroupVersionKind) {
        self.0.insert("apiVersion".into(), gvk.api_version().into());
        self.0.insert("kind".into(), gvk.kind.clone().into());
    }

    /// `metadata`; `None` when absent or no object.
    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.0.get("metadata").and_then(Value::as_object)
    }

    /// `metadata`, made when absent (or when it is not an object).
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        object_entry(&mut self.0, "metadata")
    }

    /// A top-level object such as `spec`, made when absent (or when it is not an object).
    pub fn section_mut(&mut self, field: &str) -> &mut Map<String, Value> {
        object_entry(&mut self.0, field)
    }

    fn meta_str(&self, field: &str) -> &str {
        self.metadata().and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.meta_str("name")
    }

    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.meta_str("uid")
    }

    /// `metadata.generateName`.
    pub fn generate_name(&self) -> &str {
        self.meta_str("generateName")
    }

    /// `metadata.resourceVersion`; empty when the object was never stored.
    pub fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }

    /// `metadata.generation`; zero when absent.
    pub fn generation(&self) -> i64 {
        self.metadata().and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
    }

    /// Whether `metadata.deletionTimestamp` is set.
    pub fn is_terminating(&self) -> bool {
        !self.meta_str("deletionTimestamp").is_empty()
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("labels")?.get(key)?.as_str()
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("annotations")?.get(key)?.as_str()
    }

    /// The finalizers.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.metadata()
            .and_then(|m| m.get("finalizers"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }

    /// Sets a string of `metadata`; the empty string removes it.
    pub fn set_meta(&mut self, field: &str, value: &str) {
        let meta = self.metadata_mut();
        if value.is_empty() {
            meta.remove(field);
        } else {
            meta.insert(field.to_owned(), value.into());
        }
    }

    /// A typed view of the object (`k8s-openapi` or an own struct).
    ///
    /// # Errors
    /// When a field does not have the type that `T` expects.
    pub fn as_type<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.0)
    }

    /// The stored form: JSON whose first members are `apiVersion`, `kind` and `metadata`, so that a reader finds the
    /// metadata (and its resourceVersion) without parsing the rest.
    pub fn to_json(&self) -> Vec<u8> {
        const FIRST: [&str; 3] = ["apiVersion", "kind", "metadata"];
        let mut out = Vec::with_capacity(512);
        out.push(b'{');
        let head = FIRST.iter().filter_map(|k| self.0.get_key_value(*k));
        let tail = self.0.iter().filter(|(k, _)| !FIRST.contains(&k.as_str()));
        for (i, (k, v)) in head.chain(tail).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, k).expect("invariant: writing a string to memory cannot fail");
            out.push(b':');
            serde_json::to_writer(&mut out, v).expect("invariant: writing a JSON value to memory cannot fail");
        }
        out.push(b'}');
        out
    }
}

/// The object below `field`, made when absent or when something else is there.
pub fn object_entry<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let slot = map.entry(field.to_owned()).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("invariant: the slot was just made an object")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_form_begins_with_metadata() {
        let o = Object::from_value(json!({"data": {"a": "b"}, "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "x"}}))
        .expect("is an object");
        assert_eq!(
            String::from_utf8(o.to_json()).expect("is text"),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"b"}}"#
        );
        assert_eq!(Object::from_slice(&o.to_json()).expect("reads back"), o);
    }

    #[test]
    fn accessors_survive_nonsense() {
        let mut o = Object::from_value(json!({"metadata": 7, "spec": {"a": {"b": "c"}}})).expect("is an object");
        assert_eq!(o.name(), "");
        assert_eq!(o.str_at("/spec/a/b"), "c");
        assert_eq!(o.str_at("/metadata/b"), "");
        assert!(o.pointer("nonsense").is_none());
        assert!(o.pointer("").is_none());
        assert!(o.gvk().is_none());
        o.set_meta("name", "n");
        assert_eq!(o.name(), "n");
        assert!(Object::from_value(json!([1])).is_err());
    }
}
