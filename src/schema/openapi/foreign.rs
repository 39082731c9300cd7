//! What another server's OpenAPI v2 document says of its own group version.
//!
//! In: a document of any bytes. Out: the paths of one group version and the definitions that they need, or why the document cannot be
//! used. Clients read the document of all servers as a whole, so one wrong type or one reference to nowhere in the part of one
//! server would cost them everything; such a part is refused. Pieces are kept as text, and there is never more than one of them in
//! memory in a form that takes more.

use std::collections::{BTreeMap, BTreeSet};

use edge_api::GroupVersion;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::grammar::{self, Node, Wrong};

/// Where references to definitions lead.
pub(super) const DEFINITIONS: &str = "#/definitions/";
/// The field of definitions that says which kinds they are.
pub(super) const KINDS: &str = "x-kubernetes-group-version-kind";
/// So long a part may be, in bytes.
const LONGEST: usize = 2 << 20;
/// So long one of its paths or definitions may be.
const LONGEST_PIECE: usize = 512 << 10;
/// A definition is of so many kinds at most.
const MOST_KINDS: usize = 64;
/// The longest name of a kind, in bytes.
const LONGEST_KIND: usize = 63;

/// The part of a document that is about one group version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Path items (JSON) by their paths.
    pub(super) paths: BTreeMap<String, String>,
    /// Schemas by their names: all that the paths refer to, and the kinds of the group version.
    pub(super) definitions: BTreeMap<String, Definition>,
}

/// A schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Definition {
    /// Without its kinds, and with its fields in the order of their names: the same text says the same.
    pub(super) json: String,
    /// The kinds of the group version that it is of.
    pub(super) kinds: Vec<Value>,
    /// The names of the definitions that it refers to.
    pub(super) references: BTreeSet<String>,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// It is no JSON, or no document.
    #[error("no OpenAPI v2 document")]
    Unreadable(#[from] serde_json::Error),
    /// It is of another version.
    #[error("a document of version {0:?}, and not 2.0")]
    Version(String),
    /// Something in it is not what clients expect.
    #[error("{place}: {wrong}")]
    Wrong {
        /// Which path or definition.
        place: String,
        /// What is wrong with it.
        wrong: String,
    },
    /// A reference leads nowhere.
    #[error("{0:?} is referred to and not there")]
    Dangling(String),
    /// A definition says only that it is itself.
    #[error("{0:?} is defined by nothing but itself")]
    Circle(String),
    /// There is too much of it.
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

type Pieces<'d> = BTreeMap<String, &'d RawValue>;

#[derive(Deserialize)]
struct Document<'d> {
    #[serde(default)]
    swagger: String,
    #[serde(borrow, default)]
    paths: Option<Pieces<'d>>,
    #[serde(borrow, default)]
    definitions: Option<Pieces<'d>>,
    #[serde(borrow, default)]
    parameters: Option<Pieces<'d>>,
    #[serde(borrow, default)]
    responses: Option<Pieces<'d>>,
}

impl Foreign {
    /// Takes the part of one group version out of a document. There may be nothing of it.
    ///
    /// # Errors
    /// When the part could make the whole unreadable for clients.
    pub fn read(document: &[u8], gv: &GroupVersion) -> Result<Self, ForeignError> {
        let document: Document<'_> = serde_json::from_slice(document)?;
        if document.swagger != "2.0" {
            return Err(ForeignError::Version(document.swagger.chars().take(32).collect()));
        }
        let own = format!("/apis/{}/{}", gv.group, gv.version);
        let mut reader = Reader {
            gv,
            definitions: document.definitions.unwrap_or_default(),
            parameters: document.parameters.unwrap_or_default(),
            responses: document.responses.unwrap_or_default(),
            left: LONGEST,
            inlined: 0,
            wanted: BTreeSet::new(),
        };
        let mut part = Self::default();
        for (path, item) in document.paths.unwrap_or_default() {
            if path.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                let item = reader.path(&path, item)?;
                part.paths.insert(path, item);
            }
        }
        if part.paths.is_empty() {
            return Ok(part);
        }
        reader.want_kinds();
        let mut aliases = BTreeMap::new();
        while let Some(name) = reader.wanted.pop_first() {
            let (definition, alias) = reader.definition(&name)?;
            aliases.extend(alias.map(|to| (name.clone(), to)));
            let references = definition.references.clone();
            part.definitions.insert(name, definition);
            reader.wanted.extend(references.into_iter().filter(|name| !part.definitions.contains_key(name)));
        }
        no_circle(&aliases)?;
        Ok(part)
    }
}

