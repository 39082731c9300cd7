//! From one Service and its EndpointSlices to routes; pure. The choice of endpoints is kube-proxy's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use edge_client::ResourceExt;
use edge_network::{Endpoint, Frontend, NoEndpoints, Protocol, Route};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use crate::Node;

/// Label of a Service that another proxy handles.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The API server's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// The routes of a service on this node; none for a service that has no address or is somebody else's. Only IPv4.
pub fn compile<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &Node,
) -> Vec<(Frontend, Route)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let addresses = cluster_ips(spec, node);
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    if addresses.is_empty() || external_name || service.labels().contains_key(SERVICE_PROXY_NAME) {
        return Vec::new();
    }
    let outside = external_addresses(service, spec);
    let mut routes = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some((protocol, number)) = protocol_of(port).zip(port_number(port.port)) else { continue };
        let endpoints = endpoints(slices.clone(), port, protocol, &node.name);
        let affinity_seconds = affinity(spec);
        let internal = endpoints.internal(spec.internal_traffic_policy.as_deref(), affinity_seconds);
        let external = endpoints.external(spec.external_traffic_policy.as_deref(), affinity_seconds);
        let frontend = |address| Frontend { address, protocol, port: number };
        routes.extend(addresses.iter().map(|address| (frontend(Some(*address)), internal.clone())));
        routes.extend(outside.iter().map(|address| (frontend(Some(*address)), external.clone())));
        if let Some(node_port) = port.node_port.and_then(port_number) {
            routes.push((Frontend { address: None, protocol, port: node_port }, external));
        }
    }
    routes
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn protocol_of(port: &ServicePort) -> Option<Protocol> {
    parse_protocol(port.protocol.as_deref())
}

fn parse_protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

fn parse_addresses<'a>(texts: impl Iterator<Item = &'a String>) -> BTreeSet<Ipv4Addr> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn cluster_ips(spec: &ServiceSpec, node: &Node) -> BTreeSet<Ipv4Addr> {
    let mut addresses = parse_addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    if let Some(IpAddr::V4(dns)) = node.dns_address {
        addresses.remove(&dns);
    }
    addresses
}

/// Addresses outside of the cluster that lead here: `externalIPs` and load balancers that do not translate themselves.
fn external_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let mut addresses = parse_addresses(spec.external_ips.iter().flatten());
    if spec.type_.as_deref() == Some("LoadBalancer") {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
        let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP");
        addresses.extend(direct.filter_map(|ingress| ingress.ip.as_ref()?.parse::<Ipv4Addr>().ok()));
    }
    addresses
}

/// The endpoints of a port that traffic may go to.
struct Endpoints {
    /// On all nodes.
    cluster: Vec<Endpoint>,
    /// On this node.
    local: Vec<Endpoint>,
}

impl Endpoints {
    /// What `Local` leads to, and what happens when that is nothing.
    fn local_only(&self, affinity_seconds: Option<u32>) -> Route {
        // Reject tells clients that there is no service; here there is one, on other nodes.
        let no_endpoints = if self.cluster.is_empty() { NoEndpoints::Reject } else { NoEndpoints::Drop };
        Route { affinity_seconds, no_endpoints, ..Route::to(self.local.clone()) }
    }

    /// The route of cluster IPs.
    fn internal(&self, policy: Option<&str>, affinity_seconds: Option<u32>) -> Route {
        match policy {
            Some("Local") => self.local_only(affinity_seconds),
            _ => Route { affinity_seconds, ..Route::to(self.cluster.clone()) },
        }
    }

    /// The route of node ports and external addresses.
    fn external(&self, policy: Option<&str>, affinity_seconds: Option<u32>) -> Route {
        match policy {
            Some("Local") => {
                // Clients inside of the cluster reach all endpoints: the policy is about keeping outsiders' addresses.
                let internal = (self.cluster != self.local).then(|| self.cluster.clone());
                Route { internal_endpoints: internal, ..self.local_only(affinity_seconds) }
            }
            _ => Route { affinity_seconds, masquerade: true, ..Route::to(self.cluster.clone()) },
        }
    }
}

