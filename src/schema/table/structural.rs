//! Compiles the structural schema of a custom resource into a [`Schema`] of its own.
//!
//! In: one version's `openAPIV3Schema`. Out: the kind and its list, with the merge rules, defaults and fields that the engines need;
//! `metadata` is the built-in type. Value validation (patterns, ranges, CEL) is no part of the table.

use std::{borrow::Cow, collections::HashMap};

use edge_api::GroupVersionKind;
use serde_json::{Map, Value};

use super::{FieldRec, KindRec, Leaf, NONE, Relation, Schema, Sym, Tag, TypeRec, flag};

/// How deep a schema may nest.
const MAX_DEPTH: usize = 100;

/// Why a schema is not structural.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StructuralError {
    /// A part of the schema that is not an object where one is needed.
    #[error("{path}: must be an object")]
    NotAnObject {
        /// Path inside the schema, for instance `properties.spec`.
        path: String,
    },
    /// A `type` that does not exist, or none where one is needed.
    #[error("{path}: unknown type {found:?}")]
    UnknownType {
        /// Path inside the schema.
        path: String,
        /// What is written there.
        found: String,
    },
    /// An array without `items`.
    #[error("{path}: an array needs items")]
    NoItems {
        /// Path inside the schema.
        path: String,
    },
    /// A list of type map whose elements lack one of its keys.
    #[error("{path}: list map key {key:?} is no property of the items")]
    MapKey {
        /// Path inside the schema.
        path: String,
        /// The key.
        key: String,
    },
    /// Nested too deeply.
    #[error("schema is nested too deeply")]
    Depth,
}

impl Schema {
    /// Compiles the schema of one version of a custom resource; the result knows `gvk` and the list kind `list_kind`.
    ///
    /// # Errors
    /// When the schema is not structural.
    pub fn custom(gvk: &GroupVersionKind, list_kind: &str, schema: &Value) -> Result<Schema, StructuralError> {
        let mut builder = Builder::new();
        let root = builder.node(schema, "", 0, true)?;
        let reversed: Vec<_> = gvk.group.rsplit('.').collect();
        let prefix = format!("{}.{}.", reversed.join("."), gvk.version);
        let list = builder.list_of(root);
        let mut kinds = vec![(gvk.kind.as_str(), root), (list_kind, list)];
        kinds.sort_unstable();
        let (group, version) = (builder.sym(&gvk.group), builder.sym(&gvk.version));
        for (kind, ty) in kinds {
            let name = builder.sym(&format!("{prefix}{kind}"));
            builder.schema.types[ty as usize].name = name;
            builder.schema.names.push((name, ty));
            let kind = builder.sym(kind);
            builder.schema.kinds.push(KindRec { group, version, kind, ty });
        }
        Ok(builder.schema)
    }
}

struct Builder {
    schema: Schema,
    syms: HashMap<String, Sym>,
}

impl Builder {
    fn new() -> Self {
        let strings = vec![Cow::Borrowed("")];
        let schema = Schema { strings, types: Vec::new(), fields: Vec::new(), kinds: Vec::new(), names: Vec::new() };
        Self { schema, syms: HashMap::from([(String::new(), NONE)]) }
    }

    fn sym(&mut self, text: &str) -> Sym {
        if let Some(sym) = self.syms.get(text) {
            return *sym;
        }
        let sym = Sym(index(self.schema.strings.len()));
        self.schema.strings.push(Cow::Owned(text.to_owned()));
        self.syms.insert(text.to_owned(), sym);
        sym
    }

    fn push(&mut self, rec: TypeRec) -> u32 {
        self.schema.types.push(rec);
        index(self.schema.types.len() - 1)
    }

    fn leaf(&mut self, leaf: Leaf) -> u32 {
        self.push(TypeRec::new(Tag::Leaf(leaf)))
    }

    /// A built-in type of meta/v1.
    fn meta(&mut self, kind: &str) -> u32 {
        let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
        let id = Schema::builtin().named(&name).expect("invariant: meta/v1 is built in").id;
        self.push(TypeRec { first: id, ..TypeRec::new(Tag::Builtin) })
    }

    fn field(&mut self, name: &str, ty: u32, flags: u16) -> FieldRec {
        let name = self.sym(name);
        FieldRec { name, ty, number: 0, flags: flags | flag::POINTER, default: NONE, merge_key: NONE }
    }

    /// `apiVersion`, `kind` and `metadata`.
    fn object_fields(&mut self, metadata: &str) -> Vec<FieldRec> {
        let (text, meta) = (self.leaf(Leaf::String), self.meta(metadata));
        let fields = [("apiVersion", text), ("kind", text), ("metadata", meta)];
        fields.map(|(name, ty)| self.field(name, ty, 0)).to_vec()
    }

