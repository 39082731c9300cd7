//! Load balancers without a cloud: a Service of type LoadBalancer gets the addresses of the cluster's own nodes, where the room
//! `proxy` of every node answers for them.
//!
//! Eligible are ready nodes without the label `node.kubernetes.io/exclude-from-external-load-balancers`; as soon as one node has the
//! label `svccontroller.edge/enablelb` (or k3s' `svccontroller.k3s.cattle.io/enablelb`), only those that have it. A Service with the label
//! `svccontroller.edge/lbpool` gets the nodes with the same label and value. Services with `externalTrafficPolicy: Local` get
//! the nodes that have ready endpoints; `loadBalancerIP` chooses one of the addresses.
//!
//! One address serves a port for one Service: who has it keeps it, of others the older one gets it. Services without a
//! `loadBalancerClass`, or with `edge/servicelb`, are served.

use crate::context::{Context, unless_gone};
use edge_client::{Api, Error, EventType, Key, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// The queue's only key: ports are shared by all, so there is one decision about all.
const ALL: &str = "all";
const CLASS: &str = "edge/servicelb";
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const ENABLE: [&str; 2] = ["svccontroller.edge/enablelb", "svccontroller.k3s.cattle.io/enablelb"];
const POOL: [&str; 2] = ["svccontroller.edge/lbpool", "svccontroller.k3s.cattle.io/lbpool"];
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

pub(crate) async fn run(context: Context) {
    let services = context.informers.of::<Service>();
    let nodes = context.informers.of::<Node>();
    let slices = context.informers.of::<EndpointSlice>();
    let queue = WorkQueue::<&'static str>::new();
    let (mut service_changes, mut node_changes) = (services.subscribe(), nodes.subscribe());
    let mut slice_changes = slices.subscribe();
    tokio::join!(services.synced(), nodes.synced(), slices.synced());
    queue.add(ALL);
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = service_changes.recv() => {
                    let old = match &change {
                        edge_client::Change::Applied { old, .. } => old.as_deref(),
                        edge_client::Change::Deleted(_) => None,
                    };
                    if [old, Some(change.object().as_ref())].into_iter().flatten().any(concerns) {
                        queue.add(ALL);
                    }
                }
                Some(change) = node_changes.recv() => {
                    if !matches!(&change, edge_client::Change::Applied { old: Some(old), new } if facts(old) == facts(new)) {
                        queue.add(ALL);
                    }
                }
                Some(change) = slice_changes.recv() => {
                    let slice = change.object();
                    let name = slice.labels().get(SERVICE_LABEL).cloned().unwrap_or_default();
                    let service = services.get(&slice.namespace().unwrap_or_default(), &name);
                    if service.is_some_and(|service| is_local(&service) && is_served(&service)) {
                        queue.add(ALL);
                    }
                }
                else => return,
            }
        }
    };
    let work = run_workers("servicelb", queue.clone(), 1, |_| {
        let wanted = plan(&services.list(), &nodes.list(), &slices.list());
        let (context, services) = (context.clone(), services.clone());
        async move {
            for (key, assigned) in wanted {
                if let Some(service) = services.get_key(&key) {
                    write(&context, &service, &assigned).await?;
                }
            }
            Ok::<_, Error>(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

fn spec(service: &Service) -> Option<&ServiceSpec> {
    service.spec.as_ref()
}

fn is_balancer(service: &Service) -> bool {
    spec(service).and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

fn is_served(service: &Service) -> bool {
    let class = spec(service).and_then(|spec| spec.load_balancer_class.as_deref());
    is_balancer(service) && class.is_none_or(|class| class == CLASS) && service.metadata.deletion_timestamp.is_none()
}

fn is_local(service: &Service) -> bool {
    spec(service).and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

/// The addresses that a service has.
fn ingress(service: &Service) -> BTreeSet<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let all = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    all.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// Whether a service has, wants or once had addresses.
fn concerns(service: &Service) -> bool {
    is_balancer(service) || !ingress(service).is_empty()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What of a node matters here.
fn facts(node: &Node) -> (bool, BTreeSet<IpAddr>, BTreeMap<&String, &String>) {
    let labels = node
        .labels()
        .iter()
        .filter(|(key, _)| *key == EXCLUDE || ENABLE.contains(&key.as_str()) || POOL.contains(&key.as_str()));
    (is_ready(node) && node.metadata.deletion_timestamp.is_none(), addresses(node), labels.collect())
}

/// The node's addresses for the world: external ones when it has any.
fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    let all = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let of = |kind: &str| -> BTreeSet<IpAddr> {
        let same = all.into_iter().flatten().filter(|address| address.type_ == kind);
        same.filter_map(|address| address.address.parse().ok()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

fn label<'a>(labels: &'a BTreeMap<String, String>, keys: &[&str]) -> Option<&'a String> {
    keys.iter().find_map(|key| labels.get(*key))
}

fn eligible(nodes: &[Arc<Node>]) -> Vec<&Node> {
    let usable = |node: &&Node| facts(node).0 && !node.labels().contains_key(EXCLUDE);
    let enabled = |node: &Node| label(node.labels(), &ENABLE).is_some_and(|value| value == "true");
    let chosen = nodes.iter().any(|node| enabled(node));
    nodes.iter().map(AsRef::as_ref).filter(usable).filter(|node| !chosen || enabled(node)).collect()
}

/// An address, a protocol and a port.
type Place = (IpAddr, String, i32);

fn places<'a>(service: &'a Service, address: IpAddr) -> impl Iterator<Item = Place> + 'a {
    let ports = spec(service).and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    ports.map(move |port| (address, port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.port))
}

/// What no service may take: the API server's and the kubelets' own ports.
fn reserved(nodes: &[Arc<Node>], slices: &[Arc<EndpointSlice>]) -> BTreeSet<Place> {
    let mut all = BTreeSet::new();
    for slice in slices {
        let key = Key::of(slice.as_ref());
        if (key.namespace.as_str(), slice.labels().get(SERVICE_LABEL).map(String::as_str))
            != ("default", Some("kubernetes"))
        {
            continue;
        }
        let ports = slice.ports.iter().flatten().filter_map(|port| port.port);
        for port in ports {
            let endpoints = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
            all.extend(endpoints.filter_map(|address| Some((address.parse().ok()?, "TCP".to_owned(), port))));
        }
    }
    for node in nodes {
        let endpoints = node.status.as_ref().and_then(|status| status.daemon_endpoints.as_ref());
        let port = endpoints.and_then(|endpoints| endpoints.kubelet_endpoint.as_ref()).map(|endpoint| endpoint.port);
        for port in port.into_iter().filter(|port| *port != 0) {
            all.extend(addresses(node).into_iter().map(|address| (address, "TCP".to_owned(), port)));
        }
    }
    all
}

/// What a service gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Assigned {
    addresses: BTreeSet<IpAddr>,
    /// Whether others have what it would have got.
    taken: bool,
}

/// The addresses of every service that is concerned.
fn plan(services: &[Arc<Service>], nodes: &[Arc<Node>], slices: &[Arc<EndpointSlice>]) -> BTreeMap<Key, Assigned> {
    let eligible = eligible(nodes);
    let mut taken = reserved(nodes, slices);
    let mut served: Vec<&Service> = services.iter().map(AsRef::as_ref).filter(|service| is_served(service)).collect();
    served.sort_by_key(|service| {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, service.namespace(), service.metadata.name.clone())
    });
    let candidates: Vec<BTreeSet<IpAddr>> =
        served.iter().map(|service| candidates(service, &eligible, nodes, slices)).collect();
    let mut assigned = vec![Assigned::default(); served.len()];
    // Those who have an address come first, so that nobody loses one to a newcomer.
    for keep in [true, false] {
        for ((service, candidates), assigned) in served.iter().zip(&candidates).zip(&mut assigned) {
            let has = ingress(service);
            for address in candidates.iter().filter(|address| has.contains(address) == keep) {
                let wanted: Vec<Place> = places(service, *address).collect();
                if wanted.iter().any(|place| taken.contains(place)) {
                    assigned.taken = true;
                } else {
                    taken.extend(wanted);
                    assigned.addresses.insert(*address);
                }
            }
        }
    }
    let mut wanted: BTreeMap<Key, Assigned> = served.iter().map(|service| Key::of(*service)).zip(assigned).collect();
    for service in services.iter().filter(|service| !is_balancer(service) && !ingress(service).is_empty()) {
        wanted.insert(Key::of(service.as_ref()), Assigned::default());
    }
    wanted
}

/// The addresses a service might get if it were alone.
fn candidates(
    service: &Service,
    eligible: &[&Node],
    nodes: &[Arc<Node>],
    slices: &[Arc<EndpointSlice>],
) -> BTreeSet<IpAddr> {
    let Some(spec) = spec(service) else { return BTreeSet::new() };
    let cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let families: BTreeSet<bool> = cluster_ips.filter_map(|ip| Some(ip.parse::<IpAddr>().ok()?.is_ipv4())).collect();
    let pool = label(service.labels(), &POOL);
    let with_endpoints = is_local(service).then(|| nodes_with_endpoints(service, slices));
    let chosen: Option<IpAddr> = spec.load_balancer_ip.as_ref().and_then(|ip| ip.parse().ok());
    let usable = eligible.iter().filter(|node| {
        (pool.is_none() || label(node.labels(), &POOL) == pool)
            && with_endpoints.as_ref().is_none_or(|names| names.contains(&node.name_any()))
    });
    let all: BTreeSet<IpAddr> = usable.flat_map(|node| addresses(node)).collect();
    // An address that two nodes claim would be answered by chance.
    let mut owners: HashMap<IpAddr, usize> = HashMap::new();
    nodes.iter().flat_map(|node| addresses(node)).for_each(|address| *owners.entry(address).or_default() += 1);
    all.into_iter()
        .filter(|address| families.contains(&address.is_ipv4()) && owners.get(address) == Some(&1))
        .filter(|address| chosen.is_none_or(|chosen| chosen == *address))
        .collect()
}

fn nodes_with_endpoints(service: &Service, slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let (namespace, name) = (service.namespace(), service.name_any());
    let own = slices
        .iter()
        .filter(|slice| slice.namespace() == namespace && slice.labels().get(SERVICE_LABEL) == Some(&name));
    let endpoints = own.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}

async fn write(context: &Context, service: &Service, assigned: &Assigned) -> Result<(), Error> {
    if assigned.addresses.is_empty() && assigned.taken {
        let message = "no node has all ports of this service free for it";
        context.recorder.event(service, EventType::Warning, "SyncLoadBalancerFailed", message);
    }
    if ingress(service) == assigned.addresses {
        return Ok(());
    }
    let all: Vec<_> = assigned.addresses.iter().map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect();
    let balancer = if all.is_empty() { json!({"ingress": null}) } else { json!({"ingress": all}) };
    let api: Api<Service> = Api::namespaced(context.client.clone(), &service.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": {"uid": service.metadata.uid}, "status": {"loadBalancer": balancer}}));
    unless_gone(api.patch_status(&service.name_any(), &PatchParams::default(), &patch).await)?;
    let list: Vec<String> = assigned.addresses.iter().map(ToString::to_string).collect();
    context.recorder.event(
        service,
        EventType::Normal,
        "UpdatedLoadBalancer",
        format!("addresses: {}", list.join(", ")),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::Value;

    fn node(name: &str, ip: &str, labels: Value) -> Arc<Node> {
        let ips: Vec<Value> = ip.split(',').map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        let object = json!({"metadata": {"name": name, "labels": labels}, "status": {"addresses": ips,
            "conditions": [{"type": "Ready", "status": "True"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn service(name: &str, port: i32, more: Value) -> Arc<Service> {
        let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": [{"port": port}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Arc::new(serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name}, "spec": spec})).unwrap())
    }

    fn holding(mut service: Arc<Service>, ip: &str) -> Arc<Service> {
        let status = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
        Arc::make_mut(&mut service).status = Some(serde_json::from_value(status).unwrap());
        service
    }

    fn given(services: &[Arc<Service>], nodes: &[Arc<Node>], slices: &[Arc<EndpointSlice>]) -> Vec<String> {
        let show = |(key, assigned): (Key, Assigned)| {
            let ips: Vec<String> = assigned.addresses.iter().map(ToString::to_string).collect();
            format!("{} {}{}", key.name, ips.join(","), if assigned.taken { "!" } else { "" })
        };
        plan(services, nodes, slices).into_iter().map(show).collect()
    }

    #[test]
    fn addresses_of_eligible_nodes() {
        let nodes =
            |first: Value, second: Value| [node("a", "192.0.2.1,fd00::1", first), node("b", "192.0.2.2", second)];
        let web = [service("web", 80, json!({}))];
        assert_eq!(given(&web, &nodes(json!({}), json!({})), &[]), ["web 192.0.2.1,192.0.2.2"]);
        assert_eq!(given(&web, &nodes(json!({ENABLE[1]: "true"}), json!({})), &[]), ["web 192.0.2.1"]);
        assert_eq!(given(&web, &nodes(json!({EXCLUDE: ""}), json!({})), &[]), ["web 192.0.2.2"]);
        let both = [service("web", 80, json!({"clusterIPs": ["10.43.0.9", "fd43::9"]}))];
        assert_eq!(given(&both, &nodes(json!({}), json!({})), &[]), ["web 192.0.2.1,192.0.2.2,fd00::1"]);
        let chosen = [service("web", 80, json!({"loadBalancerIP": "192.0.2.2"}))];
        assert_eq!(given(&chosen, &nodes(json!({}), json!({})), &[]), ["web 192.0.2.2"]);
        let mut pooled = web[0].clone();
        Arc::make_mut(&mut pooled).metadata.labels = Some([(POOL[0].to_owned(), "x".to_owned())].into());
        assert_eq!(given(&[pooled], &nodes(json!({POOL[1]: "x"}), json!({POOL[0]: "y"})), &[]), ["web 192.0.2.1"]);
        let mut down = nodes(json!({}), json!({}));
        Arc::make_mut(&mut down[0]).status.as_mut().unwrap().conditions = None;
        assert_eq!(given(&web, &down, &[]), ["web 192.0.2.2"]);
        let same = [node("a", "192.0.2.1", json!({})), node("b", "192.0.2.1", json!({}))];
        assert_eq!(given(&web, &same, &[]), ["web "]);
    }

    #[test]
    fn a_port_of_an_address_is_one_services() {
        let nodes = [node("a", "192.0.2.1", json!({})), node("b", "192.0.2.2", json!({}))];
        let (a, b, other) = (service("a", 80, json!({})), service("b", 80, json!({})), service("c", 81, json!({})));
        let udp = service("d", 80, json!({"ports": [{"port": 80, "protocol": "UDP"}]}));
        assert_eq!(
            given(&[b.clone(), a.clone(), other, udp], &nodes, &[]),
            ["a 192.0.2.1,192.0.2.2", "b !", "c 192.0.2.1,192.0.2.2", "d 192.0.2.1,192.0.2.2"]
        );
        let kept = [holding(b.clone(), "192.0.2.2"), a.clone()];
        assert_eq!(given(&kept, &nodes, &[]), ["a 192.0.2.1!", "b 192.0.2.2!"], "who has an address keeps it");
        let chosen = |name: &str, ip: &str| service(name, 80, json!({"loadBalancerIP": ip}));
        assert_eq!(
            given(&[chosen("a", "192.0.2.1"), chosen("b", "192.0.2.2")], &nodes, &[]),
            ["a 192.0.2.1", "b 192.0.2.2"]
        );
        assert_eq!(given(&[service("k", 10250, json!({}))], &nodes, &[]), ["k !"], "the node itself needs that port");
    }

    #[test]
    fn classes_types_and_local_endpoints() {
        let nodes = [node("a", "192.0.2.1", json!({})), node("b", "192.0.2.2", json!({}))];
        let foreign = holding(service("x", 80, json!({"loadBalancerClass": "metal/lb"})), "203.0.113.1");
        assert!(given(&[foreign], &nodes, &[]).is_empty(), "somebody else's");
        let ours = service("x", 80, json!({"loadBalancerClass": CLASS}));
        assert_eq!(given(&[ours], &nodes, &[]).len(), 1);
        let former = holding(service("x", 80, json!({"type": "ClusterIP"})), "192.0.2.1");
        assert_eq!(given(&[former], &nodes, &[]), ["x "]);
        let local = [service("web", 80, json!({"externalTrafficPolicy": "Local"}))];
        assert_eq!(given(&local, &nodes, &[]), ["web "]);
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "web-1", "labels": {SERVICE_LABEL: "web"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.42.0.2"], "nodeName": "b"},
                {"addresses": ["10.42.0.3"], "nodeName": "a", "conditions": {"ready": false}}]}))
        .unwrap();
        assert_eq!(given(&local, &nodes, &[Arc::new(slice)]), ["web 192.0.2.2"]);
    }
}
