//! Where pods go, and why some go nowhere: the scheduler beside a real API server, with real pods where they run and with nodes that are
//! only objects where it is about many.

use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

type Flow = fn(&Cluster);

#[test]
fn pods_go_where_they_should() {
    let cluster = Cluster::start();
    let flows: [(&str, Flow); 6] = [
        ("reasons", reasons_are_told_and_changes_help),
        ("preemption", room_is_made_for_the_important),
        ("host ports", host_ports_do_not_clash),
        ("spread", pods_are_spread),
        ("neighbours", pods_go_near_and_apart),
        ("gates", gates_hold_pods_back),
    ];
    std::thread::scope(|s| {
        for (name, flow) in flows {
            let cluster = &cluster;
            std::thread::Builder::new().name(name.to_owned()).spawn_scoped(s, move || flow(cluster)).unwrap();
        }
    });
}

/// Makes a node that is only an object: it is ready, and nothing runs on it.
fn hollow(cluster: &Cluster, name: &str, labels: &str, allocatable: &Value) {
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}, {labels}}}}}}}"
    ));
    let conditions = json!([{"type": "Ready", "status": "True", "reason": "Test"}]);
    let status = json!({"status": {"allocatable": allocatable, "capacity": allocatable, "conditions": conditions}});
    cluster.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status.to_string()]);
    eventually("the new node may be used", || {
        let node = cluster.get(&["node", name]);
        let taints = &node["spec"]["taints"];
        if taints.is_null() { Ok(()) } else { Err(taints.to_string()) }
    });
}

/// The node that a pod got.
fn node_of(space: &Space<'_>, pod: &str) -> String {
    eventually(&format!("{pod} gets a node"), || {
        let node = space.field(&format!("pod/{pod}"), ".spec.nodeName");
        let why = || space.field(&format!("pod/{pod}"), ".status.conditions[?(@.type=='PodScheduled')].message");
        if node.is_empty() { Err(why()) } else { Ok(node) }
    })
}

/// The pod waits, and its status says so with these words.
fn waits_because(space: &Space<'_>, pod: &str, message: &str) {
    eventually(&format!("{pod} says why it waits"), || {
        let path = ".status.conditions[?(@.type=='PodScheduled')]";
        let condition = space.field(&format!("pod/{pod}"), path);
        let told = condition.contains(message) && condition.contains("Unschedulable");
        if told { Ok(()) } else { Err(condition) }
    });
    assert_eq!(space.field(&format!("pod/{pod}"), ".spec.nodeName"), "");
}

fn pod(space: &Space<'_>, name: &str, labels: &str, spec: &str) {
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{{labels}}}}}, spec: {{terminationGracePeriodSeconds: 0, {spec}}}}}"
    ));
}

/// A container that does nothing and asks for something.
fn asking(requests: &str) -> String {
    format!(
        "containers: [{{name: c, image: 'busybox:test', command: [sleep, '100000'], resources: {{requests: {{{requests}}}, limits: {{{requests}}}}}}}]"
    )
}