/// Whoever looks up what a definition stands for must come to an end.
fn no_circle(aliases: &BTreeMap<String, String>) -> Result<(), ForeignError> {
    for name in aliases.keys() {
        let (mut at, mut steps) = (name, 0);
        while let Some(next) = aliases.get(at) {
            (at, steps) = (next, steps + 1);
            if steps > aliases.len() {
                return Err(ForeignError::Circle(name.clone()));
            }
        }
    }
    Ok(())
}

struct Reader<'d, 'g> {
    gv: &'g GroupVersion,
    definitions: Pieces<'d>,
    parameters: Pieces<'d>,
    responses: Pieces<'d>,
    /// Bytes that the part may have still.
    left: usize,
    /// Bytes that were put in the place of references.
    inlined: usize,
    /// Definitions that are needed and not read yet.
    wanted: BTreeSet<String>,
}

impl Reader<'_, '_> {
    fn path(&mut self, path: &str, json: &RawValue) -> Result<String, ForeignError> {
        let mut item = piece(path, json)?;
        for parameter in grammar::parameters(&mut item) {
            inline(parameter, "#/parameters/", &self.parameters, &mut self.inlined)?;
        }
        for response in grammar::responses(&mut item) {
            inline(response, "#/responses/", &self.responses, &mut self.inlined)?;
        }
        let (json, references) = self.take(path, Node::PathItem, item)?;
        self.wanted.extend(references);
        Ok(json)
    }

    /// A definition, and what it stands for when it is nothing but a reference.
    fn definition(&mut self, name: &str) -> Result<(Definition, Option<String>), ForeignError> {
        let json = *self.definitions.get(name).ok_or_else(|| ForeignError::Dangling(name.to_owned()))?;
        let mut schema = piece(name, json)?;
        let kinds = self.own_kinds(&mut schema);
        let alias = schema["$ref"].as_str().and_then(|to| to.strip_prefix(DEFINITIONS)).map(str::to_owned);
        let (json, references) = self.take(name, Node::Schema, schema)?;
        Ok((Definition { json, kinds, references }, alias))
    }

    /// The text of a piece that nothing is wrong with, and the definitions that it refers to.
    fn take(&mut self, place: &str, node: Node, mut value: Value) -> Result<(String, BTreeSet<String>), ForeignError> {
        let mut references = BTreeSet::new();
        let mut note = |reference: &mut String| match reference.strip_prefix(DEFINITIONS) {
            Some(name) => {
                references.insert(name.to_owned());
                Ok(())
            }
            None => Err(Wrong(format!("refers to {:?}", reference.chars().take(64).collect::<String>()))),
        };
        grammar::walk(node, &mut value, &mut note)
            .map_err(|Wrong(wrong)| ForeignError::Wrong { place: place.to_owned(), wrong })?;
        let json = value.to_string();
        self.left = self.left.checked_sub(place.len() + json.len()).ok_or(ForeignError::TooLong(LONGEST))?;
        Ok((json, references))
    }

    /// Wants the definitions of the group version's kinds, whether or not a path refers to them.
    fn want_kinds(&mut self) {
        for (name, json) in &self.definitions {
            let text = json.get();
            if text.len() > LONGEST_PIECE || !text.contains(KINDS) || !text.contains(&self.gv.group) {
                continue;
            }
            let Ok(schema) = serde_json::from_str::<Value>(text) else { continue };
            if schema[KINDS].as_array().into_iter().flatten().any(|kind| is_of(self.gv, kind)) {
                self.wanted.insert(name.clone());
            }
        }
    }

    /// Takes the kinds out of a schema. A server says of its own ones only which they are: clients look for kinds in the whole
    /// document.
    fn own_kinds(&self, schema: &mut Value) -> Vec<Value> {
        let kinds = schema.as_object_mut().and_then(|fields| fields.remove(KINDS)).unwrap_or_default();
        let own = kinds.as_array().into_iter().flatten().filter(|kind| is_of(self.gv, kind));
        let (group, version) = (&self.gv.group, &self.gv.version);
        own.take(MOST_KINDS).map(|own| json!({"group": group, "version": version, "kind": own["kind"]})).collect()
    }
}

fn is_of(gv: &GroupVersion, kind: &Value) -> bool {
    kind["group"] == gv.group
        && kind["version"] == gv.version
        && kind["kind"].as_str().is_some_and(|name| name.len() <= LONGEST_KIND)
}

