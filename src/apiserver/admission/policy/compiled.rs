//! Policies and bindings as they are kept: compiled when they change, not when they are needed.

use crate::admission::matching::Constraints;
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_cel::{Env, Program, Type};
use serde_json::Value;

/// A field that an expression is in, for what is wrong with it.
type At<'p> = (&'p Path, &'p mut ErrorList);

/// Conditions with their names.
pub(in super::super) type Conditions = Vec<(String, Program)>;

/// One demand.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) program: Program,
    pub(super) message: String,
    pub(super) message_expression: Option<Program>,
    pub(super) reason: String,
}

/// One change.
#[derive(Debug)]
pub(super) struct Mutation {
    /// It makes operations of a JSON patch; otherwise a configuration to apply.
    pub(super) is_patch: bool,
    pub(super) program: Program,
}

/// A compiled policy.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) constraints: Constraints,
    pub(super) conditions: Conditions,
    pub(super) variables: Vec<(String, Program)>,
    pub(super) validations: Vec<Validation>,
    pub(super) mutations: Vec<Mutation>,
    /// It is asked again when others have changed the object after it.
    pub(super) is_asked_again: bool,
    /// Keys and values.
    pub(super) annotations: Vec<(String, Program)>,
    /// Whether errors refuse.
    pub(super) fails: bool,
    /// `apiVersion` and kind.
    pub(super) param_kind: Option<(String, String)>,
}

/// A binding.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) policy: String,
    pub(super) param: Value,
    pub(super) constraints: Option<Constraints>,
    pub(super) denies: bool,
    pub(super) warns: bool,
    /// What follows from a demand that is not met, in the binding's words.
    pub(super) actions: Vec<String>,
}

pub(in super::super) fn env(params: bool, asks: bool) -> Env {
    edge_cel::admission::env(Type::Dyn, params.then_some(Type::Dyn), asks)
}

fn items<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn compile(expression: &str, env: &Env, wanted: &[Type], (path, errors): At<'_>) -> Option<Program> {
    if expression.trim().is_empty() {
        errors.required(path, "expression is not specified");
        return None;
    }
    let program = match wanted {
        [] => Program::compile(expression, env),
        wanted => Program::compile_as(expression, env, wanted),
    };
    program.map_err(|error| errors.invalid(path, &expression.into(), &error.detail())).ok()
}

/// The kind of policies that change objects.
pub(super) const MUTATING: &str = "MutatingAdmissionPolicy";
/// Kubernetes' limits.
const MAX_CONDITIONS: usize = 64;
const MAX_AUDIT_ANNOTATIONS: usize = 20;
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

impl Policy {
    /// Compiles a stored or a new policy, and says everything that is wrong with it.
    pub(super) fn new(value: &Value, errors: &mut ErrorList) -> Self {
        let spec = &value["spec"];
        let path = Path::new("spec");
        let param_kind = match &spec["paramKind"] {
            Value::Null => None,
            kind => Some((text(kind, "apiVersion").to_owned(), text(kind, "kind").to_owned())),
        };
        if let Some((api_version, kind)) = &param_kind {
            let of = path.child("paramKind");
            for (field, given) in [("apiVersion", api_version), ("kind", kind)] {
                if given.is_empty() {
                    errors.required(&of.child(field), "");
                }
            }
        }
        let constraints = constraints(&spec["matchConstraints"], &path.child("matchConstraints"), errors);
        let has_params = param_kind.is_some();
        let conditions = conditions(spec, &path.child("matchConditions"), &env(has_params, true), errors);
        let mut asking = env(has_params, true);
        let mut silent = env(has_params, false);
        let mut variables: Vec<(String, Program)> = Vec::new();
        for (i, variable) in items(spec, "variables").iter().enumerate() {
            let at = path.child("variables").index(i);
            let name = text(variable, "name");
            if name.is_empty() {
                errors.required(&at.child("name"), "name is not specified");
            } else if !is_identifier(name) {
                errors.invalid(&at.child("name"), &name.into(), "name is not a valid CEL identifier");
            } else if variables.iter().any(|(n, _)| n == name) {
                errors.duplicate(&at.child("name"), &name.into());
            }
            let program = compile(text(variable, "expression"), &asking, &[], (&at.child("expression"), errors));
            if let Some(program) = program {
                asking = asking.with(format!("variables.{name}"), program.ty().clone());
                silent = silent.with(format!("variables.{name}"), program.ty().clone());
                variables.push((name.to_owned(), program));
            }
        }
        let is_mutating = text(value, "kind") == MUTATING;
        let structured = asking.clone().with_structures();
        let mutations = mutations(spec, &path.child("mutations"), &structured, errors);
        let validations = validations(spec, &path.child("validations"), (&asking, &silent), errors);
        let annotations = annotations(spec, &path.child("auditAnnotations"), &asking, errors);
        if is_mutating && items(spec, "mutations").is_empty() {
            errors.required(&path.child("mutations"), "");
        }
        if !is_mutating && items(spec, "validations").is_empty() && items(spec, "auditAnnotations").is_empty() {
            errors
                .required(&path.child("validations"), "validations or auditAnnotations must contain at least one item");
        }
        if !matches!(text(spec, "failurePolicy"), "" | "Fail" | "Ignore") {
            errors.not_supported(&path.child("failurePolicy"), &spec["failurePolicy"], &["Fail", "Ignore"]);
        }
        Self {
            name: text(&value["metadata"], "name").to_owned(),
            constraints,
            conditions,
            variables,
            validations,
            mutations,
            is_asked_again: text(spec, "reinvocationPolicy") == "IfNeeded",
            annotations,
            fails: text(spec, "failurePolicy") != "Ignore",
            param_kind,
        }
    }
}

