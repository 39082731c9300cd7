//! Services: ports, what their types require, what stays as it was.

use super::{Allocation, NameRule, Strategy, network, template};
use edge_api::Object;
use edge_api::field::{ErrorList, Path};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::net::IpAddr;

pub(crate) static STRATEGY: Strategy = Strategy {
    name: NameRule::Label1035,
    allocation: Allocation::Service,
    prepare_create: |o| {
        o.fields_mut().insert("status".into(), json!({"loadBalancer": {}}));
        let spec = o.section_mut("spec");
        let address = spec.get("clusterIP").filter(|ip| !is_unset(Some(ip))).cloned();
        if let Some(address) = address.filter(|_| is_unset(spec.get("clusterIPs"))) {
            spec.insert("clusterIPs".into(), json!([address]));
        }
    },
    prepare_update: |new, live| {
        drop_what_the_type_no_longer_has(new, live);
        keep_what_was_given(new, live);
    },
    validate,
    validate_update,
    validate_status: |new, _, errors| validate_status(new, errors),
    ..Strategy::DEFAULT
};

fn is_unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(_) => false,
    }
}

fn text<'a>(spec: &'a Value, field: &str) -> &'a str {
    spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(spec: &'a Value, field: &str) -> &'a [Value] {
    spec.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn is_balancer(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer"
}

fn needs_node_ports(spec: &Value) -> bool {
    text(spec, "type") == "NodePort"
        || is_balancer(spec) && spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
}

fn needs_health_port(spec: &Value) -> bool {
    is_balancer(spec) && text(spec, "externalTrafficPolicy") == "Local"
}

fn is_reached_from_outside(spec: &Value) -> bool {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !items(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// A client that changes only the type does not have to know which fields went with the old one: those that are as they
/// were go along.
fn drop_what_the_type_no_longer_has(new: &mut Object, live: &Object) {
    let (old, now) = (live.get("spec").clone(), new.get("spec").clone());
    let spec = new.section_mut("spec");
    let drop_same = |spec: &mut Map<String, Value>, needs: fn(&Value) -> bool, fields: &[&str]| {
        if needs(&old)
            && !needs(&now)
            && fields.iter().all(|field| is_unset(now.get(field)) || now.get(field) == old.get(field))
        {
            fields.iter().for_each(|field| drop(spec.remove(*field)));
        }
    };
    let has_address: fn(&Value) -> bool = |spec| text(spec, "type") != "ExternalName";
    drop_same(spec, has_address, &["clusterIP", "clusterIPs"]);
    drop_same(spec, has_address, &["ipFamilies", "ipFamilyPolicy"]);
    drop_same(spec, needs_health_port, &["healthCheckNodePort"]);
    drop_same(spec, is_balancer, &["allocateLoadBalancerNodePorts"]);
    drop_same(spec, is_balancer, &["loadBalancerClass"]);
    drop_same(spec, is_reached_from_outside, &["externalTrafficPolicy"]);
    if !is_balancer(&now) {
        new.section_mut("status").insert("loadBalancer".into(), json!({}));
    }
    let spec = new.section_mut("spec");
    if needs_node_ports(&old) && !needs_node_ports(&now) {
        let known: HashSet<i64> = items(&old, "ports").iter().filter_map(|p| p.get("nodePort")?.as_i64()).collect();
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            if port.get("nodePort").and_then(Value::as_i64).is_some_and(|number| known.contains(&number)) {
                port.remove("nodePort");
            }
        }
    }
}

/// An update that does not name addresses and ports keeps those that the service has.
fn keep_what_was_given(new: &mut Object, live: &Object) {
    let stays = |o: &Object| o.str_at("/spec/type") != "ExternalName";
    if !stays(new) || !stays(live) {
        return;
    }
    let old = live.get("spec").clone();
    let needs_ports = needs_node_ports(&old) && needs_node_ports(new.get("spec"));
    let needs_health = needs_health_port(&old) && needs_health_port(new.get("spec"));
    let spec = new.section_mut("spec");
    // Of the two forms of the address, the one that was changed counts.
    let (was, is) =
        (text(&old, "clusterIP"), spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned());
    let same_list = spec.get("clusterIPs") == old.get("clusterIPs");
    if was != is && !is.is_empty() && same_list {
        if let Some(first) = spec.get_mut("clusterIPs").and_then(|list| list.get_mut(0)) {
            *first = is.into();
        }
    } else if is.is_empty() && same_list {
        spec.remove("clusterIPs");
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if let Some(value) = old.get(field).filter(|_| is_unset(spec.get(field))) {
            spec.insert(field.into(), value.clone());
        }
    }
    // Back to one family: the other one goes, unless the client has said which.
    let single = spec.get("ipFamilyPolicy").and_then(Value::as_str) == Some("SingleStack");
    if single && text(&old, "ipFamilyPolicy") != "SingleStack" {
        for field in ["clusterIPs", "ipFamilies"] {
            if spec.get(field) == old.get(field)
                && let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut)
            {
                list.truncate(1);
            }
        }
    }
    if needs_health && is_unset(spec.get("healthCheckNodePort")) {
        spec.extend(old.get("healthCheckNodePort").map(|port| ("healthCheckNodePort".to_owned(), port.clone())));
    }
    if needs_ports {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let same = |p: &&Value| p.get("port") == port.get("port") && p.get("protocol") == port.get("protocol");
            let known = items(&old, "ports").iter().find(same).and_then(|p| p.get("nodePort"));
            if let Some(known) = known.filter(|_| is_unset(port.get("nodePort"))).cloned() {
                port["nodePort"] = known;
            }
        }
    }
}

fn validate_update(new: &Object, live: &Object, errors: &mut ErrorList) {
    let (old, now, path) = (live.get("spec"), new.get("spec"), Path::new("spec"));
    let has_address = |spec: &Value| text(spec, "type") != "ExternalName";
    if has_address(old) && has_address(now) {
        if !text(old, "clusterIP").is_empty() && text(old, "clusterIP") != text(now, "clusterIP") {
            let value = json!(items(now, "clusterIPs"));
            errors.invalid(&path.child("clusterIPs").index(0), &value, "may not change once set");
        }
        let first = |spec: &Value| items(spec, "ipFamilies").first().cloned();
        if first(old).is_some() && first(now).is_some() && first(old) != first(now) {
            let at = path.child("ipFamilies").index(0);
            errors.invalid(&at, &first(now).unwrap_or_default(), "may not change once set");
        }
    }
    if is_balancer(old) && is_balancer(now) && text(old, "loadBalancerClass") != text(now, "loadBalancerClass") {
        errors.invalid(
            &path.child("loadBalancerClass"),
            &text(now, "loadBalancerClass").into(),
            "may not change once set",
        );
    }
    if needs_health_port(old)
        && needs_health_port(now)
        && old.get("healthCheckNodePort") != now.get("healthCheckNodePort")
    {
        let value = now.get("healthCheckNodePort").cloned().unwrap_or_default();
        errors.invalid(&path.child("healthCheckNodePort"), &value, "field is immutable");
    }
}

fn validate(o: &Object, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let spec = o.get("spec");
    let kind = text(spec, "type");
    one_of(spec, &path, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    if kind == "ExternalName" {
        external_name(spec, &path, errors);
    } else {
        addresses(spec, &path, errors);
    }
    ports(spec, &path, errors);
    if let Some(labels) = spec.get("selector") {
        crate::meta::validate_labels(Some(labels), &path.child("selector"), errors);
    }
    affinity(spec, &path, errors);
    for (i, address) in items(spec, "externalIPs").iter().enumerate() {
        network::outside_address(address, &path.child("externalIPs").index(i), errors);
    }
    if !text(spec, "trafficDistribution").is_empty() {
        one_of(spec, &path, "trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"], errors);
    }
    load_balancer(spec, &path, errors);
    policies(spec, &path, errors);
}

fn validate_status(o: &Object, errors: &mut ErrorList) {
    let ingress = o.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    let at = Path::new("status").child("loadBalancer").child("ingress");
    if !is_balancer(o.get("spec")) && ingress.is_some_and(|ingress| !ingress.is_empty()) {
        errors.forbidden(&at, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for (i, ingress) in ingress.into_iter().flatten().enumerate() {
        let at = at.index(i);
        if !text(ingress, "ip").is_empty() {
            network::address(&ingress["ip"], &at.child("ip"), errors);
        } else if !text(ingress, "ipMode").is_empty() {
            errors.forbidden(&at.child("ipMode"), "may not be specified when `ip` is not set");
        }
        if !text(ingress, "ipMode").is_empty() {
            one_of(ingress, &at, "ipMode", &["Proxy", "VIP"], errors);
        }
        if !text(ingress, "hostname").is_empty()
            && let Err(why) = edge_api::names::dns1123_subdomain(text(ingress, "hostname"))
        {
            errors.invalid(&at.child("hostname"), &ingress["hostname"], &why);
        }
    }
}

fn one_of(value: &Value, path: &Path, field: &str, allowed: &[&str], errors: &mut ErrorList) {
    let given = text(value, field);
    if !allowed.contains(&given) {
        errors.not_supported(&path.child(field), &given.into(), allowed);
    }
}

fn external_name(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let name = text(spec, "externalName");
    if name.is_empty() {
        errors.required(&path.child("externalName"), "");
    } else if let Err(why) = edge_api::names::dns1123_subdomain(name.trim_end_matches('.')) {
        errors.invalid(&path.child("externalName"), &name.into(), &why);
    }
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !is_unset(spec.get(field)) {
            errors.forbidden(&path.child(field), "may not be set for ExternalName services");
        }
    }
}

fn addresses(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (kind, first, at) = (text(spec, "type"), text(spec, "clusterIP"), path.child("clusterIPs"));
    let list = items(spec, "clusterIPs");
    if first == "None" && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.invalid(&at.index(0), &"None".into(), &why);
    }
    if let Some(listed) = list.first().and_then(Value::as_str)
        && listed != first
    {
        errors.invalid(&at, &json!(list), "first value must match `clusterIP`");
    }
    let mut seen = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let given = value.as_str().unwrap_or_default();
        if given == "None" {
            if list.len() > 1 {
                errors.invalid(&at.index(i), value, "'None' must be the first and only value");
            }
        } else if given.is_empty() && i > 0 {
            errors.required(&at.index(i), "");
        } else if !given.is_empty() {
            network::address(value, &at.index(i), errors);
            seen.extend(given.parse::<IpAddr>().ok().map(|address| address.is_ipv4()));
        }
    }
    if list.len() > 2 {
        errors.invalid(&at, &json!(list), "may only hold up to 2 values");
    } else if seen.len() == 2 && seen[0] == seen[1] {
        errors.invalid(&at, &json!(list), "may specify no more than one IP for each IP family");
    }
    let families = items(spec, "ipFamilies");
    let mut known = HashSet::new();
    for (i, family) in families.iter().enumerate() {
        let at = path.child("ipFamilies").index(i);
        if !matches!(family.as_str(), Some("IPv4" | "IPv6")) {
            errors.not_supported(&at, family, &["IPv4", "IPv6"]);
        }
        if !known.insert(family.as_str()) {
            errors.duplicate(&at, family);
        }
    }
    if !text(spec, "ipFamilyPolicy").is_empty() {
        one_of(spec, path, "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    }
}

fn ports(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(spec, "type");
    let ports = items(spec, "ports");
    if ports.is_empty() && text(spec, "clusterIP") != "None" && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, p) in ports.iter().enumerate() {
        let at = path.child("ports").index(i);
        let name = text(p, "name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(&at.child("name"), "");
        } else if !name.is_empty() {
            if let Err(why) = edge_api::names::dns1123_label(name) {
                errors.invalid(&at.child("name"), &name.into(), &why);
            } else if !names.insert(name) {
                errors.duplicate(&at.child("name"), &name.into());
            }
        }
        template::port(p, "port", true, &at, errors);
        match p.get("targetPort") {
            Some(Value::String(target)) => network::port_name(target, &at.child("targetPort"), errors),
            Some(_) => template::port(p, "targetPort", false, &at, errors),
            None => {}
        }
        one_of(p, &at, "protocol", &["SCTP", "TCP", "UDP"], errors);
        if !numbers.insert((text(p, "protocol"), p.get("port").and_then(Value::as_i64))) {
            errors.duplicate(&at, p);
        }
        let node_port = p.get("nodePort").and_then(Value::as_i64).filter(|number| *number != 0);
        if kind == "ClusterIP" && node_port.is_some() {
            errors.forbidden(&at.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        } else if node_port.is_some() && !node_ports.insert((text(p, "protocol"), node_port)) {
            errors.duplicate(&at.child("nodePort"), &node_port.into());
        }
    }
}

fn affinity(spec: &Value, path: &Path, errors: &mut ErrorList) {
    one_of(spec, path, "sessionAffinity", &["ClientIP", "None"], errors);
    let seconds = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds");
    let at = path.child("sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            if let Some(seconds) = seconds.filter(|s| !s.as_i64().is_some_and(|s| (1..=86_400).contains(&s))) {
                let why = "must be greater than 0 and less than 86400";
                errors.invalid(&at.child("clientIP").child("timeoutSeconds"), seconds, why);
            }
        }
        "None" if !spec.get("sessionAffinityConfig").is_none_or(Value::is_null) => {
            errors.forbidden(&at, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn load_balancer(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let ranges = items(spec, "loadBalancerSourceRanges");
    let at = path.child("loadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer(spec) {
        errors.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
    }
    for (i, range) in ranges.iter().enumerate() {
        let trimmed = range.as_str().map_or(Value::Null, |text| text.trim().into());
        network::cidr(&trimmed, &at.index(i), errors);
    }
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !is_unset(spec.get(field)) && !is_balancer(spec) {
            errors.forbidden(&path.child(field), "may only be used when `type` is 'LoadBalancer'");
        }
    }
    let class = text(spec, "loadBalancerClass");
    if is_balancer(spec)
        && !class.is_empty()
        && let Err(why) = edge_api::names::qualified_name(class)
    {
        errors.invalid(&path.child("loadBalancerClass"), &class.into(), &why);
    }
}

fn policies(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let given = text(spec, "externalTrafficPolicy");
    if !is_reached_from_outside(spec) {
        if !given.is_empty() {
            let why = "may only be set for externally-accessible services";
            errors.invalid(&path.child("externalTrafficPolicy"), &given.into(), why);
        }
    } else if given.is_empty() {
        errors.required(&path.child("externalTrafficPolicy"), "");
    } else {
        one_of(spec, path, "externalTrafficPolicy", &["Cluster", "Local"], errors);
    }
    if !text(spec, "internalTrafficPolicy").is_empty() {
        one_of(spec, path, "internalTrafficPolicy", &["Cluster", "Local"], errors);
    }
    let port = spec.get("healthCheckNodePort").filter(|port| !is_unset(Some(port)));
    if let Some(port) = port
        && !needs_health_port(spec)
    {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&path.child("healthCheckNodePort"), port, why);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn service(spec: Value) -> Object {
        Object::from_value(json!({"kind": "Service", "metadata": {"name": "s"}, "spec": spec})).unwrap()
    }

    /// A valid service with some fields set otherwise.
    fn with(fields: Value) -> Object {
        let mut spec = json!({"type": "LoadBalancer", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster",
            "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": "web"}]});
        for (field, value) in fields.as_object().unwrap() {
            spec[field] = value.clone();
        }
        service(spec)
    }

    fn complaints(o: &Object) -> String {
        let mut errors = ErrorList::new();
        validate(o, &mut errors);
        errors.to_string()
    }

    fn status_complaints(o: &Object) -> String {
        let mut errors = ErrorList::new();
        validate_status(o, &mut errors);
        errors.to_string()
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(complaints(&with(json!({}))), "");
        for (fields, expected) in [
            (json!({"type": "X"}), "spec.type: Unsupported value"),
            (
                json!({"externalIPs": ["127.0.0.1"]}),
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback",
            ),
            (json!({"externalIPs": ["x"]}), "must be a valid IP address"),
            (json!({"loadBalancerSourceRanges": ["10.0.0.0/33"]}), "spec.loadBalancerSourceRanges[0]: Invalid value"),
            (json!({"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}), "may only be used when `type`"),
            (json!({"type": "NodePort", "loadBalancerClass": "a/b"}), "spec.loadBalancerClass: Forbidden"),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}),
                "must be greater than 0 and less than 86400",
            ),
            (json!({"sessionAffinity": "Cookie"}), "spec.sessionAffinity: Unsupported value"),
            (json!({"externalTrafficPolicy": "Near"}), "spec.externalTrafficPolicy: Unsupported value"),
            (json!({"type": "ClusterIP", "ports": [{"port": 1, "protocol": "TCP"}]}), "externally-accessible services"),
            (json!({"healthCheckNodePort": 30001}), "may only be set when `type` is 'LoadBalancer'"),
            (json!({"trafficDistribution": "Anywhere"}), "spec.trafficDistribution: Unsupported value"),
            (json!({"clusterIPs": ["10.43.0.9", "10.43.0.8"]}), "no more than one IP for each IP family"),
            (json!({"clusterIPs": ["10.43.0.8"]}), "first value must match `clusterIP`"),
            (json!({"ipFamilies": ["IPv5"]}), "spec.ipFamilies[0]: Unsupported value"),
            (json!({"ipFamilies": ["IPv4", "IPv4"]}), "spec.ipFamilies[1]: Duplicate value"),
            (json!({"ipFamilyPolicy": "Both"}), "spec.ipFamilyPolicy: Unsupported value"),
            (json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 70_000}]}), "spec.ports[0].targetPort"),
            (
                json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": "Not_A_Name"}]}),
                "spec.ports[0].targetPort",
            ),
            (
                json!({"ports": [{"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30001},
                {"name": "b", "port": 81, "protocol": "TCP", "nodePort": 30001}]}),
                "spec.ports[1].nodePort: Duplicate value",
            ),
        ] {
            let found = complaints(&with(fields.clone()));
            assert!(found.contains(expected), "{fields}: {found}");
        }
        let mut status = with(json!({}));
        status.fields_mut().insert(
            "status".into(),
            json!({"loadBalancer": {"ingress": [{"ip": "x"}, {"hostname": "h", "ipMode": "VIP"}]}}),
        );
        let found = status_complaints(&status);
        assert!(found.contains("ingress[0].ip") && found.contains("ingress[1].ipMode: Forbidden"), "{found}");
        status.section_mut("spec").insert("type".into(), "NodePort".into());
        assert!(status_complaints(&status).contains("status.loadBalancer.ingress: Forbidden"));
    }

    #[test]
    fn a_changed_type_takes_its_fields_along() {
        let live =
            with(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30001, "loadBalancerClass": "a/b",
            "allocateLoadBalancerNodePorts": true}));
        let mut new = live.clone();
        new.section_mut("spec").insert("type".into(), "ClusterIP".into());
        (STRATEGY.prepare_update)(&mut new, &live);
        assert_eq!(complaints(&new), "");
        assert_eq!(new.str_at("/spec/clusterIP"), "10.43.0.9");
        assert_eq!(new.pointer("/spec/ports/0/nodePort"), None);
        let mut external = live.clone();
        external.section_mut("spec").insert("type".into(), "ExternalName".into());
        external.section_mut("spec").insert("externalName".into(), "a.example".into());
        (STRATEGY.prepare_update)(&mut external, &live);
        assert_eq!(complaints(&external), "");
        assert_eq!(external.pointer("/spec/clusterIP"), None);
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name_and_one_family_when_it_says_so() {
        let live = with(json!({"clusterIPs": ["10.43.0.9", "fd43::9"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "PreferDualStack", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001}));
        let ports = json!([{"port": 80, "protocol": "TCP", "targetPort": 8080}]);
        let mut new = service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports}));
        (STRATEGY.prepare_update)(&mut new, &live);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"] {
            assert_eq!(new.get("spec").get(field), live.get("spec").get(field), "{field}");
        }
        assert_eq!(new.pointer("/spec/ports/0/nodePort").unwrap(), 30080);
        let mut single = live.clone();
        single.section_mut("spec").insert("ipFamilyPolicy".into(), "SingleStack".into());
        (STRATEGY.prepare_update)(&mut single, &live);
        assert_eq!(single.pointer("/spec/clusterIPs").unwrap(), &json!(["10.43.0.9"]));
        assert_eq!(single.pointer("/spec/ipFamilies").unwrap(), &json!(["IPv4"]));
        let mut moved = live.clone();
        moved.section_mut("spec").insert("clusterIP".into(), "10.43.0.8".into());
        (STRATEGY.prepare_update)(&mut moved, &live);
        let mut errors = ErrorList::new();
        validate_update(&moved, &live, &mut errors);
        assert!(errors.to_string().contains("may not change once set"), "{errors}");
    }
}
