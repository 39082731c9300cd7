//! Text to JSON values: JSON and YAML, keeping account of duplicate keys.
//!
//! In: the bytes of a request. Out: a [`Document`]. Of duplicate keys the last one wins, and each is reported with its path, as the
//! strict decoder of Kubernetes does.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Paths of duplicate keys that are reported at most.
const MAX_DUPLICATES: usize = 100;
/// What a YAML document may have in values and bytes of strings (keys too) beyond those of its text: by aliases only.
const MAX_EXPANSION: usize = 1 << 20;

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
    let mut left = usize::MAX;
    let tree = Tree { duplicates: &mut duplicates, left: &mut left };
    let value = tree.deserialize(&mut text).map_err(DocumentError::Json)?;
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
    let mut left = 2 * bytes.len() + MAX_EXPANSION;
    let tree = Tree { duplicates: &mut duplicates, left: &mut left };
    let value = tree.deserialize(text).map_err(DocumentError::Yaml)?;
    Ok(Document { value, duplicates })
}

/// Builds a value and collects the paths of duplicate keys below it.
struct Tree<'d> {
    duplicates: &'d mut Vec<String>,
    /// How many more values and bytes there may be.
    left: &'d mut usize,
}

impl Tree<'_> {
    fn below(&mut self) -> Tree<'_> {
        Tree { duplicates: self.duplicates, left: self.left }
    }

    /// Counts a value with so many bytes.
    fn count<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        let left = self.left.checked_sub(bytes + 1);
        *self.left = left.ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        Ok(())
    }

    /// Puts a step in front of the paths found since `from`.
    fn prefix(&mut self, from: usize, step: impl Fn() -> String) {
        for path in &mut self.duplicates[from..] {
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

    fn visit_str<E: serde::de::Error>(mut self, v: &str) -> Result<Value, E> {
        self.count(v.len())?;
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(mut self, v: String) -> Result<Value, E> {
        self.count(v.len())?;
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
        let mut from = self.duplicates.len();
        while let Some(item) = seq.next_element_seed(self.below())? {
            self.count(0)?;
            self.prefix(from, || format!("[{}]", items.len()));
            from = self.duplicates.len();
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(Key)? {
            self.count(key.len())?;
            let from = self.duplicates.len();
            let value = access.next_value_seed(self.below())?;
            self.prefix(from, || key.clone());
            if map.contains_key(&key) && self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(key.clone());
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
        // nor may they without nesting: long things many times
        let list = format!("a: &a [{}]\nb: [{}]\n", vec!["1"; 10_000].join(","), vec!["*a"; 10_000].join(","));
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 50_000].join(","));
        for bomb in [list, text] {
            let error = parse_yaml(bomb.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("excessive aliasing"), "{error}");
        }
        let honest = format!("a: &a [1, 2, {{k: v}}]\nb: [{}]\n", vec!["*a"; 1000].join(","));
        assert_eq!(parse_yaml(honest.as_bytes()).unwrap().value["b"][999], json!([1, 2, {"k": "v"}]));
        let wide = format!("a: [{}]\n", vec!["x"; 600_000].join(","));
        assert_eq!(parse_yaml(wide.as_bytes()).unwrap().value["a"].as_array().unwrap().len(), 600_000);
    }
}
