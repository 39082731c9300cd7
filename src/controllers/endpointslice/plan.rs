//! From a Service and its pods to slices; pure.

use crate::pods;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as ClassicPort, EndpointSubset, Endpoints, Node, ObjectReference, Pod, Service,
    ServicePort,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// No slice has more endpoints.
const MAX_ENDPOINTS: usize = 100;

/// What has to be done to one slice.
#[derive(Debug)]
pub(crate) enum Step {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(Arc<EndpointSlice>),
}

/// Whether a change of a pod cannot matter to any service.
pub(super) fn same_to_services(old: &Pod, new: &Pod) -> bool {
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone());
    let ips = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ips.clone());
    old.metadata.labels == new.metadata.labels
        && node(old) == node(new)
        && ips(old) == ips(new)
        && pods::is_ready(old) == pods::is_ready(new)
        && pods::is_finished(old) == pods::is_finished(new)
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
}

pub(super) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.into(), service.name_any());
    labels.insert(super::MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The address families of a service, as EndpointSlices name them.
fn families(service: &Service) -> Vec<&'static str> {
    let listed = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    let mut out: Vec<&'static str> = listed.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if out.is_empty() {
        let address = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
        out.push(if address.contains(':') { "IPv6" } else { "IPv4" });
    }
    out
}

/// The zone that a node is in.
pub(super) fn zone(node: &Node) -> Option<&str> {
    node.labels().get(ZONE).map(String::as_str).filter(|zone| !zone.is_empty())
}

/// The ports of a slice: name, protocol, number, application protocol.
type Ports = Vec<(String, String, i32, Option<String>)>;

/// The slices that a service should have, without metadata. `zone` gives the zone of a node.
pub(super) fn slices(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<EndpointSlice> {
    let mut out = Vec::new();
    for family in families(service) {
        // pods may give a named port different numbers, and then they need slices of their own
        let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
        for pod in pods {
            let Some(address) = address(pod, family) else { continue };
            let ports = ports(service, pod);
            groups.entry(ports).or_default().push(endpoint(service, pod, address, &zone));
        }
        if groups.is_empty() {
            out.push(slice(family, &[], Vec::new()));
        }
        for (ports, endpoints) in groups {
            out.extend(endpoints.chunks(MAX_ENDPOINTS).map(|c| slice(family, &ports, c.to_vec())));
        }
    }
    out
}

fn slice(family: &str, ports: &[(String, String, i32, Option<String>)], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = ports
        .iter()
        .map(|(name, protocol, port, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: Some(*port),
            app_protocol: app_protocol.clone(),
        })
        .collect();
    EndpointSlice {
        address_type: family.into(),
        endpoints: Some(endpoints),
        ports: Some(ports),
        metadata: ObjectMeta::default(),
    }
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    if pods::is_finished(pod) || pod.spec.as_ref()?.node_name.is_none() {
        return None;
    }
    let ips = pod.status.as_ref()?.pod_ips.as_ref()?;
    ips.iter().map(|i| i.ip.clone()).find(|ip| ip.contains(':') == (family == "IPv6"))
}

fn ports(service: &Service, pod: &Pod) -> Ports {
    let listed = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    let mut out: Vec<_> = listed
        .into_iter()
        .flatten()
        .filter_map(|p| {
            let name = p.name.clone().unwrap_or_default();
            Some((name, protocol(p).to_owned(), target(p, pod)?, p.app_protocol.clone()))
        })
        .collect();
    out.sort();
    out
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// The number of a service's port on a pod; a name is looked up among the pod's ports.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol(port))
                .map(|p| p.container_port)
        }
    }
}

/// Whom an endpoint is for, when its service wants traffic to stay near.
fn hints(service: &Service, zone: Option<&String>, node: Option<&String>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref())?;
    if !["PreferClose", "PreferSameZone", "PreferSameNode"].contains(&distribution) {
        return None;
    }
    let node = node.filter(|_| distribution == "PreferSameNode");
    if zone.is_none() && node.is_none() {
        return None;
    }
    Some(EndpointHints {
        for_zones: zone.map(|name| vec![ForZone { name: name.clone() }]),
        for_nodes: node.map(|name| vec![ForNode { name: name.clone() }]),
    })
}

