//! Judges new and changed configurations of webhooks, in Kubernetes' words.

use super::{MUTATING, RESOURCES};
use crate::admission::policy::GROUP;
use crate::admission::policy::compiled::{conditions, env};
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_api::names::{dns1035_label, dns1123_subdomain};
use edge_api::selector::LabelSelector;
use edge_api::{Object, Status};
use edge_registry::Attributes;
use serde_json::Value;
use std::collections::BTreeSet;

/// Versions of AdmissionReview that there are.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const NO_SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// What is asked of a configuration. An update may keep what was let in once.
#[derive(Clone, Copy)]
struct Demands {
    conditions: bool,
    no_side_effects: bool,
    known_versions: bool,
    unique_names: bool,
}

/// Judges a configuration; anything else is let through.
///
/// # Errors
/// 422 with everything that is wrong.
pub(in super::super) fn check(a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    let is_configuration = a.info.group == GROUP && RESOURCES.contains(&a.info.plural.as_ref());
    let is_unchanged = |old: &Object| old.get("webhooks") == object.get("webhooks");
    if !is_configuration || !a.subresource.is_empty() || a.old.is_some_and(is_unchanged) {
        return Ok(());
    }
    let errors = faults(object.get("webhooks"), a.old.map(|old| old.get("webhooks")), a.info.plural == MUTATING);
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&a.info.group_kind(), object.name(), &errors)) }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// Everything that is wrong with the webhooks of a configuration.
pub(super) fn faults(hooks: &Value, old: Option<&Value>, is_mutating: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let hooks = items(hooks);
    let demands = demands(hooks, old.map(items));
    let mut names = BTreeSet::new();
    for (i, hook) in hooks.iter().enumerate() {
        let at = Path::new("webhooks").index(i);
        of_hook(hook, is_mutating, demands, &at, &mut errors);
        review_versions(hook, demands.known_versions, &at.child("admissionReviewVersions"), &mut errors);
        let name = text(hook, "name");
        if demands.unique_names && !name.is_empty() && !names.insert(name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
    }
    errors
}

fn demands(new: &[Value], old: Option<&[Value]>) -> Demands {
    let Some(old) = old else {
        return Demands { conditions: true, no_side_effects: true, known_versions: true, unique_names: true };
    };
    let has_known_version = |hook: &Value| {
        let versions = items(&hook["admissionReviewVersions"]);
        versions.is_empty() || versions.iter().any(|v| REVIEW_VERSIONS.iter().any(|known| v == known))
    };
    let names: BTreeSet<&str> = old.iter().map(|hook| text(hook, "name")).collect();
    let same_conditions = new.iter().zip(old).all(|(n, o)| n["matchConditions"] == o["matchConditions"]);
    Demands {
        conditions: new.len() != old.len() || !same_conditions,
        no_side_effects: old.iter().all(|hook| NO_SIDE_EFFECTS.contains(&text(hook, "sideEffects"))),
        known_versions: old.iter().all(has_known_version),
        unique_names: names.len() == old.len(),
    }
}

fn of_hook(hook: &Value, is_mutating: bool, demands: Demands, at: &Path, errors: &mut ErrorList) {
    name(text(hook, "name"), &at.child("name"), errors);
    for (i, rule) in items(&hook["rules"]).iter().enumerate() {
        of_rule(rule, &at.child("rules").index(i), errors);
    }
    let mut one_of = |field: &str, known: &[&str]| {
        let value = text(hook, field);
        if !hook[field].is_null() && !known.contains(&value) {
            errors.not_supported(&at.child(field), &value.into(), known);
        }
    };
    one_of("failurePolicy", &["Fail", "Ignore"]);
    one_of("matchPolicy", &["Equivalent", "Exact"]);
    if is_mutating {
        one_of("reinvocationPolicy", &["IfNeeded", "Never"]);
    }
    let side_effects: &[&str] = if demands.no_side_effects { &NO_SIDE_EFFECTS } else { &SIDE_EFFECTS };
    if !hook["sideEffects"].is_null() {
        one_of("sideEffects", side_effects);
    } else {
        errors.required(&at.child("sideEffects"), &format!("must specify one of {}", side_effects.join(", ")));
    }
    if let Some(seconds) = hook["timeoutSeconds"].as_i64().filter(|s| !(1..=30).contains(s)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&at.child("timeoutSeconds"), &seconds.into(), detail);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if !hook[field].is_null()
            && let Err(why) = LabelSelector::from_value(&hook[field])
        {
            errors.push(ErrorKind::Invalid, &at.child(field), format!("Invalid value: {why}"));
        }
    }
    client_config(&hook["clientConfig"], &at.child("clientConfig"), errors);
    if demands.conditions {
        conditions(hook, &at.child("matchConditions"), &env(false, true), errors);
    }
}

fn name(name: &str, at: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(at, "");
    } else if let Err(why) = dns1123_subdomain(name) {
        errors.invalid(at, &name.into(), &why);
    } else if name.split('.').count() < 3 {
        errors.invalid(at, &name.into(), "should be a domain with at least three segments separated by dots");
    }
}

