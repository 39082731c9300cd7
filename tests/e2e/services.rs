//! Services of every type, network policies and names on a cluster of both families, each flow in its own namespace.

use crate::harness::space::{Space, dig, from_outside, outside, url};
use crate::harness::{Cluster, Kubectl, eventually};
use std::collections::BTreeSet;
use std::net::UdpSocket;

type Flow = fn(&Cluster);

#[test]
fn services_policies_and_names_in_both_families() {
    let families = ["--cluster-cidr=10.42.0.0/16,fd42::/56", "--service-cidr=10.43.0.0/16,fd43::/112"];
    let cluster = Cluster::start_with(&families);
    let flows: [(&str, Flow); 6] = [
        ("two families", two_families),
        ("load balancers", load_balancers),
        ("affinity", affinity),
        ("ingress policies", ingress_policies),
        ("egress policies", egress_policies),
        ("names", names),
    ];
    std::thread::scope(|s| {
        for (name, flow) in flows {
            let cluster = &cluster;
            std::thread::Builder::new().name(name.to_owned()).spawn_scoped(s, move || flow(cluster)).unwrap();
        }
    });
}

fn two_families(cluster: &Cluster) {
    let space = Space::new(cluster, "families");
    space.server("web");
    space.client("client");
    let service = |name: &str, more: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: web}}, {more},
                ports: [{{name: http, port: 80, targetPort: http}}]}}}}"
        )
    };
    space.apply(&service("both", "ipFamilyPolicy: PreferDualStack"));
    space.apply(&service("six", "ipFamilies: [IPv6]"));
    space.apply(&service("four", "type: ClusterIP"));
    space.apply(&service("headless", "clusterIP: None, ipFamilyPolicy: RequireDualStack"));
    space.ready(&["web", "client"]);
    let [web4, web6] = space.ips("web");
    let [client4, client6] = space.ips("client");
    assert!(web6.starts_with("fd42:"), "{web6}");
    let both = space.field("service/both", ".spec.clusterIPs[*]");
    let (both4, both6) = both.split_once(' ').unwrap();
    assert!(both4.starts_with("10.43.") && both6.starts_with("fd43:"), "{both}");
    assert_eq!(space.field("service/four", ".spec.ipFamilyPolicy"), "SingleStack");
    let six = space.field("service/six", ".spec.clusterIP");
    assert!(six.starts_with("fd43:"), "{six}");
    for address in [both4, both6, &six] {
        space.expect("client", &url(address, 80), true);
    }
    assert!(space.fetch("client", &url(both6, 80)).unwrap().contains(&format!("peer={client6}")));
    assert!(space.fetch("client", &url(both4, 80)).unwrap().contains(&format!("peer={client4}")));
    let itself = space.kubectl(&["exec", "web", "--", "wget", "-qO-", &url(both6, 80)]);
    assert!(itself.contains("host=web"), "{itself}");
    for server in ["10.43.0.10", "fd43::a"] {
        let ask = |name: &str, kind: &str| {
            dig(cluster, &[&format!("@{server}"), "+short", &format!("{name}.families.svc.cluster.local"), kind])
        };
        assert_eq!(ask("both", "A").trim(), both4);
        assert_eq!(ask("both", "AAAA").trim(), both6);
        assert_eq!((ask("six", "A").trim(), ask("six", "AAAA").trim()), ("", six.as_str()));
        assert_eq!((ask("headless", "A").trim(), ask("headless", "AAAA").trim()), (web4.as_str(), web6.as_str()));
    }
    let kinds = space.kubectl(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=both",
        "-o",
        "jsonpath={.items[*].addressType}",
    ]);
    assert_eq!(kinds.split(' ').collect::<BTreeSet<_>>(), BTreeSet::from(["IPv4", "IPv6"]));
    // Back to one family, and what is impossible.
    space.kubectl(&["patch", "service", "both", "--type=merge", "-p", r#"{"spec":{"ipFamilyPolicy":"SingleStack"}}"#]);
    assert_eq!(space.field("service/both", ".spec.clusterIPs[*]"), both4);
    space.expect("client", &url(both6, 80), false);
    let bad = [
        service("bad", "clusterIP: 10.44.0.1"),
        service("bad", "ipFamilies: [IPv4, IPv4]"),
        service("bad", "sessionAffinity: Cookie"),
    ];
    for (manifest, complaint) in bad.iter().zip(["not in the valid range", "Duplicate value", "Unsupported value"]) {
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["-n", "families", "create", "-f", "-"], manifest);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && told.contains(complaint), "{told}");
    }
}