fn reasons_are_told_and_changes_help(cluster: &Cluster) {
    let space = Space::new(cluster, "reasons");
    hollow(cluster, "reasons-1", "pool: reasons", &json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    let there = "nodeSelector: {pool: reasons}";
    pod(&space, "first", "", &format!("{there}, {}", asking("cpu: 700m")));
    assert_eq!(node_of(&space, "first"), "reasons-1");
    pod(&space, "second", "", &format!("{there}, {}", asking("cpu: 700m")));
    waits_because(&space, "second", "1 Insufficient cpu");
    waits_because(&space, "second", "node(s) didn't match Pod's node affinity/selector");
    waits_because(&space, "second", "No preemption victims found for incoming pod");
    let described = space.kubectl(&["describe", "pod", "second"]);
    assert!(described.contains("FailedScheduling") && described.contains("nodes are available:"), "{described}");

    // a pod that goes, another node, a label: each lets one go ahead
    space.kubectl(&["delete", "pod", "first", "--force", "--grace-period=0", "--wait=false"]);
    assert_eq!(node_of(&space, "second"), "reasons-1");
    pod(&space, "third", "", &format!("{there}, {}", asking("cpu: 700m")));
    waits_because(&space, "third", "1 Insufficient cpu");
    hollow(cluster, "reasons-2", "pool: reasons", &json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    assert_eq!(node_of(&space, "third"), "reasons-2");
    pod(&space, "fourth", "", &format!("nodeSelector: {{disk: fast}}, {}", asking("cpu: 100m")));
    waits_because(&space, "fourth", "node(s) didn't match Pod's node affinity/selector");
    cluster.kubectl(&["label", "node", "reasons-2", "disk=fast"]);
    assert_eq!(node_of(&space, "fourth"), "reasons-2");
    cluster.kubectl(&["cordon", "reasons-2"]);
    pod(&space, "fifth", "", &format!("nodeSelector: {{disk: fast}}, {}", asking("cpu: 100m")));
    waits_because(&space, "fifth", "1 node(s) were unschedulable");
    cluster.kubectl(&["uncordon", "reasons-2"]);
    assert_eq!(node_of(&space, "fifth"), "reasons-2");
}

fn room_is_made_for_the_important(cluster: &Cluster) {
    let space = Space::new(cluster, "important");
    for (name, value, policy) in
        [("low", 10, "PreemptLowerPriority"), ("high", 1000, "PreemptLowerPriority"), ("polite", 1000, "Never")]
    {
        cluster.apply(&format!(
            "{{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {{name: {name}}}, value: {value}, preemptionPolicy: {policy}}}"
        ));
    }
    // an extended resource of the real node: victims must really end
    let node =
        cluster.get(&["nodes", "-l", "node-role.kubernetes.io/control-plane"])["items"][0]["metadata"]["name"].clone();
    let node = node.as_str().unwrap().to_owned();
    let patch = r#"{"status": {"capacity": {"example.com/slots": "3"}}}"#;
    cluster.kubectl(&["patch", "node", &node, "--subresource=status", "--type=merge", "-p", patch]);
    let of = |class: &str, slots: u8| {
        format!("priorityClassName: {class}, {}", asking(&format!("example.com/slots: '{slots}'")))
    };
    pod(&space, "low-1", "app: low", &of("low", 1));
    pod(&space, "low-2", "app: guarded", &of("low", 2));
    space.ready(&["low-1", "low-2"]);
    space.apply(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: b}, spec: {minAvailable: 1, selector: {matchLabels: {app: guarded}}}}",
    );
    eventually("the budget is counted", || {
        let healthy = space.field("pdb/b", ".status.currentHealthy");
        if healthy == "1" { Ok(()) } else { Err(healthy) }
    });
    // who may not make room waits
    pod(&space, "polite", "", &of("polite", 1));
    waits_because(&space, "polite", "not eligible due to preemptionPolicy=Never.");
    space.kubectl(&["delete", "pod", "polite", "--now"]);

    let mut told = cluster.spawn_kubectl(
        Kubectl::Newest,
        &["-n", "important", "get", "pod", "low-1", "-w", "-o", "jsonpath={.status.conditions[*].reason}{'\\n'}"],
    );
    pod(&space, "high-1", "", &of("high", 1));
    assert_eq!(node_of(&space, "high-1"), node);
    space.ready(&["high-1"]);
    assert!(space.kubectl(&["get", "pod", "low-1", "--ignore-not-found"]).is_empty(), "the victim is gone");
    let events = space.kubectl(&["get", "events", "-o", "custom-columns=A:.reason,B:.involvedObject.name,C:.message"]);
    assert!(events.lines().any(|l| l.starts_with("Preempted") && l.contains("low-1") && l.contains(&node)), "{events}");
    told.read_until("PreemptionByScheduler");
    // the guarded one stays as long as another can go; when none can, it goes
    assert_eq!(space.field("pod/low-2", ".metadata.deletionTimestamp"), "");
    pod(&space, "high-2", "", &of("high", 2));
    space.ready(&["high-2"]);
    assert!(space.kubectl(&["get", "pod", "low-2", "--ignore-not-found"]).is_empty());
}

