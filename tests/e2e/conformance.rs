//! What Kubernetes' conformance suite asks of services, endpoints, names and proxies, in our own words; each flow in its own
//! namespace.

use crate::harness::space::{Space, dig, from_outside, outside, url};
use crate::harness::{Agent, Cluster, Kubectl, eventually, http_get, success};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

pub(crate) type Flow = fn(&Cluster);

/// Runs flows beside each other on one cluster.
pub(crate) fn together(cluster: &Cluster, flows: &[(&str, Flow)]) {
    std::thread::scope(|s| {
        for (name, flow) in flows {
            std::thread::Builder::new().name((*name).to_owned()).spawn_scoped(s, move || flow(cluster)).unwrap();
        }
    });
}

#[test]
fn conformance_of_services_and_their_endpoints() {
    let flows: [(&str, Flow); 9] = [
        ("operations", api_operations),
        ("networks", networks_of_services),
        ("status", service_status),
        ("types", changed_types),
        ("protocols", one_port_two_protocols),
        ("affinity", switched_affinity),
        ("endpoints", endpoints_of_pods),
        ("mirroring", mirrored_endpoints),
        ("terminating", terminating_endpoints),
    ];
    together(&Cluster::start(), &flows);
}

#[test]
fn conformance_of_names_and_proxies() {
    let flows: [(&str, Flow); 5] = [
        ("names", names),
        ("hosts", hosts_files),
        ("resolver", resolver_of_pods),
        ("host ports", host_ports),
        ("proxies", proxies),
    ];
    together(&Cluster::start(), &flows);
}

/// A request with a body, by kubectl's way of raw paths.
pub(crate) fn raw(cluster: &Cluster, verb: &str, path: &str, body: &Value) -> Value {
    let out = cluster.kubectl_stdin(Kubectl::Newest, &[verb, "--raw", path, "-f", "-"], &body.to_string());
    serde_json::from_str(&success(&format!("{verb} {path}"), out)).unwrap()
}

pub(crate) fn get(cluster: &Cluster, path: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", "--raw", path])).unwrap()
}

/// Reads, changes and writes an object, again while somebody else is faster; gives what was written.
pub(crate) fn update(cluster: &Cluster, path: &str, change: impl Fn(&mut Value)) -> Value {
    eventually(&format!("{path} is updated"), || {
        let mut object = get(cluster, path);
        change(&mut object);
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["replace", "--raw", path, "-f", "-"], &object.to_string());
        if out.status.success() {
            return Ok(serde_json::from_slice(&out.stdout).unwrap());
        }
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(told.contains("please apply your changes to the latest version"), "{told}");
        Err(told)
    })
}

/// What has happened since a version, as `TYPE NAME`.
fn events_since(cluster: &Cluster, path: &str, version: &str) -> Vec<String> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let watch = format!("{path}{separator}watch=1&resourceVersion={version}&timeoutSeconds=1");
    let text = cluster.kubectl(&["get", "--raw", &watch]);
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let name = |event: &Value| event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    events.map(|event| format!("{} {}", event["type"].as_str().unwrap(), name(&event))).collect()
}

pub(crate) fn items(list: &Value) -> Vec<Value> {
    list["items"].as_array().unwrap().clone()
}

/// A kind of the networking API: group and version, plural, whether it has a status, three names, what else an object has.
pub(crate) type ApiKind = (&'static str, &'static str, bool, bool, [&'static str; 3], Value);

/// Every verb of every kind.
fn api_operations(cluster: &Cluster) {
    let space = Space::new(cluster, "operations");
    let names = ["one", "two", "three"];
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    let kinds: [ApiKind; 8] = [
        (
            "v1",
            "endpoints",
            true,
            false,
            names,
            json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
        ),
        ("v1", "services", true, true, names, json!({"spec": {"ports": ports}})),
        (
            "discovery.k8s.io/v1",
            "endpointslices",
            true,
            false,
            names,
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["1.2.3.4", "5.6.7.8"]}], "ports": []}),
        ),
        (
            "networking.k8s.io/v1",
            "ingresses",
            true,
            true,
            names,
            json!({"spec": {"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}}}),
        ),
        (
            "networking.k8s.io/v1",
            "ingressclasses",
            false,
            false,
            names,
            json!({"spec": {"controller": "example.com/controller"}}),
        ),
        (
            "networking.k8s.io/v1",
            "networkpolicies",
            true,
            false,
            names,
            json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}),
        ),
        ("networking.k8s.io/v1", "servicecidrs", false, true, names, json!({"spec": {"cidrs": ["192.168.7.0/24"]}})),
        (
            "networking.k8s.io/v1",
            "ipaddresses",
            false,
            false,
            ["192.168.7.1", "192.168.7.2", "2001:db8::1"],
            json!({"spec": {"parentRef": {"group": "example.com", "resource": "things", "namespace": "n", "name": "a"}}}),
        ),
    ];
    kinds.into_iter().for_each(|kind| every_verb(&space, kind));
}

