//! `x-kubernetes-validations`: rules in the schemas of custom resources.
//!
//! In: a structural schema. Out: [`Rules`], compiled once, which then say for each object (and the one that was there before) what it breaks.
//! What they could cost at worst is judged when a definition is written ([`Rules::check`]), and bounded again when they run.

mod costs;
mod run;
mod shape;
mod sizes;

use crate::env::Env;
use crate::error::CompileError;
use crate::estimate::{Size, Sizes};
use crate::program::Program;
use crate::types::{Type, escape};
use costs::{Costs, Place};
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
        Self::build(schema, path, None)
    }

    /// Judges the rules of a schema that is written: whether they compile, and what they cost at worst. `is_unchanged`: it has been
    /// accepted before, so that no single expression is too expensive now.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(schema: &Value, path: &Path, is_unchanged: bool) -> Result<(), ErrorList> {
        Self::build(schema, path, Some(Costs::new(!is_unchanged))).map(|_| ())
    }

    fn build(schema: &Value, path: &Path, costs: Option<Costs>) -> Result<Option<Self>, ErrorList> {
        let shapes = Shapes::default();
        let ty = shapes.root(schema);
        let size = costs.as_ref().and_then(|_| sizes::of(schema, true));
        let mut compiler = Compiler { shapes, costs, uncorrelated: None, errors: ErrorList::new() };
        let root = compiler.node(schema, ty, Place { size: size.as_ref(), count: Some(1) }, path, 0);
        let Compiler { costs, mut errors, .. } = compiler;
        if let Some(costs) = costs {
            costs.finish(path, &mut errors);
        }
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

/// Goes through a schema once.
struct Compiler {
    shapes: Shapes,
    /// What rules cost, when that is asked.
    costs: Option<Costs>,
    /// The part around below which values are not found again in an older object.
    uncorrelated: Option<Path>,
    errors: ErrorList,
}

impl Compiler {
    fn node(&mut self, schema: &Value, ty: Type, place: Place<'_>, path: &Path, depth: usize) -> Node {
        let rules = self.rules(schema, &ty, place, path);
        let name = match schema["type"].as_str() {
            Some("object") => "object",
            Some("array") => "array",
            Some("string") => "string",
            Some("integer") => "integer",
            Some("number") => "number",
            Some("boolean") => "boolean",
            _ => "",
        };
        let below = if depth > DEEPEST { Below::Nothing } else { self.below(schema, place, path, depth) };
        Node { ty, name, rules, below }
    }

    /// A part; `around` is what it is a part of, and `name` that of a field.
    fn part(
        &mut self,
        schema: &Value,
        around: (&Value, Place<'_>),
        name: Option<&str>,
        path: &Path,
        depth: usize,
    ) -> Node {
        let (parent, place) = around;
        let known = place.size.and_then(|size| match name {
            Some(name) => size.field(&escape(name)?),
            None => size.element(),
        });
        // rules see nothing of it from above, but those in it do
        let own = match (known, &self.costs) {
            (None, Some(_)) => sizes::of(schema, schema["x-kubernetes-embedded-resource"] == true),
            _ => None,
        };
        let place = Place { size: known.or(own.as_ref()), count: place.below(parent) };
        let ty = self.shapes.of(schema);
        self.node(schema, ty, place, path, depth + 1)
    }

    /// Goes through a part below which nothing is found again, when that is so.
    fn within<T>(&mut self, is_uncorrelated: bool, path: &Path, go: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.uncorrelated.clone();
        if is_uncorrelated && before.is_none() {
            self.uncorrelated = Some(path.clone());
        }
        let out = go(self);
        self.uncorrelated = before;
        out
    }

    fn below(&mut self, schema: &Value, place: Place<'_>, path: &Path, depth: usize) -> Below {
        let around = (schema, place);
        if schema["items"].is_object() {
            let items = match schema["x-kubernetes-list-type"].as_str() {
                Some("map") => {
                    let all = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                    Items::Map(all.filter_map(|k| k.as_str().map(str::to_owned)).collect())
                }
                Some("set") => Items::Set,
                _ => Items::Atomic,
            };
            let item = self.within(!matches!(items, Items::Map(_)), path, |this| {
                this.part(&schema["items"], around, None, &path.child("items"), depth)
            });
            return if item.is_empty() { Below::Nothing } else { Below::Items(Box::new(item), items) };
        }
        let mut fields = Vec::new();
        let is_atomic = schema["x-kubernetes-map-type"] == "atomic";
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let at = path.child("properties").key(name);
            let node = self.within(is_atomic, path, |this| this.part(field, around, Some(name), &at, depth));
            if !node.is_empty() {
                fields.push((name.clone(), node));
            }
        }
        let other = &schema["additionalProperties"];
        let at = path.child("additionalProperties");
        let others = other.is_object().then(|| self.part(other, around, None, &at, depth));
        let others = others.filter(|n| !n.is_empty()).map(Box::new);
        if fields.is_empty() && others.is_none() { Below::Nothing } else { Below::Fields(fields, others) }
    }

    fn rules(&mut self, schema: &Value, ty: &Type, place: Place<'_>, path: &Path) -> Vec<Rule> {
        let rules = schema["x-kubernetes-validations"].as_array().map_or(&[][..], Vec::as_slice);
        if rules.is_empty() {
            return Vec::new();
        }
        let nothing = Size::default();
        let sizes = self.costs.as_ref().map(|_| Sizes::of_all(place.size.unwrap_or(&nothing)));
        let path = path.child("x-kubernetes-validations");
        let all = rules.iter().enumerate();
        all.filter_map(|(i, rule)| self.rule(rule, schema, ty, place, sizes, &path.index(i))).collect()
    }

    fn rule(
        &mut self,
        rule: &Value,
        schema: &Value,
        ty: &Type,
        place: Place<'_>,
        sizes: Option<Sizes<'_>>,
        at: &Path,
    ) -> Option<Rule> {
        let text = |field: &str| rule[field].as_str().unwrap_or_default();
        let optional_old = rule["optionalOldSelf"] == true;
        let old = if optional_old { Type::optional(ty.clone()) } else { ty.clone() };
        let env = Env::new().with("self", ty.clone()).with("oldSelf", old);
        if text("rule").trim().is_empty() {
            self.errors.required(&at.child("rule"), "rule is not specified");
            return None;
        }
        let program = self.expression(text("rule"), &env, &Type::Bool, sizes, &at.child("rule"));
        if let (Some((_, cost)), Some(costs)) = (&program, &mut self.costs) {
            costs.add("rule", &at.child("rule"), place.all(*cost), &mut self.errors);
        }
        let (program, _) = program?;
        let given = text("messageExpression");
        let message_expression = if given.is_empty() {
            None
        } else {
            let at = at.child("messageExpression");
            let made = self.expression(given, &env, &Type::String, sizes, &at);
            if let (Some((_, cost)), Some(costs)) = (&made, &mut self.costs) {
                costs.add("messageExpression", &at, *cost, &mut self.errors);
            }
            made.map(|(program, _)| program)
        };
        let is_transition = program.uses(&env, "oldSelf");
        if !is_transition && rule["optionalOldSelf"].is_boolean() {
            let why = "may not be set if oldSelf is not used in rule";
            self.errors.invalid(&at.child("optionalOldSelf"), &rule["optionalOldSelf"], why);
        }
        if let (true, Some(around)) = (is_transition, &self.uncorrelated) {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {around}");
            self.errors.invalid(&at.child("rule"), &text("rule").into(), &why);
        }
        let kind = self.reason(text("reason"), &at.child("reason"));
        self.message(text("message"), text("rule"), &at.child("message"));
        let field_path = shape::field_path(text("fieldPath"), schema).unwrap_or_else(|why| {
            self.errors.invalid(&at.child("fieldPath"), &text("fieldPath").into(), &why);
            Vec::new()
        });
        let message = text("message").trim().to_owned();
        Some(Rule { program, message, message_expression, kind, field_path, optional_old, is_transition })
    }

    /// Compiles an expression; and what it costs, when that is asked.
    fn expression(
        &mut self,
        text: &str,
        env: &Env,
        wanted: &Type,
        sizes: Option<Sizes<'_>>,
        at: &Path,
    ) -> Option<(Program, u64)> {
        let compiled = match sizes {
            Some(sizes) => Program::compile_estimated(text, env, sizes),
            None => Program::compile(text, env).map(|program| (program, 0)),
        };
        let wrong = |error: CompileError| {
            let of_rule = *wanted == Type::Bool;
            match error.issues.as_slice() {
                [only] if only.message.starts_with("must evaluate to") && of_rule => {
                    "cel expression must evaluate to a bool".to_owned()
                }
                [only] if only.message.starts_with("must evaluate to") => {
                    "messageExpression must evaluate to a string".to_owned()
                }
                _ if of_rule => error.detail(),
                _ => format!("messageExpression {}", error.detail()),
            }
        };
        let compiled = compiled.and_then(|(program, cost)| Ok((program.of_type(std::slice::from_ref(wanted))?, cost)));
        compiled.map_err(|error| self.errors.invalid(at, &text.into(), &wrong(error))).ok()
    }

    fn reason(&mut self, reason: &str, at: &Path) -> ErrorKind {
        match reason {
            "" | "FieldValueInvalid" => ErrorKind::Invalid,
            "FieldValueForbidden" => ErrorKind::Forbidden,
            "FieldValueRequired" => ErrorKind::Required,
            "FieldValueDuplicate" => ErrorKind::Duplicate,
            other => {
                let known = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
                self.errors.not_supported(at, &other.into(), &known);
                ErrorKind::Invalid
            }
        }
    }

    fn message(&mut self, message: &str, rule: &str, at: &Path) {
        let breaks = |text: &str| text.trim().contains(['\n', '\r']);
        if !message.is_empty() && message.trim().is_empty() {
            self.errors.invalid(at, &message.into(), "must be non-empty if specified");
        } else if breaks(message) {
            self.errors.invalid(at, &message.into(), "must not contain line breaks");
        } else if breaks(rule) && message.is_empty() {
            self.errors.required(at, "message must be specified if rule contains line breaks");
        }
    }
}

/// The places of the variables.
const SELF: usize = 0;

#[cfg(test)]
mod costs_tests;
#[cfg(test)]
mod tests;
