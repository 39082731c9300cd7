//! Paths and their operations.

use edge_api::GroupVersion;
use serde_json::{Map, Value, json};

use super::{
    ApiResourceInfo, Flavour, names,
    parameters::{self, parameter, query},
    schemas::{list_name, meta_name, reference, unknown_name},
};
use crate::Shape;

const PRODUCES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_PRODUCES: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCH_CONSUMES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

fn is_built_in_only(media_type: &str) -> bool {
    media_type.contains("strategic-merge-patch") || media_type.contains("protobuf")
}

/// What a path is about.
enum Target<'a> {
    /// Discovery of a group version.
    Discovery(GroupVersion),
    /// The collection of a resource, in one namespace (or the cluster).
    Collection(&'a ApiResourceInfo<'a>),
    /// The collection of a namespaced resource in all namespaces.
    AllNamespaces(&'a ApiResourceInfo<'a>),
    /// One object or a subresource of it; the second is the resource that the subresource belongs to.
    Object(&'a ApiResourceInfo<'a>, &'a ApiResourceInfo<'a>),
}

/// One path of a document.
pub(super) struct Path<'a> {
    /// URL with `{namespace}` and `{name}`.
    pub(super) url: String,
    target: Target<'a>,
}

/// One operation before it is written in either flavour.
struct Operation<'a> {
    verb: &'a str,
    id: String,
    description: String,
    parameters: &'a [&'a str],
    /// Reference to the body's schema.
    body: Option<String>,
    /// Schema name of a successful answer; `None` for a plain string.
    answer: Option<String>,
    codes: &'a [&'a str],
}

impl<'a> Path<'a> {
    /// The paths of `resources` and of the discovery of `versions`, sorted.
    pub(super) fn all(resources: &[&'a ApiResourceInfo<'a>], versions: &[GroupVersion]) -> Vec<Self> {
        let mut out: Vec<Self> = versions
            .iter()
            .map(|gv| Path {
                url: format!("/{}/", names::group_version_path(gv)),
                target: Target::Discovery(gv.clone()),
            })
            .collect();
        for resource in resources {
            let base = format!("/{}", names::group_version_path(&resource.group_version()));
            let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
            let collection = format!("{base}{scope}/{}", resource.plural);
            if let Some(subresource) = resource.subresource {
                let same = |r: &&&ApiResourceInfo<'_>| {
                    r.subresource.is_none()
                        && (r.plural, r.group, r.version) == (resource.plural, resource.group, resource.version)
                };
                let parent = resources.iter().find(same).unwrap_or(resource);
                let url = format!("{collection}/{{name}}/{subresource}");
                out.push(Path { url, target: Target::Object(resource, parent) });
                continue;
            }
            if resource.namespaced && resource.serves("list") {
                let url = format!("{base}/{}", resource.plural);
                out.push(Path { url, target: Target::AllNamespaces(resource) });
            }
            if ["list", "create", "deletecollection"].iter().any(|v| resource.serves(v)) {
                out.push(Path { url: collection.clone(), target: Target::Collection(resource) });
            }
            if ["get", "update", "patch", "delete"].iter().any(|v| resource.serves(v)) {
                out.push(Path { url: format!("{collection}/{{name}}"), target: Target::Object(resource, resource) });
            }
        }
        out.sort_by(|a, b| a.url.cmp(&b.url));
        out
    }

    /// The path item.
    pub(super) fn item(&self, flavour: Flavour) -> Value {
        let mut out = Map::new();
        let (resource, operations) = match &self.target {
            Target::Discovery(gv) => return discovery(flavour, gv),
            Target::Collection(r) => (*r, collection(flavour, r)),
            Target::AllNamespaces(r) => (*r, vec![("get", list(r, &format!("{}ForAllNamespaces", r.kind.kind)))]),
            Target::Object(r, parent) => (*r, object(flavour, r, parent)),
        };
        for (method, operation) in operations {
            out.insert(method.to_owned(), operation.write(flavour, resource));
        }
        out.insert("parameters".to_owned(), self.shared_parameters(flavour, resource).into());
        out.into()
    }

    /// Parameters of every operation of the path.
    fn shared_parameters(&self, flavour: Flavour, resource: &ApiResourceInfo<'_>) -> Vec<Value> {
        let mut out = Vec::new();
        if self.url.contains("{name}") {
            out.push(parameter(flavour, "name", "string", "path", Some("Name of the object.")));
        }
        if self.url.contains("{namespace}") {
            out.push(parameter(flavour, "namespace", "string", "path", Some("Namespace of the object.")));
        }
        // a connection takes the fields of its options as parameters
        let options = resource.ty().filter(|_| is_connect(resource));
        for field in options.into_iter().flat_map(|ty| ty.fields()).filter(|f| f.number() != 0) {
            let ty = match field.ty().shape() {
                Shape::Leaf(crate::Leaf::Bool) => "boolean",
                Shape::Leaf(crate::Leaf::Int32 | crate::Leaf::Int64) => "integer",
                _ => "string",
            };
            out.push(parameter(flavour, field.name(), ty, "query", None));
        }
        if options.is_none() {
            out.extend(query(flavour, &["pretty"]));
        }
        out
    }
}