/// Creates, lists, watches, patches, updates (the status too, where there is one) and deletes objects of a kind, alone and as a
/// collection.
pub(crate) fn every_verb(space: &Space<'_>, (version, plural, namespaced, has_status, names, content): ApiKind) {
    let cluster = space.cluster;
    let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    let resources = get(cluster, &root)["resources"].as_array().unwrap().clone();
    let resource = resources.iter().find(|r| r["name"] == plural).unwrap_or_else(|| panic!("{plural} is not listed"));
    let verbs: BTreeSet<&str> = resource["verbs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    assert_eq!(verbs, BTreeSet::from(all), "{plural}");
    assert_eq!(resources.iter().any(|r| r["name"] == format!("{plural}/status")), has_status, "{plural}");
    let path =
        if namespaced { format!("{root}/namespaces/{}/{plural}", space.name) } else { format!("{root}/{plural}") };
    let selected = format!("{path}?labelSelector=conformance%3Dyes");
    let kind = resource["kind"].as_str().unwrap();
    let make = |name: &str| {
        let mut object = content.clone();
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": name, "labels": {"conformance": "yes"}});
        raw(cluster, "create", &path, &object)
    };
    let made: Vec<Value> = names.iter().map(|name| make(name)).collect();
    let one = format!("{path}/{}", names[0]);
    assert_eq!(get(cluster, &one)["metadata"]["uid"], made[0]["metadata"]["uid"], "{plural}");
    let list = get(cluster, &selected);
    assert_eq!(items(&list).len(), 3, "{plural}");
    let since = list["metadata"]["resourceVersion"].as_str().unwrap();
    if namespaced {
        assert_eq!(items(&get(cluster, &format!("{root}/{plural}?labelSelector=conformance%3Dyes"))).len(), 3);
    }
    let target = format!("{plural}/{}", names[0]);
    let patch = |more: &[&str], patch: &str| {
        let mut args = vec!["patch", target.as_str(), "--type=merge", "-p", patch];
        args.extend(more);
        space.kubectl(&args)
    };
    patch(&[], r#"{"metadata":{"annotations":{"patched":"true"}}}"#);
    update(cluster, &one, |object| object["metadata"]["annotations"]["updated"] = "true".into());
    let updated = get(cluster, &one);
    for annotation in ["patched", "updated"] {
        assert_eq!(updated["metadata"]["annotations"][annotation], "true", "{plural}");
    }
    assert_eq!(updated["metadata"]["uid"], made[0]["metadata"]["uid"]);
    if has_status {
        patch(&["--subresource=status"], r#"{"metadata":{"annotations":{"patchedstatus":"true"}}}"#);
        let status = update(cluster, &format!("{one}/status"), |object| {
            object["metadata"]["annotations"]["updatedstatus"] = "true".into();
        });
        for annotation in ["patchedstatus", "updatedstatus"] {
            assert_eq!(status["metadata"]["annotations"][annotation], "true", "{plural}");
        }
    }
    cluster.kubectl(&["delete", "--raw", &one]);
    eventually(&format!("{one} is gone"), || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["get", "--raw", &one]);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        if told.contains("NotFound") || told.contains("not found") { Ok(()) } else { Err(told) }
    });
    assert_eq!(items(&get(cluster, &selected)).len(), 2, "{plural}");
    cluster.kubectl(&["delete", "--raw", &selected]);
    eventually(&format!("{plural} are gone"), || {
        let left = items(&get(cluster, &selected));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let events = events_since(cluster, &selected, since);
    let of = |kind: &str| events.iter().filter(|event| event.starts_with(kind)).count();
    assert!(of("MODIFIED") >= 2 && of("DELETED") == 3 && of("ADDED") == 0, "{plural}: {events:?}");
}

/// The cluster's own ServiceCIDR, and one more: services in it work, and it stays until the last one is gone.
fn networks_of_services(cluster: &Cluster) {
    let space = Space::new(cluster, "networks");
    let ready = |name: &str| {
        let is_ready = ["get", "servicecidr", name, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
        eventually("the network is ready", || match cluster.kubectl(&is_ready) {
            status if status == "True" => Ok(()),
            status => Err(status),
        });
    };
    ready("kubernetes");
    assert_eq!(
        get(cluster, "/apis/networking.k8s.io/v1/servicecidrs/kubernetes")["spec"]["cidrs"],
        json!(["10.43.0.0/16"])
    );
    space.server("server");
    space.client("client");
    let far = service("far", "clusterIP: 203.0.113.10, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]");
    let args = ["-n", "networks", "apply", "-f", "-"];
    let refused = cluster.kubectl_stdin(Kubectl::Newest, &args, &far);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("not in the valid range"), "{told}");
    cluster.apply(
        "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [203.0.113.0/24]}}",
    );
    ready("more");
    space.apply(&far);
    space.ready(&["server", "client"]);
    space.expect("client", &url("203.0.113.10", 80), true);
    cluster.kubectl(&["delete", "servicecidr", "more", "--wait=false"]);
    eventually("it tells why it stays", || {
        let told = cluster.kubectl(&["get", "servicecidr", "more", "-o", "jsonpath={.status.conditions[*].message}"]);
        if told.contains("still services") { Ok(()) } else { Err(told) }
    });
    let next = service("next", "clusterIP: 203.0.113.11, ports: [{port: 80}]");
    assert!(
        !cluster.kubectl_stdin(Kubectl::Newest, &args, &next).status.success(),
        "nobody gets an address of it any more"
    );
    space.expect("client", &url("203.0.113.10", 80), true);
    space.kubectl(&["delete", "service", "far"]);
    cluster.kubectl(&["wait", "servicecidr/more", "--for=delete", "--timeout=60s"]);
}

/// The status of a service by its subresource; several services at once; the API's own service.
fn service_status(cluster: &Cluster) {
    let space = Space::new(cluster, "status");
    let path = "/api/v1/namespaces/status/services";
    space.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: balanced, labels: {lifecycle: one}}, spec: {type: LoadBalancer,
            loadBalancerClass: example.com/internal-vip, ports: [{name: http, port: 80, targetPort: 80}]}}",
    );
    let since = get(cluster, path)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(get(cluster, &format!("{path}/balanced/status"))["metadata"]["name"], "balanced");
    let patch = r#"{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}}"#;
    space.kubectl(&["patch", "service", "balanced", "--subresource=status", "--type=merge", "-p", patch]);
    assert_eq!(space.field("service/balanced", ".status.loadBalancer.ingress[*].ip"), "203.0.113.1");
    assert_eq!(space.field("service/balanced", ".metadata.annotations.patchedstatus"), "true");
    let mut object = get(cluster, &format!("{path}/balanced"));
    let condition = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "set by a test",
        "lastTransitionTime": "2026-01-02T03:04:05Z"});
    object["status"]["conditions"] = json!([condition]);
    let updated = raw(cluster, "replace", &format!("{path}/balanced/status"), &object);
    assert_eq!(updated["status"]["conditions"][0], condition);
    space.kubectl(&["label", "service", "balanced", "lifecycle=two", "--overwrite"]);
    let kept = get(cluster, &format!("{path}/balanced"));
    assert_eq!(kept["status"]["conditions"][0], condition, "an update of the service leaves its status");
    let events = events_since(cluster, path, &since);
    assert_eq!(events, ["MODIFIED balanced"; 3], "{events:?}");
    // Only load balancers have the addresses of one.
    space.apply("{apiVersion: v1, kind: Service, metadata: {name: plain}, spec: {ports: [{port: 80}]}}");
    let args = ["-n", "status", "patch", "service", "plain", "--subresource=status", "--type=merge", "-p", patch];
    let told = String::from_utf8_lossy(&cluster.try_kubectl(Kubectl::Newest, &args).stderr).into_owned();
    assert!(
        told.contains("status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"),
        "{told}"
    );
    let everywhere = items(&get(cluster, "/api/v1/services"));
    let own = everywhere.iter().find(|s| s["metadata"]["name"] == "kubernetes").expect("the API's service");
    assert_eq!((&own["metadata"]["namespace"], &own["spec"]["ports"][0]["port"]), (&"default".into(), &443.into()));
    // What the service of the API leads to, in both forms.
    let endpoints = get(cluster, "/api/v1/namespaces/default/endpoints/kubernetes");
    let slices = items(&get(
        cluster,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes",
    ));
    assert_eq!(slices.len(), 1);
    let (subset, slice) = (&endpoints["subsets"][0], &slices[0]);
    assert_eq!(subset["addresses"][0]["ip"], slice["endpoints"][0]["addresses"][0]);
    assert_eq!(subset["ports"][0]["port"], slice["ports"][0]["port"]);
}

fn service(name: &str, spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
}