fn host_ports_do_not_clash(cluster: &Cluster) {
    let space = Space::new(cluster, "host-ports");
    hollow(cluster, "ports-1", "pool: ports", &json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    let with = |ip: &str, protocol: &str| {
        format!(
            "nodeSelector: {{pool: ports}}, containers: [{{name: c, image: x, ports: [{{containerPort: 80, hostPort: 54321, hostIP: '{ip}', protocol: {protocol}}}]}}]"
        )
    };
    pod(&space, "one", "", &with("127.0.0.1", "TCP"));
    pod(&space, "two", "", &with("10.0.0.2", "TCP"));
    pod(&space, "three", "", &with("10.0.0.2", "UDP"));
    for name in ["one", "two", "three"] {
        assert_eq!(node_of(&space, name), "ports-1");
    }
    pod(&space, "four", "", &with("0.0.0.0", "TCP"));
    waits_because(&space, "four", "node(s) didn't have free ports for the requested pod ports");
}

fn pods_are_spread(cluster: &Cluster) {
    let space = Space::new(cluster, "spread");
    for (name, zone) in [("spread-1", "a"), ("spread-2", "a"), ("spread-3", "b")] {
        let labels = format!("pool: spread, topology.kubernetes.io/zone: {zone}");
        hollow(cluster, name, &labels, &json!({"cpu": "10", "memory": "10Gi", "pods": "10"}));
    }
    let replicas = |name: &str, count: u8, more: &str| {
        space.apply(&format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{replicas: {count}, selector: {{matchLabels: {{app: {name}}}}},
              template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{nodeSelector: {{pool: spread}}, {more} containers: [{{name: c, image: x}}]}}}}}}}}"
        ));
    };
    let counts = |name: &str, count: usize| -> [usize; 3] {
        let on = eventually("all have a node", || {
            let on = space.kubectl(&[
                "get",
                "pods",
                "-l",
                &format!("app={name}"),
                "-o",
                "jsonpath={.items[*].spec.nodeName}",
            ]);
            if on.split_whitespace().count() == count { Ok(on) } else { Err(on) }
        });
        ["spread-1", "spread-2", "spread-3"].map(|n| on.split_whitespace().filter(|x| *x == n).count())
    };
    let by_zone = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: zones}}}],";
    replicas("zones", 6, by_zone);
    let [one, two, three] = counts("zones", 6);
    assert_eq!((one + two, three), (3, 3));
    // who says nothing is spread, too
    replicas("plain", 6, "");
    let [one, two, three] = counts("plain", 6);
    assert!(one >= 1 && two >= 1 && three >= 2, "{one} {two} {three}");
}

fn pods_go_near_and_apart(cluster: &Cluster) {
    let space = Space::new(cluster, "neighbours");
    for name in ["near-1", "near-2"] {
        hollow(cluster, name, "pool: near", &json!({"cpu": "10", "memory": "10Gi", "pods": "10"}));
    }
    let wish = |kind: &str, app: &str| {
        format!(
            "nodeSelector: {{pool: near}}, affinity: {{{kind}: {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: {app}}}}}}}]}}}}, containers: [{{name: c, image: x}}]"
        )
    };
    // who wants company waits for it
    pod(&space, "web", "app: web", &wish("podAffinity", "db"));
    waits_because(&space, "web", "node(s) didn't match pod affinity rules");
    pod(&space, "db", "app: db", "nodeSelector: {pool: near}, containers: [{name: c, image: x}]");
    let db = node_of(&space, "db");
    assert_eq!(node_of(&space, "web"), db);
    // those that do not want each other need a node each
    for name in ["solo-1", "solo-2", "solo-3"] {
        pod(&space, name, "app: solo", &wish("podAntiAffinity", "solo"));
    }
    let mut on = vec![node_of(&space, "solo-1"), node_of(&space, "solo-2")];
    on.sort();
    assert_eq!(on, ["near-1", "near-2"]);
    waits_because(&space, "solo-3", "2 node(s) didn't match pod anti-affinity rules");
    let first = node_of(&space, "solo-1");
    space.kubectl(&["delete", "pod", "solo-1", "--force", "--grace-period=0", "--wait=false"]);
    assert_eq!(node_of(&space, "solo-3"), first);
}

fn gates_hold_pods_back(cluster: &Cluster) {
    let space = Space::new(cluster, "gates");
    let gated = format!("schedulingGates: [{{name: example.com/quota}}], {}", asking("cpu: 10m"));
    pod(&space, "gated", "", &gated);
    let reason = space.field("pod/gated", ".status.conditions[?(@.type=='PodScheduled')].reason");
    assert_eq!(reason, "SchedulingGated");
    assert!(space.kubectl(&["get", "pod", "gated"]).contains("SchedulingGated"));
    space.kubectl(&[
        "patch",
        "pod",
        "gated",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#,
    ]);
    space.ready(&["gated"]);
}