/// Whether the subresource is a connection (exec, proxy, ...) rather than an object.
fn is_connect(resource: &ApiResourceInfo<'_>) -> bool {
    resource.subresource.is_some() && resource.kind.kind.ends_with("Options")
}

fn discovery(flavour: Flavour, gv: &GroupVersion) -> Value {
    let list = meta_name("APIResourceList");
    let operation = Operation {
        verb: "",
        id: format!("get{}APIResources", names::operation_prefix(gv)),
        description: "get available resources".to_owned(),
        parameters: &[],
        body: None,
        answer: Some(list),
        codes: &["200"],
    };
    json!({"get": operation.write_tagged(flavour, gv, false)})
}

/// Schema name of a resource's objects.
fn kind_name(resource: &ApiResourceInfo<'_>) -> String {
    resource.ty().and_then(|ty| ty.name()).map_or_else(|| unknown_name(resource), str::to_owned)
}

fn operation_id(action: &str, resource: &ApiResourceInfo<'_>, object: &str) -> String {
    format!("{action}{}{object}", names::operation_prefix(&resource.group_version()))
}

fn scoped(resource: &ApiResourceInfo<'_>, kind: &str) -> String {
    format!("{}{kind}", if resource.namespaced { "Namespaced" } else { "" })
}

fn list<'a>(resource: &ApiResourceInfo<'_>, object: &str) -> Operation<'a> {
    let answer = match resource.published {
        Some(published) => list_name(resource, published),
        None => resource.list_ty().and_then(|ty| ty.name()).map_or_else(|| kind_name(resource), str::to_owned),
    };
    Operation {
        verb: "list",
        id: operation_id("list", resource, object),
        description: format!("list or watch objects of kind {}", resource.kind.kind),
        parameters: parameters::LIST,
        body: None,
        answer: Some(answer),
        codes: &["200"],
    }
}

fn collection<'a>(flavour: Flavour, resource: &ApiResourceInfo<'_>) -> Vec<(&'static str, Operation<'a>)> {
    let kind = &resource.kind.kind;
    let object = scoped(resource, kind);
    let mut out = Vec::new();
    if resource.serves("list") {
        out.push(("get", list(resource, &object)));
    }
    if resource.serves("create") {
        let operation = Operation {
            verb: "post",
            id: operation_id("create", resource, &object),
            description: format!("create a {kind}"),
            parameters: parameters::WRITE,
            body: Some(reference(flavour, &kind_name(resource))),
            answer: Some(kind_name(resource)),
            codes: &["200", "201", "202"],
        };
        out.push(("post", operation));
    }
    if resource.serves("deletecollection") {
        let operation = Operation {
            verb: "deletecollection",
            id: operation_id("delete", resource, &format!("Collection{object}")),
            description: format!("delete collection of {kind}"),
            parameters: parameters::DELETE_COLLECTION,
            body: Some(reference(flavour, &meta_name("DeleteOptions"))),
            answer: Some(meta_name("Status")),
            codes: &["200"],
        };
        out.push(("delete", operation));
    }
    out
}

/// Operations on one object: discovery verb, method, action in the id, `x-kubernetes-action`, words of the description, parameters, codes.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);
const OBJECT: [Row; 5] = [
    ("get", "get", "read", "get", "read", &[], &["200"]),
    ("create", "post", "create", "post", "create", parameters::WRITE, &["200", "201", "202"]),
    ("update", "put", "replace", "put", "replace", parameters::WRITE, &["200", "201"]),
    ("patch", "patch", "patch", "patch", "partially update", parameters::PATCH, &["200", "201"]),
    ("delete", "delete", "delete", "delete", "delete", parameters::DELETE, &["200", "202"]),
];