fn load_balancers(cluster: &Cluster) {
    let space = Space::new(cluster, "balancers");
    space.server("web");
    let service = |name: &str, port: u16, policy: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, selector: {{app: web}},
                externalTrafficPolicy: {policy}, ports: [{{port: {port}, targetPort: http}}]}}}}"
        )
    };
    space.apply(&service("web", 8000, "Cluster"));
    space.apply(&service("near", 8001, "Local"));
    space.ready(&["web"]);
    let node = cluster.ip.to_string();
    for name in ["web", "near"] {
        eventually("the node's address", || {
            let found = space.field(&format!("service/{name}"), ".status.loadBalancer.ingress[*].ip");
            if found == node { Ok(()) } else { Err(found) }
        });
    }
    let answer = |port: u16| eventually(&format!("port {port}"), || from_outside(cluster, port));
    assert!(answer(8000).contains("peer=10.42.0.1"), "behind the node");
    assert!(answer(8001).contains(&format!("peer={}", outside(cluster))), "as itself");
    // The health check of whoever balances load outside.
    let health: u16 = space.field("service/near", ".spec.healthCheckNodePort").parse().unwrap();
    eventually("the health check", || {
        let body = from_outside(cluster, health)?;
        if body.contains("\"localEndpoints\": 1") { Ok(()) } else { Err(body) }
    });
    // A port of an address is one service's; another class is somebody else's.
    space.apply(&service("late", 8000, "Cluster"));
    space.apply(
        &service("foreign", 8002, "Cluster")
            .replace("type: LoadBalancer", "type: LoadBalancer, loadBalancerClass: metal/lb"),
    );
    eventually("the event", || {
        let events = space.kubectl(&[
            "get",
            "events",
            "--field-selector=involvedObject.name=late",
            "-o",
            "jsonpath={.items[*].reason}",
        ]);
        if events.contains("SyncLoadBalancerFailed") { Ok(()) } else { Err(events) }
    });
    for name in ["late", "foreign"] {
        assert_eq!(space.field(&format!("service/{name}"), ".status.loadBalancer.ingress"), "");
    }
    space.kubectl(&["delete", "service", "web"]);
    eventually("the next one gets it", || {
        let found = space.field("service/late", ".status.loadBalancer.ingress[*].ip");
        if found == node { Ok(()) } else { Err(found) }
    });
    assert!(answer(8000).contains("peer="));
    // Only some clients.
    let restrict = |range: &str| {
        let patch = format!(r#"{{"spec":{{"loadBalancerSourceRanges":["{range}"]}}}}"#);
        space.kubectl(&["patch", "service", "near", "--type=merge", "-p", &patch]);
    };
    restrict("192.0.2.0/24");
    eventually("nobody else is let in", || match from_outside(cluster, 8001) {
        Ok(body) => Err(body),
        Err(_) => Ok(()),
    });
    restrict(&format!("{}/32", outside(cluster)));
    assert!(answer(8001).contains("peer="));
    // Without endpoints here: no address, no health.
    space.kubectl(&["delete", "pod", "web"]);
    eventually("no address without endpoints", || {
        let found = space.field("service/near", ".status.loadBalancer.ingress[*].ip");
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    let unhealthy = eventually("no health without endpoints", || match from_outside(cluster, health) {
        Ok(body) => Err(body),
        Err(head) => Ok(head),
    });
    assert!(unhealthy.contains("503"), "{unhealthy}");
    // Another type: what the old one had goes.
    space.kubectl(&["patch", "service", "late", "--type=merge", "-p", r#"{"spec":{"type":"ClusterIP"}}"#]);
    assert_eq!(space.field("service/late", ".spec.ports[0].nodePort"), "");
    eventually("no address any more", || {
        let found = space.field("service/late", ".status.loadBalancer.ingress[*].ip");
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
}

fn affinity(cluster: &Cluster) {
    let space = Space::new(cluster, "affinity");
    let names = ["a", "b", "c"];
    names.iter().for_each(|name| space.server(name));
    space.client("client");
    let service = |name: &str, affinity: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{kind: server}},
                sessionAffinity: {affinity}, ports: [{{port: 80, targetPort: http}}]}}}}"
        )
    };
    space.apply(&service("sticky", "ClientIP"));
    space.apply(&service("free", "None"));
    space.ready(&["a", "b", "c", "client"]);
    for name in ["sticky", "free"] {
        eventually("three endpoints", || {
            let label = format!("kubernetes.io/service-name={name}");
            let found = space.kubectl(&[
                "get",
                "endpointslices",
                "-l",
                &label,
                "-o",
                "jsonpath={.items[*].endpoints[*].conditions.ready}",
            ]);
            if found == "true true true" { Ok(()) } else { Err(found) }
        });
    }
    let hosts = |service: &str| -> BTreeSet<String> {
        let script = format!("for i in $(seq 30); do timeout 3 wget -qO- http://{service}/; echo; done");
        let out = space.kubectl(&["exec", "client", "--", "sh", "-c", &script]);
        out.split_whitespace().filter_map(|word| word.strip_prefix("host=").map(str::to_owned)).collect()
    };
    eventually("all are used", || {
        let found = hosts("free");
        if found.len() == 3 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let first = hosts("sticky");
    assert_eq!(first.len(), 1, "{first:?}");
    let chosen = first.first().unwrap();
    space.kubectl(&["delete", "pod", chosen]);
    eventually("another one when it has gone", || {
        let second = hosts("sticky");
        if second.len() == 1 && second != first { Ok(()) } else { Err(format!("{second:?}")) }
    });
}

const DENY_ALL: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}, policyTypes: [Ingress]}}";