fn constraints(value: &Value, path: &Path, errors: &mut ErrorList) -> Constraints {
    if value.is_null() {
        errors.required(path, "");
    } else if items(value, "resourceRules").is_empty() {
        errors.required(&path.child("resourceRules"), "");
    }
    for (i, rule) in items(value, "resourceRules").iter().enumerate() {
        for field in ["operations", "apiGroups", "apiVersions", "resources"] {
            if items(rule, field).is_empty() {
                errors.required(&path.child("resourceRules").index(i).child(field), "");
            }
        }
    }
    if !matches!(text(value, "matchPolicy"), "" | "Exact" | "Equivalent") {
        errors.not_supported(&path.child("matchPolicy"), &value["matchPolicy"], &["Equivalent", "Exact"]);
    }
    // what stands for constraints that cannot be read is never asked
    selectable(Constraints::new(value), path, errors).unwrap_or_default()
}

fn selectable(found: Result<Constraints, String>, path: &Path, errors: &mut ErrorList) -> Option<Constraints> {
    found.map_err(|why| errors.push(ErrorKind::Invalid, path, format!("Invalid value: {why}"))).ok()
}

/// Compiles `matchConditions`.
pub(in super::super) fn conditions(spec: &Value, path: &Path, env: &Env, errors: &mut ErrorList) -> Conditions {
    let all = items(spec, "matchConditions");
    if all.len() > MAX_CONDITIONS {
        errors.push(
            ErrorKind::TooMany,
            path,
            format!("Too many: {}: must have at most {MAX_CONDITIONS} items", all.len()),
        );
    }
    let mut out = Conditions::new();
    for (i, condition) in all.iter().enumerate() {
        let at = path.index(i);
        let name = text(condition, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if let Err(why) = edge_api::names::qualified_name(name) {
            errors.invalid(&at.child("name"), &name.into(), &why);
        } else if out.iter().any(|(n, _)| n == name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        let program = compile(text(condition, "expression"), env, &[Type::Bool], (&at.child("expression"), errors));
        out.extend(program.map(|program| (name.to_owned(), program)));
    }
    out
}

fn validations(spec: &Value, path: &Path, (asking, silent): (&Env, &Env), errors: &mut ErrorList) -> Vec<Validation> {
    let mut out = Vec::new();
    for (i, validation) in items(spec, "validations").iter().enumerate() {
        let at = path.index(i);
        let program = compile(text(validation, "expression"), asking, &[Type::Bool], (&at.child("expression"), errors));
        let message = text(validation, "message");
        if message.contains('\n') {
            errors.invalid(&at.child("message"), &message.into(), "message must not contain line breaks");
        }
        let reason = text(validation, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.not_supported(&at.child("reason"), &reason.into(), &REASONS);
        }
        let expression = text(validation, "messageExpression");
        let message_expression = match expression {
            "" => None,
            expression => compile(expression, silent, &[Type::String], (&at.child("messageExpression"), errors)),
        };
        if let Some(program) = program {
            let (message, reason) = (message.to_owned(), reason.to_owned());
            out.push(Validation { program, message, message_expression, reason });
        }
    }
    out
}

fn mutations(spec: &Value, path: &Path, env: &Env, errors: &mut ErrorList) -> Vec<Mutation> {
    let mut out = Vec::new();
    for (i, mutation) in items(spec, "mutations").iter().enumerate() {
        let at = path.index(i);
        let (field, is_patch) = match text(mutation, "patchType") {
            "JSONPatch" => ("jsonPatch", true),
            "ApplyConfiguration" => ("applyConfiguration", false),
            "" => {
                errors.required(&at.child("patchType"), "");
                continue;
            }
            other => {
                errors.not_supported(&at.child("patchType"), &other.into(), &["ApplyConfiguration", "JSONPatch"]);
                continue;
            }
        };
        if mutation[field].is_null() {
            errors.required(
                &at.child(field),
                &format!("must be specified when patchType is {}", text(mutation, "patchType")),
            );
            continue;
        }
        let expression = text(&mutation[field], "expression");
        let program = compile(expression, env, &[], (&at.child(field).child("expression"), errors));
        out.extend(program.map(|program| Mutation { is_patch, program }));
    }
    out
}

fn annotations(spec: &Value, path: &Path, env: &Env, errors: &mut ErrorList) -> Vec<(String, Program)> {
    let all = items(spec, "auditAnnotations");
    if all.len() > MAX_AUDIT_ANNOTATIONS {
        errors.invalid(
            path,
            &all.len().into(),
            &format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations"),
        );
    }
    let mut out = Vec::new();
    for (i, annotation) in all.iter().enumerate() {
        let at = path.index(i);
        let key = text(annotation, "key");
        if let Err(why) = edge_api::names::qualified_name(key) {
            errors.invalid(&at.child("key"), &key.into(), &why);
        }
        let wanted = [Type::String, Type::Null];
        let program =
            compile(text(annotation, "valueExpression"), env, &wanted, (&at.child("valueExpression"), errors));
        out.extend(program.map(|program| (key.to_owned(), program)));
    }
    out
}

fn is_identifier(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && edge_cel::escape(name).is_some_and(|e| !e.starts_with("__") || name.starts_with("__"))
}

impl Binding {
    /// Reads a binding, and says everything that is wrong with it.
    pub(super) fn new(value: &Value, errors: &mut ErrorList) -> Self {
        let spec = &value["spec"];
        let path = Path::new("spec");
        if text(spec, "policyName").is_empty() {
            errors.required(&path.child("policyName"), "");
        }
        let actions: Vec<&str> = items(spec, "validationActions").iter().filter_map(Value::as_str).collect();
        let at = path.child("validationActions");
        if actions.is_empty() && text(value, "kind") == "ValidatingAdmissionPolicyBinding" {
            errors.required(&at, "at least one validation action is required");
        }
        for (i, action) in actions.iter().enumerate() {
            if !["Audit", "Deny", "Warn"].contains(action) {
                errors.not_supported(&at.index(i), &(*action).into(), &["Audit", "Deny", "Warn"]);
            } else if actions.iter().take(i).any(|a| a == action) {
                errors.duplicate(&at.index(i), &(*action).into());
            }
        }
        if actions.contains(&"Deny") && actions.contains(&"Warn") {
            errors.invalid(&at, &spec["validationActions"], "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
        }
        param(&spec["paramRef"], &path.child("paramRef"), errors);
        let matching = &spec["matchResources"];
        let constraints = (!matching.is_null())
            .then(|| selectable(Constraints::new(matching), &path.child("matchResources"), errors))
            .flatten();
        Self {
            name: text(&value["metadata"], "name").to_owned(),
            policy: text(spec, "policyName").to_owned(),
            param: spec["paramRef"].clone(),
            constraints,
            denies: actions.contains(&"Deny"),
            warns: actions.contains(&"Warn"),
            actions: actions.into_iter().map(str::to_owned).collect(),
        }
    }
}

fn param(reference: &Value, path: &Path, errors: &mut ErrorList) {
    if reference.is_null() {
        return;
    }
    match (text(reference, "name"), reference["selector"].is_null()) {
        ("", true) => errors.required(path, "one of name or selector must be specified"),
        (name, false) if !name.is_empty() => {
            errors.forbidden(&path.child("name"), "name and selector are mutually exclusive")
        }
        _ => {}
    }
    match text(reference, "parameterNotFoundAction") {
        "" => errors.required(&path.child("parameterNotFoundAction"), ""),
        "Allow" | "Deny" => {}
        other => errors.not_supported(&path.child("parameterNotFoundAction"), &other.into(), &["Deny", "Allow"]),
    }
}
