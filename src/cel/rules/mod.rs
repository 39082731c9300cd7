//! `x-kubernetes-validations`: rules in the schemas of custom resources.
//!
//! In: a structural schema. Out: [`Rules`], compiled once, which then say for each object (and the one that was there before) what it breaks.
//! What an expression could cost at worst is not estimated when a schema is compiled; what it costs is bounded when it runs.

mod run;
mod shape;

use crate::env::Env;
use crate::program::Program;
use crate::types::Type;
use edge_api::field::{ErrorKind, ErrorList, Path};
use serde_json::Value;
use shape::Shapes;

/// The rules of a schema.
#[derive(Debug)]
pub struct Rules {
    root: Node,
}

/// A part of a schema, with the rules in it and below it.
#[derive(Debug)]
struct Node {
    ty: Type,
    /// The word for the value in messages.
    name: &'static str,
    rules: Vec<Rule>,
    below: Below,
}

/// What may be below a value.
#[derive(Debug)]
enum Below {
    Nothing,
    /// Fields, by their names in JSON; and all others.
    Fields(Vec<(String, Node)>, Option<Box<Node>>),
    Items(Box<Node>, Items),
}

/// How items of a list are found again in an older one.
#[derive(Debug)]
enum Items {
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Debug)]
struct Rule {
    program: Program,
    message: String,
    message_expression: Option<Program>,
    kind: ErrorKind,
    /// Where the error is, below the value.
    field_path: Vec<String>,
    /// It is also asked when there was nothing before.
    optional_old: bool,
    is_transition: bool,
}

impl Rules {
    /// Compiles the rules of an object's schema; `None` when it has none. `path` is where the schema is.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn compile(schema: &Value, path: &Path) -> Result<Option<Self>, ErrorList> {
        let mut errors = ErrorList::new();
        let shapes = Shapes::default();
        let ty = shapes.root(schema);
        let root = node(schema, ty, &shapes, path, &mut errors, 0);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok((!root.is_empty()).then_some(Self { root }))
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.rules.is_empty() && matches!(self.below, Below::Nothing)
    }
}

/// Levels of a schema that are looked at.
const DEEPEST: usize = 100;

fn node(schema: &Value, ty: Type, shapes: &Shapes, path: &Path, errors: &mut ErrorList, depth: usize) -> Node {
    let rules = rules(schema, &ty, path, errors);
    let name = match schema["type"].as_str() {
        Some("object") => "object",
        Some("array") => "array",
        Some("string") => "string",
        Some("integer") => "integer",
        Some("number") => "number",
        Some("boolean") => "boolean",
        _ => "",
    };
    let below = if depth > DEEPEST { Below::Nothing } else { below(schema, shapes, path, errors, depth) };
    Node { ty, name, rules, below }
}

fn below(schema: &Value, shapes: &Shapes, path: &Path, errors: &mut ErrorList, depth: usize) -> Below {
    if schema["items"].is_object() {
        let item = node(&schema["items"], shapes.of(&schema["items"]), shapes, &path.child("items"), errors, depth + 1);
        let keys = || {
            let all = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            all.filter_map(|k| k.as_str().map(str::to_owned)).collect()
        };
        let items = match schema["x-kubernetes-list-type"].as_str() {
            Some("map") => Items::Map(keys()),
            Some("set") => Items::Set,
            _ => Items::Atomic,
        };
        return if item.is_empty() { Below::Nothing } else { Below::Items(Box::new(item), items) };
    }
    let mut fields = Vec::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let at = path.child("properties").key(name);
        let node = node(field, shapes.of(field), shapes, &at, errors, depth + 1);
        if !node.is_empty() {
            fields.push((name.clone(), node));
        }
    }
    let other = &schema["additionalProperties"];
    let others = other
        .is_object()
        .then(|| node(other, shapes.of(other), shapes, &path.child("additionalProperties"), errors, depth + 1));
    let others = others.filter(|n| !n.is_empty()).map(Box::new);
    if fields.is_empty() && others.is_none() { Below::Nothing } else { Below::Fields(fields, others) }
}

/// The places of the variables.
const SELF: usize = 0;

fn rules(schema: &Value, ty: &Type, path: &Path, errors: &mut ErrorList) -> Vec<Rule> {
    let mut out = Vec::new();
    for (i, rule) in schema["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate() {
        let at = path.child("x-kubernetes-validations").index(i);
        let text = |field: &str| rule[field].as_str().unwrap_or_default();
        let optional_old = rule["optionalOldSelf"] == true;
        let old = if optional_old { Type::optional(ty.clone()) } else { ty.clone() };
        let env = Env::new().with("self", ty.clone()).with("oldSelf", old);
        let mut compile = |field: &str, wanted: &[Type]| {
            let program = Program::compile_as(text(field), &env, wanted);
            program.map_err(|e| errors.invalid(&at.child(field), &text(field).into(), &e.detail())).ok()
        };
        if text("rule").trim().is_empty() {
            errors.required(&at.child("rule"), "rule is not specified");
            continue;
        }
        let program = compile("rule", &[Type::Bool]);
        let message_expression =
            (!text("messageExpression").is_empty()).then(|| compile("messageExpression", &[Type::String])).flatten();
        let kind = match text("reason") {
            "" | "FieldValueInvalid" => ErrorKind::Invalid,
            "FieldValueForbidden" => ErrorKind::Forbidden,
            "FieldValueRequired" => ErrorKind::Required,
            "FieldValueDuplicate" => ErrorKind::Duplicate,
            other => {
                let known = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
                errors.not_supported(&at.child("reason"), &other.into(), &known);
                ErrorKind::Invalid
            }
        };
        if text("message").contains('\n') {
            errors.invalid(&at.child("message"), &text("message").into(), "message must not contain line breaks");
        }
        let field_path = shape::field_path(text("fieldPath"), schema).unwrap_or_else(|why| {
            errors.invalid(&at.child("fieldPath"), &text("fieldPath").into(), &why);
            Vec::new()
        });
        let Some(program) = program else { continue };
        let is_transition = program.uses(&env, "oldSelf");
        let message = text("message").trim().to_owned();
        out.push(Rule { program, message, message_expression, kind, field_path, optional_old, is_transition });
    }
    out
}

#[cfg(test)]
mod tests;