fn endpoint(service: &Service, pod: &Pod, address: String, zone: impl Fn(&str) -> Option<String>) -> Endpoint {
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let zone = node_name.as_deref().and_then(zone);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = pods::is_ready(pod);
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        hints: hints(service, zone.as_ref(), node_name.as_ref()),
        node_name,
        zone,
        target_ref: Some(reference(pod)),
        ..Endpoint::default()
    }
}

/// A pod's own name in DNS, when its subdomain is this service.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain.as_deref() == Some(service.name_any().as_str());
    spec.hostname.clone().filter(|h| here && !h.is_empty())
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: Some(pod.name_any()),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

/// How to get from the slices that are to those that should be, with as few writes as possible.
pub(crate) fn diff(known: Vec<Arc<EndpointSlice>>, wanted: Vec<EndpointSlice>) -> Vec<Step> {
    let mut known: Vec<Arc<EndpointSlice>> =
        known.into_iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    let mut steps = Vec::new();
    let mut rest = Vec::new();
    for slice in wanted {
        let same = |k: &Arc<EndpointSlice>| {
            k.address_type == slice.address_type
                && k.endpoints.as_deref().unwrap_or_default() == slice.endpoints.as_deref().unwrap_or_default()
                && k.ports.as_deref().unwrap_or_default() == slice.ports.as_deref().unwrap_or_default()
        };
        match known.iter().position(same) {
            Some(i) => drop(known.remove(i)),
            None => rest.push(slice),
        }
    }
    for mut slice in rest {
        match known.iter().position(|k| k.address_type == slice.address_type) {
            Some(i) => {
                slice.metadata = known.remove(i).metadata.clone();
                steps.push(Step::Update(slice));
            }
            None => steps.push(Step::Create(slice)),
        }
    }
    steps.extend(known.into_iter().map(Step::Delete));
    steps
}