fn object<'a>(
    flavour: Flavour,
    resource: &ApiResourceInfo<'_>,
    parent: &ApiResourceInfo<'_>,
) -> Vec<(&'static str, Operation<'a>)> {
    let sub = resource.subresource.map(names::capitalized).unwrap_or_default();
    let object = scoped(resource, &format!("{}{sub}", parent.kind.kind));
    let connect = is_connect(resource);
    let served = |verb: &str| resource.serves(verb) && (verb != "create" || resource.subresource.is_some());
    OBJECT
        .iter()
        .filter(|row| served(row.0))
        .map(|(_, method, action, verb, words, parameters, codes)| {
            let body = match *method {
                "get" => None,
                _ if connect => None,
                "delete" => Some(meta_name("DeleteOptions")),
                "patch" => Some(meta_name("Patch")),
                _ => Some(kind_name(resource)),
            };
            let what = resource.subresource.map(|s| format!("{s} of ")).unwrap_or_default();
            let operation = Operation {
                verb: if connect { "connect" } else { verb },
                id: if connect {
                    let prefix = names::operation_prefix(&resource.group_version());
                    format!("connect{prefix}{}{object}", names::capitalized(method))
                } else {
                    operation_id(action, resource, &object)
                },
                description: format!("{words} {what}the specified {}", parent.kind.kind),
                parameters: if connect { &[] } else { parameters },
                body: body.map(|name| reference(flavour, &name)),
                answer: match *method {
                    _ if connect => None,
                    "delete" => Some(meta_name("Status")),
                    _ => Some(kind_name(resource)),
                },
                codes: if connect { &["200"] } else { codes },
            };
            (*method, operation)
        })
        .collect()
}

impl Operation<'_> {
    fn write(&self, flavour: Flavour, resource: &ApiResourceInfo<'_>) -> Value {
        let mut out = self.write_tagged(flavour, &resource.group_version(), resource.published.is_some());
        let kind = &resource.kind;
        out["x-kubernetes-action"] = self.verb.into();
        out["x-kubernetes-group-version-kind"] =
            json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        out
    }

    /// `custom`: a custom resource, which has neither protobuf nor strategic merge patches.
    fn write_tagged(&self, flavour: Flavour, gv: &GroupVersion, custom: bool) -> Value {
        let mut out = json!({"operationId": self.id, "description": self.description, "tags": [names::tag(gv)]});
        let mut parameters = query(flavour, self.parameters);
        let consumes: &[&str] = if self.verb == "patch" { &PATCH_CONSUMES } else { &["*/*"] };
        let consumes: Vec<&str> = consumes.iter().copied().filter(|c| !custom || !is_built_in_only(c)).collect();
        if let Some(body) = &self.body {
            match flavour {
                Flavour::V2 => {
                    let required = self.verb != "delete" && self.verb != "deletecollection";
                    parameters
                        .push(json!({"name": "body", "in": "body", "required": required, "schema": {"$ref": body}}));
                }
                Flavour::V3 => {
                    let content: Map<_, _> =
                        consumes.iter().map(|c| ((*c).to_owned(), json!({"schema": {"$ref": body}}))).collect();
                    out["requestBody"] = json!({ "content": content });
                }
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        if flavour == Flavour::V2 {
            out["consumes"] = consumes.into();
            out["produces"] = self.produces(custom).into();
        }
        out["responses"] = self.responses(flavour, custom).into();
        out
    }

    fn produces(&self, custom: bool) -> Vec<&'static str> {
        let mut all = match (&self.answer, self.verb) {
            (None, _) => vec!["*/*"],
            (_, "list") => PRODUCES.into_iter().chain(WATCH_PRODUCES).collect(),
            _ => PRODUCES.to_vec(),
        };
        all.retain(|kind| !custom || !is_built_in_only(kind));
        all
    }

    fn responses(&self, flavour: Flavour, custom: bool) -> Map<String, Value> {
        let schema = match &self.answer {
            Some(name) => json!({"$ref": reference(flavour, name)}),
            None => json!({"type": "string"}),
        };
        let mut out = Map::new();
        for code in self.codes {
            let text = match *code {
                "201" => "Created",
                "202" => "Accepted",
                _ => "OK",
            };
            let answer = match flavour {
                Flavour::V2 => json!({"description": text, "schema": schema}),
                Flavour::V3 => {
                    let content: Map<_, _> =
                        self.produces(custom).into_iter().map(|c| (c.to_owned(), json!({"schema": schema}))).collect();
                    json!({"description": text, "content": content})
                }
            };
            out.insert((*code).to_owned(), answer);
        }
        out.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        out
    }
}