fn piece(place: &str, json: &RawValue) -> Result<Value, ForeignError> {
    if json.get().len() > LONGEST_PIECE {
        return Err(ForeignError::TooLong(LONGEST_PIECE));
    }
    serde_json::from_str(json.get()).map_err(|e| ForeignError::Wrong { place: place.to_owned(), wrong: e.to_string() })
}

/// Puts a shared parameter or response where it is referred to: ours has none that are shared.
fn inline(value: &mut Value, prefix: &str, shared: &Pieces<'_>, so_far: &mut usize) -> Result<(), ForeignError> {
    let Some(name) = value["$ref"].as_str().and_then(|to| to.strip_prefix(prefix)) else { return Ok(()) };
    let json = *shared.get(name).ok_or_else(|| ForeignError::Dangling(name.to_owned()))?;
    *so_far += json.get().len();
    if *so_far > LONGEST {
        return Err(ForeignError::TooLong(LONGEST));
    }
    *value = piece(name, json)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn gv() -> GroupVersion {
        GroupVersion::new("a.b", "v1")
    }

    fn read(document: &Value) -> Result<Foreign, ForeignError> {
        Foreign::read(document.to_string().as_bytes(), &gv())
    }

    fn get(reference: &str) -> Value {
        json!({"get": {"responses": {"200": {"description": "OK", "schema": {"$ref": reference}}}}})
    }

    fn document(definitions: &Value) -> Value {
        json!({"swagger": "2.0", "paths": {"/apis/a.b/v1/foos": get("#/definitions/Foo")}, "definitions": definitions})
    }

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_server_speaks_for_its_own_group_version() {
        let kind = |group: &str, version: &str| json!({"group": group, "version": version, "kind": "Foo"});
        let mut whole = document(&json!({
            "Foo": {"type": "object", KINDS: [kind("apps", "v1"), kind("a.b", "v1"), 3, kind("a.b", "v2")],
                "properties": {"spec": {"$ref": "#/definitions/Spec"}, "self": {"$ref": "#/definitions/Foo"}}},
            "Spec": {"type": "object", "additionalProperties": false, "default": {"$ref": 3}, KINDS: "Foo"},
            "FooList": {"type": "object", KINDS: [kind("a.b", "v1")]},
            "Other": {"type": "object", KINDS: [kind("a.b", "v2")]},
            "Pod": 5,
        }));
        let parameter = json!({"name": "limit", "in": "query", "type": "integer"});
        whole["parameters"] = json!({"limit": parameter, "unused": 7});
        whole["paths"]["/apis/a.b/v1/foos"]["parameters"] = json!([{"$ref": "#/parameters/limit"}]);
        for path in ["/apis/a.b/v10/foos", "/apis/a.b/v2/foos", "/api/v1/pods", "/apis/apps/v1/deployments", "/"] {
            whole["paths"][path] = get("#/definitions/Pod");
        }
        whole["paths"]["/apis/a.b/v1/"] = json!({"get": {"tags": ["x"], "security": [3]}});
        let part = read(&whole).unwrap();
        assert_eq!(part.paths.keys().collect::<Vec<_>>(), ["/apis/a.b/v1/", "/apis/a.b/v1/foos"]);
        assert_eq!(value(&part.paths["/apis/a.b/v1/foos"])["parameters"], json!([parameter]));
        assert_eq!(value(&part.paths["/apis/a.b/v1/"]), json!({"get": {"tags": ["x"]}}));
        assert_eq!(part.definitions.keys().collect::<Vec<_>>(), ["Foo", "FooList", "Spec"]);
        assert_eq!(part.definitions["Foo"].kinds, [kind("a.b", "v1")]);
        assert_eq!(part.definitions["Foo"].references, ["Foo", "Spec"].map(str::to_owned).into());
        assert!(part.definitions["Spec"].kinds.is_empty() && !part.definitions["Spec"].json.contains(KINDS));
        // nothing of it
        let none =
            json!({"swagger": "2.0", "paths": {"/apis/x/v1": 3}, "definitions": {"Foo": {KINDS: [kind("a.b", "v1")]}}});
        assert_eq!(read(&none).unwrap(), Foreign::default());
        assert_eq!(read(&json!({"swagger": "2.0", "paths": null})).unwrap(), Foreign::default());
    }

    #[test]
    fn what_clients_could_not_read_is_refused() {
        for (bytes, said) in [
            (&b""[..], "no OpenAPI v2 document"),
            (b"<html>", "no OpenAPI v2 document"),
            (b"[]", "a document of version"),
            (b"{\"swagger\": 2.0}", "no OpenAPI v2 document"),
            (b"{\"openapi\": \"3.0.0\"}", "a document of version"),
            (b"{\"swagger\": \"2.0\", \"paths\": []}", "no OpenAPI v2 document"),
            (b"{\"swagger\": \"2.0\", \"paths\": {\"\xff\": 1}}", "no OpenAPI v2 document"),
        ] {
            let error = Foreign::read(bytes, &gv()).unwrap_err().to_string();
            assert!(error.starts_with(said), "{}: {error}", String::from_utf8_lossy(bytes));
        }
        let deep = "[".repeat(100_000);
        assert!(Foreign::read(deep.as_bytes(), &gv()).is_err());
        for (definitions, said) in [
            (json!({}), "\"Foo\" is referred to and not there"),
            (json!({"Foo": 5}), "Foo: not an object"),
            (json!({"Foo": {"type": 5}}), "Foo: type is"),
            (json!({"Foo": {"properties": {"a": {"items": [{"required": "a"}]}}}}), "Foo: required is"),
            (json!({"Foo": {"additionalProperties": 1}}), "Foo: additionalProperties is"),
            (json!({"Foo": {"maxLength": 1.5}}), "Foo: maxLength is"),
            (json!({"Foo": {"allOf": [{"$ref": "#/definitions/Bar"}]}}), "\"Bar\" is referred to and not there"),
            (json!({"Foo": {"$ref": "https://elsewhere/"}}), "Foo: refers to \"https://elsewhere/\""),
            (json!({"Foo": {"$ref": 5}}), "Foo: $ref is"),
            (json!({"Foo": {"$ref": "#/definitions/Foo"}}), "\"Foo\" is defined by nothing but itself"),
            (
                json!({"Foo": {"$ref": "#/definitions/Bar"}, "Bar": {"$ref": "#/definitions/Baz"}, "Baz": {"$ref": "#/definitions/Bar"}}),
                "is defined by nothing but itself",
            ),
        ] {
            let error = read(&document(&definitions)).unwrap_err().to_string();
            assert!(error.contains(said), "{definitions}: {error}");
        }
        for (item, said) in [
            (json!(1), "not an object"),
            (json!({"$ref": "#/paths/x"}), "$ref is"),
            (json!({"get": []}), "get is"),
            (json!({"get": {"parameters": {}}}), "parameters is"),
            (json!({"get": {"parameters": [{"$ref": "#/parameters/x"}]}}), "\"x\" is referred to and not there"),
            (json!({"get": {"parameters": [{"$ref": "#/definitions/x"}]}}), "$ref is"),
            (json!({"get": {"responses": {"200": {"description": 5}}}}), "description is"),
            (json!({"get": {"responses": {"200": {"$ref": "#/responses/x"}}}}), "\"x\" is referred to and not there"),
        ] {
            let error = read(&json!({"swagger": "2.0", "paths": {"/apis/a.b/v1/foos": item}})).unwrap_err().to_string();
            assert!(error.contains(said), "{item}: {error}");
        }
        // circles that come by something are what recursive types are made of
        let circle =
            json!({"Foo": {"$ref": "#/definitions/Bar"}, "Bar": {"properties": {"a": {"$ref": "#/definitions/Foo"}}}});
        assert_eq!(read(&document(&circle)).unwrap().definitions.len(), 2);
    }

    #[test]
    fn a_part_has_an_end() {
        let long = "x".repeat(LONGEST_PIECE);
        let error = read(&document(&json!({"Foo": {"description": long}}))).unwrap_err();
        assert!(matches!(error, ForeignError::TooLong(LONGEST_PIECE)), "{error}");
        // a short document that would become a long one
        let text = "x".repeat(LONGEST_PIECE - 100);
        let references = vec![json!({"$ref": "#/parameters/big"}); 5];
        let document = json!({"swagger": "2.0", "parameters": {"big": {"name": text, "in": "query"}},
            "paths": {"/apis/a.b/v1/foos": {"parameters": references}}});
        let error = read(&document).unwrap_err();
        assert!(matches!(error, ForeignError::TooLong(LONGEST)), "{error}");
        let mut definitions = serde_json::Map::new();
        let chain = |n: usize| json!({"description": "x".repeat(400 << 10), "properties": {"next": {"$ref": format!("#/definitions/{n}")}}});
        definitions.insert("Foo".into(), chain(0));
        (0..6).for_each(|n| drop(definitions.insert(n.to_string(), chain(n + 1))));
        let error = read(&self::document(&definitions.into())).unwrap_err();
        assert!(matches!(error, ForeignError::TooLong(LONGEST)), "{error}");
    }
}