fn changed_types(cluster: &Cluster) {
    let space = Space::new(cluster, "types");
    space.server("web");
    space.client("client");
    space.ready(&["web", "client"]);
    let ask = |name: &str, kind: &str| {
        dig(cluster, &["@10.43.0.10", "+short", &format!("{name}.types.svc.cluster.local"), kind]).trim().to_owned()
    };
    let becomes = |what: &str, name: &str, expected: &dyn Fn(&str) -> bool| {
        eventually(what, || {
            let found = ask(name, "A");
            if expected(&found) { Ok(found) } else { Err(found) }
        })
    };
    let patch = |name: &str, spec: &str| {
        space.kubectl(&["patch", "service", name, "--type=merge", "-p", &format!(r#"{{"spec":{spec}}}"#)])
    };
    let field = |name: &str, path: &str| space.field(&format!("service/{name}"), path);
    let external =
        |name: &str| space.apply(&service(name, "type: ExternalName, externalName: web.types.svc.cluster.local"));
    space.apply(&service("web", "selector: {app: web}, ports: [{port: 80, targetPort: http}]"));
    // A name of a name: the alias and, behind it, the address.
    external("alias");
    let address = field("web", ".spec.clusterIP");
    let expected = format!("web.types.svc.cluster.local.\n{address}");
    becomes("the alias", "alias", &|found| found == expected);
    assert_eq!(ask("alias", "CNAME"), "web.types.svc.cluster.local.");
    assert_eq!(field("alias", ".spec.clusterIP"), "");
    space.expect("client", "http://alias/", true);
    patch("alias", r#"{"externalName":"kubernetes.default.svc.cluster.local"}"#);
    becomes("another alias", "alias", &|found| found == "kubernetes.default.svc.cluster.local.\n10.43.0.1");
    // ... becomes one with an address, by name and by address
    patch(
        "alias",
        r#"{"type":"ClusterIP","externalName":null,"selector":{"app":"web"},"ports":[{"port":80,"targetPort":"http"}]}"#,
    );
    let address = field("alias", ".spec.clusterIP");
    assert!(address.starts_with("10.43."), "{address}");
    becomes("its address", "alias", &|found| found == address);
    space.expect("client", &url(&address, 80), true);
    space.expect("client", "http://alias/", true);
    // ... and back: the address is free for others
    patch(
        "alias",
        r#"{"type":"ExternalName","externalName":"web.types.svc.cluster.local","clusterIP":null,"clusterIPs":null}"#,
    );
    assert_eq!(field("alias", ".spec.clusterIP"), "");
    becomes("the alias again", "alias", &|found| found == expected_of(&field("web", ".spec.clusterIP")));
    space.expect("client", &url(&address, 80), false);
    space.apply(&service(
        "reuse",
        &format!("clusterIP: {address}, selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]"),
    ));
    space.expect("client", &url(&address, 80), true);
    // A name that becomes a port of the node, and back: the port is free for others.
    external("ported");
    patch(
        "ported",
        r#"{"type":"NodePort","externalName":null,"selector":{"app":"web"},"ports":[{"port":80,"targetPort":"http"}]}"#,
    );
    let port: u16 = field("ported", ".spec.ports[0].nodePort").parse().unwrap();
    eventually("the node's port", || from_outside(cluster, port));
    space.expect("client", &url(&cluster.ip.to_string(), port), true);
    space.expect("client", "http://ported/", true);
    patch(
        "ported",
        r#"{"type":"ExternalName","externalName":"web.types.svc.cluster.local","clusterIP":null,"clusterIPs":null}"#,
    );
    assert_eq!(field("ported", ".spec.ports[0].nodePort"), "");
    eventually("no port of the node", || from_outside(cluster, port).err().ok_or_else(|| "it answers".to_owned()));
    let again =
        format!("type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: http, nodePort: {port}}}]");
    space.apply(&service("ported-again", &again));
    eventually("another service's port of the node", || from_outside(cluster, port));
    // Another port of the node for the same service.
    let other = if port == 32000 { 32001 } else { 32000 };
    patch("ported-again", &format!(r#"{{"ports":[{{"port":80,"targetPort":"http","nodePort":{other}}}]}}"#));
    eventually("the new port", || from_outside(cluster, other));
    eventually("not the old port", || from_outside(cluster, port).err().ok_or_else(|| "it answers".to_owned()));
    // What others have is refused as Kubernetes refuses it.
    for (spec, complaint) in [
        (
            format!("type: NodePort, ports: [{{port: 1, nodePort: {other}}}]"),
            format!("spec.ports[0].nodePort: Invalid value: {other}: provided port is already allocated"),
        ),
        (
            "type: NodePort, ports: [{port: 1, nodePort: 80}]".to_owned(),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767".to_owned(),
        ),
        (
            "clusterIP: 10.43.0.1, ports: [{port: 1}]".to_owned(),
            "spec.clusterIPs: Invalid value: [\"10.43.0.1\"]: failed to allocate IP 10.43.0.1: provided IP is already allocated".to_owned(),
        ),
        (
            "clusterIP: 10.44.0.1, ports: [{port: 1}]".to_owned(),
            "spec.clusterIPs: Invalid value: [\"10.44.0.1\"]: failed to allocate IP 10.44.0.1: the provided IP (10.44.0.1) is not in the valid range. The range of valid IPs is 10.43.0.0/16".to_owned(),
        ),
    ] {
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["-n", "types", "create", "-f", "-"], &service("refused", &spec));
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && told.contains(&complaint), "{told}");
    }
    // An address that an administrator keeps.
    cluster.apply("{apiVersion: networking.k8s.io/v1, kind: IPAddress, metadata: {name: 10.43.7.9}, spec: {parentRef: {resource: services, namespace: kept, name: kept}}}");
    let keeper = service("kept", "clusterIP: 10.43.7.9, ports: [{port: 1}]");
    let out = cluster.kubectl_stdin(Kubectl::Newest, &["-n", "types", "create", "-f", "-"], &keeper);
    assert!(String::from_utf8_lossy(&out.stderr).contains("provided IP is already allocated"));
    cluster.kubectl(&["delete", "ipaddress", "10.43.7.9"]);
    space.apply(&keeper);
    // The refused ones took nothing: what they named besides is free.
    let out = cluster.kubectl_stdin(
        Kubectl::Newest,
        &["-n", "types", "create", "-f", "-"],
        &service("half", &format!("type: NodePort, clusterIP: 10.43.7.7, ports: [{{name: a, port: 1, nodePort: 32100}}, {{name: b, port: 2, nodePort: {other}}}]")),
    );
    assert!(!out.status.success());
    space.apply(&service("whole", "type: NodePort, clusterIP: 10.43.7.7, ports: [{port: 1, nodePort: 32100}]"));
}

fn expected_of(address: &str) -> String {
    format!("web.types.svc.cluster.local.\n{address}")
}

/// What a UDP server answers to a datagram from the node.
fn ask_datagram(cluster: &Cluster, to: SocketAddr) -> Result<String, String> {
    cluster.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect(to).map_err(|e| e.to_string())?;
        socket.send(b"?").map_err(|e| e.to_string())?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
}

fn one_port_two_protocols(cluster: &Cluster) {
    let space = Space::new(cluster, "protocols");
    let pod = |name: &str| {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0,
                containers: [{{name: main, image: 'echo:v1', env: [{{name: UDP_PORT, value: '8080'}}]}}]}}}}"
        ));
    };
    pod("both");
    pod("other");
    let (tcp, udp) = (
        "{name: tcp, port: 80, protocol: TCP, targetPort: 8080}",
        "{name: udp, port: 80, protocol: UDP, targetPort: 8080}",
    );
    space.apply(&service("both", &format!("selector: {{app: both}}, ports: [{tcp}, {udp}]")));
    space.ready(&["both", "other"]);
    let address: IpAddr = space.field("service/both", ".spec.clusterIP").parse().unwrap();
    let to = SocketAddr::new(address, 80);
    let expect = |what: &str, by_tcp: bool, by_udp: bool| {
        eventually(what, || {
            let (one, two) = (cluster.inside(|| http_get(to, "/")), ask_datagram(cluster, to));
            if one.is_ok() == by_tcp && two.is_ok() == by_udp { Ok(()) } else { Err(format!("{one:?} {two:?}")) }
        });
    };
    expect("both protocols", true, true);
    let patch = |spec: Value| {
        let patch = json!({"spec": spec}).to_string();
        space.kubectl(&["patch", "service", "both", "--type=merge", "-p", &patch]);
    };
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 80, "protocol": protocol, "targetPort": 8080});
    patch(json!({"ports": [port("tcp", "TCP")]}));
    expect("TCP only", true, false);
    patch(json!({"ports": [port("udp", "UDP")]}));
    expect("UDP only", false, true);
    // A client that goes on with one socket is led to the service's next pod when its own has gone.
    let client = cluster.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let answered_by = |name: &str| {
        eventually(&format!("{name} answers the same socket"), || {
            client.send_to(b"?", to).map_err(|e| e.to_string())?;
            let mut answer = [0; 512];
            let (length, _) = client.recv_from(&mut answer).map_err(|e| e.to_string())?;
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            if answer.starts_with(&format!("host={name} ")) { Ok(()) } else { Err(answer) }
        });
    };
    answered_by("both");
    patch(json!({"selector": {"app": "other"}}));
    answered_by("other");
    space.kubectl(&["delete", "pod", "other", "--now"]);
    eventually("nobody answers", || ask_datagram(cluster, to).err().ok_or_else(|| "answered".to_owned()));
    patch(json!({"selector": {"app": "both"}}));
    answered_by("both");
}

