//! Names, group, scope and conversion of a definition.

use super::{text, versions};
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, names};
use serde_json::{Map, Value};

const APPROVED: &str = "api-approved.kubernetes.io";
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

pub(super) fn validate(o: &Object, errors: &mut ErrorList) {
    let empty = Map::new();
    let spec = o.pointer("/spec").and_then(Value::as_object).unwrap_or(&empty);
    let at = Path::new("spec");
    let own = spec.get("names").and_then(Value::as_object).unwrap_or(&empty);
    let (group, plural) = (text(spec, "group"), text(own, "plural"));
    if o.name() != format!("{plural}.{group}") {
        errors.invalid(
            &Path::new("metadata").child("name"),
            &o.name().into(),
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    let group_at = at.child("group");
    if group.is_empty() {
        errors.required(&group_at, "");
    } else if let Err(why) = names::dns1123_subdomain(group) {
        errors.invalid(&group_at, &group.into(), &why);
    } else if !group.contains('.') {
        errors.invalid(&group_at, &group.into(), "should be a domain with at least one dot");
    }
    approval(o, group, errors);
    match text(spec, "scope") {
        "" => errors.required(&at.child("scope"), ""),
        "Cluster" | "Namespaced" => {}
        other => errors.not_supported(&at.child("scope"), &other.into(), &["Cluster", "Namespaced"]),
    }
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(true)) {
        let detail =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&at.child("preserveUnknownFields"), &true.into(), detail);
    }
    of_names(own, &at.child("names"), errors);
    if let Some(conversion) = spec.get("conversion").and_then(Value::as_object) {
        of_conversion(conversion, &at.child("conversion"), errors);
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut unique = true;
    let mut storage = 0;
    for (path, version) in versions(o) {
        let name = text(version, "name");
        unique &= seen.insert(name);
        storage += usize::from(version.get("storage") == Some(&Value::Bool(true)));
        if let Err(why) = names::dns1035_label(name) {
            errors.invalid(&path.child("name"), &name.into(), &why);
        }
    }
    let shown: Value = seen.iter().copied().collect();
    if !unique {
        errors.invalid(&at.child("versions"), &shown, "must contain unique version names");
    }
    if storage != 1 {
        errors.invalid(&at.child("versions"), &shown, "must have exactly one version marked as storage version");
    }
}

/// Groups of Kubernetes itself are not anybody's.
fn approval(o: &Object, group: &str, errors: &mut ErrorList) {
    let protected = |of: &str| group == of || group.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if !protected("k8s.io") && !protected("kubernetes.io") {
        return;
    }
    let at = Path::new("metadata").child("annotations").key(APPROVED);
    match o.annotation(APPROVED) {
        None | Some("") => {
            let detail = format!(
                "protected groups must have approval annotation \"{APPROVED}\", see https://github.com/kubernetes/enhancements/pull/1111"
            );
            errors.required(&at, &detail);
        }
        Some(value) if value.starts_with("unapproved") || value.starts_with("https://") => {}
        Some(value) => {
            let detail = format!(
                "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
            );
            errors.invalid(&at, &value.into(), &detail);
        }
    }
}

fn of_names(own: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    for name in ["plural", "singular"] {
        match text(own, name) {
            "" => errors.required(&at.child(name), ""),
            value => {
                if let Err(why) = names::dns1035_label(value) {
                    errors.invalid(&at.child(name), &value.into(), &why);
                }
            }
        }
    }
    for name in ["kind", "listKind"] {
        match text(own, name) {
            "" => errors.required(&at.child(name), ""),
            value => {
                if let Err(why) = names::dns1035_label(&value.to_lowercase()) {
                    let detail = format!("may have mixed case, but should otherwise match: {why}");
                    errors.invalid(&at.child(name), &value.into(), &detail);
                }
            }
        }
    }
    if !text(own, "kind").is_empty() && text(own, "kind") == text(own, "listKind") {
        let kind = text(own, "listKind");
        errors.invalid(&at.child("listKind"), &kind.into(), "kind and listKind may not be the same");
    }
    for name in ["shortNames", "categories"] {
        let list = own.get(name).and_then(Value::as_array).into_iter().flatten();
        for (i, value) in list.enumerate() {
            if let Err(why) = names::dns1035_label(value.as_str().unwrap_or_default()) {
                errors.invalid(&at.child(name).index(i), value, &why);
            }
        }
    }
}

/// Paths are those of Kubernetes' internal form, as its messages have them.
fn of_conversion(conversion: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    let strategy = text(conversion, "strategy");
    let webhook = conversion.get("webhook").and_then(Value::as_object);
    let config = webhook.and_then(|w| w.get("clientConfig")).and_then(Value::as_object);
    let reviews: Vec<&str> = webhook
        .and_then(|w| w.get("conversionReviewVersions"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (config_at, reviews_at) = (at.child("webhookClientConfig"), at.child("conversionReviewVersions"));
    match strategy {
        "" => errors.required(&at.child("strategy"), ""),
        "Webhook" => {
            match config {
                None => errors.required(&config_at, "required when strategy is set to Webhook"),
                Some(config) => client_config(config, &config_at, errors),
            }
            if reviews.is_empty() {
                errors.required(&reviews_at, "");
            } else if !reviews.iter().any(|v| REVIEWS.contains(v)) {
                let shown = reviews.iter().copied().collect();
                errors.invalid(&reviews_at, &shown, "must include at least one of v1, v1beta1");
            }
            for (i, version) in reviews.iter().enumerate() {
                if reviews[..i].contains(version) {
                    errors.invalid(&reviews_at.index(i), &(*version).into(), "duplicate version");
                } else if let Err(why) = names::dns1035_label(version) {
                    errors.invalid(&reviews_at.index(i), &(*version).into(), &why);
                }
            }
        }
        "None" => {
            let detail = "should not be set when strategy is not set to Webhook";
            if config.is_some() {
                errors.forbidden(&config_at, detail);
            }
            if !reviews.is_empty() {
                errors.forbidden(&reviews_at, detail);
            }
        }
        other => errors.not_supported(&at.child("strategy"), &other.into(), &["None", "Webhook"]),
    }
}

fn client_config(config: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    let url = config.get("url").and_then(Value::as_str);
    let service = config.get("service").and_then(Value::as_object);
    match (url, service) {
        (Some(url), None) => {
            let at = at.child("url");
            let rest = url.strip_prefix("https://");
            match rest {
                None => errors.invalid(
                    &at,
                    &url.into(),
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                ),
                Some(rest) if rest.starts_with('/') || rest.is_empty() => {
                    errors.invalid(&at, &url.into(), "host must be specified; desired format: https://host[/path]");
                }
                Some(rest) if rest.contains('@') => {
                    errors.invalid(&at, &url.into(), "user information is not permitted in the URL");
                }
                Some(rest) if rest.contains('#') => {
                    errors.invalid(&at, &url.into(), "fragments are not permitted in the URL")
                }
                Some(rest) if rest.contains('?') => {
                    errors.invalid(&at, &url.into(), "query parameters are not permitted in the URL");
                }
                Some(_) => {}
            }
        }
        (None, Some(service)) => {
            let at = at.child("service");
            for (name, detail) in [("name", "service name is required"), ("namespace", "service namespace is required")]
            {
                if text(service, name).is_empty() {
                    errors.required(&at.child(name), detail);
                }
            }
            let path = text(service, "path");
            if !path.is_empty() && !path.starts_with('/') {
                errors.invalid(&at.child("path"), &path.into(), "must start with a '/'");
            }
            if let Some(port) = service.get("port").and_then(Value::as_i64).filter(|p| !(1..=65535).contains(p)) {
                errors.invalid(
                    &at.child("port"),
                    &port.into(),
                    "port is not valid: must be between 1 and 65535, inclusive",
                );
            }
        }
        _ => errors.required(at, "exactly one of url or service is required"),
    }
}
