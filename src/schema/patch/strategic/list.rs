//! Merging lists: sets of scalars and lists keyed by one field, and the order of the result.
//!
//! Elements that only the server has keep their places relative to the old list; the others come in the order of the patch (or of
//! `$setElementOrder`).

use super::{ELEMENT_ORDER, Member, Object, PATCH, Result, StrategicPatchError, merge_map, plain};
use serde_json::Value;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// Merges a patch list into the live list of a field whose strategy is `merge`.
pub(super) fn merge(member: Member<'_>, field: &str, live: Vec<Value>, patch: Vec<Value>) -> Result<Vec<Value>> {
    let Some(first) = live.first().or(patch.first()) else {
        return Ok(live);
    };
    let objects = first.is_object();
    if live.iter().chain(&patch).any(|v| v.is_object() != objects || v.is_array()) {
        return Err(StrategicPatchError::MixedList(field.to_owned()));
    }
    if !objects {
        let mut seen = HashSet::new();
        let merged = live.iter().chain(&patch).filter(|v| seen.insert(*v)).cloned().collect();
        return Ok(arrange(merged, &patch, &live, None));
    }
    let Some(key) = member.merge_key() else {
        return Err(StrategicPatchError::MixedList(field.to_owned()));
    };
    merge_keyed(member, field, key, live, patch)
}

fn merge_keyed(
    member: Member<'_>,
    field: &str,
    key: &str,
    mut live: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>> {
    if let Some(v) = live.iter().chain(&patch).find(|v| v.get(key).is_none()) {
        // A bare `$patch: replace` element needs no key.
        if v.get(PATCH).and_then(Value::as_str) != Some("replace") {
            return Err(no_key(field, key));
        }
    }
    let mut changes = Vec::with_capacity(patch.len());
    let mut deleted = HashSet::new();
    for element in patch {
        match element.get(PATCH) {
            None => changes.push(element),
            Some(directive) => match directive.as_str() {
                Some("delete") => deleted.extend(element.get(key).cloned()),
                Some("replace") => live.clear(),
                _ => return Err(StrategicPatchError::UnknownPatchType(directive.to_string())),
            },
        }
    }
    live.retain(|v| v.get(key).is_none_or(|k| !deleted.contains(k)));
    let element_type = member.ty().and_then(|t| t.element());
    let order = changes.clone();
    let old_order = live.clone();
    let mut places: HashMap<Option<Value>, usize> = HashMap::new();
    for (at, value) in live.iter().enumerate() {
        places.entry(value.get(key).cloned()).or_insert(at);
    }
    for change in changes {
        match places.entry(change.get(key).cloned()) {
            Entry::Occupied(place) => {
                let slot = &mut live[*place.get()];
                if let (Value::Object(old), Value::Object(new)) = (slot.take(), change) {
                    *slot = Value::Object(merge_map(element_type, old, new)?);
                }
            }
            Entry::Vacant(place) => {
                if let Some(value) = plain(change) {
                    place.insert(live.len());
                    live.push(value);
                }
            }
        }
    }
    Ok(arrange(live, &order, &old_order, Some(key)))
}

/// Merges a list for which the patch gives the order of the elements.
pub(super) fn merge_ordered(
    member: Member<'_>,
    field: &str,
    live: &mut Object,
    patch: Option<Value>,
    order: &[Value],
) -> Result<()> {
    let key = member.merge_key();
    let patch = match patch {
        None => None,
        Some(Value::Array(list)) => Some(list),
        Some(_) => return Err(StrategicPatchError::BadDirective(format!("{ELEMENT_ORDER}{field}"))),
    };
    check_order(field, key, patch.as_deref().unwrap_or_default(), order)?;
    let old = match live.get(field) {
        Some(Value::Array(list)) => Some(list.clone()),
        None => None,
        Some(_) => return Err(StrategicPatchError::MixedList(field.to_owned())),
    };
    let merged = match (old.clone(), patch) {
        (None, None) => return Ok(()),
        (Some(old), None) => old,
        (None, Some(new)) => new.into_iter().filter_map(plain).collect(),
        (Some(old), Some(new)) if member.merges_lists() => merge(member, field, old, new)?,
        (Some(_), Some(new)) => new,
    };
    let arranged = arrange(merged, order, &old.unwrap_or_default(), key);
    live.insert(field.to_owned(), Value::Array(arranged));
    Ok(())
}

/// The patch's elements have to appear in `order`, in the same sequence.
fn check_order(field: &str, key: Option<&str>, patch: &[Value], order: &[Value]) -> Result<()> {
    if let Some(key) = key
        && order.iter().any(|v| v.get(key).is_none())
    {
        return Err(no_key(field, key));
    }
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for element in patch.iter().filter(|v| v.get(PATCH).is_none()) {
        if !rest.any(|o| identity(o, key) == identity(element, key)) {
            return Err(StrategicPatchError::OrderMismatch(field.to_owned()));
        }
    }
    Ok(())
}

fn no_key(field: &str, key: &str) -> StrategicPatchError {
    StrategicPatchError::NoMergeKey { field: field.to_owned(), key: key.to_owned() }
}

/// What an element is known by: the value of its key, or itself.
fn identity<'v>(value: &'v Value, key: Option<&str>) -> Option<&'v Value> {
    match key {
        Some(key) => value.get(key),
        None => Some(value),
    }
}

/// Where each element first stands.
fn places<'v>(list: &'v [Value], key: Option<&str>) -> HashMap<Option<&'v Value>, usize> {
    let mut out = HashMap::with_capacity(list.len());
    for (at, value) in list.iter().enumerate() {
        out.entry(identity(value, key)).or_insert(at);
    }
    out
}

/// Orders a merged list: elements named by `order` in that order, the others as in `old`, interleaved by where they stood in `old`.
fn arrange(merged: Vec<Value>, order: &[Value], old: &[Value], key: Option<&str>) -> Vec<Value> {
    let (old, order) = (places(old, key), places(order, key));
    let mut wanted = Vec::new();
    let mut others = Vec::new();
    for value in merged {
        let was = old.get(&identity(&value, key)).copied();
        match order.get(&identity(&value, key)).copied() {
            Some(at) => wanted.push((at, was, value)),
            None => others.push((was, value)),
        }
    }
    wanted.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(was, _)| was.unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(wanted.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, was, value) in wanted {
        while let Some((_, other)) = others.next_if(|(o, _)| matches!((o, was), (Some(o), Some(w)) if *o < w)) {
            out.push(other);
        }
        out.push(value);
    }
    out.extend(others.map(|(_, value)| value));
    out
}