fn switched_affinity(cluster: &Cluster) {
    let space = Space::new(cluster, "switched");
    ["a", "b", "c"].iter().for_each(|name| space.server(name));
    space.client("client");
    let spec =
        "type: NodePort, sessionAffinity: ClientIP, selector: {kind: server}, ports: [{port: 80, targetPort: http}]";
    space.apply(&service("web", spec));
    space.ready(&["a", "b", "c", "client"]);
    let port: u16 = space.field("service/web", ".spec.ports[0].nodePort").parse().unwrap();
    let urls = ["http://web/".to_owned(), url(&cluster.ip.to_string(), port)];
    let hosts = |url: &str, pause: &str| -> BTreeSet<String> {
        let script = format!("for i in $(seq 9); do timeout 3 wget -qO- {url}; echo; sleep {pause}; done");
        let out = space.kubectl(&["exec", "client", "--", "sh", "-c", &script]);
        out.split_whitespace().filter_map(|word| word.strip_prefix("host=").map(str::to_owned)).collect()
    };
    let several = |url: &str, pause: &str| {
        eventually("several servers", || {
            let found = hosts(url, pause);
            if found.len() > 1 { Ok(()) } else { Err(format!("{found:?}")) }
        });
    };
    let switch = |affinity: &str| {
        space.kubectl(&["patch", "service", "web", "--type=merge", "-p", &format!(r#"{{"spec":{affinity}}}"#)]);
    };
    eventually("three endpoints", || {
        let found = space.field("endpoints/web", ".subsets[*].addresses[*].ip");
        if found.split(' ').count() == 3 { Ok(()) } else { Err(found) }
    });
    for url in &urls {
        let stays = |what: &str| {
            eventually(what, || {
                let found = hosts(url, "0");
                if found.len() == 1 { Ok(()) } else { Err(format!("{url} {found:?}")) }
            });
        };
        stays("one server");
        switch(r#"{"sessionAffinity":"None"}"#);
        several(url, "0");
        switch(r#"{"sessionAffinity":"ClientIP"}"#);
        stays("one server again");
    }
    assert_eq!(space.field("service/web", ".spec.sessionAffinityConfig.clientIP.timeoutSeconds"), "10800");
    switch(r#"{"sessionAffinityConfig":{"clientIP":{"timeoutSeconds":1}}}"#);
    several(&urls[0], "1.5");
}

/// A pod with servers on some ports.
fn pod_with_ports(space: &Space<'_>, name: &str, ports: &[(&str, u16)]) {
    let container = |(port_name, port): &(&str, u16)| {
        format!(
            "{{name: {port_name}, image: 'echo:v1', env: [{{name: PORT, value: '{port}'}}], ports: [{{name: {port_name}, containerPort: {port}}}]}}"
        )
    };
    let containers: Vec<String> = ports.iter().map(container).collect();
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{set: pods, app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{}]}}}}",
        containers.join(", ")
    ));
}

/// The endpoints of a service in both forms: pods, each with its ports. `None` when there is none of a form.
fn known_endpoints(space: &Space<'_>, name: &str) -> Option<[BTreeMap<String, BTreeSet<u64>>; 2]> {
    let cluster = space.cluster;
    let path = format!("/api/v1/namespaces/{}/endpoints/{name}", space.name);
    let classic = cluster.try_kubectl(Kubectl::Newest, &["get", "--raw", &path]);
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io/service-name%3D{name}",
        space.name
    );
    let slices = items(&get(cluster, &slices));
    if !classic.status.success() || slices.is_empty() {
        return None;
    }
    let classic: Value = serde_json::from_slice(&classic.stdout).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut both: [BTreeMap<String, BTreeSet<u64>>; 2] = Default::default();
    let mut add = |form: usize, endpoints: Vec<Value>, ports: &Value| {
        for endpoint in endpoints {
            let pod = endpoint["targetRef"]["name"].as_str().unwrap().to_owned();
            both[form].entry(pod).or_default().extend(list(ports).iter().filter_map(|port| port["port"].as_u64()));
        }
    };
    for subset in list(&classic["subsets"]) {
        add(0, list(&subset["addresses"]), &subset["ports"]);
    }
    for slice in slices {
        let endpoints = list(&slice["endpoints"]).into_iter().filter(|e| e["conditions"]["ready"] == true);
        add(1, endpoints.collect(), &slice["ports"]);
    }
    Some(both)
}

