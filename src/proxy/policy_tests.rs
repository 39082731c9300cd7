#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use serde_json::{Value, json};

struct Cluster(Model);

impl Cluster {
    fn new() -> Self {
        let node = Node { name: "here".into(), dns_addresses: vec!["10.43.0.10".parse().unwrap()] };
        let mut cluster = Self(Model::new(&node));
        for (name, team) in [("a", "red"), ("b", "blue"), ("kube-system", "sys")] {
            cluster.namespace(name, team);
        }
        cluster
    }

    fn namespace(&mut self, name: &str, team: &str) {
        let labels = json!({"kubernetes.io/metadata.name": name, "team": team});
        let object = json!({"metadata": {"name": name, "labels": labels}});
        self.0.namespace_changed(&applied(object));
    }

    fn pod(&mut self, namespace: &str, name: &str, node: &str, app: &str, ip: &str) {
        self.0.pod_changed(&applied(pod(namespace, name, node, app, ip)));
    }

    fn policy(&mut self, namespace: &str, name: &str, spec: Value) {
        self.0.policy_changed(&applied(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})));
    }

    /// The groups with their members, by what they are used for: the tests know groups by their members.
    fn members(&self, peers: &Peers) -> Vec<String> {
        let Peers::Group(group) = peers else { return vec![format!("{peers:?}")] };
        let show = |member: &Member| match member.port {
            None => member.address.to_string(),
            Some((protocol, port)) => format!("{}:{port}/{protocol}", member.address),
        };
        let mut all: Vec<String> = self.0.groups[group].members.values().flatten().map(show).collect();
        all.sort();
        all
    }

    fn allowed(&self, allowed: Option<&BTreeSet<Allow>>) -> Option<Vec<String>> {
        let mut all: Vec<String> = allowed?
            .iter()
            .map(|allow| {
                let ports = allow.ports.as_ref().map(|ports| {
                    let range = |p: &Ports| p.range.map_or("*".to_owned(), |(first, last)| format!("{first}-{last}"));
                    ports.iter().map(|p| format!(" {}/{}", range(p), p.protocol)).collect::<String>()
                });
                format!("{}{}", self.members(&allow.peers).join(","), ports.unwrap_or_default())
            })
            .collect();
        all.sort();
        Some(all)
    }

    fn ingress(&mut self, uid: &str) -> Option<Vec<String>> {
        self.0.refresh();
        self.allowed(self.0.isolation[uid].ingress.as_ref())
    }

    fn egress(&mut self, uid: &str) -> Option<Vec<String>> {
        self.0.refresh();
        self.allowed(self.0.isolation[uid].egress.as_ref())
    }
}

fn applied<K: serde::de::DeserializeOwned>(object: Value) -> Change<K> {
    Change::Applied { old: None, new: Arc::new(serde_json::from_value(object).unwrap()) }
}

fn pod(namespace: &str, name: &str, node: &str, app: &str, ip: &str) -> Value {
    let ips: Vec<Value> = ip.split(',').filter(|ip| !ip.is_empty()).map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 8080}, {"name": "web-udp", "containerPort": 53, "protocol": "UDP"}]}]},
        "status": {"podIPs": ips},
    })
}

fn some(texts: &[&str]) -> Option<Vec<String>> {
    Some(texts.iter().map(|text| (*text).to_owned()).collect())
}

#[test]
fn only_selected_pods_are_isolated_and_only_in_the_directions_of_a_policy() {
    let mut c = Cluster::new();
    c.pod("a", "web", "here", "web", "10.42.0.2");
    c.pod("a", "db", "here", "db", "10.42.0.3");
    c.pod("b", "web", "here", "web", "10.42.0.4");
    c.pod("a", "far", "there", "web", "10.42.1.2");
    c.policy("a", "deny", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    assert_eq!(c.ingress("a-web"), some(&[]));
    assert_eq!(c.egress("a-web"), None);
    assert_eq!((c.ingress("a-db"), c.ingress("b-web")), (None, None));
    assert!(!c.0.isolation.contains_key("a-far"), "another node's business");
    c.policy("a", "deny", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    assert_eq!((c.ingress("a-web"), c.egress("a-web")), (None, some(&[])));
    assert_eq!(c.egress("a-db"), some(&[]));
    let changes = c.0.refresh();
    assert_eq!(changes, PolicyChanges::default(), "nothing new");
    c.0.policy_changed(&Change::Deleted(Arc::new(
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "deny"}})).unwrap(),
    )));
    assert_eq!(c.0.refresh().pods.len(), 2);
    assert_eq!(c.egress("a-db"), None);
}

