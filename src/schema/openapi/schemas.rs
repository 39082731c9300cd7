//! Types as OpenAPI schemas.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{ApiResourceInfo, Flavour, Published, custom::Custom, describe::Descriptions};
use crate::{FieldRef, Leaf, ListType, MapType, Schema, Shape, TypeRef, table::EVERYWHERE};

/// Types that operations name whatever resources there are.
const ALWAYS: [&str; 7] =
    ["APIGroup", "APIGroupList", "APIResourceList", "DeleteOptions", "Patch", "Status", "WatchEvent"];

/// OpenAPI name of a type of meta/v1.
pub(super) fn meta_name(kind: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
}

/// The schemas of one document: every named type that its resources reach.
pub(super) struct Schemas<'a> {
    flavour: Flavour,
    types: BTreeMap<String, TypeRef<'a>>,
    /// Kinds without a type.
    unknown: BTreeSet<String>,
    /// Custom resources, by the names of their kinds and of their lists.
    custom: BTreeMap<String, Custom<'a>>,
    /// Group, version, kind by the name of the type.
    kinds: BTreeMap<String, Vec<Value>>,
    descriptions: Descriptions,
}

impl<'a> Schemas<'a> {
    /// Collects the types of `own`; `all` are the served resources of every group.
    pub(super) fn new(flavour: Flavour, own: &[&'a ApiResourceInfo<'a>], all: &[ApiResourceInfo<'_>]) -> Self {
        let mut this = Self {
            flavour,
            types: BTreeMap::new(),
            unknown: BTreeSet::new(),
            custom: BTreeMap::new(),
            kinds: BTreeMap::new(),
            descriptions: Descriptions::load(),
        };
        for name in ALWAYS {
            Schema::builtin().named(&meta_name(name)).into_iter().for_each(|ty| this.reach(ty));
        }
        let mut seen: Vec<&Schema> = vec![Schema::builtin()];
        for resource in own {
            if let Some(published) = resource.published {
                this.publish(resource, published);
                continue;
            }
            match resource.ty() {
                Some(ty) => this.reach(ty),
                None => {
                    let name = unknown_name(resource);
                    let gvk = &resource.kind;
                    this.kinds.insert(name.clone(), vec![gvk_value(&gvk.group, &gvk.version, &gvk.kind)]);
                    this.unknown.insert(name);
                }
            }
            resource.list_ty().into_iter().for_each(|ty| this.reach(ty));
            if !seen.iter().any(|s| std::ptr::eq(*s, resource.schema)) {
                seen.push(resource.schema);
            }
        }
        for kind in seen.iter().flat_map(|s| s.kinds()) {
            if let Some(name) = kind.ty.name().filter(|_| !EVERYWHERE.contains(&kind.kind)) {
                this.kinds.entry(name.to_owned()).or_default().push(gvk_value(kind.group, kind.version, kind.kind));
            }
        }
        let versions: BTreeSet<_> = all.iter().map(|r| (r.group, r.version)).collect();
        for kind in EVERYWHERE {
            let everywhere = versions.iter().map(|(group, version)| gvk_value(group, version, kind)).collect();
            this.kinds.insert(meta_name(kind), everywhere);
        }
        this
    }

    fn publish(&mut self, resource: &ApiResourceInfo<'_>, published: &'a dyn Published) {
        let (gvk, name) = (&resource.kind, unknown_name(resource));
        let list = list_name(resource, published);
        for meta in ["ObjectMeta", "ListMeta"] {
            Schema::builtin().named(&meta_name(meta)).into_iter().for_each(|ty| self.reach(ty));
        }
        for (name, kind) in [(&name, gvk.kind.as_str()), (&list, published.list_kind())] {
            self.kinds.insert(name.clone(), vec![gvk_value(&gvk.group, &gvk.version, kind)]);
        }
        self.custom.insert(list, Custom::List { item: name.clone() });
        self.custom.insert(name, Custom::Object(published));
    }

    fn reach(&mut self, ty: TypeRef<'a>) {
        let ty = ty.declared();
        if let Some(name) = ty.name()
            && ty.element().is_none()
            && self.types.insert(name.to_owned(), ty).is_some()
        {
            return;
        }
        match ty.shape() {
            Shape::Struct => ty.fields().into_iter().for_each(|f| self.reach(f.ty())),
            Shape::List(t) | Shape::Map(t) => self.reach(t),
            Shape::Either(a, b) => {
                self.reach(a);
                self.reach(b);
            }
            Shape::Leaf(_) | Shape::Any => {}
        }
    }

    /// Calls `emit` with every schema, in the order of their names.
    pub(super) fn each(&self, mut emit: impl FnMut(&str, Value)) {
        let names: BTreeSet<&String> = self.types.keys().chain(&self.unknown).chain(self.custom.keys()).collect();
        for name in names {
            if let Some(schema) = self.value(name) {
                emit(name, schema);
            }
        }
    }

    /// Whether there is a schema of a name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.types.contains_key(name) || self.unknown.contains(name) || self.custom.contains_key(name)
    }