fn endpoints_of_pods(cluster: &Cluster) {
    let space = Space::new(cluster, "endpoints");
    let expect = |service: &str, pods: &[(&str, &[u64])]| {
        let wanted: BTreeMap<String, BTreeSet<u64>> =
            pods.iter().map(|(pod, ports)| ((*pod).to_owned(), ports.iter().copied().collect())).collect();
        eventually(&format!("endpoints of {service}"), || match known_endpoints(&space, service) {
            Some(both) if both.iter().all(|form| *form == wanted) => Ok(()),
            other => Err(format!("{other:?}, not {wanted:?}")),
        });
    };
    let by_names =
        "selector: {set: pods}, ports: [{name: p1, port: 80, targetPort: one}, {name: p2, port: 81, targetPort: two}]";
    space.apply(&service("multi", by_names));
    space.apply(&service("nobody", "selector: {set: none}, ports: [{name: example, port: 80}]"));
    expect("multi", &[]);
    expect("nobody", &[]);
    // Pods that come with different ports, and go.
    pod_with_ports(&space, "first", &[("one", 100)]);
    expect("multi", &[("first", &[100])]);
    pod_with_ports(&space, "second", &[("two", 101)]);
    expect("multi", &[("first", &[100]), ("second", &[101])]);
    space.client("client");
    space.ready(&["client"]);
    assert!(
        eventually("the first port", || space.fetch("client", "http://multi/").ok_or_else(String::new))
            .contains("host=first")
    );
    let second = eventually("the second port", || space.fetch("client", "http://multi:81/").ok_or_else(String::new));
    assert!(second.contains("host=second"), "{second}");
    space.kubectl(&["delete", "pod", "first", "--now"]);
    expect("multi", &[("second", &[101])]);
    // The same name for different numbers.
    pod_with_ports(&space, "third", &[("two", 200), ("one", 201)]);
    expect("multi", &[("second", &[101]), ("third", &[200, 201])]);
    // Slices that somebody deletes come back.
    space.kubectl(&["delete", "endpointslices", "-l", "kubernetes.io/service-name=multi"]);
    expect("multi", &[("second", &[101]), ("third", &[200, 201])]);
    // A label that does not fit any more.
    space.kubectl(&["label", "pod", "third", "set-"]);
    expect("multi", &[("second", &[101])]);
    space.kubectl(&["delete", "pod", "second", "--now"]);
    expect("multi", &[]);
    let slices = space.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=nobody", "-o", "json"]);
    let slices = items(&serde_json::from_str(&slices).unwrap());
    assert_eq!(
        slices[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    // Pods that are not ready count where the service says so.
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: unready, labels: {app: unready}}, spec: {terminationGracePeriodSeconds: 0,
            hostname: early, subdomain: early, containers: [{name: main, image: 'echo:v1', readinessProbe: {exec: {command: [/bin/sh, -c, 'exit 1']}}}]}}",
    );
    space.apply(&service("late", "selector: {app: unready}, ports: [{port: 8080}]"));
    space.apply(&service(
        "early",
        "clusterIP: None, publishNotReadyAddresses: true, selector: {app: unready}, ports: [{port: 8080}]",
    ));
    space.apply(&service("soon", "publishNotReadyAddresses: true, selector: {app: unready}, ports: [{port: 8080}]"));
    expect("early", &[("unready", &[8080])]);
    expect("soon", &[("unready", &[8080])]);
    expect("late", &[]);
    let ip = space.field("pod/unready", ".status.podIP");
    for name in ["early", "early.early"] {
        eventually("a name that is not ready", || {
            let found = dig(cluster, &["@10.43.0.10", "+short", &format!("{name}.endpoints.svc.cluster.local")]);
            if found.trim() == ip { Ok(()) } else { Err(found) }
        });
    }
    space.expect("client", "http://soon:8080/", true);
    space.expect("client", "http://late:8080/", false);
    // Without its service there is neither form.
    space.kubectl(&["delete", "service", "multi", "nobody"]);
    for name in ["multi", "nobody"] {
        eventually("no endpoints", || {
            let label = format!("kubernetes.io/service-name={name}");
            let slices = space.kubectl(&["get", "endpointslices", "-l", &label, "-o", "name"]);
            let classic = space.kubectl(&["get", "endpoints", name, "--ignore-not-found", "-o", "name"]);
            if slices.is_empty() && classic.is_empty() { Ok(()) } else { Err(format!("{slices}{classic}")) }
        });
    }
}

fn mirrored_endpoints(cluster: &Cluster) {
    let space = Space::new(cluster, "mirrored");
    let mirrored = |name: &str| {
        let found = space.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            &format!("kubernetes.io/service-name={name}"),
            "-o",
            "json",
        ]);
        items(&serde_json::from_str(&found).unwrap())
    };
    space.apply(&service("custom", "ports: [{name: example, port: 80}]"));
    let endpoints = |ip: &str| {
        format!(
            "{{apiVersion: v1, kind: Endpoints, metadata: {{name: custom}}, subsets: [{{addresses: [{{ip: {ip}}}], ports: [{{name: example, port: 80}}]}}]}}"
        )
    };
    for ip in ["10.1.2.3", "10.2.3.4"] {
        space.apply(&endpoints(ip));
        let slice = eventually("the mirrored slice", || {
            let found = mirrored("custom");
            if found.len() == 1 && found[0]["endpoints"][0]["addresses"][0] == ip {
                Ok(found[0].clone())
            } else {
                Err(format!("{found:?}"))
            }
        });
        assert_eq!(slice["ports"], json!([{"name": "example", "port": 80, "protocol": "TCP"}]));
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 1);
    }
    space.kubectl(&["delete", "endpoints", "custom"]);
    eventually("no mirrored slice", || {
        let found = mirrored("custom");
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // One address for two ports, each a subset of its own.
    pod_with_ports(&space, "two", &[("one", 8090), ("two", 9090)]);
    space.client("client");
    space.ready(&["two", "client"]);
    let ip = space.field("pod/two", ".status.podIP");
    space.apply(&service("subsets", "ports: [{name: p80, port: 80}, {name: p81, port: 81}]"));
    space.apply(&format!(
        "{{apiVersion: v1, kind: Endpoints, metadata: {{name: subsets}}, subsets: [{{addresses: [{{ip: {ip}}}], ports: [{{name: p80, port: 8090}}]}},
            {{addresses: [{{ip: {ip}}}], ports: [{{name: p81, port: 9090}}]}}]}}"
    ));
    space.expect("client", "http://subsets/", true);
    space.expect("client", "http://subsets:81/", true);
}

/// Pods that terminate serve on as long as there is nobody else.
fn terminating_endpoints(cluster: &Cluster) {
    let space = Space::new(cluster, "terminating");
    let pod = |name: &str| {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}}}, spec: {{terminationGracePeriodSeconds: 100, containers: [{{name: main,
                image: 'echo:v1', ports: [{{name: http, containerPort: 8080}}], readinessProbe: {{httpGet: {{path: /healthz, port: http}}}},
                lifecycle: {{preStop: {{exec: {{command: [/bin/sleep, '100']}}}}}}}}]}}}}"
        ));
        space.ready(&[name]);
    };
    pod("old");
    space.apply(&service(
        "web",
        "type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: http}]",
    ));
    let port: u16 = space.field("service/web", ".spec.ports[0].nodePort").parse().unwrap();
    let address = SocketAddr::new(space.field("service/web", ".spec.clusterIP").parse().unwrap(), 80);
    eventually("the service", || from_outside(cluster, port));
    space.kubectl(&["delete", "pod", "old", "--wait=false"]);
    eventually("the terminating endpoint", || {
        let label = "kubernetes.io/service-name=web";
        let found = space.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            label,
            "-o",
            "jsonpath={.items[*].endpoints[*].conditions}",
        ]);
        let found: Value = serde_json::from_str(&found).unwrap_or_default();
        let wanted = json!({"ready": false, "serving": true, "terminating": true});
        if found == wanted { Ok(()) } else { Err(found.to_string()) }
    });
    let by_address = || cluster.inside(|| http_get(address, "/"));
    for _ in 0..5 {
        assert!(from_outside(cluster, port).unwrap().contains("host=old"));
        assert!(by_address().unwrap().contains("host=old"));
    }
    pod("new");
    eventually("only the new one", || {
        let answers: Vec<String> = (0..10).map(|_| by_address()).collect::<Result<_, _>>()?;
        if answers.iter().all(|answer| answer.contains("host=new")) { Ok(()) } else { Err(format!("{answers:?}")) }
    });
    for _ in 0..10 {
        assert!(from_outside(cluster, port).unwrap().contains("host=new"));
    }
    space.kubectl(&["delete", "pod", "old", "new", "--force", "--grace-period=0"]);
}

