//! Sets of field paths, and their `FieldsV1` form.

use super::path::PathElement;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A set of paths, as a tree. A node can be in the set itself, or only lead to nodes that are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSet(BTreeMap<PathElement, Node>);

/// One path element and what is below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) children: FieldSet,
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        self.0.values().all(|n| !n.member && n.children.is_empty())
    }

    pub(super) fn insert(&mut self, path: &[PathElement]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.0.entry(first.clone()).or_default();
            if rest.is_empty() {
                node.member = true;
            } else {
                node.children.insert(rest);
            }
        }
    }

    pub(super) fn insert_node(&mut self, element: PathElement, node: Node) {
        if node.member || !node.children.is_empty() {
            self.0.insert(element, node);
        }
    }

    /// Takes out a top-level element with everything below it.
    pub(super) fn remove_tree(&mut self, element: &PathElement) {
        self.0.remove(element);
    }

    pub(super) fn get(&self, element: &PathElement) -> Option<&Node> {
        self.0.get(element)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PathElement, &Node)> {
        self.0.iter()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a || b)
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b)
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b)
    }

    /// The set of paths for which `keep`, given membership on both sides, holds.
    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let none = Node::default();
        let mut out = Self::default();
        let only_there = other.0.keys().filter(|e| !self.0.contains_key(e));
        for element in self.0.keys().chain(only_there) {
            let a = self.0.get(element).unwrap_or(&none);
            let b = other.0.get(element).unwrap_or(&none);
            let node = Node { member: keep(a.member, b.member), children: a.children.combine(&b.children, keep) };
            out.insert_node(element.clone(), node);
        }
        out
    }

    /// Every path in the set, in order.
    pub(super) fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for (element, node) in &self.0 {
            prefix.push(element.clone());
            if node.member {
                out.push(prefix.clone());
            }
            node.children.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The `FieldsV1` form.
    pub(super) fn to_json(&self) -> Value {
        Value::Object(self.to_map())
    }

    fn to_map(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for (element, node) in &self.0 {
            let mut inner = node.children.to_map();
            if node.member && !inner.is_empty() {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(element.encode(), Value::Object(inner));
        }
        out
    }

    /// Reads the `FieldsV1` form; `None` when it is malformed.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let mut out = Self::default();
        for (text, inner) in value.as_object()? {
            if text == "." {
                continue;
            }
            let inner_map = inner.as_object()?;
            let member = inner_map.is_empty() || inner_map.contains_key(".");
            out.0.insert(PathElement::decode(text)?, Node { member, children: Self::from_json(inner)? });
        }
        Some(out)
    }
}