    /// The schema of a name.
    pub(super) fn value(&self, name: &str) -> Option<Value> {
        if !self.has(name) {
            return None;
        }
        let mut schema = match (self.types.get(name), self.custom.get(name)) {
            (Some(ty), _) => self.component(*ty),
            (None, Some(custom)) => custom.write(self.flavour, |name| self.reference(name)),
            (None, None) => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        };
        if let Some(kinds) = self.kinds.get(name) {
            schema["x-kubernetes-group-version-kind"] = Value::from(kinds.clone());
        }
        if let Some(text) = self.descriptions.of_type(name) {
            schema["description"] = text.into();
        }
        Some(schema)
    }

    /// The schema of a named type.
    fn component(&self, ty: TypeRef<'_>) -> Value {
        let name = ty.name().unwrap_or_default();
        match ty.shape() {
            Shape::Struct => self.object(name, ty),
            Shape::Leaf(leaf) => leaf_schema(self.flavour, leaf),
            // a JSON document of any type; the other free-form types are objects
            Shape::Any if name.ends_with(".JSON") => json!({}),
            Shape::Any => json!({"type": "object"}),
            Shape::Either(..) | Shape::List(_) | Shape::Map(_) => json!({}),
        }
    }

    fn object(&self, name: &str, ty: TypeRef<'_>) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in ty.fields() {
            properties.insert(field.name().to_owned(), self.property(name, field));
            if field.is_required() {
                required.push(Value::from(field.name()));
            }
        }
        let mut out = json!({"type": "object"});
        if !properties.is_empty() {
            out["properties"] = properties.into();
        }
        if !required.is_empty() {
            out["required"] = required.into();
        }
        if ty.map_type() == Some(MapType::Atomic) {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        out
    }

