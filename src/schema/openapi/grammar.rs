//! What an OpenAPI v2 document consists of, as far as Kubernetes' clients read it into types of their own.

use serde_json::{Map, Value};

/// Methods that a path item has operations for.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// What kind of object a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    PathItem,
    Operation,
    Parameter,
    Response,
    Schema,
}

/// What is wrong with a piece.
#[derive(Debug)]
pub(super) struct Wrong(pub(super) String);

/// What a field holds.
#[derive(Clone, Copy)]
enum Holds {
    Text,
    Texts,
    TextOrTexts,
    Flag,
    Number,
    Integer,
    List,
    /// A reference to a definition.
    Reference,
    One(Node),
    ListOf(Node),
    MapOf(Node),
    OneOrListOf(Node),
    OneOrFlag(Node),
    /// It has no place in a document that others have a part in.
    Nothing,
}

fn holds(node: Node, field: &str) -> Option<Holds> {
    use Holds::{
        Flag, Integer, List, ListOf, MapOf, Nothing, Number, One, OneOrFlag, OneOrListOf, Reference, Text, TextOrTexts,
        Texts,
    };
    use Node::{Operation, Parameter, PathItem, Response, Schema};
    Some(match (node, field) {
        (PathItem, method) if METHODS.contains(&method) => One(Operation),
        (PathItem | Operation, "parameters") => ListOf(Parameter),
        (Operation, "responses") => MapOf(Response),
        (Operation, "tags" | "consumes" | "produces") => Texts,
        (Operation, "summary" | "operationId") => Text,
        (Operation, "deprecated") => Flag,
        (Operation, "security" | "schemes") | (Response, "headers" | "examples") => Nothing,
        (Parameter | Response, "schema") => One(Schema),
        (Parameter, "name" | "in" | "type" | "collectionFormat") => Text,
        (Parameter, "required" | "allowEmptyValue") => Flag,
        (Parameter, "items") => One(Schema),
        (_, "externalDocs" | "xml" | "dependencies") => Nothing,
        (_, "description") => Text,
        (Schema, "$ref") => Reference,
        (Schema, "type") => TextOrTexts,
        (Schema, "required") => Texts,
        (Schema, "items") => OneOrListOf(Schema),
        (Schema, "properties" | "patternProperties" | "definitions") => MapOf(Schema),
        (Schema, "additionalProperties" | "additionalItems") => OneOrFlag(Schema),
        (Schema, "allOf" | "anyOf" | "oneOf") => ListOf(Schema),
        (Schema, "not") => One(Schema),
        (Schema, "title" | "id" | "$schema" | "discriminator" | "collectionFormat") => Text,
        (Schema, "readOnly" | "nullable") => Flag,
        (Schema, "maxProperties" | "minProperties") => Integer,
        (Schema | Parameter, "format" | "pattern") => Text,
        (Schema | Parameter, "enum") => List,
        (Schema | Parameter, "maximum" | "minimum" | "multipleOf") => Number,
        (Schema | Parameter, "maxLength" | "minLength" | "maxItems" | "minItems") => Integer,
        (Schema | Parameter, "exclusiveMaximum" | "exclusiveMinimum" | "uniqueItems") => Flag,
        _ => return None,
    })
}

/// Goes through a piece: every reference to a definition is given to `each`, which may change it, and what has no place is taken out.
/// A piece from [`serde_json`] is at most 128 levels deep, so this may call itself.
///
/// # Errors
/// Where a field does not hold what it has to.
pub(super) fn walk(
    node: Node,
    value: &mut Value,
    each: &mut dyn FnMut(&mut String) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    let Value::Object(fields) = value else { return Err(Wrong("not an object".to_owned())) };
    // only schemas may be elsewhere; what else is shared has been put in its place
    if node != Node::Schema && fields.contains_key("$ref") {
        return Err(Wrong("$ref is where there must be none".to_owned()));
    }
    let mut wrong = None;
    fields.retain(|field, value| {
        let Some(holds) = holds(node, field) else { return true };
        // Go's clients read null as nothing
        if value.is_null() || matches!(holds, Holds::Nothing) {
            return false;
        }
        if wrong.is_none() {
            wrong = enter(holds, field, value, each).err();
        }
        true
    });
    wrong.map_or(Ok(()), Err)
}

fn enter(
    holds: Holds,
    field: &str,
    value: &mut Value,
    each: &mut dyn FnMut(&mut String) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    let is_texts = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
    let good = match (holds, &mut *value) {
        (Holds::Reference, Value::String(reference)) => return each(reference),
        (Holds::Text, value) => value.is_string(),
        (Holds::Texts, value) => is_texts(value),
        (Holds::TextOrTexts, value) => value.is_string() || is_texts(value),
        (Holds::Flag, value) => value.is_boolean(),
        (Holds::Number, value) => value.is_number(),
        (Holds::Integer, value) => value.is_i64(),
        (Holds::List, value) => value.is_array(),
        (Holds::OneOrFlag(_), Value::Bool(_)) => true,
        (Holds::One(node) | Holds::OneOrListOf(node) | Holds::OneOrFlag(node), value @ Value::Object(_)) => {
            return walk(node, value, each);
        }
        (Holds::ListOf(node) | Holds::OneOrListOf(node), Value::Array(list)) => {
            return list.iter_mut().try_for_each(|one| walk(node, one, each));
        }
        (Holds::MapOf(node), Value::Object(map)) => {
            let known = map.iter_mut().filter(|(name, _)| node != Node::Response || !name.starts_with("x-"));
            return known.map(|(_, one)| one).try_for_each(|one| walk(node, one, each));
        }
        _ => false,
    };
    if good { Ok(()) } else { Err(Wrong(format!("{field} is {}", name_of(value)))) }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number, or of a wrong kind",
        Value::String(_) => "a string",
        Value::Array(_) => "a list, or one of something wrong",
        Value::Object(_) => "an object",
    }
}

/// All parameters of a path item, those of its operations among them.
pub(super) fn parameters(item: &mut Value) -> impl Iterator<Item = &mut Value> {
    let fields = item.as_object_mut().into_iter().flat_map(Map::iter_mut);
    fields
        .flat_map(|(field, value)| match (field.as_str(), value) {
            ("parameters", list) => Some(list),
            (method, Value::Object(operation)) if METHODS.contains(&method) => operation.get_mut("parameters"),
            _ => None,
        })
        .filter_map(Value::as_array_mut)
        .flatten()
}

/// All responses of a path item's operations.
pub(super) fn responses(item: &mut Value) -> impl Iterator<Item = &mut Value> {
    let fields = item.as_object_mut().into_iter().flat_map(Map::iter_mut);
    let operations = fields.filter(|(field, _)| METHODS.contains(&field.as_str())).map(|(_, operation)| operation);
    operations
        .filter_map(|operation| operation.as_object_mut()?.get_mut("responses")?.as_object_mut())
        .flat_map(Map::values_mut)
}
