//! The parts of other servers' documents in one document with ours.
//!
//! A definition that somebody has already is left out when it says the same, and so does everything that it refers to; otherwise
//! it goes by another name, `<name>_v2` and so on, as kube-apiserver names such. Only the kinds that a definition is of are
//! gathered from all who have it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::foreign::{DEFINITIONS, Foreign, KINDS};
use super::grammar::{self, Node};
use super::schemas::Schemas;

/// What others add to our document.
pub(super) struct Merged<'a> {
    /// Path items (JSON) by their paths.
    pub(super) paths: BTreeMap<&'a str, Cow<'a, str>>,
    /// Schemas by their names in the whole document.
    definitions: BTreeMap<String, Added<'a>>,
    /// Kinds of theirs that are of definitions of ours.
    kinds: BTreeMap<&'a str, Vec<Value>>,
}

/// A schema (JSON) and the kinds that it is of.
struct Added<'a> {
    json: Cow<'a, str>,
    kinds: Vec<Value>,
}

/// The names of a part's definitions in the whole document.
type Names<'a> = BTreeMap<&'a str, String>;

/// Text that was read as JSON before.
pub(super) fn parse(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_default()
}

impl<'a> Merged<'a> {
    /// Adds the parts to ours; those that come first keep their names.
    pub(super) fn new(ours: &Schemas<'_>, parts: &[&'a Foreign]) -> Self {
        let mut this = Self { paths: BTreeMap::new(), definitions: BTreeMap::new(), kinds: BTreeMap::new() };
        let mut before: Vec<(&'a Foreign, Names<'a>)> = Vec::new();
        for &part in parts {
            let names = this.names(ours, &before, part);
            this.add(ours, part, &names);
            before.push((part, names));
        }
        this
    }

    /// Adds what others say of the kinds of a definition of ours.
    pub(super) fn complete(&self, name: &str, schema: &mut Value) {
        if let Some(kinds) = self.kinds.get(name) {
            gather(schema, kinds);
        }
    }

    /// Gives each schema that is not ours.
    pub(super) fn each(&self, mut emit: impl FnMut(&str, Value)) {
        for (name, added) in &self.definitions {
            let mut schema = parse(&added.json);
            gather(&mut schema, &added.kinds);
            emit(name, schema);
        }
    }

    /// Finds the names of a part's definitions.
    fn names(&self, ours: &Schemas<'_>, before: &[(&'a Foreign, Names<'a>)], part: &'a Foreign) -> Names<'a> {
        let referrers = referrers(part);
        let text = |name: &str| {
            let mut schema = ours.value(name)?;
            schema.as_object_mut()?.remove(KINDS);
            Some(schema.to_string())
        };
        let same = same(part, &referrers, |name, json| text(name).is_some_and(|of_ours| of_ours == json));
        let mut names: Names<'a> = same.into_iter().map(|name| (name, name.to_owned())).collect();
        for (other, of_other) in before {
            let is_same = |name: &str, json: &str| other.definitions.get(name).is_some_and(|d| d.json == json);
            for name in self::same(part, &referrers, is_same) {
                if let Some(known) = of_other.get(name) {
                    names.entry(name).or_insert_with(|| known.clone());
                }
            }
        }
        for name in part.definitions.keys() {
            names.entry(name).or_insert_with(|| self.free(ours, part, name));
        }
        names
    }

    /// A name that nobody has.
    fn free(&self, ours: &Schemas<'_>, part: &Foreign, name: &str) -> String {
        let is_taken = |name: &str| self.definitions.contains_key(name) || ours.has(name);
        let mut free = name.to_owned();
        let mut number = 1;
        while is_taken(&free) || number > 1 && part.definitions.contains_key(&free) {
            number += 1;
            free = format!("{name}_v{number}");
        }
        free
    }

    fn add(&mut self, ours: &Schemas<'_>, part: &'a Foreign, names: &Names<'a>) {
        for (name, definition) in &part.definitions {
            let Some(new) = names.get(name.as_str()) else { continue };
            if let Some(known) = self.definitions.get_mut(new) {
                known.kinds.extend(definition.kinds.iter().cloned());
            } else if ours.has(new) {
                self.kinds.entry(name).or_default().extend(definition.kinds.iter().cloned());
            } else {
                let json = renamed(Node::Schema, &definition.json, names);
                self.definitions.insert(new.clone(), Added { json, kinds: definition.kinds.clone() });
            }
        }
        for (path, json) in &part.paths {
            self.paths.entry(path).or_insert_with(|| renamed(Node::PathItem, json, names));
        }
    }
}

/// Which definitions of a part refer to each.
fn referrers(part: &Foreign) -> BTreeMap<&str, Vec<&str>> {
    let mut referrers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, definition) in &part.definitions {
        for to in &definition.references {
            referrers.entry(to).or_default().push(name);
        }
    }
    referrers
}

/// The definitions of a part that somebody else has, too, with all that they refer to.
fn same<'p>(
    part: &'p Foreign,
    referrers: &BTreeMap<&'p str, Vec<&'p str>>,
    is_same: impl Fn(&str, &str) -> bool,
) -> BTreeSet<&'p str> {
    let (mut same, mut others) = (BTreeSet::new(), Vec::new());
    for (name, definition) in &part.definitions {
        if is_same(name, &definition.json) {
            same.insert(name.as_str());
        } else {
            others.push(name.as_str());
        }
    }
    // what refers to something else says something else
    while let Some(other) = others.pop() {
        for referrer in referrers.get(other).into_iter().flatten() {
            if same.remove(referrer) {
                others.push(referrer);
            }
        }
    }
    same
}

/// A piece whose references are by the names of the whole document.
fn renamed<'j>(node: Node, json: &'j str, names: &Names<'_>) -> Cow<'j, str> {
    if names.iter().all(|(old, new)| old == new) {
        return Cow::Borrowed(json);
    }
    let mut to_name = |reference: &mut String| {
        if let Some(new) = reference.strip_prefix(DEFINITIONS).and_then(|name| names.get(name)) {
            *reference = format!("{DEFINITIONS}{new}");
        }
        Ok(())
    };
    let mut value = parse(json);
    // that nothing is wrong with it was found when it was read
    let _ = grammar::walk(node, &mut value, &mut to_name);
    Cow::Owned(value.to_string())
}

/// Adds kinds to those of a schema.
fn gather(schema: &mut Value, more: &[Value]) {
    let Some(fields) = schema.as_object_mut() else { return };
    let mut kinds = fields.get(KINDS).and_then(Value::as_array).cloned().unwrap_or_default();
    let key = |kind: &Value| format!("{}/{}.{}", kind["group"], kind["version"], kind["kind"]);
    let mut seen: BTreeSet<String> = kinds.iter().map(key).collect();
    let before = kinds.len();
    kinds.extend(more.iter().filter(|kind| seen.insert(key(kind))).cloned());
    if kinds.len() > before {
        kinds.sort_by_cached_key(key);
        fields.insert(KINDS.to_owned(), kinds.into());
    }
}
