//! What NetworkPolicies and EndpointSlices may say; addresses, networks and port names for all kinds that have them.

use super::{NameRule, Strategy, immutable, template};
use edge_api::Object;
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_api::selector::LabelSelector;
use serde_json::Value;
use std::net::IpAddr;

pub(crate) static NETWORK_POLICY: Strategy =
    Strategy { generation: true, validate: network_policy, ..Strategy::DEFAULT };

pub(crate) static ENDPOINT_SLICE: Strategy = Strategy {
    generation: true,
    validate: endpoint_slice,
    validate_update: |new, live, errors| immutable(new, live, "/addressType", errors),
    ..Strategy::DEFAULT
};

pub(crate) static IP_ADDRESS: Strategy = Strategy {
    name: NameRule::PathSegment,
    generation: true,
    validate: ip_address,
    validate_update: |new, live, errors| immutable(new, live, "/spec/parentRef", errors),
    ..Strategy::DEFAULT
};

pub(crate) static SERVICE_CIDR: Strategy =
    Strategy { generation: true, validate: service_cidr, validate_update: service_cidr_update, ..Strategy::DEFAULT };

/// Most endpoints and ports of a slice.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Judges an IP address.
pub(super) fn address(value: &Value, path: &Path, errors: &mut ErrorList) -> Option<IpAddr> {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    if parsed.is_none() {
        errors.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    parsed
}

/// Judges an IP address that others outside of this machine may have.
pub(super) fn outside_address(value: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(ip) = address(value, path, errors) else { return };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let why = if ip.is_unspecified() {
        format!("may not be unspecified ({ip})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
    } else if ip.is_multicast() {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
    } else {
        return;
    };
    errors.invalid(path, value, &why);
}

/// Judges a network; gives its first address and the length of its prefix.
pub(super) fn cidr(value: &Value, path: &Path, errors: &mut ErrorList) -> Option<(IpAddr, u8)> {
    let parsed = value.as_str().and_then(|text| {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
    });
    if parsed.is_none() {
        errors.invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
    parsed
}

/// Judges the name of a port (RFC 6335).
pub(super) fn port_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let why = if name.len() > 15 {
        "must be no more than 15 characters"
    } else if !name.chars().all(valid) || name.is_empty() {
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    } else if !name.chars().any(|c| c.is_ascii_lowercase()) {
        "must contain at least one letter (a-z)"
    } else if name.contains("--") {
        "must not contain consecutive hyphens"
    } else if name.starts_with('-') || name.ends_with('-') {
        "must not begin or end with a hyphen"
    } else {
        return;
    };
    errors.invalid(path, &name.into(), why);
}

fn network_policy(o: &Object, errors: &mut ErrorList) {
    let (spec, path) = (o.get("spec"), Path::new("spec"));
    selector(spec, "podSelector", &path, errors);
    for (field, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(spec, field).iter().enumerate() {
            let at = path.child(field).index(i);
            for (j, port) in items(rule, "ports").iter().enumerate() {
                policy_port(port, &at.child("ports").index(j), errors);
            }
            for (j, peer) in items(rule, peers).iter().enumerate() {
                policy_peer(peer, &at.child(peers).index(j), errors);
            }
        }
    }
    let types = items(spec, "policyTypes");
    let at = path.child("policyTypes");
    if types.len() > 2 {
        errors.invalid(&at, &types.to_vec().into(), "may not specify more than two policyTypes");
    } else {
        for (i, kind) in
            types.iter().enumerate().filter(|(_, kind)| !matches!(kind.as_str(), Some("Ingress" | "Egress")))
        {
            errors.not_supported(&at.index(i), kind, &["Egress", "Ingress"]);
        }
    }
}

fn selector(value: &Value, field: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(selector) = value.get(field).filter(|selector| !selector.is_null())
        && let Err(error) = LabelSelector::from_value(selector)
    {
        errors.invalid(&path.child(field), selector, &error.to_string());
    }
}

fn policy_port(port: &Value, path: &Path, errors: &mut ErrorList) {
    let protocols = ["SCTP", "TCP", "UDP"];
    if !text(port, "protocol").is_empty() && !protocols.contains(&text(port, "protocol")) {
        errors.not_supported(&path.child("protocol"), &port["protocol"], &protocols);
    }
    let end = port.get("endPort").filter(|end| !end.is_null());
    match port.get("port") {
        None | Some(Value::Null) => {
            if end.is_some() {
                errors.required(&path.child("port"), "must be specified when `endPort` is specified");
            }
        }
        Some(Value::String(name)) => {
            port_name(name, &path.child("port"), errors);
            if end.is_some() {
                let why = "may not be specified when `port` is non-numeric";
                errors.push(ErrorKind::Forbidden, &path.child("endPort"), format!("Forbidden: {why}"));
            }
        }
        Some(first) => {
            template::port(port, "port", true, path, errors);
            template::port(port, "endPort", false, path, errors);
            if let Some((first, last)) = first.as_i64().zip(end.and_then(Value::as_i64))
                && last < first
            {
                errors.invalid(&path.child("endPort"), &last.into(), "must be greater than or equal to `port`");
            }
        }
    }
}

fn policy_peer(peer: &Value, path: &Path, errors: &mut ErrorList) {
    let given = |field: &str| peer.get(field).is_some_and(|value| !value.is_null());
    selector(peer, "podSelector", path, errors);
    selector(peer, "namespaceSelector", path, errors);
    let selects = given("podSelector") || given("namespaceSelector");
    if !given("ipBlock") {
        if !selects {
            errors.required(path, "must specify a peer");
        }
        return;
    }
    if selects {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
    let (block, at) = (&peer["ipBlock"], path.child("ipBlock"));
    if text(block, "cidr").is_empty() {
        errors.required(&at.child("cidr"), "");
        return;
    }
    let Some((network, bits)) = cidr(&block["cidr"], &at.child("cidr"), errors) else { return };
    for (i, except) in items(block, "except").iter().enumerate() {
        let at = at.child("except").index(i);
        let Some((inner, inner_bits)) = cidr(except, &at, errors) else { continue };
        if inner_bits <= bits || !same_prefix(network, inner, bits) {
            errors.invalid(&at, except, &format!("must be a strict subset of `cidr`: {network}/{bits}"));
        }
    }
}

/// Whether two addresses agree in their first bits.
fn same_prefix(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    let shift = |width: u32| width.saturating_sub(u32::from(bits));
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0,
        _ => false,
    }
}

/// An address is named by its shortest form, so that nobody can have it twice.
fn ip_address(o: &Object, errors: &mut ErrorList) {
    let name = o.name();
    if name.parse::<IpAddr>().is_ok_and(|ip| ip.to_string() == name) {
        let (parent, at) =
            (o.pointer("/spec/parentRef").cloned().unwrap_or_default(), Path::new("spec").child("parentRef"));
        for field in ["resource", "name"].into_iter().filter(|field| text(&parent, field).is_empty()) {
            errors.required(&at.child(field), "");
        }
    } else {
        errors.invalid(&Path::new("metadata").child("name"), &name.into(), "must be an IP address in canonical form");
    }
}

/// The networks stay, but one of a single family may get the second one.
fn service_cidr_update(new: &Object, live: &Object, errors: &mut ErrorList) {
    let (new_cidrs, live_cidrs) = (items(new.get("spec"), "cidrs"), items(live.get("spec"), "cidrs"));
    if live_cidrs.len() == 1 && new_cidrs.len() == 2 && new_cidrs[0] == live_cidrs[0] {
        return;
    }
    immutable(new, live, "/spec/cidrs", errors);
}

fn service_cidr(o: &Object, errors: &mut ErrorList) {
    let (spec, path) = (o.get("spec"), Path::new("spec").child("cidrs"));
    let cidrs = items(spec, "cidrs");
    if cidrs.is_empty() {
        errors.required(&path, "at least one CIDR required");
    } else if cidrs.len() > 2 {
        errors.invalid(&path, &cidrs.to_vec().into(), "may only hold up to 2 values");
    }
    let mut families = Vec::new();
    for (i, value) in cidrs.iter().enumerate() {
        let at = path.index(i);
        let Some((address, bits)) = cidr(value, &at, errors) else { continue };
        if network_address(address, bits) != address {
            errors.invalid(&at, value, "must not have bits set beyond the prefix length");
        }
        families.push(address.is_ipv4());
    }
    if let [first, second] = families.as_slice()
        && first == second
    {
        errors.invalid(
            &path,
            &cidrs.to_vec().into(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}

/// The first address of a network.
fn network_address(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(bits))).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(bits))).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

fn endpoint_slice(o: &Object, errors: &mut ErrorList) {
    let kind = o.str_at("/addressType");
    if kind.is_empty() {
        errors.required(&Path::new("addressType"), "");
    } else if !["FQDN", "IPv4", "IPv6"].contains(&kind) {
        errors.not_supported(&Path::new("addressType"), &kind.into(), &["FQDN", "IPv4", "IPv6"]);
    }
    let endpoints = o.get("endpoints").as_array().map(Vec::as_slice).unwrap_or_default();
    if endpoints.len() > MAX_ENDPOINTS {
        let message = format!("Too many: {}: must have at most {MAX_ENDPOINTS} items", endpoints.len());
        errors.push(ErrorKind::TooMany, &Path::new("endpoints"), message);
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let at = Path::new("endpoints").index(i);
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            errors.required(&at.child("addresses"), "must contain at least 1 address");
        } else if addresses.len() > MAX_ADDRESSES {
            let message = format!("Too many: {}: must have at most {MAX_ADDRESSES} items", addresses.len());
            errors.push(ErrorKind::TooMany, &at.child("addresses"), message);
        }
        for (j, value) in addresses.iter().enumerate() {
            let at = at.child("addresses").index(j);
            if kind == "FQDN" {
                if let Err(why) = edge_api::names::dns1123_subdomain(value.as_str().unwrap_or_default()) {
                    errors.invalid(&at, value, &why);
                }
                continue;
            }
            let Some(ip) = address(value, &at, errors) else { continue };
            if ip.is_ipv4() != (kind == "IPv4") {
                errors.invalid(&at, value, &format!("must be an {kind} address"));
            }
        }
        if !text(endpoint, "hostname").is_empty()
            && let Err(why) = edge_api::names::dns1123_label(text(endpoint, "hostname"))
        {
            errors.invalid(&at.child("hostname"), &endpoint["hostname"], &why);
        }
    }
    endpoint_ports(o.get("ports"), errors);
}

fn endpoint_ports(ports: &Value, errors: &mut ErrorList) {
    let ports = ports.as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.len() > MAX_PORTS {
        let message = format!("Too many: {}: must have at most {MAX_PORTS} items", ports.len());
        errors.push(ErrorKind::TooMany, &Path::new("ports"), message);
        return;
    }
    let mut names = std::collections::HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = Path::new("ports").index(i);
        let name = text(port, "name");
        if !name.is_empty()
            && let Err(why) = edge_api::names::dns1123_label(name)
        {
            errors.invalid(&at.child("name"), &name.into(), &why);
        }
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        template::port(port, "port", false, &at, errors);
        let protocols = ["SCTP", "TCP", "UDP"];
        if !text(port, "protocol").is_empty() && !protocols.contains(&text(port, "protocol")) {
            errors.not_supported(&at.child("protocol"), &port["protocol"], &protocols);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn complaints(judge: fn(&Object, &mut ErrorList), value: Value) -> String {
        let mut errors = ErrorList::new();
        judge(&Object::from_value(value).unwrap(), &mut errors);
        errors.to_string()
    }

    #[test]
    fn policies_with_impossible_peers_and_ports() {
        let from = |peer: Value| {
            complaints(network_policy, json!({"spec": {"podSelector": {}, "ingress": [{"from": [peer]}]}}))
        };
        for good in [
            json!({"podSelector": {}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}),
            json!({"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}}),
        ] {
            assert_eq!(from(good.clone()), "", "{good}");
        }
        for (peer, expected) in [
            (json!({}), "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
                "may not specify both ipBlock and another peer",
            ),
            (json!({"ipBlock": {"cidr": "10.0.0.0"}}), "must be a valid CIDR value"),
            (json!({"ipBlock": {}}), "spec.ingress[0].from[0].ipBlock.cidr: Required value"),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}),
                "must be a strict subset of `cidr`",
            ),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}), "must be a strict subset of `cidr`"),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/64"]}}), "must be a strict subset of `cidr`"),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
                "not a valid label selector operator",
            ),
        ] {
            let found = from(peer.clone());
            assert!(found.contains(expected), "{peer}: {found}");
        }
        let port = |port: Value| complaints(network_policy, json!({"spec": {"egress": [{"ports": [port]}]}}));
        assert_eq!(port(json!({"port": 80, "endPort": 90, "protocol": "TCP"})), "");
        for (value, expected) in [
            (json!({"port": 0}), "spec.egress[0].ports[0].port"),
            (json!({"port": 70_000}), "must be between 1 and 65535"),
            (json!({"port": 80, "endPort": 79}), "must be greater than or equal to `port`"),
            (json!({"endPort": 79}), "must be specified when `endPort` is specified"),
            (json!({"port": "web", "endPort": 79}), "may not be specified when `port` is non-numeric"),
            (json!({"port": "Not a name"}), "alpha-numeric"),
            (json!({"port": 80, "protocol": "ICMP"}), "Unsupported value"),
        ] {
            let found = port(value.clone());
            assert!(found.contains(expected), "{value}: {found}");
        }
        let kinds = complaints(network_policy, json!({"spec": {"policyTypes": ["Sideways"]}}));
        assert!(kinds.contains("spec.policyTypes[0]: Unsupported value"), "{kinds}");
    }

    #[test]
    fn addresses_and_networks_of_services() {
        let address = |name: &str, parent: Value| {
            complaints(ip_address, json!({"metadata": {"name": name}, "spec": {"parentRef": parent}}))
        };
        let parent = || json!({"resource": "services", "namespace": "a", "name": "b"});
        assert_eq!(address("10.43.0.1", parent()) + &address("fd43::1", parent()), "");
        assert!(address("fd43:0::1", parent()).contains("metadata.name"), "not the shortest form");
        assert!(address("name", parent()).contains("must be an IP address"));
        assert!(address("10.43.0.1", json!({"name": "b"})).contains("spec.parentRef.resource: Required value"));
        let cidrs = |cidrs: Value| complaints(service_cidr, json!({"spec": {"cidrs": cidrs}}));
        assert_eq!(cidrs(json!(["10.43.0.0/16", "fd43::/112"])) + &cidrs(json!(["0.0.0.0/0"])), "");
        for (given, expected) in [
            (json!([]), "spec.cidrs: Required value"),
            (json!(["10.43.0.1/16"]), "must not have bits set beyond the prefix length"),
            (json!(["fd43::1/112"]), "must not have bits set beyond the prefix length"),
            (json!(["10.43.0.0"]), "spec.cidrs[0]: Invalid value"),
            (json!(["10.43.0.0/16", "10.44.0.0/16"]), "no more than one IP for each IP family"),
        ] {
            let found = cidrs(given.clone());
            assert!(found.contains(expected), "{given}: {found}");
        }
    }

    #[test]
    fn slices_with_impossible_addresses() {
        let slice = |kind: &str, address: &str| {
            let ports = json!([{"name": "a", "port": 80, "protocol": "TCP"}]);
            complaints(
                endpoint_slice,
                json!({"addressType": kind, "endpoints": [{"addresses": [address]}], "ports": ports}),
            )
        };
        assert_eq!(slice("IPv4", "10.42.0.1"), "");
        assert_eq!(slice("IPv6", "fd42::1"), "");
        assert_eq!(slice("FQDN", "a.example"), "");
        for (kind, address, expected) in [
            ("IPv4", "fd42::1", "must be an IPv4 address"),
            ("IPv6", "x", "must be a valid IP address"),
            ("IPX", "1", "addressType: Unsupported value"),
            ("", "10.42.0.1", "addressType: Required value"),
        ] {
            let found = slice(kind, address);
            assert!(found.contains(expected), "{kind} {address}: {found}");
        }
        let twice = complaints(
            endpoint_slice,
            json!({"addressType": "IPv4", "endpoints": [{"addresses": []}], "ports": [{}, {}]}),
        );
        assert!(
            twice.contains("must contain at least 1 address") && twice.contains("ports[1].name: Duplicate"),
            "{twice}"
        );
    }
}