/// The classic Endpoints of a service.
pub(super) fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut subsets: BTreeMap<Ports, EndpointSubset> = BTreeMap::new();
    let family = families(service).first().copied().unwrap_or("IPv4");
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    for pod in pods {
        let Some(ip) = address(pod, family) else { continue };
        if pod.metadata.deletion_timestamp.is_some() && !publish {
            continue;
        }
        let address = EndpointAddress {
            ip,
            hostname: hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(reference(pod)),
        };
        let subset = subsets.entry(ports(service, pod)).or_default();
        let list = if publish || pods::is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let subsets: Vec<EndpointSubset> = subsets
        .into_iter()
        .map(|(ports, subset)| EndpointSubset {
            ports: (!ports.is_empty()).then(|| {
                ports
                    .into_iter()
                    .map(|(name, protocol, port, app_protocol)| ClassicPort {
                        name: Some(name).filter(|n| !n.is_empty()),
                        port,
                        protocol: Some(protocol),
                        app_protocol,
                    })
                    .collect()
            }),
            ..subset
        })
        .collect();
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: service.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d"},
            "spec": {"selector": {"a": "b"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, going: bool, port: i32) -> Arc<Pod> {
        let mut p: Pod = serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"nodeName": "n", "hostname": "h", "subdomain": "web",
                "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
        .unwrap();
        if going {
            p.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        }
        Arc::new(p)
    }

    #[test]
    fn conditions_of_endpoints() {
        let out = slices(
            &service(),
            &[
                pod("a", "10.0.0.1", true, false, 8080),
                pod("b", "10.0.0.2", true, true, 8080),
                pod("c", "10.0.0.3", false, false, 8080),
            ],
            |_| None,
        );
        assert_eq!(out.len(), 1);
        let of = |i: usize| out[0].endpoints.as_ref().unwrap()[i].conditions.clone().unwrap();
        assert_eq!((of(0).ready, of(0).serving, of(0).terminating), (Some(true), Some(true), Some(false)));
        assert_eq!((of(1).ready, of(1).serving, of(1).terminating), (Some(false), Some(true), Some(true)));
        assert_eq!((of(2).ready, of(2).serving), (Some(false), Some(false)));
        assert_eq!(out[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(out[0].endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("h"));
        let classic =
            endpoints(&service(), &[pod("a", "10.0.0.1", true, false, 8080), pod("c", "10.0.0.3", false, false, 8080)]);
        let subsets = classic.subsets.unwrap();
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 1);
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap().len(), 1);
    }

    #[test]
    fn named_ports_with_different_numbers_need_their_own_slices() {
        let out =
            slices(&service(), &[pod("a", "10.0.0.1", true, false, 1), pod("b", "10.0.0.2", true, false, 2)], |_| None);
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn large_services_are_cut() {
        let pods: Vec<_> =
            (0..250).map(|i| pod(&format!("p{i}"), &format!("10.0.{}.{}", i / 250, i % 250), true, false, 1)).collect();
        let out = slices(&service(), &pods, |_| None);
        assert_eq!(out.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect::<Vec<_>>(), [100, 100, 50]);
    }

    #[test]
    fn the_least_is_written() {
        let one = slices(&service(), &[pod("a", "10.0.0.1", true, false, 1)], |_| None);
        let known = Arc::new(EndpointSlice {
            metadata: ObjectMeta { name: Some("web-x".into()), ..ObjectMeta::default() },
            ..one[0].clone()
        });
        assert!(diff(vec![known.clone()], one.clone()).is_empty());
        let two = slices(&service(), &[pod("a", "10.0.0.1", false, false, 1)], |_| None);
        assert!(
            matches!(&diff(vec![known.clone()], two)[..], [Step::Update(s)] if s.metadata.name.as_deref() == Some("web-x"))
        );
        assert!(matches!(diff(vec![], one)[..], [Step::Create(_)]));
        assert!(matches!(diff(vec![known], vec![])[..], [Step::Delete(_)]));
    }

    #[test]
    fn both_families_each_in_slices_of_its_own() {
        let mut both = service();
        let spec = both.spec.as_mut().unwrap();
        spec.ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
        let mut pod = pod("a", "10.0.0.1", true, false, 1);
        let ips = serde_json::from_value(json!([{"ip": "10.0.0.1"}, {"ip": "fd42::1"}])).unwrap();
        Arc::make_mut(&mut pod).status.as_mut().unwrap().pod_ips = ips;
        let found: Vec<(String, Vec<String>)> = slices(&both, &[pod], |_| None)
            .into_iter()
            .map(|s| (s.address_type, s.endpoints.unwrap()[0].addresses.clone()))
            .collect();
        let expected = [("IPv6", "fd42::1"), ("IPv4", "10.0.0.1")];
        assert_eq!(found, expected.map(|(kind, ip)| (kind.to_owned(), vec![ip.to_owned()])));
    }

    #[test]
    fn hints_follow_the_wish_of_the_service() {
        let hinted = |distribution: Option<&str>, zone: Option<&str>| {
            let mut service = service();
            let spec = service.spec.as_mut().unwrap();
            spec.traffic_distribution = distribution.map(str::to_owned);
            let out = slices(&service, &[pod("a", "10.0.0.1", true, false, 1)], |_| zone.map(str::to_owned));
            let endpoint = out[0].endpoints.as_ref().unwrap()[0].clone();
            assert_eq!(endpoint.zone.as_deref(), zone);
            let hints = endpoint.hints?;
            let zones = hints.for_zones.into_iter().flatten().map(|z| z.name);
            Some(zones.chain(hints.for_nodes.into_iter().flatten().map(|n| n.name)).collect::<Vec<_>>().join(","))
        };
        assert_eq!(hinted(None, Some("east")), None);
        for near in ["PreferClose", "PreferSameZone"] {
            assert_eq!(hinted(Some(near), Some("east")).as_deref(), Some("east"));
            assert_eq!(hinted(Some(near), None), None);
        }
        assert_eq!(hinted(Some("PreferSameNode"), Some("east")).as_deref(), Some("east,n"));
        assert_eq!(hinted(Some("PreferSameNode"), None).as_deref(), Some("n"));
    }
}