fn names(cluster: &Cluster) {
    let space = Space::new(cluster, "dns");
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: querier, labels: {dns-test: 'true'}}, spec: {hostname: querier-2, subdomain: headless,
            terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'echo:v1', ports: [{name: http, containerPort: 8080}]}]}}",
    );
    space.client("client");
    space.apply(&service(
        "headless",
        "clusterIP: None, selector: {dns-test: 'true'}, ports: [{name: http, port: 80, targetPort: http}]",
    ));
    space.apply(&service("regular", "selector: {dns-test: 'true'}, ports: [{name: http, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP, targetPort: 53}]"));
    space.ready(&["querier", "client"]);
    let ask = |args: &[&str]| {
        let mut all = vec!["@10.43.0.10", "+short"];
        all.extend(args);
        dig(cluster, &all).trim().to_owned()
    };
    let ip = space.field("pod/querier", ".status.podIP");
    let address = space.field("service/regular", ".spec.clusterIP");
    eventually("the headless service's endpoint", || {
        let found = ask(&["headless.dns.svc.cluster.local"]);
        if found == ip { Ok(()) } else { Err(found) }
    });
    for transport in ["+notcp", "+tcp"] {
        let ask = |name: &str, kind: &str| ask(&[transport, &format!("{name}.cluster.local"), kind]);
        assert_eq!(ask("kubernetes.default.svc", "A"), "10.43.0.1");
        assert_eq!(ask("regular.dns.svc", "A"), address);
        assert_eq!(ask("querier-2.headless.dns.svc", "A"), ip);
        assert_eq!(ask("_http._tcp.headless.dns.svc", "SRV"), "0 100 8080 querier-2.headless.dns.svc.cluster.local.");
        assert_eq!(ask("_http._tcp.regular.dns.svc", "SRV"), "0 100 80 regular.dns.svc.cluster.local.");
        assert_eq!(ask("_dns._udp.regular.dns.svc", "SRV"), "0 100 53 regular.dns.svc.cluster.local.");
        assert_eq!(ask("_http._udp.regular.dns.svc", "SRV"), "", "no such port");
        assert_eq!(ask("regular.dns.svc", "AAAA"), "");
    }
    assert_eq!(ask(&["-x", &address]), "regular.dns.svc.cluster.local.");
    assert_eq!(ask(&["-x", &ip]), "querier-2.headless.dns.svc.cluster.local.");
    // From a pod, names in all their lengths (nslookup of busybox does not search).
    for name in [
        "headless",
        "headless.dns",
        "headless.dns.svc",
        "querier-2.headless",
        "querier-2.headless.dns.svc.cluster.local",
    ] {
        space.expect("client", &format!("http://{name}:8080/"), true);
    }
    for name in ["regular", "regular.dns", "regular.dns.svc", "regular.dns.svc.cluster.local."] {
        space.expect("client", &format!("http://{name}/"), true);
    }
}

fn hosts_files(cluster: &Cluster) {
    let space = Space::new(cluster, "hosts");
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: own}, spec: {hostname: named, subdomain: sub, terminationGracePeriodSeconds: 0,
            hostAliases: [{ip: 123.45.67.89, hostnames: [name-a, name-b]}, {ip: 'fe00::1', hostnames: [name-six]}],
            containers: [{name: one, image: 'busybox:test', command: [sleep, '100000']}, {name: two, image: 'busybox:test', command: [sleep, '100000']},
                {name: mounted, image: 'busybox:test', command: [sleep, '100000'], volumeMounts: [{name: hosts, mountPath: /etc/hosts}]}],
            volumes: [{name: hosts, hostPath: {path: /etc/hosts, type: File}}]}}",
    );
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: onhost}, spec: {hostNetwork: true, terminationGracePeriodSeconds: 0,
            containers: [{name: one, image: 'busybox:test', command: [sleep, '100000']}]}}",
    );
    space.ready(&["own", "onhost"]);
    let file = |pod: &str, container: &str| space.kubectl(&["exec", pod, "-c", container, "--", "cat", "/etc/hosts"]);
    let ip = space.field("pod/own", ".status.podIP");
    for container in ["one", "two"] {
        let found = file("own", container);
        assert!(found.starts_with("# Kubernetes-managed hosts file."), "{found}");
        assert!(found.lines().any(|line| line == format!("{ip}\tnamed.sub.hosts.svc.cluster.local\tnamed")), "{found}");
        assert!(found.contains("123.45.67.89\tname-a\tname-b") && found.contains("fe00::1\tname-six"), "{found}");
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(file("own", "mounted"), hosts, "the container's own");
    let found = file("onhost", "one");
    assert!(found.contains(hosts.trim()), "the host's entries are there: {found}");
    // the name of a pod with a host name and a subdomain
    assert_eq!(space.kubectl(&["exec", "own", "-c", "one", "--", "hostname"]).trim(), "named");
    assert_eq!(
        space.kubectl(&["exec", "own", "-c", "one", "--", "hostname", "-f"]).trim(),
        "named.sub.hosts.svc.cluster.local"
    );
}

fn resolver_of_pods(cluster: &Cluster) {
    let space = Space::new(cluster, "resolver");
    let pod = |name: &str, more: &str| {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, {more}, containers: [{{name: one, image: 'busybox:test', command: [sleep, '100000']}}]}}}}"
        ));
    };
    pod(
        "none",
        "dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1], searches: [resolv.conf.local], options: [{name: ndots, value: '3'}, {name: edns0}]}",
    );
    pod("first", "dnsPolicy: ClusterFirst, dnsConfig: {searches: [more.example]}");
    pod("host", "dnsPolicy: Default");
    pod("onhost", "hostNetwork: true, dnsPolicy: ClusterFirst");
    pod("onhost-first", "hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet");
    space.ready(&["none", "first", "host", "onhost", "onhost-first"]);
    let lines = |pod: &str| -> Vec<String> {
        let file = space.kubectl(&["exec", pod, "--", "cat", "/etc/resolv.conf"]);
        file.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(lines("none"), ["search resolv.conf.local", "nameserver 1.1.1.1", "options ndots:3 edns0"]);
    for name in ["first", "onhost-first"] {
        let found = lines(name);
        assert!(found.contains(&"nameserver 10.43.0.10".to_owned()), "{found:?}");
        let search = found.iter().find(|line| line.starts_with("search ")).unwrap();
        assert!(search.starts_with("search resolver.svc.cluster.local svc.cluster.local cluster.local"), "{search}");
        assert_eq!(search.ends_with(" more.example"), name == "first", "{search}");
        assert!(found.iter().any(|line| line.starts_with("options ") && line.contains("ndots:5")), "{found:?}");
    }
    for name in ["host", "onhost"] {
        assert!(!lines(name).contains(&"nameserver 10.43.0.10".to_owned()), "{name}");
    }
}

