//! The objects of a new cluster, as data.

use crate::{FrontProxy, Options};
use edge_pki::ClusterPki;
use serde_json::{Value, json};
use std::net::IpAddr;

/// The namespaces every cluster has.
pub(super) const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub(super) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

pub(super) fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority",
            "description": description,
        })
    };
    [
        class("system-cluster-critical", 2_000_000_000, "For pods that the cluster needs, on whichever node they run."),
        class("system-node-critical", 2_000_001_000, "For pods that their node cannot do without."),
    ]
}

/// The classes of pods whose programs are WebAssembly: in a process of their own, or in one with those of other pods. Without a class it
/// is the image that tells, and each has its own process. What an administrator changes in them stays; when deleted, they are back after a restart.
pub(super) fn runtime_classes() -> [Value; 2] {
    ["wasm", "wasm-dense"].map(|name| {
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name})
    })
}

/// The class of claims that name none: directories of the node that their first pod is put on. Name and provisioner are k3s'.
pub(super) fn local_storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "rancher.io/local-path", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// The Service through which pods reach the API server.
pub(super) fn kubernetes_service(o: &Options) -> Value {
    let ip = o.service_ip.to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ipFamilies": [family(o.service_ip)], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": o.advertise_port}],
        },
    })
}

/// The networks of the services' addresses, as an object to be read. What the API server goes by are its options.
pub(super) fn service_cidr(o: &Options) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": o.service_cidrs},
    })
}

/// `at`: one or more addresses of one family.
pub(super) fn kubernetes_endpoints(at: &[IpAddr], port: u16) -> Value {
    let addresses: Vec<Value> = at.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": addresses,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    })
}

pub(super) fn kubernetes_endpoint_slice(at: &[IpAddr], port: u16) -> Value {
    let ready = |ip: &IpAddr| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}});
    let endpoints: Vec<Value> = at.iter().map(ready).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": at.first().map_or("IPv4", |ip| family(*ip)),
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

/// The cluster's DNS: no selector, since every node answers for itself at this address.
pub(super) fn dns_service(o: &Options) -> Value {
    let ips: Vec<String> = o.dns_ips.iter().map(ToString::to_string).collect();
    let families: Vec<&str> = o.dns_ips.iter().map(|ip| family(*ip)).collect();
    let policy = if ips.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ips.first(), "clusterIPs": ips,
            "ipFamilies": families, "ipFamilyPolicy": policy, "sessionAffinity": "None",
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
                {"name": "metrics", "protocol": "TCP", "port": 9153, "targetPort": 9153},
            ],
        },
    })
}

/// By what extension API servers know whose requests they get; their accounts need the Role `extension-apiserver-authentication-reader`.
pub(super) fn authentication(front_proxy: &FrontProxy) -> Value {
    let list = |name: &str| json!([name]).to_string();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": super::AUTHENTICATION.1, "namespace": super::AUTHENTICATION.0},
        "data": {
            "client-ca-file": front_proxy.client_authority,
            "requestheader-allowed-names": list(ClusterPki::FRONT_PROXY),
            "requestheader-client-ca-file": front_proxy.authority,
            "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
            "requestheader-group-headers": list("X-Remote-Group"),
            "requestheader-uid-headers": list("X-Remote-Uid"),
            "requestheader-username-headers": list("X-Remote-User"),
        },
    })
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}