#[test]
fn peers_are_selected_by_labels_of_pods_and_namespaces() {
    let mut c = Cluster::new();
    for (namespace, name, app, ip) in [
        ("a", "web", "web", "10.42.0.2,fd42::2"),
        ("a", "client", "client", "10.42.0.3"),
        ("b", "client", "client", "10.42.1.4"),
        ("b", "other", "other", "10.42.1.5"),
    ] {
        c.pod(namespace, name, if ip.starts_with("10.42.0") { "here" } else { "there" }, app, ip);
    }
    let clients = json!({"matchLabels": {"app": "client"}});
    let blue = json!({"matchLabels": {"team": "blue"}});
    let web = json!({"matchLabels": {"app": "web"}});
    let from = |peers: Value| json!({"podSelector": web, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]});
    for (peers, expected) in [
        (json!([{"podSelector": clients}]), vec!["10.42.0.3"]),
        (json!([{"namespaceSelector": blue}]), vec!["10.42.1.4,10.42.1.5"]),
        (json!([{"namespaceSelector": blue, "podSelector": clients}]), vec!["10.42.1.4"]),
        (json!([{"namespaceSelector": {}, "podSelector": clients}]), vec!["10.42.0.3,10.42.1.4"]),
        (
            json!([{"podSelector": clients}, {"namespaceSelector": blue, "podSelector": clients}]),
            vec!["10.42.0.3", "10.42.1.4"],
        ),
        (json!([{"podSelector": {}}]), vec!["10.42.0.2,10.42.0.3,fd42::2"]),
        (json!([]), vec!["Any"]),
    ] {
        c.policy("a", "p", from(peers.clone()));
        assert_eq!(c.ingress("a-web"), some(&expected), "{peers}");
    }
    c.policy("a", "p", from(json!([{"namespaceSelector": blue, "podSelector": clients}])));
    c.0.refresh();
    // Labels, addresses and namespaces change; only the group is news.
    c.namespace("a", "blue");
    let changes = c.0.refresh();
    assert_eq!((changes.pods.len(), changes.groups.len()), (0, 1));
    assert_eq!(c.ingress("a-web"), some(&["10.42.0.3,10.42.1.4"]));
    c.pod("b", "client", "there", "other", "10.42.1.4");
    assert_eq!(c.ingress("a-web"), some(&["10.42.0.3"]));
    c.0.pod_attached("a-client", &["fd42::3".parse().unwrap()]);
    assert_eq!(c.ingress("a-web"), some(&["10.42.0.3,fd42::3"]), "before the API knows it");
    let mut ended = pod("a", "client", "here", "client", "10.42.0.3");
    ended["status"]["phase"] = "Succeeded".into();
    c.0.pod_changed(&applied(ended));
    assert_eq!(c.ingress("a-web"), some(&[""]), "an ended pod's address may be another's by now");
    c.policy("a", "p", from(json!([])));
    let changes = c.0.refresh();
    assert_eq!(changes.groups.values().collect::<Vec<_>>(), [&None], "nobody refers to it any more");
}

#[test]
fn host_network_pods_are_no_peers_and_not_isolated() {
    let mut c = Cluster::new();
    let mut host = pod("a", "host", "here", "client", "192.0.2.1");
    host["spec"]["hostNetwork"] = true.into();
    c.0.pod_changed(&applied(host));
    c.pod("a", "web", "here", "web", "10.42.0.2");
    c.policy(
        "a",
        "p",
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
    );
    assert_eq!(c.ingress("a-web"), some(&[""]));
    assert!(!c.0.isolation.contains_key("a-host"));
}

#[test]
fn ports_and_blocks() {
    let mut c = Cluster::new();
    c.pod("a", "web", "here", "web", "10.42.0.2");
    c.pod("b", "web", "there", "web", "10.42.1.2");
    let ports = json!([{"port": 80}, {"port": 1000, "endPort": 2000, "protocol": "UDP"}, {"protocol": "SCTP"},
        {"port": "web"}, {"port": "web-udp"}, {"port": "web-udp", "protocol": "UDP"}, {"port": 5, "endPort": 4}]);
    c.policy("a", "in", json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]}));
    assert_eq!(
        c.ingress("a-web"),
        some(&["Any 80-80/TCP 1000-2000/UDP */SCTP 8080-8080/TCP 53-53/UDP"]),
        "named ports are those of the pod itself"
    );
    let blue = json!({"matchLabels": {"team": "blue"}});
    c.policy(
        "a",
        "out",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": blue}], "ports": [{"port": "web"}, {"port": 443}]},
            {"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}], "ports": [{"port": "web"}]},
        ]}),
    );
    assert_eq!(c.egress("a-web"), some(&["10.42.1.2 443-443/TCP", "10.42.1.2:8080/TCP"]), "those of each peer");
    let block = json!({"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]});
    c.policy(
        "a",
        "out",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": block}]}]}),
    );
    c.0.refresh();
    let expected = Peers::Block("192.0.2.0/24".parse().unwrap(), vec!["192.0.2.128/25".parse().unwrap()]);
    assert_eq!(c.0.isolation["a-web"].egress.as_ref().unwrap().first().unwrap().peers, expected);
}

#[test]
fn the_clusters_dns_is_a_peer_as_everybody_knows_it() {
    let mut c = Cluster::new();
    c.pod("a", "web", "here", "web", "10.42.0.2");
    let system = json!({"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}});
    let dns = json!({"matchLabels": {"k8s-app": "kube-dns"}});
    c.policy(
        "a",
        "dns",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": system, "podSelector": dns}], "ports": [{"port": 53, "protocol": "UDP"}]}]}),
    );
    assert_eq!(c.egress("a-web"), some(&["10.43.0.10 53-53/UDP"]));
}

#[test]
fn a_pod_that_is_made_anew_under_its_name_is_another_one() {
    let mut c = Cluster::new();
    c.pod("a", "web", "here", "web", "10.42.0.2");
    c.policy("a", "deny", json!({"podSelector": {}}));
    assert_eq!(c.ingress("a-web"), some(&[]));
    let mut again = pod("a", "web", "here", "web", "");
    again["metadata"]["uid"] = "second".into();
    c.0.pod_changed(&applied(again));
    let changes = c.0.refresh();
    assert_eq!(changes.pods.keys().collect::<Vec<_>>(), ["a-web", "second"]);
    assert!(changes.pods["a-web"].is_none() && changes.pods["second"].is_some());
    assert_eq!(c.0.all().pods.len(), 1);
}

#[test]
fn a_pod_is_covered_as_soon_as_it_is_bound_to_the_node() {
    let mut c = Cluster::new();
    c.pod("a", "web", "", "web", "");
    assert_eq!(c.0.refresh(), PolicyChanges::default());
    c.pod("a", "web", "here", "web", "");
    assert_eq!(c.0.refresh().pods, BTreeMap::from([("a-web".to_owned(), Some(Isolation::default()))]));
}
