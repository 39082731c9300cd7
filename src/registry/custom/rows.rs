//! The rows of a definition.

use super::definition::{Column as Printed, Definition, Names, Version};
use super::{Custom, Defined, Scale};
use crate::columns::{self, Cell, Column};
use crate::conversion::Conversion;
use crate::resource::{ResourceInfo, SelectableField, StorageClass, Subresource, SubresourceKind, Text, Verbs};
use crate::stored::Stored;
use crate::strategy;
use edge_api::GroupVersionKind;
use edge_api::gvk::version_order;
use edge_api::jsonpath::Template;
use std::sync::{Arc, OnceLock};

/// See [`Defined::read`].
pub(super) fn of(definition: &Definition, source: &Stored, before: Option<&Defined>) -> Option<Defined> {
    let names = &definition.status.accepted_names;
    if !definition.is("Established") || names.plural.is_empty() || names.kind.is_empty() {
        return None;
    }
    let fingerprint = definition.fingerprint();
    let before = before.filter(|b| b.fingerprint == fingerprint);
    let compiled_before = |version: &str| {
        let before = before?;
        let row = before.rows.iter().chain([&before.storage]).find(|r| r.version == version)?;
        row.custom.as_ref().map(|c| c.compiled.clone())
    };
    let versions = &definition.spec.versions;
    let stored_version = &versions.iter().find(|v| v.storage)?.name;
    let stored_api_version = format!("{}/{stored_version}", definition.spec.group);
    let webhook = definition.webhook().map(Arc::new);
    let mut rows: Vec<Arc<ResourceInfo>> = Vec::with_capacity(versions.len());
    for (i, version) in versions.iter().enumerate() {
        let gvk = GroupVersionKind::new(definition.spec.group.as_str(), version.name.as_str(), names.kind.as_str());
        let scale = version.subresources.scale.as_ref().map(|s| Scale {
            spec_replicas: pointer(&s.spec_replicas_path).into(),
            status_replicas: pointer(&s.status_replicas_path).into(),
            selector: s.label_selector_path.as_deref().map(pointer).unwrap_or_default().into(),
        });
        let custom = Custom {
            definition: definition.metadata.name.as_str().into(),
            is_storage: version.storage,
            terminating: definition.metadata.deletion_timestamp.is_some(),
            warning: warning(version, &gvk),
            scale,
            kind: gvk.clone(),
            list_kind: list_kind(names).into(),
            source: source.clone(),
            version: i,
            compiled: compiled_before(&version.name).unwrap_or_else(|| Arc::new(OnceLock::new())),
        };
        let conversion = match &webhook {
            Some(webhook) => {
                Some(Conversion::Webhook { stored_api_version: stored_api_version.clone(), webhook: webhook.clone() })
            }
            None if version.storage => None,
            None => Some(Conversion::Renamed { stored_api_version: stored_api_version.clone() }),
        };
        rows.push(Arc::new(row(definition, version, &gvk, custom, conversion)));
    }
    let storage = rows.iter().find(|r| r.version == *stored_version)?.clone();
    let selectable = rows.iter().flat_map(|r| &r.selectable_fields).fold(Vec::new(), |mut all, field| {
        if !all.iter().any(|f: &SelectableField| f.path == field.path) {
            all.push(field.clone());
        }
        all
    });
    let served = |r: &Arc<ResourceInfo>| versions.iter().any(|v| v.served && v.name == r.version);
    rows.retain(served);
    rows.sort_by(|a, b| version_order(&a.version).cmp(&version_order(&b.version)));
    Some(Defined { rows, storage, selectable, fingerprint })
}

fn list_kind(names: &Names) -> String {
    if names.list_kind.is_empty() { format!("{}List", names.kind) } else { names.list_kind.clone() }
}

fn warning(version: &Version, gvk: &GroupVersionKind) -> Option<Box<str>> {
    let text = || format!("{} {} is deprecated", gvk.api_version(), gvk.kind);
    version.deprecated.then(|| version.deprecation_warning.clone().unwrap_or_else(text).into())
}

/// `.spec.replicas` as `/spec/replicas`.
fn pointer(path: &str) -> String {
    path.replace('~', "~0").replace('/', "~1").replace('.', "/")
}

fn row(
    definition: &Definition,
    version: &Version,
    gvk: &GroupVersionKind,
    custom: Custom,
    conversion: Option<Conversion>,
) -> ResourceInfo {
    let names = &definition.status.accepted_names;
    let texts = |list: &[String]| list.iter().map(|t| Text::from(t.clone())).collect();
    let mut subresources = Vec::new();
    if version.subresources.status.is_some() {
        subresources.push(Subresource {
            name: "status".into(),
            group: gvk.group.clone().into(),
            version: gvk.version.clone().into(),
            kind: gvk.kind.clone().into(),
            verbs: Verbs::GET_PATCH_UPDATE,
            serves: SubresourceKind::Fields(strategy::custom::status_only),
        });
    }
    if custom.scale.is_some() {
        subresources.push(Subresource {
            name: "scale".into(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            verbs: Verbs::GET_PATCH_UPDATE,
            serves: SubresourceKind::Scale,
        });
    }
    let field = |path: &str| {
        let path = Text::from(path.trim_start_matches('.').to_owned());
        SelectableField { label: path.clone(), path, default: "".into() }
    };
    ResourceInfo {
        group: gvk.group.clone().into(),
        version: gvk.version.clone().into(),
        plural: names.plural.clone().into(),
        singular: names.singular.clone().into(),
        kind: gvk.kind.clone().into(),
        list_kind: list_kind(names).into(),
        short_names: texts(&names.short_names),
        categories: texts(&names.categories),
        namespaced: definition.spec.scope == "Namespaced",
        verbs: Verbs::ALL,
        subresources,
        selectable_fields: version.selectable_fields.iter().map(|f| field(&f.json_path)).collect(),
        columns: match version.additional_printer_columns.as_slice() {
            [] => vec![columns::custom_age()],
            printed => printed.iter().map(column).collect(),
        },
        storage: StorageClass::Durable,
        prefix: format!("{}/{}", gvk.group, names.plural).into(),
        strategy: &strategy::custom::STRATEGY,
        conversion,
        custom: Some(custom),
    }
}

fn column(printed: &Printed) -> Column {
    let path = Template::parse(&format!("{{{}}}", printed.json_path)).ok();
    Column {
        name: printed.name.clone().into(),
        kind: printed.kind.clone().into(),
        format: printed.format.clone().into(),
        description: printed.description.clone().into(),
        priority: printed.priority,
        cell: path.map_or(Cell::Nothing, Cell::Path),
    }
}