fn ingress_policies(cluster: &Cluster) {
    let (space, other) = (Space::new(cluster, "ingress"), Space::new(cluster, "ingress-other"));
    space.server("web");
    ["friend", "stranger"].iter().for_each(|name| space.client(name));
    other.client("friend");
    space.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, externalTrafficPolicy: Local, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 31080}]}}");
    space.ready(&["web", "friend", "stranger"]);
    other.ready(&["friend"]);
    let [web4, web6] = space.ips("web");
    let urls = [url(&web4, 8080), url(&web6, 8080), "http://web.ingress/".to_owned()];
    let expect = |friend: bool, stranger: bool, elsewhere: bool, from_outside: bool| {
        for url in &urls {
            space.expect("friend", url, friend);
            space.expect("stranger", url, stranger);
            other.expect("friend", url, elsewhere);
        }
        eventually("the outside", || match self::from_outside(cluster, 31080) {
            Ok(_) if from_outside => Ok(()),
            Err(_) if !from_outside => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    let policy = |rule: &str| {
        space.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web}}, spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{rule}]}}}}"
        ));
    };
    expect(true, true, true, true);
    space.apply(DENY_ALL);
    expect(false, false, false, false);
    let ready = space.field("pod/web", ".status.containerStatuses[0].ready");
    assert_eq!(ready, "true", "probes come from the node");
    policy("{from: [{podSelector: {matchLabels: {app: friend}}}]}");
    expect(true, false, false, false);
    policy("{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-other}}}]}");
    expect(false, false, true, false);
    policy(&format!("{{from: [{{ipBlock: {{cidr: {}/32}}}}]}}", outside(cluster)));
    expect(false, false, false, true);
    policy("{ports: [{port: http}]}");
    expect(true, true, true, true);
    policy("{ports: [{port: 8000, endPort: 8079}]}");
    expect(false, false, false, false);
    policy("{ports: [{port: 8000, endPort: 8080}]}, {from: [{podSelector: {}}]}");
    expect(true, true, true, true);
    // Labels change, and with them who may.
    policy("{from: [{podSelector: {matchLabels: {role: guest}}}]}");
    expect(false, false, false, false);
    space.kubectl(&["label", "pod", "stranger", "role=guest"]);
    expect(false, true, false, false);
    space.kubectl(&["delete", "networkpolicy", "--all"]);
    expect(true, true, true, true);
    let bad = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad}, spec: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}}";
    let out = cluster.kubectl_stdin(Kubectl::Newest, &["-n", "ingress", "create", "-f", "-"], bad);
    assert!(String::from_utf8_lossy(&out.stderr).contains("must be greater than or equal to `port`"));
}