/// One number for several pods, as long as addresses or protocols differ.
fn host_ports(cluster: &Cluster) {
    let space = Space::new(cluster, "hostports");
    let pod = |name: &str, host_ip: &str, protocol: &str| {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: one, image: 'echo:v1', env: [{{name: UDP_PORT, value: '8080'}}],
                ports: [{{containerPort: 8080, hostPort: 54323, hostIP: {host_ip}, protocol: {protocol}}}]}}]}}}}"
        ));
    };
    let node = cluster.ip.to_string();
    pod("local", "127.0.0.1", "TCP");
    pod("node", &node, "TCP");
    pod("datagrams", &node, "UDP");
    space.ready(&["local", "node", "datagrams"]);
    let answer = |ip: &str| cluster.inside(|| http_get(SocketAddr::new(ip.parse().unwrap(), 54323), "/"));
    assert!(answer("127.0.0.1").unwrap().contains("host=local"));
    assert!(answer(&node).unwrap().contains("host=node"));
    assert!(ask_datagram(cluster, SocketAddr::new(cluster.ip.into(), 54323)).unwrap().starts_with("host=datagrams"));
    // The same again has no place.
    pod("taken", &node, "TCP");
    eventually("a pod without a place", || {
        let found = space.field("pod/taken", ".status.conditions[?(@.type==\"PodScheduled\")].message");
        if found.contains("free ports") { Ok(()) } else { Err(found) }
    });
}

/// A server with TLS outside of the cluster, which nobody vouches for: answers every request with a page.
fn serve_tls(address: SocketAddr) -> u16 {
    let key = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind(address).unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream);
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let page = "<a href=\"/tlsrewriteme\">test</a>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}",
                page.len()
            );
        }
    });
    port
}

fn proxies(cluster: &Cluster) {
    let space = Space::new(cluster, "proxied");
    pod_with_ports(&space, "web", &[("dest1", 160), ("dest2", 162), ("http", 80)]);
    space.server("second");
    space.apply(&service(
        "web",
        "selector: {app: web}, ports: [{name: portname1, port: 80, targetPort: dest1}, {name: portname2, port: 81, targetPort: 162}]",
    ));
    space.apply(&service("single", "selector: {app: web}, ports: [{port: 80, targetPort: http}]"));
    space.ready(&["web", "second"]);
    let port = serve_tls(SocketAddr::new(outside(cluster).into(), 0));
    space.apply(&service("tls", "ports: [{name: https, port: 443}]"));
    space.apply(&format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: tls, labels: {{kubernetes.io/service-name: tls}}}}, addressType: IPv4,
            endpoints: [{{addresses: [{}]}}], ports: [{{name: https, port: {port}}}]}}",
        outside(cluster)
    ));
    space.kubectl(&["create", "serviceaccount", "proxier"]);
    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        "proxier",
        "--clusterrole=cluster-admin",
        "--serviceaccount=proxied:proxier",
    ]);
    let token = space.kubectl(&["create", "token", "proxier"]);
    let authorization = format!("Authorization: Bearer {}", token.trim());
    let root = "/api/v1/namespaces/proxied";
    // Answers: status, where it leads to, body.
    let ask = |method: &str, path: &str| {
        let url = format!("https://{}:6443{root}{path}", cluster.ip);
        let mut curl = Command::new("curl");
        curl.args(["-sSk", "-w", "\n%{http_code} %{redirect_url}", "-H", &authorization]);
        if method == "HEAD" {
            curl.args(["-I", "-o", "/dev/null"]);
        } else {
            curl.args(["-X", method]);
        }
        let text = success(path, curl.arg(url).output().unwrap());
        let (body, end) = text.rsplit_once('\n').unwrap();
        let (status, location) = end.split_once(' ').unwrap();
        (status.to_owned(), location.replace(&format!("https://{}:6443{root}", cluster.ip), ""), body.to_owned())
    };
    let ok = |path: &str| {
        eventually(path, || match ask("GET", path) {
            (status, _, body) if status == "200" => Ok(body),
            other => Err(format!("{other:?}")),
        })
    };
    // Every form of the name of a port.
    for (name, container) in [
        ("services/web:portname1", "160"),
        ("services/http:web:portname1", "160"),
        ("services/web:80", "160"),
        ("services/web:portname2", "162"),
        ("services/single", "80"),
        ("pods/web:160", "160"),
        ("pods/http:web:162", "162"),
        ("pods/web:80", "80"),
    ] {
        assert_eq!(ok(&format!("/{name}/proxy/env/PORT")), container, "{name}");
    }
    for target in ["pods/second:8080", "services/single"] {
        for method in ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"] {
            let (status, _, body) = ask(method, &format!("/{target}/proxy/some/path/with/{method}?a=b"));
            assert_eq!(status, "200", "{method} {body}");
            assert!(body.contains(&format!("path=/some/path/with/{method}?a=b method={method}")), "{body}");
        }
        assert_eq!(ask("HEAD", &format!("/{target}/proxy/some/path")).0, "200");
        // Without a path: those who read are led to the root, the others are there.
        let path = format!("/{target}/proxy");
        for method in ["GET", "HEAD"] {
            let (status, location, _) = ask(method, &format!("{path}?method={method}"));
            assert_eq!((status.as_str(), location), ("301", format!("{path}/?method={method}")));
        }
        for method in ["DELETE", "OPTIONS", "PATCH", "POST", "PUT"] {
            let (status, _, body) = ask(method, &format!("{path}?method={method}"));
            assert!(status == "200" && body.contains(&format!("path=/?method={method} method={method}")), "{body}");
        }
        // Links lead through the proxy.
        assert_eq!(ok(&format!("{path}/page")), format!("<a href=\"{root}{path}/elsewhere\">there</a>"));
        let (status, location, _) = ask("GET", &format!("{path}/moved"));
        assert_eq!((status.as_str(), location), ("302", format!("{path}/page")));
    }
    let page = ok("/services/https:tls:https/proxy/");
    assert_eq!(page, format!("<a href=\"{root}/services/https:tls:https/proxy/tlsrewriteme\">test</a>"));
    let wrong = ask("GET", "/services/tls:https/proxy/");
    assert_ne!(wrong.0, "200", "HTTP to a server with TLS");
    assert_eq!(ask("GET", "/services/web:nothing/proxy/").0, "503");
    assert_eq!(ask("GET", "/pods/absent/proxy/").0, "404");
    // A node by its name, with and without its kubelet's port.
    for name in ["node-1", "node-1:10250"] {
        let healthy = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{name}/proxy/healthz")]);
        assert_eq!(healthy, "ok", "{name}");
    }
}

/// The pods that answer a client's requests.
fn answering(space: &Space<'_>, client: &str, url: &str) -> BTreeSet<String> {
    let script = format!("for i in $(seq 12); do timeout 3 wget -qO- {url}; echo; done");
    let out = space.kubectl(&["exec", client, "--", "sh", "-c", &script]);
    out.split_whitespace().filter_map(|word| word.strip_prefix("host=").map(str::to_owned)).collect()
}

