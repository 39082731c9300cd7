//! The published OpenAPI documents, `/openapi/v2` and `/openapi/v3`.
//!
//! In: the served resources as a slice of [`ApiResourceInfo`], whose types come from the schema table (or a custom resource's schema).
//! Out: a [`Document`] of bytes with an entity tag. A document is written piece by piece, one schema or path at a time, so making one
//! costs little more memory than its bytes; nothing is kept.

mod custom;
mod describe;
mod foreign;
mod gnostic;
mod grammar;
mod merge;
mod names;
mod parameters;
mod paths;
mod schemas;

use std::{collections::BTreeSet, fmt};

use edge_api::{GroupVersion, GroupVersionKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Schema, TypeRef};
pub use foreign::{Foreign, ForeignError};
use merge::Merged;
use paths::Path;
use schemas::Schemas;

/// One served resource or subresource.
#[derive(Clone, Debug)]
pub struct ApiResourceInfo<'a> {
    /// API group of its URL; empty for the core group.
    pub group: &'a str,
    /// API version of its URL.
    pub version: &'a str,
    /// Plural, for instance `pods`.
    pub plural: &'a str,
    /// Subresource, for instance `status`; `None` for the resource itself.
    pub subresource: Option<&'a str>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Verbs served, in discovery's words (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`).
    pub verbs: &'a [&'a str],
    /// Kind of the objects sent and received, which may be of another group (`autoscaling/v1` `Scale`).
    pub kind: GroupVersionKind,
    /// Where the kind's type is found. A kind that is not there is published as an object of unknown fields.
    pub schema: &'a Schema,
    /// Given for custom resources: their schema is published as it was written.
    pub published: Option<&'a dyn Published>,
}

/// Gives the schema of a custom resource as it was written. It is asked for when a document is made, and not kept.
pub trait Published: fmt::Debug + Sync {
    /// The schema of one object.
    fn schema(&self) -> Option<Value>;
    /// Kind of a list.
    fn list_kind(&self) -> &str;
}

impl<'a> ApiResourceInfo<'a> {
    fn group_version(&self) -> GroupVersion {
        GroupVersion::new(self.group, self.version)
    }

    fn ty(&self) -> Option<TypeRef<'a>> {
        self.schema.kind(&self.kind)
    }

    /// The type of its lists.
    fn list_ty(&self) -> Option<TypeRef<'a>> {
        let kind = format!("{}List", self.kind.kind);
        self.schema.kind(&GroupVersionKind { kind, ..self.kind.clone() })
    }

    fn serves(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

/// A document ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The bytes.
    pub body: Vec<u8>,
    /// Hash of the bytes, fit for an entity tag and for the `hash` parameter of the v3 index.
    pub hash: String,
}

impl Document {
    fn new(body: Vec<u8>) -> Self {
        let hash = hex::encode_upper(Sha256::digest(&body));
        Self { body, hash }
    }
}

/// Media type of [`v2_protobuf`].
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Which of the two published forms is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    V2,
    V3,
}

/// Writes a JSON object entry by entry.
struct ObjectWriter<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
}

impl<'o> ObjectWriter<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        append(self.out, &Value::from(key));
        self.out.push(b':');
        self.out
    }

    fn entry(&mut self, key: &str, value: &Value) {
        append(self.key(key), value);
    }

    /// An entry whose value is JSON already.
    fn written(&mut self, key: &str, json: &str) {
        self.key(key).extend_from_slice(json.as_bytes());
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

fn append(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("invariant: a value with string keys serializes into memory");
}

fn info(version: &str) -> Value {
    json!({"title": "Kubernetes", "version": version})
}

fn security_scheme() -> Value {
    json!({"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "A bearer token."}})
}

/// The v3 index: which group versions have a document, and where. `documents` gives each group version with its document's hash.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = (&'a GroupVersion, &'a str)>) -> Document {
    let paths: serde_json::Map<String, Value> = documents
        .into_iter()
        .map(|(gv, hash)| {
            let path = names::group_version_path(gv);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    Document::new(json!({ "paths": paths }).to_string().into_bytes())
}

/// The v3 document (JSON) of one group version; `resources` may hold those of others too.
pub fn v3_document(gv: &GroupVersion, resources: &[ApiResourceInfo<'_>], server_version: &str) -> Document {
    let own: Vec<_> = resources.iter().filter(|r| r.group == gv.group && r.version == gv.version).collect();
    let schemas = Schemas::new(Flavour::V3, &own, resources);
    let paths = Path::all(&own, std::slice::from_ref(gv));
    let mut out = Vec::with_capacity(256 * 1024);
    let mut doc = ObjectWriter::begin(&mut out);
    let mut components = ObjectWriter::begin(doc.key("components"));
    let mut list = ObjectWriter::begin(components.key("schemas"));
    schemas.each(|name, schema| list.entry(name, &schema));
    list.end();
    components.entry("securitySchemes", &security_scheme());
    components.end();
    doc.entry("info", &info(server_version));
    doc.entry("openapi", &"3.0.0".into());
    let mut list = ObjectWriter::begin(doc.key("paths"));
    paths.iter().for_each(|p| list.entry(&p.url, &p.item(Flavour::V3)));
    list.end();
    doc.end();
    Document::new(out)
}

/// The v2 document of everything, as JSON: of the resources, and of what other servers say of theirs.
pub fn v2_json(resources: &[ApiResourceInfo<'_>], others: &[&Foreign], server_version: &str) -> Document {
    let (schemas, paths) = v2_parts(resources);
    let merged = Merged::new(&schemas, others);
    let mut out = Vec::with_capacity(2 * 1024 * 1024);
    let mut doc = ObjectWriter::begin(&mut out);
    let mut list = ObjectWriter::begin(doc.key("definitions"));
    schemas.each(|name, mut schema| {
        merged.complete(name, &mut schema);
        list.entry(name, &schema);
    });
    merged.each(|name, schema| list.entry(name, &schema));
    list.end();
    doc.entry("info", &info(server_version));
    let mut list = ObjectWriter::begin(doc.key("paths"));
    paths.iter().for_each(|p| list.entry(&p.url, &p.item(Flavour::V2)));
    merged.paths.iter().for_each(|(path, json)| list.written(path, json));
    list.end();
    doc.entry("security", &json!([{"BearerToken": []}]));
    doc.entry("securityDefinitions", &security_scheme());
    doc.entry("swagger", &"2.0".into());
    doc.end();
    Document::new(out)
}

/// The v2 document of everything in protobuf form. Clients accept it as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`
/// or as [`V2_PROTOBUF`]; it must be answered as the latter, because `@` is not allowed in a media type.
pub fn v2_protobuf(resources: &[ApiResourceInfo<'_>], others: &[&Foreign], server_version: &str) -> Document {
    let (schemas, paths) = v2_parts(resources);
    let merged = Merged::new(&schemas, others);
    let mut doc = gnostic::DocumentWriter::new(server_version);
    paths.iter().for_each(|p| doc.path(&p.url, &p.item(Flavour::V2)));
    merged.paths.iter().for_each(|(path, json)| doc.path(path, &merge::parse(json)));
    schemas.each(|name, mut schema| {
        merged.complete(name, &mut schema);
        doc.definition(name, &schema);
    });
    merged.each(|name, schema| doc.definition(name, &schema));
    Document::new(doc.finish())
}

fn v2_parts<'a>(resources: &'a [ApiResourceInfo<'a>]) -> (Schemas<'a>, Vec<Path<'a>>) {
    let all: Vec<_> = resources.iter().collect();
    let versions: BTreeSet<_> = resources.iter().map(|r| (r.group, r.version)).collect();
    let versions: Vec<_> = versions.into_iter().map(|(group, version)| GroupVersion::new(group, version)).collect();
    (Schemas::new(Flavour::V2, &all, resources), Path::all(&all, &versions))
}
