//! Walking values by their type: which fields a value sets, how two values differ, merging, removing.
//!
//! A type of `None` stands for a value without a schema: objects merge member by member, everything else is one unit.

use super::path::{self, PathElement};
use super::set::{FieldSet, Node};
use crate::table::{ListType, MapType, Shape, TypeRef};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The type of a value, where there is one.
pub(super) type Ty<'s> = Option<TypeRef<'s>>;

/// How one value takes part in merging.
enum Class<'v, 's> {
    /// One unit: a scalar, or an object or list that is replaced as a whole.
    Leaf,
    Map(&'v Map<String, Value>),
    /// The elements with their identities.
    List(Vec<(PathElement, &'v Value)>, Ty<'s>),
}

fn class<'v, 's>(ty: Ty<'s>, value: &'v Value) -> Class<'v, 's> {
    let shape = ty.map(|t| (t, t.shape()));
    match (shape, value) {
        (Some((_, Shape::Either(object, other))), _) => {
            class(Some(if value.is_object() { object } else { other }), value)
        }
        (None | Some((_, Shape::Any)), Value::Object(map)) => Class::Map(map),
        (Some((t, Shape::Struct | Shape::Map(_))), Value::Object(map)) if t.map_type() != Some(MapType::Atomic) => {
            Class::Map(map)
        }
        (Some((t, Shape::List(element))), Value::Array(list)) => match elements(t, element, list) {
            Some(elements) => Class::List(elements, Some(element)),
            None => Class::Leaf,
        },
        _ => Class::Leaf,
    }
}

/// The elements of an associative list with their identities; `None` for an atomic one, and for one that lacks keys.
fn elements<'v>(list: TypeRef<'_>, element: TypeRef<'_>, values: &'v [Value]) -> Option<Vec<(PathElement, &'v Value)>> {
    if list.list_type() == Some(ListType::Atomic) {
        return None;
    }
    values.iter().map(|v| identity(list, element, v).ok().map(|e| (e, v))).collect()
}

/// What identifies an element of an associative list.
fn identity(list: TypeRef<'_>, element: TypeRef<'_>, value: &Value) -> Result<PathElement, String> {
    let Some(ListType::Map(keys)) = list.list_type() else {
        return match value {
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            Value::Object(_) | Value::Array(_) => {
                Err("associative list without keys has an element that's a map or list type".into())
            }
            scalar => Ok(PathElement::value(scalar)),
        };
    };
    let Value::Object(map) = value else {
        return Err("associative list with keys may not have non-map elements".into());
    };
    let mut found = Map::new();
    for key in keys.iter() {
        let default = || element.field(key).and_then(|f| f.default());
        let Some(value) = map.get(key).cloned().or_else(default) else {
            return Err(format!(
                "associative list with keys has an element that omits key field \"{key}\" (and doesn't have default value)"
            ));
        };
        found.insert(key.to_owned(), value);
    }
    Ok(PathElement::key(found))
}

/// The type of a member of an object.
fn member<'s>(ty: Ty<'s>, name: &str) -> Ty<'s> {
    let ty = ty?;
    match ty.shape() {
        Shape::Struct => ty.field(name).map(|f| f.ty()),
        Shape::Map(element) => Some(element),
        Shape::Either(object, _) => member(Some(object), name),
        _ => None,
    }
}

/// Whether `name` is a declared field, and not just a key of a map.
fn is_declared(ty: Ty<'_>, name: &str) -> bool {
    ty.is_some_and(|t| match t.shape() {
        Shape::Either(object, _) => is_declared(Some(object), name),
        _ => t.field(name).is_some(),
    })
}

/// Whether a field is a struct that is held by value.
fn is_value_struct(ty: Ty<'_>, name: &str) -> bool {
    ty.and_then(|t| t.field(name)).is_some_and(|f| f.is_value_struct())
}

