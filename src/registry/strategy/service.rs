//! Services: ports, what their types require, what stays as it was.

use super::{Allocation, NameRule, Strategy, template};
use edge_api::Object;
use edge_api::field::{ErrorList, Path};
use serde_json::{Value, json};
use std::collections::HashSet;

pub(crate) static STRATEGY: Strategy = Strategy {
    name: NameRule::Label1035,
    allocation: Allocation::Service,
    prepare_create: |o| {
        o.fields_mut().insert("status".into(), json!({"loadBalancer": {}}));
    },
    prepare_update: keep_what_was_given,
    validate,
    validate_update: |new, live, errors| {
        let kept = |o: &Object| o.str_at("/spec/clusterIP").to_owned();
        let may_go = new.str_at("/spec/type") == "ExternalName";
        if !kept(live).is_empty() && live.str_at("/spec/type") != "ExternalName" && !may_go && kept(new) != kept(live) {
            let path = Path::new("spec").child("clusterIPs").index(0);
            errors.invalid(&path, &json!([kept(new)]), "may not change once set");
        }
    },
    ..Strategy::DEFAULT
};

/// An update that does not name addresses and ports keeps those that the service has.
fn keep_what_was_given(new: &mut Object, live: &Object) {
    let stays = |o: &Object| o.str_at("/spec/type") != "ExternalName";
    if !stays(new) || !stays(live) {
        return;
    }
    let ports: Vec<Value> = live.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let was_public = live.str_at("/spec/type") != "ClusterIP";
    let is_public = new.str_at("/spec/type") != "ClusterIP";
    let spec = new.section_mut("spec");
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let absent = spec.get(field).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if let Some(value) = live.get("spec").get(field).filter(|_| absent) {
            spec.insert(field.into(), value.clone());
        }
    }
    if was_public && is_public {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let unset = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0;
            let same = |p: &&Value| p.get("port") == port.get("port") && p.get("protocol") == port.get("protocol");
            if let Some(known) = ports.iter().find(same).and_then(|p| p.get("nodePort")).filter(|_| unset).cloned() {
                port["nodePort"] = known;
            }
        }
    }
}

fn validate(o: &Object, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let kind = o.str_at("/spec/type");
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !types.contains(&kind) {
        errors.not_supported(&path.child("type"), &kind.into(), &types);
    }
    let headless = o.str_at("/spec/clusterIP") == "None";
    if kind == "ExternalName" {
        let name = o.str_at("/spec/externalName");
        if name.is_empty() {
            errors.required(&path.child("externalName"), "");
        } else if let Err(why) = edge_api::names::dns1123_subdomain(name.trim_end_matches('.')) {
            errors.invalid(&path.child("externalName"), &name.into(), &why);
        }
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        errors.invalid(
            &path.child("clusterIPs").index(0),
            &"None".into(),
            &format!("may not be set to 'None' for {kind} services"),
        );
    }
    let ports = o.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (i, p) in ports.iter().enumerate() {
        let at = path.child("ports").index(i);
        let text = |field: &str| p.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("name").is_empty() && ports.len() > 1 {
            errors.required(&at.child("name"), "");
        } else if !text("name").is_empty() && !names.insert(text("name")) {
            errors.duplicate(&at.child("name"), &text("name").into());
        }
        template::port(p, "port", true, &at, errors);
        let protocols = ["SCTP", "TCP", "UDP"];
        if !protocols.contains(&text("protocol")) {
            errors.not_supported(&at.child("protocol"), &text("protocol").into(), &protocols);
        }
        if !numbers.insert((text("protocol"), p.get("port").and_then(Value::as_i64))) {
            errors.duplicate(&at, p);
        }
        if kind == "ClusterIP" && p.get("nodePort").and_then(Value::as_i64).is_some_and(|n| n != 0) {
            errors.forbidden(&at.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    if let Some(labels) = o.pointer("/spec/selector") {
        crate::meta::validate_labels(Some(labels), &path.child("selector"), errors);
    }
}