fn egress_policies(cluster: &Cluster) {
    let space = Space::new(cluster, "egress");
    space.server("web");
    space.client("client");
    space.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}");
    space.ready(&["web", "client"]);
    let [web4, web6] = space.ips("web");
    let by_name = "http://web.egress.svc.cluster.local/";
    for url in [url(&web4, 8080), url(&web6, 8080), by_name.to_owned()] {
        space.expect("client", &url, true);
    }
    let policy = |rules: &str| {
        space.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: out}}, spec: {{podSelector: {{matchExpressions: [{{key: app, operator: NotIn, values: [web]}}]}}, policyTypes: [Egress], egress: [{rules}]}}}}"
        ));
    };
    policy("");
    for url in [url(&web4, 8080), url(&web6, 8080), by_name.to_owned()] {
        space.expect("client", &url, false);
    }
    // From its first packet on: a pod that is made under the policy.
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: quick, labels: {{app: quick}}}}, spec: {{restartPolicy: Never, containers: [{{name: main, image: 'busybox:test',
            command: [sh, -c, 'for i in 1 2 3; do timeout 1 wget -qO- {} && echo LEAKED; done; echo done']}}]}}}}",
        url(&web4, 8080)
    ));
    space.kubectl(&["wait", "pod/quick", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]);
    let log = space.kubectl(&["logs", "quick"]);
    assert!(log.contains("done") && !log.contains("LEAKED"), "{log}");
    let dns = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}";
    policy(dns);
    eventually("names are known again", || {
        let out = cluster.try_kubectl(
            Kubectl::Newest,
            &["-n", "egress", "exec", "client", "--", "nslookup", "web.egress.svc.cluster.local"],
        );
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stdout).into_owned()) }
    });
    assert_eq!(space.fetch("client", by_name), None);
    policy(&format!("{dns}, {{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: http}}]}}"));
    space.expect("client", by_name, true);
    policy("{to: [{ipBlock: {cidr: 'fd42::/56'}}]}");
    space.expect("client", &url(&web6, 8080), true);
    space.expect("client", &url(&web4, 8080), false);
    space.kubectl(&["delete", "networkpolicy", "out"]);
    space.expect("client", by_name, true);
}

fn names(cluster: &Cluster) {
    let space = Space::new(cluster, "names");
    space.apply("{apiVersion: v1, kind: Service, metadata: {name: far}, spec: {type: ExternalName, externalName: www.corp.example}}");
    // Endpoints that somebody writes by hand get slices, too.
    space.apply("{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, ipFamilyPolicy: SingleStack, ports: [{name: sql, port: 5432}]}}");
    space.apply("{apiVersion: v1, kind: Endpoints, metadata: {name: db}, subsets: [{addresses: [{ip: 192.0.2.50}], ports: [{name: sql, port: 5432}]}]}");
    let ask = |args: &[&str]| {
        let mut all = vec!["@10.43.0.10"];
        all.extend(args);
        dig(cluster, &all)
    };
    eventually("the mirrored slice has a name", || {
        let found = ask(&["+short", "db.names.svc.cluster.local"]);
        if found.trim() == "192.0.2.50" { Ok(()) } else { Err(found) }
    });
    assert!(
        ask(&["+short", "_sql._tcp.db.names.svc.cluster.local", "SRV"])
            .contains("5432 192-0-2-50.db.names.svc.cluster.local.")
    );
    assert!(ask(&["+tcp", "nothing.names.svc.cluster.local"]).contains("NXDOMAIN"));
    assert_eq!(ask(&["+short", "dns-version.cluster.local", "TXT"]).trim(), "\"1.1.0\"");
    // A domain with a name server of its own, outside of the cluster.
    let socket = UdpSocket::bind((outside(cluster), 0)).unwrap();
    let server = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            // The question comes back with one answer: the question's name is 192.0.2.77.
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
            let mut answer = query[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            let _ = socket.send_to(&answer, client);
        }
    });
    let stub = format!(r#"{{"corp.example": ["{server}"]}}"#);
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "create",
        "configmap",
        "coredns-custom",
        &format!("--from-literal=stubDomains={stub}"),
    ]);
    eventually("the domain's own name server answers", || {
        let found = ask(&["+short", "www.corp.example"]);
        if found.trim() == "192.0.2.77" { Ok(()) } else { Err(found) }
    });
    assert_eq!(ask(&["+short", "far.names.svc.cluster.local"]), "www.corp.example.\n192.0.2.77\n");
}
