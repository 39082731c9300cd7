//! Finds in an object's JSON what the hub's index needs, without building a tree.
//!
//! In: bytes, and the paths of the selectable fields. Out: labels and field values. Everything else is skipped by the parser.

use crate::resource::SelectableField;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The paths to look for, as a tree.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    root: Node,
    defaults: Vec<Box<str>>,
}

#[derive(Debug, Default)]
struct Node {
    children: Vec<(Box<str>, Node)>,
    sink: Sink,
}

/// What a place in the object is good for.
#[derive(Clone, Copy, Debug, Default)]
enum Sink {
    #[default]
    Nothing,
    Labels,
    Field(usize),
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    pub(crate) fields: Vec<Box<str>>,
}

impl Paths {
    /// The labels, and these fields in this order.
    pub(crate) fn new(fields: &[SelectableField]) -> Self {
        let mut root = Node::default();
        root.at("metadata.labels").sink = Sink::Labels;
        for (i, field) in fields.iter().enumerate() {
            root.at(&field.path).sink = Sink::Field(i);
        }
        Self { root, defaults: fields.iter().map(|f| f.default.as_ref().into()).collect() }
    }

    /// Reads an object; absent fields have their defaults.
    ///
    /// # Errors
    /// When the bytes are not JSON, or labels are not strings.
    pub(crate) fn scan(&self, json: &[u8]) -> Result<Found, serde_json::Error> {
        let mut found = Found { labels: Vec::new(), fields: self.defaults.clone() };
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        Seed { node: &self.root, found: &mut found }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(found)
    }
}

impl Node {
    fn at(&mut self, path: &str) -> &mut Self {
        let mut node = self;
        for part in path.split('.') {
            let i = match node.children.iter().position(|(name, _)| **name == *part) {
                Some(i) => i,
                None => {
                    node.children.push((part.into(), Self::default()));
                    node.children.len() - 1
                }
            };
            node = &mut node.children[i].1;
        }
        node
    }
}

struct Seed<'a> {
    node: &'a Node,
    found: &'a mut Found,
}

impl Seed<'_> {
    fn value<E>(self, value: impl FnOnce() -> Box<str>) -> Result<(), E> {
        if let Sink::Field(i) = self.node.sink {
            self.found.fields[i] = value();
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.node.sink {
            Sink::Nothing if self.node.children.is_empty() => IgnoredAny::deserialize(deserializer).map(drop),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Sink::Labels = self.node.sink {
            while let Some(label) = map.next_entry()? {
                self.found.labels.push(label);
            }
            return Ok(());
        }
        while let Some(child) = map.next_key_seed(Key(self.node))? {
            match child {
                Some(node) => map.next_value_seed(Seed { node, found: self.found })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, v: &str) -> Result<(), E> {
        self.value(|| v.into())
    }

    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.value(|| v.to_string().into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        self.value(|| v.to_string().into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        self.value(|| v.to_string().into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<(), E> {
        self.value(|| v.to_string().into())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Finds the child that a member's name leads to.
struct Key<'a>(&'a Node);

impl<'de, 'a> DeserializeSeed<'de> for Key<'a> {
    type Value = Option<&'a Node>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Key<'a> {
    type Value = Option<&'a Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.children.iter().find(|(n, _)| **n == *name).map(|(_, node)| node))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn paths() -> Paths {
        let field = |path: &'static str, default: &'static str| SelectableField {
            label: path.into(),
            path: path.into(),
            default: default.into(),
        };
        Paths::new(&[field("spec.nodeName", ""), field("spec.hostNetwork", "false"), field("status.phase", "")])
    }

    #[test]
    fn finds_labels_and_fields_wherever_they_are() {
        let json = br#"{"status":{"x":[1,{"phase":"no"}],"phase":"Running"},"metadata":{"name":"a","labels":{"k":"v\u0041"},
            "annotations":{"labels":"no"}},"spec":{"hostNetwork":true,"nodeName":"n1","containers":[{"nodeName":"no"}]}}"#;
        let found = paths().scan(json).unwrap();
        assert_eq!(found.labels, [("k".into(), "vA".into())]);
        assert_eq!(found.fields, ["n1".into(), "true".into(), Box::from("Running")]);
        let found = paths().scan(br#"{"spec":null,"status":7}"#).unwrap();
        assert_eq!(found.fields, ["".into(), "false".into(), Box::from("")]);
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        for bad in [&b""[..], b"{", b"[1", b"{\"metadata\":{\"labels\":{\"a\":1}}}", b"{} x", b"\xff"] {
            assert!(paths().scan(bad).is_err(), "{bad:?}");
        }
    }
}