/// The usable endpoints of a service's port: the ready ones, or as long as there are none, those that still serve while
/// they terminate; on all nodes and on this node each for itself.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    protocol: Protocol,
    node: &str,
) -> Endpoints {
    let mut ready: BTreeSet<(Endpoint, bool)> = BTreeSet::new();
    let mut terminating = ready.clone();
    for slice in slices.filter(|slice| slice.address_type == "IPv4") {
        let ports = slice.ports.iter().flatten();
        let mut same = ports.filter(|p| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && parse_protocol(p.protocol.as_deref()) == Some(protocol)
        });
        let Some(number) = same.find_map(|p| p.port.and_then(port_number)) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            // All addresses of an endpoint are the same pod; consumers use the first.
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { continue };
            let local = endpoint.node_name.as_deref() == Some(node);
            let found = (Endpoint { address, port: number }, local);
            match usability(endpoint) {
                Usability::Ready => ready.insert(found),
                Usability::ServingWhileTerminating => terminating.insert(found),
                Usability::No => false,
            };
        }
    }
    let choose = |wanted: fn(&(Endpoint, bool)) -> bool| -> Vec<Endpoint> {
        let of = |all: &BTreeSet<(Endpoint, bool)>| -> BTreeSet<Endpoint> {
            all.iter().filter(|found| wanted(found)).map(|(endpoint, _)| *endpoint).collect()
        };
        let chosen = of(&ready);
        if chosen.is_empty() { of(&terminating) } else { chosen }.into_iter().collect()
    };
    Endpoints { cluster: choose(|_| true), local: choose(|(_, local)| *local) }
}

enum Usability {
    Ready,
    ServingWhileTerminating,
    No,
}

