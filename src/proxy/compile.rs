//! From one Service and its EndpointSlices to routes; pure. The choice of endpoints is kube-proxy's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use edge_client::ResourceExt;
use edge_network::{Cidr, Endpoint, Family, Frontend, NoEndpoints, Protocol, Route, ServiceTable};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use crate::Node;

/// Label of a Service that another proxy handles.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The API server's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// What a service means for a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Its routes.
    pub routes: ServiceTable,
    /// Whom load balancers ask whether to send traffic to this node.
    pub health: Option<HealthCheck>,
}

/// The health check of a service with `externalTrafficPolicy: Local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of the node that answers.
    pub port: u16,
    /// How many of the service's pods on this node are ready.
    pub local_endpoints: usize,
}

/// What a service means on this node; nothing for a service that has no address or is somebody else's. `zone` is the node's.
pub fn compile<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &Node,
    zone: Option<&str>,
) -> Compiled {
    let mut compiled = Compiled::default();
    let Some(spec) = &service.spec else { return compiled };
    let addresses = cluster_ips(spec, node);
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    if addresses.is_empty() || external_name || service.labels().contains_key(SERVICE_PROXY_NAME) {
        return compiled;
    }
    let families: BTreeSet<Family> = addresses.iter().map(|address| Family::of(*address)).collect();
    let external_ips = parse_addresses(spec.external_ips.iter().flatten());
    let balancers = load_balancer_addresses(service, spec);
    let source_ranges = source_ranges(spec);
    let mut ready_here = BTreeSet::new();
    for port in spec.ports.iter().flatten() {
        let Some((protocol, number)) = protocol_of(port).zip(port_number(port.port)) else { continue };
        for family in &families {
            let endpoints = endpoints(slices.clone(), port, protocol, *family, (&node.name, zone));
            ready_here.extend(endpoints.ready_here.iter().map(|endpoint| endpoint.address));
            let affinity_seconds = affinity(spec);
            let internal = endpoints.internal(spec.internal_traffic_policy.as_deref(), affinity_seconds);
            let external = endpoints.external(spec.external_traffic_policy.as_deref(), affinity_seconds);
            let balanced = Route { source_ranges: source_ranges.clone(), ..external.clone() };
            let mut add = |addresses: &BTreeSet<IpAddr>, route: &Route| {
                for address in addresses.iter().filter(|address| Family::of(**address) == *family) {
                    let frontend = Frontend { address: *address, protocol, port: number };
                    compiled.routes.entry(frontend).or_insert_with(|| route.clone());
                }
            };
            add(&addresses, &internal);
            add(&external_ips, &external);
            add(&balancers, &balanced);
            if let Some(node_port) = port.node_port.and_then(port_number) {
                compiled.routes.entry(Frontend::node(*family, protocol, node_port)).or_insert(external);
            }
        }
    }
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let port = spec.health_check_node_port.and_then(port_number).filter(|_| local && balancer);
    compiled.health = port.map(|port| HealthCheck { port, local_endpoints: ready_here.len() });
    compiled
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn protocol_of(port: &ServicePort) -> Option<Protocol> {
    parse_protocol(port.protocol.as_deref())
}

/// The protocol of that name; TCP when there is none.
pub(crate) fn parse_protocol(name: Option<&str>) -> Option<Protocol> {
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

fn parse_addresses<'a>(texts: impl Iterator<Item = &'a String>) -> BTreeSet<IpAddr> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn cluster_ips(spec: &ServiceSpec, node: &Node) -> BTreeSet<IpAddr> {
    let mut addresses = parse_addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    addresses.retain(|address| !node.dns_addresses.contains(address));
    addresses
}

/// The addresses of load balancers that do not translate themselves.
pub(crate) fn load_balancer_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<IpAddr> {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return BTreeSet::new();
    }
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP");
    direct.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// The only networks that a load balancer's clients may come from. Ranges of one family close the other one too: a range
/// that nobody wrote lets nobody in.
fn source_ranges(spec: &ServiceSpec) -> Option<Vec<Cidr>> {
    let ranges = spec.load_balancer_source_ranges.as_ref().filter(|ranges| !ranges.is_empty())?;
    let mut ranges: Vec<Cidr> = ranges.iter().filter_map(|range| range.trim().parse().ok()).collect();
    ranges.sort_unstable();
    ranges.dedup();
    // The same as no restriction.
    let open = |family| ranges.iter().any(|range| Family::of(range.base()) == family && range.prefix() == 0);
    (!Family::ALL.into_iter().all(open)).then_some(ranges)
}

/// The endpoints of a port that traffic may go to.
struct Endpoints {
    /// On all nodes, or on those that are near enough.
    cluster: Vec<Endpoint>,
    /// On this node.
    local: Vec<Endpoint>,
    /// On this node and ready.
    ready_here: BTreeSet<Endpoint>,
    /// Whether there is an endpoint anywhere.
    any: bool,
}

impl Endpoints {
    /// What `Local` leads to, and what happens when that is nothing.
    fn local_only(&self, affinity_seconds: Option<u32>) -> Route {
        // Reject tells clients that there is no service; here there is one, on other nodes.
        let no_endpoints = if self.any { NoEndpoints::Drop } else { NoEndpoints::Reject };
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

/// An endpoint of a slice, as far as it concerns a port.
struct Candidate<'a> {
    endpoint: Endpoint,
    local: bool,
    usability: Usability,
    slice: &'a SliceEndpoint,
}

/// The usable endpoints of a service's port: the ready ones, or as long as there are none, those that still serve while
/// they terminate; on all nodes and on this node each for itself.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    protocol: Protocol,
    family: Family,
    (node, zone): (&str, Option<&str>),
) -> Endpoints {
    let address_type = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    // The same endpoint may be in two slices while the controller moves it.
    let mut candidates: BTreeMap<Endpoint, Candidate<'_>> = BTreeMap::new();
    for slice in slices.filter(|slice| slice.address_type == address_type) {
        let ports = slice.ports.iter().flatten();
        let mut same = ports.filter(|p| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && parse_protocol(p.protocol.as_deref()) == Some(protocol)
        });
        let Some(number) = same.find_map(|p| p.port.and_then(port_number)) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            // All addresses of an endpoint are the same pod; consumers use the first.
            let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
            let Some(address) = address.filter(|address| Family::of(*address) == family) else { continue };
            let local = endpoint.node_name.as_deref() == Some(node);
            let key = Endpoint { address, port: number };
            let new = Candidate { endpoint: key, local, usability: usability(endpoint), slice: endpoint };
            if candidates.get(&key).is_none_or(|known| new.usability < known.usability) {
                candidates.insert(key, new);
            }
        }
    }
    let all: Vec<Candidate<'_>> = candidates.into_values().collect();
    let near = nearness(&all, node, zone);
    let with = |usability: Usability, wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Endpoint> {
        let same = all.iter().filter(|candidate| candidate.usability == usability && wanted(candidate));
        same.map(|candidate| candidate.endpoint).collect()
    };
    let or_terminating = |ready: Vec<Endpoint>, wanted: &dyn Fn(&Candidate<'_>) -> bool| {
        if ready.is_empty() { with(Usability::ServingWhileTerminating, wanted) } else { ready }
    };
    let is_local = |candidate: &Candidate<'_>| candidate.local;
    let ready_here = with(Usability::Ready, &is_local);
    let cluster = or_terminating(with(Usability::Ready, &|c| near.includes(c.slice, node, zone)), &|_| true);
    Endpoints {
        any: !cluster.is_empty(),
        cluster,
        ready_here: ready_here.iter().copied().collect(),
        local: or_terminating(ready_here, &is_local),
    }
}

