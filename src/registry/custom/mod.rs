//! Custom resources: rows of the catalog out of CustomResourceDefinitions.
//!
//! In: a stored definition. Out: [`Defined`], a row for each served version and one for the version that is stored. The schema of a version is
//! compiled when it is first needed: a definition without objects costs little more than itself, as its rows share the bytes that the
//! hub has anyway.

mod definition;
mod rows;
pub(crate) mod values;

pub use definition::{Endpoint, Names, Webhook};

use crate::resource::ResourceInfo;
use crate::stored::Stored;
use bytes::Bytes;
use edge_api::GroupVersionKind;
use edge_api::field::Path;
use edge_cel::rules::Rules as Expressions;
use edge_schema::structural::Rules;
use edge_schema::{Schema, openapi};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};

/// Group and plural of the definitions themselves.
pub const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");
/// What keeps a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Where the definitions are in the store below `/registry/`.
pub(crate) const DEFINITIONS_PREFIX: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// What the row of a custom resource has beyond that of a built-in one.
#[derive(Debug)]
pub struct Custom {
    /// Name of the definition.
    pub definition: Box<str>,
    /// Whether objects are stored in this version.
    pub is_storage: bool,
    /// Whether the definition is being deleted: nothing new is made.
    pub terminating: bool,
    /// What clients of this version are warned of.
    pub warning: Option<Box<str>>,
    /// Where replicas are, when there is a `scale` subresource.
    pub scale: Option<Scale>,
    kind: GroupVersionKind,
    list_kind: Box<str>,
    /// The definition that this is a version of, and the number of the version in it.
    source: Stored,
    version: usize,
    compiled: Arc<OnceLock<Compiled>>,
}

/// JSON pointers of the `scale` subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Wanted replicas.
    pub spec_replicas: Box<str>,
    /// Present replicas.
    pub status_replicas: Box<str>,
    /// A label selector, as text; empty when there is none.
    pub selector: Box<str>,
}

/// A schema in the forms that the engines need.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) schema: Schema,
    pub(crate) rules: Rules,
    /// The rules of `x-kubernetes-validations`, where there are any.
    pub(crate) expressions: Option<Expressions>,
}

impl Custom {
    /// The schema of the version as it is published.
    pub fn schema_text(&self) -> Option<Bytes> {
        definition::schema_text(self.source.bytes(), self.version)
    }

    /// The types of the version.
    pub(crate) fn types(&self) -> &Schema {
        &self.compiled().schema
    }

    pub(crate) fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| {
            let schema = openapi::Published::schema(self).unwrap_or_else(anything);
            let compile = |schema: &Value| Schema::custom(&self.kind, &self.list_kind, schema);
            let types = compile(&schema).or_else(|error| {
                // only another server than this one can have let it in
                tracing::error!(definition = self.definition, %error, "schema is not structural, it is not enforced");
                compile(&anything())
            });
            let expressions = Expressions::compile(&schema, &Path::root()).unwrap_or_else(|errors| {
                // only another server than this one can have let them in
                let errors = errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::error!(
                    definition = self.definition,
                    errors,
                    "rules cannot be compiled, they are not enforced"
                );
                None
            });
            Compiled {
                expressions,
                schema: types.expect("invariant: an object of anything is structural"),
                rules: Rules::compile(&schema),
            }
        })
    }
}

fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

impl openapi::Published for Custom {
    fn schema(&self) -> Option<Value> {
        serde_json::from_slice(&self.schema_text()?).ok()
    }

    fn list_kind(&self) -> &str {
        &self.list_kind
    }
}

/// What a definition makes of the catalog.
#[derive(Clone, Debug)]
pub struct Defined {
    /// A row for each served version, the preferred one first.
    pub rows: Vec<Arc<ResourceInfo>>,
    /// The row of the version that is stored, whether it is served or not.
    pub storage: Arc<ResourceInfo>,
    /// All fields that selectors of any version name.
    pub(crate) selectable: Vec<crate::resource::SelectableField>,
    /// Changes whenever anything does that clients or objects depend on.
    pub(crate) fingerprint: u64,
}

impl Defined {
    /// Reads a definition. `None`: it is not established, or not one that can be served. What `before` has compiled is used again when the
    /// definition is the same.
    pub(crate) fn read(source: &Stored, before: Option<&Self>) -> Option<Self> {
        let definition = definition::Definition::read(source.bytes());
        match definition {
            Ok(definition) => rows::of(&definition, source, before),
            Err(error) => {
                tracing::error!(definition = source.name(), %error, "definition cannot be read, it is not served");
                None
            }
        }
    }
}