fn usability(endpoint: &SliceEndpoint) -> Usability {
    let Some(conditions) = &endpoint.conditions else { return Usability::Ready };
    // Unknown means ready; serving means the same as ready except that it ignores termination.
    let ready = conditions.ready.unwrap_or(true);
    if ready {
        Usability::Ready
    } else if conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false) {
        Usability::ServingWhileTerminating
    } else {
        Usability::No
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        Node { name: "here".into(), dns_address: Some("10.43.0.10".parse().unwrap()) }
    }

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec})).unwrap()
    }

    fn endpoint(last: u8, node: &str, conditions: Value) -> Value {
        json!({"addresses": [format!("10.42.0.{last}")], "nodeName": node, "conditions": conditions})
    }

    fn slice(endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn routes(spec: Value, slices: &[EndpointSlice]) -> std::collections::BTreeMap<String, Route> {
        let all = compile(&service(spec), slices.iter(), &node());
        let name = |f: Frontend| {
            let address = f.address.map_or("node".to_owned(), |address| address.to_string());
            format!("{address}:{}/{}", f.port, f.protocol)
        };
        all.into_iter().map(|(frontend, route)| (name(frontend), route)).collect()
    }

    fn to(all: &[u8]) -> Vec<Endpoint> {
        all.iter().map(|last| Endpoint { address: Ipv4Addr::new(10, 42, 0, *last), port: 8080 }).collect()
    }

    const HTTP: fn() -> Value = || json!([{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]);

    #[test]
    fn every_kind_of_frontend() {
        let slices = [slice(json!([endpoint(2, "here", json!({})), endpoint(3, "there", json!({"ready": true}))]))];
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5", "fd00::5"],
            "externalIPs": ["198.51.100.1", "bad"],
            "ports": [HTTP()[0].clone(), {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "none", "port": 99}],
        });
        let mut with_status = service(spec);
        with_status.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "x"}]}}))
        .unwrap();
        let all = compile(&with_status, slices.iter(), &node());
        let count = |protocol, port| {
            let same = all.iter().filter(|(f, _)| (f.protocol, f.port) == (protocol, port));
            same.filter(|(_, route)| route.endpoints.len() == 2).count()
        };
        assert_eq!(count(Protocol::Tcp, 80), 3, "cluster IP, external IP, load balancer");
        assert_eq!(count(Protocol::Tcp, 30080), 1);
        assert_eq!(count(Protocol::Udp, 53), 3);
        let nobody: Vec<_> = all.iter().filter(|(frontend, _)| frontend.port == 99).collect();
        assert_eq!(nobody.len(), 3);
        assert!(nobody.iter().all(|(_, r)| r.endpoints.is_empty() && r.no_endpoints == NoEndpoints::Reject));
        for (frontend, route) in &all {
            let cluster_ip = frontend.address == Some(Ipv4Addr::new(10, 43, 0, 5));
            assert_eq!(route.masquerade, !cluster_ip, "{frontend:?}");
        }
    }

    #[test]
    fn no_routes_for_services_without_an_address_of_their_own() {
        let slices = [slice(json!([endpoint(2, "here", json!({}))]))];
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": HTTP()}),
            json!({"clusterIP": "", "ports": HTTP()}),
            json!({"type": "ExternalName", "externalName": "x", "clusterIP": "10.43.0.5", "ports": HTTP()}),
            json!({"clusterIP": "10.43.0.10", "ports": HTTP()}),
        ] {
            assert!(routes(spec.clone(), &slices).is_empty(), "{spec}");
        }
        let mut other = service(json!({"clusterIP": "10.43.0.5", "ports": HTTP()}));
        other.metadata.labels = Some([(SERVICE_PROXY_NAME.to_owned(), "x".to_owned())].into());
        assert!(compile(&other, slices.iter(), &node()).is_empty());
    }

    #[test]
    fn ready_then_serving_while_terminating_then_none() {
        let spec = || json!({"clusterIP": "10.43.0.5", "ports": HTTP()});
        let serving = json!({"ready": false, "serving": true, "terminating": true});
        let not_ready = json!({"ready": false, "serving": false});
        let last = json!({"ready": false, "serving": false, "terminating": true});
        let chosen = |endpoints: Value| routes(spec(), &[slice(endpoints)])["10.43.0.5:80/TCP"].endpoints.clone();
        let all = json!([
            endpoint(2, "here", json!({"ready": true})),
            endpoint(3, "here", serving.clone()),
            endpoint(4, "here", not_ready.clone()),
        ]);
        assert_eq!(chosen(all), to(&[2]));
        let ending = json!([endpoint(3, "here", serving), endpoint(4, "here", not_ready), endpoint(5, "here", last)]);
        assert_eq!(chosen(ending), to(&[3]));
        assert_eq!(chosen(json!([])), to(&[]));
        // The same endpoint in two slices, as while the controller moves it, counts once.
        let twice = [2, 2].map(|last| slice(json!([endpoint(last, "here", json!({}))])));
        assert_eq!(routes(spec(), &twice)["10.43.0.5:80/TCP"].endpoints, to(&[2]));
    }

    #[test]
    fn traffic_policies() {
        let both = [slice(json!([endpoint(2, "here", json!({})), endpoint(3, "there", json!({}))]))];
        let far = [slice(json!([endpoint(3, "there", json!({}))]))];
        let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.5", "ports": HTTP(),
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
        let near = routes(spec.clone(), &both);
        assert_eq!(near["10.43.0.5:80/TCP"].endpoints, to(&[2]));
        assert_eq!(near["node:30080/TCP"].endpoints, to(&[2]));
        assert_eq!(near["node:30080/TCP"].internal_endpoints, Some(to(&[2, 3])));
        assert!(!near["node:30080/TCP"].masquerade, "the policy is there to keep the client's address");
        let away = routes(spec.clone(), &far);
        assert_eq!(away["10.43.0.5:80/TCP"].no_endpoints, NoEndpoints::Drop);
        assert_eq!(away["node:30080/TCP"].no_endpoints, NoEndpoints::Drop);
        assert_eq!(away["node:30080/TCP"].internal_endpoints, Some(to(&[3])));
        assert_eq!(routes(spec, &[])["node:30080/TCP"].no_endpoints, NoEndpoints::Reject);
    }

    #[test]
    fn session_affinity() {
        let seconds = |spec: Value| {
            let mut spec = spec;
            spec["clusterIP"] = json!("10.43.0.5");
            spec["ports"] = HTTP();
            routes(spec, &[])["10.43.0.5:80/TCP"].affinity_seconds
        };
        assert_eq!(seconds(json!({"sessionAffinity": "None"})), None);
        assert_eq!(seconds(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        let config =
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}});
        assert_eq!(seconds(config), Some(5));
    }

    #[test]
    fn a_changed_label_moves_a_slice() {
        use edge_client::Change;
        use std::sync::Arc;
        let mut model = crate::Model::new(node());
        let spec = json!({"clusterIP": "10.43.0.5", "ports": HTTP()});
        model.service_changed(&Change::Applied { old: None, new: Arc::new(service(spec)) });
        assert!(model.refresh());
        let frontend = Frontend { address: Some(Ipv4Addr::new(10, 43, 0, 5)), protocol: Protocol::Tcp, port: 80 };
        assert!(model.table()[&frontend].endpoints.is_empty());
        let before = Arc::new(slice(json!([endpoint(2, "here", json!({}))])));
        model.slice_changed(&Change::Applied { old: None, new: before.clone() });
        assert!(model.refresh());
        assert!(!model.refresh(), "nothing new");
        assert_eq!(model.table()[&frontend].endpoints, to(&[2]));
        let mut moved = before.as_ref().clone();
        moved.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "other".to_owned())].into());
        model.slice_changed(&Change::Applied { old: Some(before.clone()), new: Arc::new(moved.clone()) });
        assert!(model.refresh());
        assert!(model.table()[&frontend].endpoints.is_empty());
        model.slice_changed(&Change::Deleted(Arc::new(moved)));
        assert!(!model.refresh(), "a slice of no known service changes nothing");
        model.service_changed(&Change::Deleted(Arc::new(service(json!({})))));
        assert!(model.refresh());
        assert!(model.table().is_empty());
    }
}