fn is_empty_object(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// What is wrong with the associative lists of an applied configuration, each with its path.
pub(super) fn list_errors(ty: Ty<'_>, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    check_lists(ty, value, &mut Vec::new(), &mut out);
    out
}

fn check_lists(ty: Ty<'_>, value: &Value, at: &mut Vec<PathElement>, out: &mut Vec<String>) {
    match (ty.map(|t| (t, t.shape())), value) {
        (Some((t, Shape::List(element))), Value::Array(list)) if t.list_type() != Some(ListType::Atomic) => {
            let mut seen = BTreeSet::new();
            for (i, v) in list.iter().enumerate() {
                match identity(t, element, v) {
                    Err(why) => out.push(format!("{}: element {i}: {why}", path::display(at))),
                    Ok(id) if seen.contains(&id) => {
                        out.push(format!("{}: duplicate entries for key {id}", path::display(at)));
                    }
                    Ok(id) => {
                        at.push(id.clone());
                        check_lists(Some(element), v, at, out);
                        at.pop();
                        seen.insert(id);
                    }
                }
            }
        }
        (_, Value::Object(map)) => {
            for (name, v) in map {
                at.push(PathElement::field(name));
                check_lists(member(ty, name), v, at, out);
                at.pop();
            }
        }
        _ => {}
    }
}

/// The fields that a value sets.
pub(super) fn field_set(ty: Ty<'_>, value: &Value) -> FieldSet {
    node(ty, value).children
}

fn node(ty: Ty<'_>, value: &Value) -> Node {
    let mut out = Node::default();
    match class(ty, value) {
        Class::Leaf => out.member = true,
        Class::Map(map) => {
            for (name, v) in map {
                let mut inner = node(member(ty, name), v);
                inner.member |= is_empty_object(v) || !is_declared(ty, name);
                out.children.insert_node(PathElement::field(name), inner);
            }
        }
        Class::List(elements, element) => {
            for (id, same) in by_identity(&elements) {
                // Elements of the same identity are one unit.
                let children = match same.as_slice() {
                    [one] => node(element, one).children,
                    _ => FieldSet::default(),
                };
                out.children.insert_node(id.clone(), Node { member: true, children });
            }
        }
    }
    out
}

/// How two values differ.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    pub(super) fn of(ty: Ty<'_>, old: &Value, new: &Value) -> Self {
        let mut out = Self::default();
        out.compare(ty, Some(old), Some(new), &mut Vec::new());
        out
    }

    /// Takes out top-level fields with everything below them.
    pub(super) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            let element = PathElement::field(field);
            self.added.remove_tree(&element);
            self.modified.remove_tree(&element);
            self.removed.remove_tree(&element);
        }
    }

    /// What is set to something new.
    pub(super) fn changed(&self) -> FieldSet {
        self.modified.union(&self.added)
    }

    fn compare(&mut self, ty: Ty<'_>, old: Option<&Value>, new: Option<&Value>, at: &mut Vec<PathElement>) {
        let nothing =
            |v: Option<&Value>| v.is_none_or(|v| is_empty_object(v) || v.as_array().is_some_and(Vec::is_empty));
        if nothing(old) && nothing(new) {
            return self.leaf(old, new, at);
        }
        match (old.map(|v| class(ty, v)), new.map(|v| class(ty, v))) {
            (Some(Class::Map(a)), Some(Class::Map(b))) => self.maps(ty, a, b, at),
            (Some(Class::List(a, element)), Some(Class::List(b, _))) => self.lists(element, a, b, at),
            (Some(Class::Leaf), Some(Class::Leaf)) => self.leaf(old, new, at),
            (a, b) => {
                // One side is absent, or the value changed its form.
                if let Some(a) = a {
                    self.children(ty, a, at, false);
                }
                if let Some(b) = b {
                    self.children(ty, b, at, true);
                }
                self.leaf(old, new, at);
            }
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>, at: &[PathElement]) {
        match (old, new) {
            (None, Some(_)) => self.added.insert(at),
            (Some(_), None) => self.removed.insert(at),
            (Some(a), Some(b)) if a != b => self.modified.insert(at),
            _ => {}
        }
    }

    /// Everything below a value that appears (`new`) or goes.
    fn children(&mut self, ty: Ty<'_>, class: Class<'_, '_>, at: &mut Vec<PathElement>, new: bool) {
        let mut each = |element: PathElement, ty: Ty<'_>, v: &Value| {
            at.push(element);
            if new {
                self.compare(ty, None, Some(v), at)
            } else {
                self.compare(ty, Some(v), None, at)
            }
            at.pop();
        };
        match class {
            Class::Leaf => {}
            Class::Map(map) => map.iter().for_each(|(k, v)| each(PathElement::field(k), member(ty, k), v)),
            Class::List(list, element) => list.into_iter().for_each(|(id, v)| each(id, element, v)),
        }
    }

    fn maps(&mut self, ty: Ty<'_>, a: &Map<String, Value>, b: &Map<String, Value>, at: &mut Vec<PathElement>) {
        let nothing = Value::Object(Map::new());
        for name in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
            // Kubernetes always writes structs that it holds by value, so such a field never appears or goes.
            let absent = is_value_struct(ty, name).then_some(&nothing);
            at.push(PathElement::field(name));
            self.compare(member(ty, name), a.get(name).or(absent), b.get(name).or(absent), at);
            at.pop();
        }
    }

    fn lists(
        &mut self,
        element: Ty<'_>,
        a: Vec<(PathElement, &Value)>,
        b: Vec<(PathElement, &Value)>,
        at: &mut Vec<PathElement>,
    ) {
        let mut by_id: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for (id, v) in a {
            by_id.entry(id).or_default().0.push(v);
        }
        for (id, v) in b {
            by_id.entry(id).or_default().1.push(v);
        }
        for (id, (old, new)) in by_id {
            at.push(id);
            match (old.as_slice(), new.as_slice()) {
                ([] | [_], [] | [_]) => self.compare(element, old.first().copied(), new.first().copied(), at),
                ([], _) => self.added.insert(at),
                (_, []) => self.removed.insert(at),
                (old, new) if old != new => self.modified.insert(at),
                _ => {}
            }
            at.pop();
        }
    }
}

