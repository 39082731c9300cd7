//! OpenAPI v2 in its protobuf form (gnostic's `openapi.v2.Document`), which older clients ask for.
//!
//! In: JSON pieces of the v2 document. Out: bytes. Only what the documents of this room use is written.

use serde_json::Value;

use crate::proto::wire::Writer;

/// Gathers a document; paths and definitions in any order.
pub(super) struct DocumentWriter {
    server_version: String,
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl DocumentWriter {
    pub(super) fn new(server_version: &str) -> Self {
        Self { server_version: server_version.to_owned(), paths: Vec::new(), definitions: Vec::new() }
    }

    /// Adds a path item: `NamedPathItem` of `Paths.path`.
    pub(super) fn path(&mut self, url: &str, item: &Value) {
        self.paths.extend(named(2, url, |w| path_item(w, item)));
    }

    /// Adds a definition: `NamedSchema` of `Definitions.additional_properties`.
    pub(super) fn definition(&mut self, name: &str, value: &Value) {
        self.definitions.extend(named(1, name, |w| schema(w, value)));
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let mut w = Writer::new();
        message(&mut w, 13, |w| {
            let scheme = named(1, "BearerToken", |w| {
                message(w, 2, |w| {
                    w.string(4, "A bearer token.");
                    w.string(3, "header");
                    w.string(2, "authorization");
                    w.string(1, "apiKey");
                });
            });
            w.raw(&scheme);
        });
        message(&mut w, 12, |w| message(w, 1, |w| w.string(1, "BearerToken")));
        w.string_bytes(9, &self.definitions);
        w.string_bytes(8, &self.paths);
        message(&mut w, 2, |w| {
            w.string(2, &self.server_version);
            w.string(1, "Kubernetes");
        });
        w.string(1, "2.0");
        w.finish()
    }
}

/// A message that pairs a name (1) with a value (2), as field `number`.
fn named(number: u32, name: &str, value: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::new();
    message(&mut w, number, |w| {
        message(w, 2, value);
        w.string(1, name);
    });
    w.finish()
}

fn message(w: &mut Writer, number: u32, body: impl FnOnce(&mut Writer)) {
    let mark = w.mark();
    body(w);
    w.close(number, mark);
}

fn text(w: &mut Writer, number: u32, value: &Value, field: &str) {
    if let Some(text) = value[field].as_str() {
        w.string(number, text);
    }
}

fn texts(w: &mut Writer, number: u32, value: &Value, field: &str) {
    for text in items(value, field).rev().filter_map(Value::as_str) {
        w.string(number, text);
    }
}

fn truth(w: &mut Writer, number: u32, value: &Value, field: &str) {
    if value[field].as_bool() == Some(true) {
        w.int(number, 1);
    }
}

fn items<'v>(value: &'v Value, field: &str) -> std::slice::Iter<'v, Value> {
    value[field].as_array().map_or([].iter(), |items| items.iter())
}

/// The `x-` fields, each as a name and its value in YAML (of which JSON is a part).
fn extensions(w: &mut Writer, number: u32, value: &Value) {
    let fields = value.as_object().into_iter().flatten();
    for (name, value) in fields.filter(|(name, _)| name.starts_with("x-")) {
        message(w, number, |w| {
            message(w, 2, |w| w.string(2, &format!("{value}\n")));
            w.string(1, name);
        });
    }
}

fn path_item(w: &mut Writer, item: &Value) {
    parameters(w, 9, item);
    for (number, method) in
        [(8, "patch"), (7, "head"), (6, "options"), (5, "delete"), (4, "post"), (3, "put"), (2, "get")]
    {
        if item[method].is_object() {
            message(w, number, |w| operation(w, &item[method]));
        }
    }
}

fn operation(w: &mut Writer, value: &Value) {
    extensions(w, 13, value);
    message(w, 9, |w| responses(w, &value["responses"]));
    parameters(w, 8, value);
    texts(w, 7, value, "consumes");
    texts(w, 6, value, "produces");
    text(w, 5, value, "operationId");
    text(w, 3, value, "description");
    texts(w, 1, value, "tags");
}

/// `ParametersItem`s, each of which wraps a `Parameter`, which wraps a body, query or path parameter.
fn parameters(w: &mut Writer, number: u32, value: &Value) {
    for parameter in items(value, "parameters").rev() {
        message(w, number, |w| {
            message(w, 1, |w| match parameter["in"].as_str() {
                Some("body") => message(w, 1, |w| {
                    message(w, 5, |w| schema(w, &parameter["schema"]));
                    truth(w, 4, parameter, "required");
                    text(w, 3, parameter, "in");
                    text(w, 2, parameter, "name");
                    text(w, 1, parameter, "description");
                }),
                Some("path") => message(w, 2, |w| message(w, 4, |w| plain_parameter(w, parameter, 19, 5))),
                _ => message(w, 2, |w| message(w, 3, |w| plain_parameter(w, parameter, 20, 6))),
            });
        });
    }
}

/// A path or query parameter; the two messages differ in some numbers.
fn plain_parameter(w: &mut Writer, parameter: &Value, unique_items: u32, ty: u32) {
    truth(w, unique_items, parameter, "uniqueItems");
    text(w, ty, parameter, "type");
    text(w, 4, parameter, "name");
    text(w, 3, parameter, "description");
    text(w, 2, parameter, "in");
    truth(w, 1, parameter, "required");
}

fn responses(w: &mut Writer, value: &Value) {
    let codes = value.as_object().into_iter().flatten().map(|(code, response)| {
        named(1, code, |w| {
            message(w, 1, |w| {
                if response["schema"].is_object() {
                    message(w, 2, |w| message(w, 1, |w| schema(w, &response["schema"])));
                }
                text(w, 1, response, "description");
            });
        })
    });
    let codes: Vec<_> = codes.collect();
    codes.iter().rev().for_each(|code| w.raw(code));
}

fn schema(w: &mut Writer, value: &Value) {
    extensions(w, 31, value);
    if let Some(properties) = value["properties"].as_object() {
        message(w, 25, |w| {
            let properties: Vec<_> = properties.iter().map(|(name, p)| named(1, name, |w| schema(w, p))).collect();
            properties.iter().rev().for_each(|property| w.raw(property));
        });
    }
    if value["items"].is_object() {
        message(w, 23, |w| message(w, 1, |w| schema(w, &value["items"])));
    }
    if let Some(ty) = value["type"].as_str() {
        message(w, 22, |w| w.string(1, ty));
    }
    if value["additionalProperties"].is_object() {
        message(w, 21, |w| message(w, 1, |w| schema(w, &value["additionalProperties"])));
    }
    texts(w, 19, value, "required");
    text(w, 4, value, "description");
    text(w, 2, value, "format");
    text(w, 1, value, "$ref");
}