#[test]
fn traffic_stays_near_where_a_service_says_so() {
    let cluster = Cluster::start();
    let _agent = Agent::start(&cluster, 1);
    let space = Space::new(&cluster, "near");
    let zone = |node: &str, zone: &str| {
        cluster.kubectl(&["label", "node", node, &format!("topology.kubernetes.io/zone={zone}"), "--overwrite"]);
    };
    zone("node-1", "east");
    zone("node-2", "west");
    for (name, node) in [("here", "node-1"), ("there", "node-2")] {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}}}, spec: {{nodeName: {node}, terminationGracePeriodSeconds: 0,
                containers: [{{name: main, image: 'echo:v1', ports: [{{name: http, containerPort: 8080}}]}}]}}}}"
        ));
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: client-{name}}}, spec: {{nodeName: {node}, terminationGracePeriodSeconds: 0,
                containers: [{{name: main, image: 'busybox:test', command: [sleep, '100000']}}]}}}}"
        ));
    }
    space.apply(&service("web", "type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]"));
    space.ready(&["here", "there", "client-here", "client-there"]);
    let distribute = |distribution: Option<&str>| {
        let patch = json!({"spec": {"trafficDistribution": distribution}}).to_string();
        space.kubectl(&["patch", "service", "web", "--type=merge", "-p", &patch]);
    };
    let expect = |what: &str, from_here: &[&str], from_there: &[&str]| {
        for (client, expected) in [("client-here", from_here), ("client-there", from_there)] {
            let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            eventually(&format!("{what}, {client}"), || {
                let found = answering(&space, client, "http://web/");
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
    };
    let hints = |path: &str| {
        let found = space.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            &format!("jsonpath={{.items[*].endpoints[*].hints.{path}}}"),
        ]);
        found.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let names = |all: [&str; 2]| all.map(str::to_owned).into();
    expect("anywhere", &["here", "there"], &["here", "there"]);
    assert!(hints("forZones[*].name").is_empty());
    for distribution in ["PreferSameZone", "PreferClose"] {
        distribute(Some(distribution));
        expect(distribution, &["here"], &["there"]);
        assert_eq!(hints("forZones[*].name"), names(["east", "west"]));
        assert!(hints("forNodes[*].name").is_empty());
    }
    // One zone for both nodes: near enough, but not the same node.
    zone("node-2", "east");
    expect("one zone", &["here", "there"], &["here", "there"]);
    distribute(Some("PreferSameNode"));
    expect("PreferSameNode", &["here"], &["there"]);
    assert_eq!(hints("forNodes[*].name"), names(["node-1", "node-2"]));
    // A preference is no condition.
    space.kubectl(&["delete", "pod", "here"]);
    expect("the only one left", &["there"], &["there"]);
    // Local is one: a node without endpoints lets nobody in, and its own clients neither.
    let port: u16 = space.field("service/web", ".spec.ports[0].nodePort").parse().unwrap();
    let policy = r#"{"spec":{"externalTrafficPolicy":"Local","internalTrafficPolicy":"Local"}}"#;
    space.kubectl(&["patch", "service", "web", "--type=merge", "-p", policy]);
    let node = |last: u8| http_get(SocketAddr::new(cluster.address(last).into(), port), "/");
    eventually("the node without endpoints is silent", || node(2).err().ok_or_else(|| "it answers".to_owned()));
    let answer = eventually("the node with an endpoint", || node(11));
    assert!(answer.contains("host=there") && answer.contains(&format!("peer={}", cluster.address(1))), "{answer}");
    space.expect("client-here", "http://web/", false);
    space.expect("client-there", "http://web/", true);
}

#[test]
fn parts_that_are_left_out_and_ports_that_are_taken() {
    let mut cluster = Cluster::prepare(&["--disable=servicelb,traefik", "--nodeport-addresses=10.254.0.0/16"]);
    // Others have the DNS's port, on all addresses, and a port that a service will want.
    let dns = cluster.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    let web = cluster.inside(|| TcpListener::bind("0.0.0.0:31500").unwrap());
    cluster.launch();
    let told = eventually("the event", || {
        let found = cluster.kubectl(&[
            "get",
            "events",
            "--field-selector=reason=DNSNotServing",
            "-o",
            "jsonpath={.items[*].message}",
        ]);
        if found.is_empty() { Err(cluster.kubectl(&["get", "events", "-A"])) } else { Ok(found) }
    });
    assert!(told.contains("10.43.0.10:53") && told.contains("another program"), "{told}");
    drop(dns);
    eventually("names as soon as the port is free", || {
        let found = cluster.inside(|| {
            Command::new("dig")
                .args(["@10.43.0.10", "+time=1", "+tries=1", "+short", "kubernetes.default.svc.cluster.local"])
                .output()
                .unwrap()
        });
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        if found.trim() == "10.43.0.1" { Ok(()) } else { Err(found) }
    });
    // What the DNS counts, as CoreDNS serves it and as the kubelet does.
    let metrics = |text: String| assert!(text.contains("coredns_dns_requests_total{proto=\"udp\"}"), "{text}");
    metrics(cluster.inside(|| http_get("10.43.0.10:9153".parse().unwrap(), "/metrics")).unwrap());
    metrics(cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]));
    let space = Space::new(&cluster, "options");
    space.server("web");
    space.apply(&service(
        "web",
        "type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 31500}]",
    ));
    space.ready(&["web"]);
    let answer = eventually("the node's port", || from_outside(&cluster, 31500));
    assert!(answer.contains("host=web"), "the service comes before the program: {answer}");
    eventually("the log tells of the program", || {
        let log = cluster.log();
        if log.contains("listens on a port of a service") && log.contains("31500") { Ok(()) } else { Err(log) }
    });
    // On other addresses the port is the program's.
    let own = cluster.inside(|| std::net::TcpStream::connect("127.0.0.1:31500").unwrap());
    assert_eq!(web.accept().unwrap().1, own.local_addr().unwrap());
    assert_eq!(space.field("service/web", ".status.loadBalancer.ingress"), "", "nobody gives addresses");
    drop(cluster);

    let cluster = Cluster::start_with(&["--disable=coredns", "--disable-kube-proxy", "--disable-network-policy"]);
    let space = Space::new(&cluster, "bare");
    space.server("web");
    space.client("client");
    space.apply(&service("web", "selector: {app: web}, ports: [{port: 80, targetPort: http}]"));
    space.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}",
    );
    space.ready(&["web", "client"]);
    let ip = space.field("pod/web", ".status.podIP");
    space.expect("client", &url(&ip, 8080), true);
    assert_eq!(space.fetch("client", &url(&space.field("service/web", ".spec.clusterIP"), 80)), None);
    let services = cluster.kubectl(&["get", "services", "-n", "kube-system", "-o", "name"]);
    assert_eq!(services, "", "the DNS's service is for whoever brings one");
    assert!(space.kubectl(&["exec", "client", "--", "cat", "/etc/resolv.conf"]).contains("nameserver 10.43.0.10"));
    let links = cluster.inside(|| Command::new("ip").args(["-brief", "link"]).output().unwrap());
    assert!(!String::from_utf8_lossy(&links.stdout).contains("edge-dns"));
}