/// `live` with `config` merged into it.
pub(super) fn merge(ty: Ty<'_>, live: &Value, config: &Value) -> Value {
    match (class(ty, live), class(ty, config)) {
        (Class::Map(a), Class::Map(b)) => {
            let mut out = a.clone();
            for (name, new) in b {
                let merged = match a.get(name) {
                    Some(old) => merge(member(ty, name), old, new),
                    None => new.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Class::List(a, element), Class::List(b, _)) => Value::Array(merge_lists(element, &a, &b)),
        _ => config.clone(),
    }
}

/// Elements of both lists in the order of `config`; what only `live` has keeps its place before the shared element that follows it.
fn merge_lists(element: Ty<'_>, live: &[(PathElement, &Value)], config: &[(PathElement, &Value)]) -> Vec<Value> {
    let old = by_identity(live);
    let wanted: BTreeSet<&PathElement> = config.iter().map(|(id, _)| id).collect();
    let mut shared = config.iter().map(|(id, _)| id).filter(|id| old.contains_key(id)).peekable();
    let mut out = Vec::with_capacity(live.len() + config.len());
    let mut live = live.iter().peekable();
    for (id, new) in config {
        // Up to the next shared element, which `config` may want later: what only `live` has stays, what was or will be merged goes.
        while let Some((other, value)) = live.next_if(|(other, _)| Some(&other) != shared.peek()) {
            if !wanted.contains(other) {
                out.push((*value).clone());
            }
        }
        out.push(match old.get(id).map(Vec::as_slice) {
            Some([one]) => merge(element, one, new),
            // Elements that were there twice are not merged into, but replaced.
            _ => (*new).clone(),
        });
        if shared.next_if_eq(&id).is_some() {
            live.next();
        }
    }
    out.extend(live.filter(|(id, _)| !wanted.contains(id)).map(|(_, v)| (*v).clone()));
    out
}

fn by_identity<'a, 'v>(list: &'a [(PathElement, &'v Value)]) -> BTreeMap<&'a PathElement, Vec<&'v Value>> {
    let mut out: BTreeMap<&PathElement, Vec<&Value>> = BTreeMap::new();
    for (id, v) in list {
        out.entry(id).or_default().push(v);
    }
    out
}

/// `value` without the fields of `set`. What becomes empty on the way becomes null.
pub(super) fn remove(ty: Ty<'_>, value: &Value, set: &FieldSet) -> Value {
    match class(ty, value) {
        Class::Leaf if value.is_object() || value.is_array() => Value::Null,
        Class::Leaf => value.clone(),
        Class::Map(map) => {
            let keep = map.iter().filter_map(|(name, v)| {
                let left = match set.get(&PathElement::field(name)) {
                    Some(node) if node.member => return None,
                    Some(node) if !node.children.is_empty() => remove(member(ty, name), v, &node.children),
                    _ => v.clone(),
                };
                Some((name.clone(), left))
            });
            let out: Map<String, Value> = keep.collect();
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        Class::List(list, element) => {
            let keep = list.iter().filter_map(|(id, v)| match set.get(id) {
                Some(node) if node.member => None,
                Some(node) if !node.children.is_empty() => {
                    Some(remove(element, v, &node.children)).filter(|v| !v.is_null())
                }
                _ => Some((*v).clone()),
            });
            let out: Vec<Value> = keep.collect();
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
    }
}

/// The set, with every declared field on the way to a member a member too.
pub(super) fn with_named_fields(ty: Ty<'_>, set: &FieldSet) -> FieldSet {
    let mut out = FieldSet::default();
    for (element, node) in set.iter() {
        let (inner, declared) = match element {
            PathElement::Field(name) => (member(ty, name), is_declared(ty, name)),
            PathElement::Key(_) => (ty.and_then(|t| t.element()), false),
            _ => (None, false),
        };
        let member = node.member || (declared && !node.children.is_empty());
        out.insert_node(element.clone(), Node { member, children: with_named_fields(inner, &node.children) });
    }
    out
}