    fn property(&self, owner: &str, field: FieldRef<'_>) -> Value {
        let default = field.default().filter(|_| self.flavour == Flavour::V3);
        let mut out = self.schema(field.ty(), default);
        if let Some(text) = self.descriptions.of_field(owner, field.name()) {
            out["description"] = text.into();
        }
        let strategies = [
            (field.patch_replace(), "replace"),
            (field.patch_merge(), "merge"),
            (field.patch_retain_keys(), "retainKeys"),
        ];
        let strategies: Vec<_> = strategies.into_iter().filter_map(|(set, name)| set.then_some(name)).collect();
        if !strategies.is_empty() {
            out["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        if let Some(key) = field.patch_merge_key() {
            out["x-kubernetes-patch-merge-key"] = key.into();
        }
        out
    }

    /// The schema of a type where it is used.
    fn schema(&self, ty: TypeRef<'_>, default: Option<Value>) -> Value {
        let mut out = match (ty.shape(), ty.name()) {
            (Shape::List(item), _) => json!({"type": "array", "items": self.element(item)}),
            (Shape::Map(value), _) => json!({"type": "object", "additionalProperties": self.element(value)}),
            (_, Some(name)) => self.reference(name),
            (Shape::Leaf(leaf), None) => leaf_schema(self.flavour, leaf),
            // an anonymous struct of a custom resource
            (Shape::Struct, None) => self.object("", ty),
            (Shape::Any | Shape::Either(..), None) => json!({"x-kubernetes-preserve-unknown-fields": true}),
        };
        if let Some(default) = default {
            out["default"] = default;
        }
        match ty.list_type() {
            Some(ListType::Map(keys)) => {
                out["x-kubernetes-list-type"] = "map".into();
                out["x-kubernetes-list-map-keys"] = keys.iter().collect();
            }
            Some(ListType::Set) => out["x-kubernetes-list-type"] = "set".into(),
            Some(ListType::Atomic) => out["x-kubernetes-list-type"] = "atomic".into(),
            // a field may differ from what its struct declares
            None => match ty.map_type() {
                Some(MapType::Atomic) if ty.declared().map_type() != ty.map_type() || ty.name().is_none() => {
                    out["x-kubernetes-map-type"] = "atomic".into();
                }
                Some(MapType::Granular) if ty.declared().map_type() != ty.map_type() => {
                    out["x-kubernetes-map-type"] = "granular".into();
                }
                _ => {}
            },
        }
        out
    }

    fn element(&self, ty: TypeRef<'_>) -> Value {
        let default = match ty.shape() {
            Shape::Leaf(Leaf::String) => Some("".into()),
            Shape::Leaf(Leaf::Int32 | Leaf::Int64 | Leaf::Double) => Some(0.into()),
            Shape::Leaf(Leaf::Bool) => Some(false.into()),
            Shape::Struct => Some(json!({})),
            _ => None,
        };
        self.schema(ty, default.filter(|_| self.flavour == Flavour::V3))
    }

    fn reference(&self, name: &str) -> Value {
        match self.flavour {
            Flavour::V2 => json!({"$ref": reference(self.flavour, name)}),
            Flavour::V3 => json!({"allOf": [{"$ref": reference(self.flavour, name)}]}),
        }
    }
}

/// Where a schema of this name is found in the document.
pub(super) fn reference(flavour: Flavour, name: &str) -> String {
    let place = if flavour == Flavour::V2 { "#/definitions/" } else { "#/components/schemas/" };
    format!("{place}{name}")
}

/// Schema name of the lists of a custom resource.
pub(super) fn list_name(resource: &ApiResourceInfo<'_>, published: &dyn Published) -> String {
    let name = unknown_name(resource);
    let prefix = name.rsplit_once('.').map_or("", |(prefix, _)| prefix);
    format!("{prefix}.{}", published.list_kind())
}

/// The name given to a kind whose type is not known.
pub(super) fn unknown_name(resource: &ApiResourceInfo<'_>) -> String {
    let kind = &resource.kind;
    let group = if kind.group.is_empty() { "core" } else { kind.group.as_str() };
    let reversed: Vec<_> = group.rsplit('.').collect();
    format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind)
}

fn gvk_value(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn leaf_schema(flavour: Flavour, leaf: Leaf) -> Value {
    match leaf {
        Leaf::String | Leaf::Duration => json!({"type": "string"}),
        Leaf::Bytes => json!({"type": "string", "format": "byte"}),
        Leaf::Bool => json!({"type": "boolean"}),
        Leaf::Int32 => json!({"type": "integer", "format": "int32"}),
        Leaf::Int64 => json!({"type": "integer", "format": "int64"}),
        Leaf::Double => json!({"type": "number", "format": "double"}),
        Leaf::Quantity if flavour == Flavour::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Leaf::Quantity => json!({"type": "string"}),
        Leaf::IntOrString if flavour == Flavour::V3 => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Leaf::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        Leaf::Time | Leaf::MicroTime => json!({"type": "string", "format": "date-time"}),
    }
}