/// Answers extender requests, one a connection, until told to stop; `judge` gets the verb and the arguments.
fn extender(listener: &TcpListener, judge: impl Fn(&str, &Value) -> Value) {
    for stream in listener.incoming() {
        let mut stream = BufReader::new(stream.unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let verb = line.split_whitespace().nth(1).unwrap_or("/").trim_matches('/').to_owned();
        if verb == "stop" {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).unwrap();
            if let Some(n) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            if header.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let answer = judge(&verb, &serde_json::from_slice(&body).unwrap()).to_string();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
        stream.get_mut().write_all(format!("{head} {}\r\n\r\n{answer}", answer.len()).as_bytes()).unwrap();
    }
}

#[test]
fn profiles_and_extenders_are_obeyed() {
    let mut cluster = Cluster::prepare(&[]);
    let file = cluster.dir.join("scheduler.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- {schedulerName: default-scheduler}\n\
         - schedulerName: packer\n  plugins: {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 1}]}}\n\
         \x20 pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}}]\n\
         extenders:\n- {urlPrefix: 'http://127.0.0.1:9999', filterVerb: filter, prioritizeVerb: prioritize, preemptVerb: preempt, weight: 100, nodeCacheCapable: true, httpTimeout: 2s,\n\
         \x20  managedResources: [{name: example.com/gpu}]}\n",
    )
    .unwrap();
    cluster.add_flag(format!("--kube-scheduler-config={}", file.display()));
    cluster.launch();
    let space = Space::new(&cluster, "profiles");
    for name in ["pack-1", "pack-2", "pack-3"] {
        hollow(
            &cluster,
            name,
            "pool: pack",
            &json!({"cpu": "4", "memory": "10Gi", "pods": "10", "example.com/gpu": "4"}),
        );
    }
    let there = "nodeSelector: {pool: pack}";
    for name in ["a", "b", "c"] {
        pod(&space, name, "", &format!("schedulerName: packer, {there}, {}", asking("cpu: 1")));
        node_of(&space, name);
    }
    let on: std::collections::BTreeSet<String> = ["a", "b", "c"].iter().map(|p| node_of(&space, p)).collect();
    assert_eq!(on.len(), 1, "the packer fills one node first");

    // an extender that is needed and does not answer: the pod waits, and is tried again
    pod(&space, "gpu", "", &format!("{there}, {}", asking("example.com/gpu: '1'")));
    eventually("the extender is missed", || {
        if cluster.log().contains("an extender is of no use") { Ok(()) } else { Err("not yet".into()) }
    });
    let listener = cluster.inside(|| TcpListener::bind("127.0.0.1:9999").unwrap());
    std::thread::scope(|s| {
        s.spawn(|| {
            extender(&listener, |verb, args| match verb {
                "filter" => {
                    // the names as Go has them, and another case in the answer, which Go reads all the same
                    let names = args["NodeNames"].as_array().unwrap();
                    let left: Vec<&Value> = names.iter().filter(|n| *n != "pack-1").collect();
                    json!({"nodenames": left, "FailedNodes": {"pack-1": "no driver there"}, "error": ""})
                }
                // of both nodes where there would be room it wants the one with the more important victim
                "preempt" => {
                    let offered = args["NodeNameToMetaVictims"].as_object().unwrap();
                    assert!(offered.len() == 2 && offered["pack-3"]["Pods"].as_array().unwrap().len() == 1, "{args}");
                    json!({"NodeNameToMetaVictims": {"pack-2": offered["pack-2"]}})
                }
                _ => json!([{"host": "pack-2", "score": 0}, {"host": "pack-3", "score": 10}]),
            });
        });
        assert_eq!(node_of(&space, "gpu"), "pack-3");
        pod(
            &space,
            "picky",
            "",
            &format!(
                "nodeSelector: {{pool: pack, kubernetes.io/hostname: pack-1}}, {}",
                asking("example.com/gpu: '1'")
            ),
        );
        waits_because(&space, "picky", "1 no driver there");
        // who may go for another is a matter of the extender, too
        for (name, node, gpus, priority) in [("low-2", "pack-2", 4, 10), ("low-3", "pack-3", 3, 5)] {
            cluster.apply(
                &json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": name}, "value": priority})
                .to_string(),
            );
            let there =
                format!("nodeSelector: {{pool: pack, kubernetes.io/hostname: {node}}}, priorityClassName: {name}");
            pod(&space, name, "", &format!("{there}, {}", asking(&format!("example.com/gpu: '{gpus}'"))));
            node_of(&space, name);
        }
        cluster.apply(
            &json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": "urgent"}, "value": 100})
            .to_string(),
        );
        pod(&space, "urgent", "", &format!("{there}, priorityClassName: urgent, {}", asking("example.com/gpu: '3'")));
        assert_eq!(node_of(&space, "urgent"), "pack-2");
        assert_eq!(node_of(&space, "low-3"), "pack-3", "stays where it is");
        cluster.inside(|| {
            let mut stop = std::net::TcpStream::connect("127.0.0.1:9999").unwrap();
            stop.write_all(b"POST /stop HTTP/1.1\r\ncontent-length: 0\r\n\r\n").unwrap();
        });
    });

    // what is wrong with a configuration is told, and nothing starts
    cluster.stop(nix::sys::signal::Signal::SIGTERM);
    std::fs::write(
        &file,
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles: [{plugin: 1}]\n",
    )
    .unwrap();
    let mut command = cluster.server_command();
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains("scheduler.yaml") && told.contains("unknown field `plugin`"),
        "{told}"
    );
}
