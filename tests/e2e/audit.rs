//! The audit log of a real server: all that its parts and its users ask for.

use crate::harness::hooks::serve_json;
use crate::harness::space::outside;
use crate::harness::{Cluster, eventually};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::sync::{Arc, Mutex};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, resources: [{group: coordination.k8s.io}]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps]}], namespaces: [default]}
- {level: Metadata}
"#;

#[test]
fn requests_of_users_and_parts_are_told_of() {
    let mut cluster = Cluster::prepare(&[]);
    let (policy, log) = (cluster.dir.join("policy.yaml"), cluster.dir.join("audit.log"));
    cluster.add_flag(format!("--audit-policy-file={}", policy.display()));
    cluster.add_flag(format!("--audit-log-path={}", log.display()));

    // a policy that is none: the server says so, and does not start
    for (text, why) in [
        ("rules: [{level: Metadata}]", "unknown group version field"),
        (
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]",
            "rules[0].level: Unsupported value: \"All\"",
        ),
        ("apiVersion: audit.k8s.io/v1\nkind: Policy", "loaded illegal policy with 0 rules"),
    ] {
        fs::write(&policy, text).unwrap();
        let out = cluster.server_command().output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!out.status.success() && said.contains(why), "{text}: {said}");
        assert!(said.contains("policy.yaml"), "{said}");
    }

    fs::write(&policy, POLICY).unwrap();
    cluster.launch();
    cluster.kubectl(&["create", "configmap", "told", "--from-literal=k=v"]);
    let events = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    eventually("the creation is told of", || {
        let all = events();
        let it = all.iter().find(|e| e["verb"] == "create" && e["objectRef"]["name"] == "told");
        let it = it.ok_or("not yet")?;
        let is_whole = it["requestObject"]["data"]["k"] == "v"
            && it["responseObject"]["metadata"]["uid"].is_string()
            && it["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubectl/"))
            && it["responseStatus"]["code"] == 201;
        if is_whole { Ok(()) } else { Err(it.to_string()) }
    });
    let all = events();
    let asked = |user: &str| all.iter().any(|e| e["user"]["username"].as_str().is_some_and(|u| u.starts_with(user)));
    assert!(asked("system:node:") && asked("system:serviceaccount:kube-system:"), "edge's own parts are told of");
    assert!(all.iter().all(|e| e["objectRef"]["resource"] != "leases"), "the policy leaves leases out");

    // a command in a container: told of when it begins, and when it ends
    cluster.kubectl(&["run", "box", "--image=busybox:test", "--restart=Never", "--command", "--", "sleep", "1000"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    cluster.kubectl(&["exec", "box", "--", "true"]);
    eventually("the command is told of", || {
        let all = events();
        let of = all.iter().filter(|e| e["objectRef"]["subresource"] == "exec");
        let stages: Vec<&str> = of.filter_map(|e| e["stage"].as_str()).collect();
        if stages == ["ResponseStarted", "ResponseComplete"] { Ok(()) } else { Err(format!("{stages:?}")) }
    });
}

#[test]
fn events_are_sent_to_a_webhook() {
    let mut cluster = Cluster::prepare(&[]);
    let (policy, kubeconfig) = (cluster.dir.join("policy.yaml"), cluster.dir.join("receiver.yaml"));
    fs::write(&policy, POLICY).unwrap();
    cluster.add_flag(format!("--audit-policy-file={}", policy.display()));
    cluster.add_flag(format!("--audit-webhook-config-file={}", kubeconfig.display()));
    cluster.add_flag("--audit-webhook-batch-max-wait=8s".into());

    let got: Arc<Mutex<Vec<Value>>> = Arc::default();
    let ip = outside(&cluster);
    let taken = got.clone();
    let (port, certificate) = serve_json(ip, &[ip.to_string()], move |path, list| {
        taken.lock().unwrap().push(json!([path, list]));
        json!({})
    });

    // a kubeconfig that is none: the server says so, and does not start
    fs::write(&kubeconfig, "clusters: []").unwrap();
    let out = cluster.server_command().output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!out.status.success(), "{said}");
    assert!(said.contains("receiver.yaml: it has no current-context"), "{said}");

    let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "audit",
        "clusters": [{"name": "receiver", "cluster": {"server": format!("https://{ip}:{port}/events"),
            "certificate-authority-data": BASE64_STANDARD.encode(certificate)}}],
        "contexts": [{"name": "audit", "context": {"cluster": "receiver"}}]});
    fs::write(&kubeconfig, file.to_string()).unwrap();
    cluster.launch();
    let is_told = |name: &str| {
        let got = got.lock().unwrap();
        let events = got.iter().flat_map(|request| request[1]["items"].as_array().into_iter().flatten());
        let mut of = events.filter(|e| e["verb"] == "create" && e["objectRef"]["name"] == name);
        of.any(|e| e["requestObject"]["data"]["k"] == "v" && e["responseStatus"]["code"] == 201)
    };
    cluster.kubectl(&["create", "configmap", "told", "--from-literal=k=v"]);
    eventually("the creation is told of", || if is_told("told") { Ok(()) } else { Err("not yet".into()) });
    assert!(got.lock().unwrap().iter().all(|r| r[0] == "/events" && r[1]["kind"] == "EventList"));
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]);
    for plugin in ["webhook", "buffered"] {
        assert!(metrics.contains(&format!("apiserver_audit_error_total{{plugin=\"{plugin}\"}} 0\n")), "{plugin}");
    }

    // what still waits for others is sent when the server ends
    cluster.kubectl(&["create", "configmap", "last", "--from-literal=k=v"]);
    cluster.stop(Signal::SIGTERM);
    assert!(is_told("last"));
}