    fn push_struct(&mut self, fields: Vec<FieldRec>, relation: Relation, preserves_unknown: bool) -> u32 {
        let first = index(self.schema.fields.len());
        let count = index(fields.len());
        self.schema.fields.extend(fields);
        self.push(TypeRec { relation, first, count, preserves_unknown, ..TypeRec::new(Tag::Struct) })
    }

    fn list_of(&mut self, item: u32) -> u32 {
        let items = self.push(TypeRec { relation: Relation::Atomic, first: item, ..TypeRec::new(Tag::List) });
        let mut fields = self.object_fields("ListMeta");
        fields.push(self.field("items", items, flag::REQUIRED));
        self.push_struct(fields, Relation::Granular, false)
    }

    /// The type of one schema node; `object` says whether it is a Kubernetes object (the root, or an embedded resource).
    fn node(&mut self, node: &Value, path: &str, depth: usize, object: bool) -> Result<u32, StructuralError> {
        if depth > MAX_DEPTH {
            return Err(StructuralError::Depth);
        }
        let schema = node.as_object().ok_or_else(|| StructuralError::NotAnObject { path: path.to_owned() })?;
        let is = |key: &str| schema.get(key) == Some(&Value::Bool(true));
        let object = object || is("x-kubernetes-embedded-resource");
        if is("x-kubernetes-int-or-string") {
            return Ok(self.leaf(Leaf::IntOrString));
        }
        let preserves = is("x-kubernetes-preserve-unknown-fields");
        Ok(match schema.get("type").and_then(Value::as_str) {
            Some("object") => return self.object(schema, path, depth, object),
            Some("array") => return self.array(schema, path, depth),
            Some("string") => self.leaf(Leaf::String),
            Some("boolean") => self.leaf(Leaf::Bool),
            Some("integer") => self.leaf(Leaf::Int64),
            Some("number") => self.leaf(Leaf::Double),
            None if object => return self.object(schema, path, depth, true),
            None if preserves || schema.is_empty() => self.push(TypeRec::new(Tag::Any)),
            other => {
                let found = other.unwrap_or_default().to_owned();
                return Err(StructuralError::UnknownType { path: path.to_owned(), found });
            }
        })
    }

    fn object(
        &mut self,
        schema: &Map<String, Value>,
        path: &str,
        depth: usize,
        object: bool,
    ) -> Result<u32, StructuralError> {
        let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
        let relation = if atomic { Relation::Atomic } else { Relation::Granular };
        match schema.get("additionalProperties") {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => {
                let any = self.push(TypeRec::new(Tag::Any));
                return Ok(self.push(TypeRec { relation, first: any, ..TypeRec::new(Tag::Map) }));
            }
            Some(values) => {
                let element = self.node(values, &join(path, "additionalProperties"), depth + 1, false)?;
                return Ok(self.push(TypeRec { relation, first: element, ..TypeRec::new(Tag::Map) }));
            }
        }
        let mut fields = if object { self.object_fields("ObjectMeta") } else { Vec::new() };
        let required: Vec<_> = schema.get("required").and_then(Value::as_array).into_iter().flatten().collect();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if object && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let place = join(&join(path, "properties"), name);
            let ty = self.node(property, &place, depth + 1, false)?;
            let mut field = self.field(name, ty, 0);
            if required.iter().any(|r| *r == name) {
                field.flags |= flag::REQUIRED;
            }
            if property.get("nullable") == Some(&Value::Bool(true)) {
                field.flags |= flag::NULLABLE;
            }
            if let Some(default) = property.get("default") {
                field.default = self.sym(&default.to_string());
            }
            fields.push(field);
        }
        let preserves = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        Ok(self.push_struct(fields, relation, preserves))
    }

    fn array(&mut self, schema: &Map<String, Value>, path: &str, depth: usize) -> Result<u32, StructuralError> {
        let items = schema.get("items").ok_or_else(|| StructuralError::NoItems { path: path.to_owned() })?;
        let first = self.node(items, &join(path, "items"), depth + 1, false)?;
        let mut list = TypeRec { relation: Relation::Atomic, first, ..TypeRec::new(Tag::List) };
        match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => list.relation = Relation::Set,
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                let keys: Vec<_> = keys.into_iter().flatten().filter_map(Value::as_str).collect();
                let missing = keys.iter().find(|key| self.schema.ty(first).field(key).is_none());
                if let Some(key) = missing {
                    return Err(StructuralError::MapKey { path: path.to_owned(), key: (*key).to_owned() });
                }
                list.relation = Relation::Keyed;
                list.keys = self.sym(&keys.join(","));
            }
            _ => {}
        }
        Ok(self.push(list))
    }
}

fn index(n: usize) -> u32 {
    u32::try_from(n).expect("invariant: a schema that fits a request has fewer parts than 2^32")
}

fn join(path: &str, step: &str) -> String {
    if path.is_empty() { step.to_owned() } else { format!("{path}.{step}") }
}
