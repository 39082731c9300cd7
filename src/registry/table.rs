//! The built-in rows: every resource that a 1.36 API server serves with default features, as far as edge has it.
//!
//! A line is `plural singular Kind`, then words: `short=a,b`, `in=category`, `cluster` (not namespaced), `verbs=...` (when
//! not all), `at=prefix` (in the store, when it is not the plural), `ram` or `ram=SECONDS` (the volatile class), `nowhere`
//! (a review). A line that begins with `/` is a subresource of the row above: `/name Kind group/version how`. A line that
//! begins with `?` lists selectable fields of the row above, `label[=default][@path]`. `# group/version` opens a group.

use crate::resource::{ResourceInfo, SelectableField, StorageClass, Subresource, SubresourceKind, Text, Verbs};
use crate::{columns, conversion, strategy};
use std::time::Duration;

const TABLE: &str = include_str!("table.txt");

/// All rows, in the order in which discovery lists groups.
pub(crate) fn rows() -> Vec<ResourceInfo> {
    let mut rows: Vec<ResourceInfo> = Vec::new();
    let (mut group, mut version) = ("", "");
    for line in TABLE.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let rest: Vec<&str> = words.collect();
        if first == "#" {
            let gv = rest.first().copied().unwrap_or_default();
            (group, version) = gv.split_once('/').unwrap_or(("", gv));
        } else if let Some(name) = first.strip_prefix('/') {
            let added = subresource(group, version, name, &rest);
            rows.last_mut().expect("invariant: a subresource follows its row").subresources.push(added);
        } else if first == "?" {
            let row = rows.last_mut().expect("invariant: fields follow their row");
            row.selectable_fields.extend(rest.into_iter().map(field));
        } else {
            rows.push(row(group, version, first, &rest));
        }
    }
    rows
}

fn row(group: &'static str, version: &'static str, plural: &'static str, words: &[&'static str]) -> ResourceInfo {
    let [singular, kind, options @ ..] = words else { panic!("invariant: {plural} has singular and kind") };
    let mut row = ResourceInfo {
        group: group.into(),
        version: version.into(),
        plural: plural.into(),
        singular: (*singular).into(),
        kind: (*kind).into(),
        list_kind: format!("{kind}List").into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: Verbs::ALL,
        subresources: Vec::new(),
        selectable_fields: Vec::new(),
        columns: columns::of(group, plural),
        storage: StorageClass::Durable,
        prefix: plural.into(),
        strategy: strategy::of(group, plural),
        conversion: conversion::of(group, version, plural),
        custom: None,
    };
    for word in options {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let list = || value.split(',').map(Text::from).collect::<Vec<Text>>();
        match name {
            "short" => row.short_names = list(),
            "in" => row.categories = list(),
            "cluster" => row.namespaced = false,
            "verbs" => row.verbs = verbs(value),
            "at" => row.prefix = value.into(),
            "ram" => row.storage = StorageClass::Volatile(value.parse().ok().map(Duration::from_secs)),
            "nowhere" => row.storage = StorageClass::None,
            _ => panic!("invariant: {plural}: unknown word {word}"),
        }
    }
    row
}

fn verbs(list: &str) -> Verbs {
    list.split(',').fold(Verbs::NONE, |all, verb| {
        all.and(match verb {
            "create" => Verbs::CREATE,
            "get" => Verbs::GET,
            "list" => Verbs::LIST,
            "watch" => Verbs::WATCH,
            "update" => Verbs::UPDATE,
            "patch" => Verbs::PATCH,
            "delete" => Verbs::DELETE,
            "gpu" => Verbs::GET_PATCH_UPDATE,
            "most" => Verbs::ALL.without(Verbs::DELETE_COLLECTION),
            other => panic!("invariant: unknown verb {other}"),
        })
    })
}

fn subresource(group: &'static str, version: &'static str, name: &'static str, words: &[&'static str]) -> Subresource {
    let [kind, gv, how, verb_list @ ..] = words else { panic!("invariant: /{name} has kind, version and how") };
    let (group, version) = if *gv == "." { (group, version) } else { gv.split_once('/').unwrap_or(("", gv)) };
    let serves = match *how {
        "status" => SubresourceKind::Fields(strategy::status_only),
        "finalize" => SubresourceKind::Fields(strategy::namespace::finalize_only),
        "approval" => SubresourceKind::Fields(strategy::approval_only),
        "ephemeral" => SubresourceKind::Fields(strategy::pod::ephemeral_containers_only),
        "resize" => SubresourceKind::Fields(strategy::pod::resources_only),
        "scale" => SubresourceKind::Scale,
        "binding" => SubresourceKind::Binding,
        "eviction" => SubresourceKind::Eviction,
        "served" => SubresourceKind::Served,
        other => panic!("invariant: /{name}: unknown way {other}"),
    };
    let verbs = match (verb_list.first(), serves) {
        (Some(list), _) => verbs(list),
        (None, SubresourceKind::Binding | SubresourceKind::Eviction) => Verbs::CREATE,
        (None, _) => Verbs::GET_PATCH_UPDATE,
    };
    Subresource { name: name.into(), group: group.into(), version: version.into(), kind: (*kind).into(), verbs, serves }
}

fn field(word: &'static str) -> SelectableField {
    let (word, path) = word.split_once('@').map_or((word, None), |(w, p)| (w, Some(p)));
    let (label, default) = word.split_once('=').unwrap_or((word, ""));
    SelectableField { label: label.into(), path: path.unwrap_or(label).into(), default: default.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_is_whole() {
        let rows = rows();
        let mut paths = HashSet::new();
        for r in &rows {
            assert!(paths.insert((r.group.clone(), r.version.clone(), r.plural.clone())), "{} twice", r.plural);
            assert!(r.schema().is_some(), "{} has no type", r.gvk());
            assert!(!r.is_stored() || !r.columns.is_empty(), "{} has no columns", r.plural);
            if !r.is_stored_version() {
                assert!(rows.iter().any(|s| s.prefix == r.prefix && s.is_stored_version()), "{}", r.plural);
            }
            for s in &r.subresources {
                assert!(s.verbs != Verbs::NONE, "{}/{}", r.plural, s.name);
            }
        }
        assert!(rows.len() > 50);
        let stored: Vec<_> =
            rows.iter().filter(|r| r.is_stored() && r.is_stored_version()).map(|r| &r.prefix).collect();
        assert_eq!(stored.iter().collect::<HashSet<_>>().len(), stored.len(), "a place in the store for each");
    }
}