/// How near an endpoint must be by the hints in the slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nearness {
    Anywhere,
    SameZone,
    SameNode,
}

fn for_node(endpoint: &SliceEndpoint) -> impl Iterator<Item = &str> {
    let nodes = endpoint.hints.as_ref().and_then(|hints| hints.for_nodes.as_ref());
    nodes.into_iter().flatten().map(|node| node.name.as_str())
}

fn for_zone(endpoint: &SliceEndpoint) -> impl Iterator<Item = &str> {
    let zones = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    zones.into_iter().flatten().map(|zone| zone.name.as_str())
}

impl Nearness {
    fn includes(self, endpoint: &SliceEndpoint, node: &str, zone: Option<&str>) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameNode => for_node(endpoint).any(|name| name == node),
            Self::SameZone => for_zone(endpoint).any(|name| Some(name) == zone),
        }
    }
}

/// The hints count only when every ready endpoint has them and one is for this node or zone; else they are out of date or
/// traffic would have nowhere to go.
fn nearness(all: &[Candidate<'_>], node: &str, zone: Option<&str>) -> Nearness {
    let ready = || all.iter().filter(|candidate| candidate.usability == Usability::Ready).map(|c| c.slice);
    let usable = |nearness: Nearness| ready().any(|endpoint| nearness.includes(endpoint, node, zone));
    if ready().all(|endpoint| for_node(endpoint).next().is_some()) && usable(Nearness::SameNode) {
        Nearness::SameNode
    } else if ready().all(|endpoint| for_zone(endpoint).next().is_some()) && usable(Nearness::SameZone) {
        Nearness::SameZone
    } else {
        Nearness::Anywhere
    }
}

/// The better one is the lesser one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
        Node { name: "here".into(), dns_addresses: vec!["10.43.0.10".parse().unwrap()] }
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

    fn routes(spec: Value, slices: &[EndpointSlice]) -> BTreeMap<String, Route> {
        let all = compile(&service(spec), slices.iter(), &node(), None).routes;
        let name = |f: Frontend| {
            let address = match (f.is_node(), f.family()) {
                (true, Family::V4) => "node".to_owned(),
                (true, Family::V6) => "node6".to_owned(),
                _ => f.address.to_string(),
            };
            format!("{address}:{}/{}", f.port, f.protocol)
        };
        all.into_iter().map(|(frontend, route)| (name(frontend), route)).collect()
    }

    fn to(all: &[u8]) -> Vec<Endpoint> {
        all.iter().map(|last| Endpoint { address: IpAddr::from([10, 42, 0, *last]), port: 8080 }).collect()
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
        let all = compile(&with_status, slices.iter(), &node(), None).routes;
        let count = |protocol, port| {
            let same = all.iter().filter(|(f, _)| (f.protocol, f.port) == (protocol, port));
            same.filter(|(_, route)| route.endpoints.len() == 2).count()
        };
        assert_eq!(count(Protocol::Tcp, 80), 3, "cluster IP, external IP, load balancer");
        assert_eq!(count(Protocol::Tcp, 30080), 1);
        assert_eq!(count(Protocol::Udp, 53), 3);
        let nobody: Vec<_> = all.iter().filter(|(frontend, _)| frontend.port == 99).collect();
        assert_eq!(nobody.len(), 4);
        assert!(nobody.iter().all(|(_, r)| r.endpoints.is_empty() && r.no_endpoints == NoEndpoints::Reject));
        for (frontend, route) in &all {
            let cluster_ip = ["10.43.0.5", "fd00::5"].contains(&frontend.address.to_string().as_str());
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
        assert_eq!(compile(&other, slices.iter(), &node(), None), Compiled::default());
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
        assert_eq!(model.refresh().len(), 2, "cluster IP and node port");
        let frontend = Frontend { address: [10, 43, 0, 5].into(), protocol: Protocol::Tcp, port: 80 };
        assert!(model.table()[&frontend].endpoints.is_empty());
        let before = Arc::new(slice(json!([endpoint(2, "here", json!({}))])));
        model.slice_changed(&Change::Applied { old: None, new: before.clone() });
        assert_eq!(model.refresh().len(), 2, "cluster IP and node port");
        assert!(model.refresh().is_empty(), "nothing new");
        assert_eq!(model.table()[&frontend].endpoints, to(&[2]));
        let mut moved = before.as_ref().clone();
        moved.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "other".to_owned())].into());
        model.slice_changed(&Change::Applied { old: Some(before.clone()), new: Arc::new(moved.clone()) });
        assert_eq!(model.refresh().len(), 2, "cluster IP and node port");
        assert!(model.table()[&frontend].endpoints.is_empty());
        model.slice_changed(&Change::Deleted(Arc::new(moved)));
        assert!(model.refresh().is_empty(), "a slice of no known service changes nothing");
        model.service_changed(&Change::Deleted(Arc::new(service(json!({})))));
        assert_eq!(model.refresh().len(), 2, "cluster IP and node port");
        assert!(model.table().is_empty());
    }

    #[test]
    fn both_families_each_with_its_own_endpoints() {
        let mut v6 = slice(json!([{"addresses": ["fd42::2"], "nodeName": "here"}]));
        v6.address_type = "IPv6".into();
        let slices = [slice(json!([endpoint(2, "here", json!({})), {"addresses": ["fd42::9"]}])), v6];
        let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5", "fd43::5"], "ports": HTTP()});
        let all = routes(spec, &slices);
        assert_eq!(all.len(), 4);
        let six = vec![Endpoint { address: "fd42::2".parse().unwrap(), port: 8080 }];
        assert_eq!((&all["10.43.0.5:80/TCP"].endpoints, &all["node:30080/TCP"].endpoints), (&to(&[2]), &to(&[2])));
        assert_eq!((&all["fd43::5:80/TCP"].endpoints, &all["node6:30080/TCP"].endpoints), (&six, &six));
    }

    #[test]
    fn source_ranges_are_for_load_balancers_only() {
        let balanced = |ranges: Value| {
            let mut service = service(json!({"type": "LoadBalancer", "clusterIP": "10.43.0.5", "ports": HTTP(),
                "loadBalancerSourceRanges": ranges}));
            service.status =
                serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}})).unwrap();
            let routes = compile(&service, [].iter(), &node(), None).routes;
            assert_eq!(routes.len(), 3);
            for (frontend, route) in &routes {
                assert!(frontend.address == IpAddr::from([203, 0, 113, 1]) || route.source_ranges.is_none());
            }
            routes[&Frontend { address: [203, 0, 113, 1].into(), protocol: Protocol::Tcp, port: 80 }]
                .source_ranges
                .clone()
        };
        assert_eq!(balanced(json!([])), None);
        assert_eq!(balanced(json!([" 192.0.2.0/24 "])), Some(vec!["192.0.2.0/24".parse().unwrap()]));
        assert_eq!(balanced(json!(["bad"])), Some(Vec::new()), "nobody rather than everybody");
        assert_eq!(balanced(json!(["0.0.0.0/0", "::/0"])), None);
    }

    #[test]
    fn health_checks_count_ready_pods_of_this_node() {
        let terminating = json!({"ready": false, "serving": true, "terminating": true});
        let slices = [slice(json!([
            endpoint(2, "here", json!({})),
            endpoint(3, "here", terminating),
            endpoint(4, "there", json!({})),
        ]))];
        let health = |kind: &str, policy: &str| {
            let spec = json!({"type": kind, "clusterIP": "10.43.0.5", "externalTrafficPolicy": policy,
                "healthCheckNodePort": 31000, "ports": HTTP()});
            compile(&service(spec), slices.iter(), &node(), None).health
        };
        assert_eq!(health("LoadBalancer", "Local"), Some(HealthCheck { port: 31000, local_endpoints: 1 }));
        assert_eq!(health("LoadBalancer", "Cluster"), None);
        assert_eq!(health("NodePort", "Local"), None);
    }

    #[test]
    fn hints_keep_traffic_near_when_all_endpoints_have_them() {
        let hinted = |last: u8, zone: &str, node: &str| {
            let mut hints = json!({"forZones": [{"name": zone}]});
            if !node.is_empty() {
                hints["forNodes"] = json!([{"name": node}]);
            }
            json!({"addresses": [format!("10.42.0.{last}")], "nodeName": node, "hints": hints})
        };
        let chosen = |zone: Option<&str>, endpoints: Value| {
            let service = service(json!({"clusterIP": "10.43.0.5", "ports": HTTP()}));
            let routes = compile(&service, [slice(endpoints)].iter(), &node(), zone).routes;
            routes.into_values().next().unwrap().endpoints
        };
        let zones = || json!([hinted(2, "east", ""), hinted(3, "west", "")]);
        assert_eq!(chosen(Some("west"), zones()), to(&[3]));
        assert_eq!(chosen(None, zones()), to(&[2, 3]), "a node without a zone");
        assert_eq!(chosen(Some("north"), zones()), to(&[2, 3]), "no endpoint for the zone");
        let partly = json!([hinted(2, "east", ""), hinted(3, "west", ""), endpoint(4, "x", json!({}))]);
        assert_eq!(chosen(Some("west"), partly), to(&[2, 3, 4]), "the hints are being changed");
        let nodes = json!([hinted(2, "east", "here"), hinted(3, "west", "there")]);
        assert_eq!(chosen(Some("west"), nodes), to(&[2]), "the node comes before the zone");
    }

    #[test]
    fn two_services_with_one_address() {
        use edge_client::Change;
        use std::sync::Arc;
        let mut model = crate::Model::new(node());
        let named = |name: &str, cluster_ip: &str| {
            let mut service = service(json!({"clusterIP": cluster_ip, "externalIPs": ["192.0.2.7"], "ports": HTTP()}));
            service.metadata.name = Some(name.into());
            Arc::new(service)
        };
        let mut with = slice(json!([endpoint(2, "here", json!({}))]));
        with.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "b".to_owned())].into());
        model.slice_changed(&Change::Applied { old: None, new: Arc::new(with) });
        let shared = Frontend { address: [192, 0, 2, 7].into(), protocol: Protocol::Tcp, port: 80 };
        let node_port = Frontend::node(Family::V4, Protocol::Tcp, 30080);
        model.service_changed(&Change::Applied { old: None, new: named("b", "10.43.0.5") });
        model.refresh();
        assert_eq!(model.table()[&shared].endpoints, to(&[2]));
        model.service_changed(&Change::Applied { old: None, new: named("a", "10.43.0.6") });
        let changes = model.refresh();
        assert!(changes[&shared].as_ref().unwrap().endpoints.is_empty(), "the first one by name has it");
        assert!(changes.contains_key(&node_port));
        model.service_changed(&Change::Deleted(named("a", "10.43.0.6")));
        let changes = model.refresh();
        assert_eq!(changes[&shared].as_ref().unwrap().endpoints, to(&[2]), "and gives it back");
        assert_eq!(changes.values().filter(|route| route.is_none()).count(), 1);
    }
}