fn review_versions(hook: &Value, must_be_known: bool, at: &Path, errors: &mut ErrorList) {
    let all = &hook["admissionReviewVersions"];
    let versions: Vec<&str> = items(all).iter().filter_map(Value::as_str).collect();
    let known = REVIEW_VERSIONS.join(", ");
    if versions.is_empty() {
        return errors.required(at, &format!("must specify one of {known}"));
    }
    for (i, version) in versions.iter().enumerate() {
        if versions.iter().take(i).any(|v| v == version) {
            errors.invalid(&at.index(i), &(*version).into(), "duplicate version");
        } else if let Err(why) = dns1035_label(version) {
            errors.invalid(&at.index(i), &(*version).into(), &why);
        }
    }
    if must_be_known && !versions.iter().any(|v| REVIEW_VERSIONS.contains(v)) {
        errors.invalid(at, all, &format!("must include at least one of {known}"));
    }
}

fn of_rule(rule: &Value, at: &Path, errors: &mut ErrorList) {
    let mut list = |field: &str, what: &str| {
        let values = items(&rule[field]);
        if values.is_empty() {
            errors.required(&at.child(field), "");
        } else if values.len() > 1 && values.iter().any(|v| v == "*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.invalid(&at.child(field), &rule[field], &detail);
        }
    };
    list("operations", "operations");
    list("apiGroups", "API groups");
    list("apiVersions", "API versions");
    for (i, operation) in items(&rule["operations"]).iter().enumerate() {
        if !OPERATIONS.iter().any(|known| operation == known) {
            errors.not_supported(&at.child("operations").index(i), operation, &OPERATIONS);
        }
    }
    for (i, version) in items(&rule["apiVersions"]).iter().enumerate() {
        if version == "" {
            errors.required(&at.child("apiVersions").index(i), "");
        }
    }
    resources(&rule["resources"], &at.child("resources"), errors);
    let scope = text(rule, "scope");
    if !rule["scope"].is_null() && !["*", "Cluster", "Namespaced"].contains(&scope) {
        errors.not_supported(&at.child("scope"), &scope.into(), &["*", "Cluster", "Namespaced"]);
    }
}

fn resources(list: &Value, at: &Path, errors: &mut ErrorList) {
    let all: Vec<&str> = items(list).iter().map(|v| v.as_str().unwrap_or_default()).collect();
    if all.is_empty() {
        errors.required(at, "");
    }
    let (mut with_all_subresources, mut of_all_resources) = (BTreeSet::new(), BTreeSet::new());
    for (i, given) in all.iter().enumerate() {
        if given.is_empty() {
            errors.required(&at.index(i), "");
        }
        let Some((resource, subresource)) = given.split_once('/') else { continue };
        if with_all_subresources.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {given}");
            errors.invalid(&at.index(i), &(*given).into(), &detail);
        }
        if of_all_resources.contains(subresource) {
            let detail = format!("if '*/{subresource}' is present, must not specify {given}");
            errors.invalid(&at.index(i), &(*given).into(), &detail);
        }
        if subresource == "*" {
            with_all_subresources.insert(resource);
        }
        if resource == "*" {
            of_all_resources.insert(subresource);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        errors.invalid(at, list, "if '*/*' is present, must not specify other resources");
    }
    if all.contains(&"*") && all.iter().any(|given| *given != "*" && !given.contains('/')) {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(at, list, detail);
    }
}

fn client_config(config: &Value, at: &Path, errors: &mut ErrorList) {
    match (config["url"].as_str(), &config["service"]) {
        (Some(url), Value::Null) => of_url(url, &at.child("url"), errors),
        (None, service) if !service.is_null() => of_service(service, &at.child("service"), errors),
        _ => errors.required(at, "exactly one of url or service is required"),
    }
}

fn of_url(url: &str, at: &Path, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
    if let Err(why) = url.parse::<http::Uri>() {
        return errors.required(at, &format!("url must be a valid URL: {why}{FORM}"));
    }
    if scheme != "https" {
        errors.invalid(at, &scheme.into(), &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        errors.invalid(at, &host.into(), &format!("host must be provided{FORM}"));
    }
    if authority.contains('@') {
        errors.invalid(at, &user.into(), "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        errors.invalid(at, &fragment.into(), "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        errors.invalid(at, &query.into(), "query parameters are not permitted in the URL");
    }
}

fn of_service(service: &Value, at: &Path, errors: &mut ErrorList) {
    for (field, what) in [("name", "service name is required"), ("namespace", "service namespace is required")] {
        if text(service, field).is_empty() {
            errors.required(&at.child(field), what);
        }
    }
    if let Some(port) = service["port"].as_i64().filter(|p| !(1..=65535).contains(p)) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&at.child("port"), &port.into(), detail);
    }
    let at = at.child("path");
    let path = text(service, "path");
    if path.is_empty() || path == "/" {
        return;
    }
    if path == "//" {
        return errors.invalid(&at, &path.into(), "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        errors.invalid(&at, &path.into(), "must start with a '/'");
    }
    let inner = path.strip_prefix('/').unwrap_or(path);
    for (i, segment) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(&at, &path.into(), &format!("segment[{i}] may not be empty"));
        } else if let Err(why) = dns1123_subdomain(segment) {
            errors.invalid(&at, &path.into(), &format!("segment[{i}]: {why}"));
        }
    }
}
