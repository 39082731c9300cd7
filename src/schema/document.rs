//! Text to JSON values: JSON and YAML, keeping account of duplicate keys.
//!
//! In: the bytes of a request. Out: a [`Document`]. Of duplicate keys the last one wins, and each is reported with its path, as the
//! strict decoder of Kubernetes does.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Paths of duplicate keys that are reported at most.
const MAX_DUPLICATES: usize = 100;

/// Why a text is no document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Malformed JSON.
    #[error("invalid JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// Malformed YAML.
    #[error("invalid YAML: {0}")]
    Yaml(#[source] serde_yaml_ng::Error),
}

/// A parsed text.
#[derive(Debug, Default)]
pub struct Document {
    /// Its value.
    pub value: Value,
    /// Paths of duplicate keys, for instance `spec.containers[0].name`.
    pub duplicates: Vec<String>,
}

/// Parses JSON.
///
/// # Errors
/// [`DocumentError::Json`] for anything that is not exactly one JSON value nested less than 128 levels.
pub fn parse_json(bytes: &[u8]) -> Result<Document, DocumentError> {
    let mut duplicates = Vec::new();
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let value = Tree(&mut duplicates).deserialize(&mut text).map_err(DocumentError::Json)?;
    text.end().map_err(DocumentError::Json)?;
    Ok(Document { value, duplicates })
}

/// Parses one YAML document; keys that are numbers or booleans become strings, as in JSON.
///
/// # Errors
/// [`DocumentError::Yaml`] for anything that is not exactly one YAML document with a JSON equivalent.
pub fn parse_yaml(bytes: &[u8]) -> Result<Document, DocumentError> {
    let mut duplicates = Vec::new();
    let text = serde_yaml_ng::Deserializer::from_slice(bytes);
    let value = Tree(&mut duplicates).deserialize(text).map_err(DocumentError::Yaml)?;
    Ok(Document { value, duplicates })
}

/// Builds a value and collects the paths of duplicate keys below it.
struct Tree<'d>(&'d mut Vec<String>);

impl Tree<'_> {
    /// Puts a step in front of the paths found since `from`.
    fn prefix(&mut self, from: usize, step: impl Fn() -> String) {
        for path in &mut self.0[from..] {
            let dot = if path.starts_with('[') { "" } else { "." };
            *path = step() + dot + path;
        }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let mut from = self.0.len();
        while let Some(item) = seq.next_element_seed(Tree(&mut *self.0))? {
            self.prefix(from, || format!("[{}]", items.len()));
            from = self.0.len();
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let from = self.0.len();
            let value = access.next_value_seed(Tree(&mut *self.0))?;
            self.prefix(from, || key.clone());
            if map.contains_key(&key) && self.0.len() < MAX_DUPLICATES {
                self.0.push(key.clone());
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key of a map, as text.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is a string, number or boolean")
    }

    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        Ok(v.to_owned())
    }

    fn visit_string<E>(self, v: String) -> Result<String, E> {
        Ok(v)
    }

    fn visit_bool<E>(self, v: bool) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_i64<E>(self, v: i64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_u64<E>(self, v: u64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_f64<E>(self, v: f64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
        Err(E::custom("a key must not be null"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_have_paths() {
        let text = br#"{"a":1,"spec":{"x":[{"n":1},{"n":1,"n":2,"m":{"k":1,"k":1}}],"x":[]},"a":2}"#;
        let doc = parse_json(text).unwrap();
        assert_eq!(doc.value, json!({"a": 2, "spec": {"x": []}}));
        assert_eq!(doc.duplicates, ["spec.x[1].n", "spec.x[1].m.k", "spec.x", "a"]);
    }

    #[test]
    fn yaml_keys_become_strings() {
        let doc = parse_yaml(b"a: 1\n8080: x\ntrue: [1.5, ~, 'y']\na: 2\n").unwrap();
        assert_eq!(doc.value, json!({"a": 2, "8080": "x", "true": [1.5, null, "y"]}));
        assert_eq!(doc.duplicates, ["a"]);
    }

    #[test]
    fn malformed_texts_are_errors() {
        for text in ["", "{", "{\"a\":1}x", "[1,]", "{\"a\" 1}", "\"\\ud800\"", "nul"] {
            assert!(parse_json(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_json(&b"[".repeat(100_000)).is_err());
        assert!(parse_json(b"\"\xff\"").is_err());
        for text in ["a: [", "a: .nan", "a: 1\n---\nb: 2\n", "? [1]\n: 2\n", "a: *b"] {
            assert!(parse_yaml(text.as_bytes()).is_err(), "{text}");
        }
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(b'b'..=b'z')
                .map(|c| format!("{0}: &{0} [{1}]\n", c as char, vec![format!("*{}", (c - 1) as char); 9].join(",")))
                .collect::<String>();
        assert!(parse_yaml(bomb.as_bytes()).is_err(), "aliases may not multiply without bound");
    }
}
