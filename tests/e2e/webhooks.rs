//! Admission webhooks with kubectl: what Kubernetes' conformance suite asks for, sidecars, and backends that are gone.

use crate::conformance::{Flow, together};
use crate::harness::hooks::Hooks;
use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::OnceLock;

static HOOKS: OnceLock<Hooks> = OnceLock::new();

fn hooks() -> &'static Hooks {
    HOOKS.get().unwrap()
}

#[test]
fn admission_webhooks() {
    let flows: [(&str, Flow); 11] = [
        ("documents", documents),
        ("denials", denials),
        ("attaching", attaching),
        ("custom resources", custom_resources),
        ("failing closed", failing_closed),
        ("changes", changes),
        ("configurations", configurations),
        ("definitions", definitions),
        ("timeouts", timeouts),
        ("conditions", conditions),
        ("sidecars", sidecars),
    ];
    let cluster = Cluster::start();
    assert!(HOOKS.set(Hooks::start(&cluster)).is_ok());
    together(&cluster, &flows);
}

/// A webhook for one namespace.
fn hook(space: &Space<'_>, name: &str, path: &str, operations: &[&str], (group, resource): (&str, &str)) -> Value {
    let rule = json!({"apiGroups": [group], "apiVersions": ["*"], "operations": operations, "resources": [resource]});
    json!({"name": format!("{name}.k8s.io"), "rules": [rule], "clientConfig": hooks().service(path), "sideEffects": "None",
        "admissionReviewVersions": ["v1", "v1beta1"], "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}}})
}

fn with(mut hook: Value, more: Value) -> Value {
    hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    hook
}

fn configuration(kind: &str, name: &str, hooks: &[Value]) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}WebhookConfiguration"), "metadata": {"name": name}, "webhooks": hooks})
}

/// What kubectl says; `Err` when it is refused.
fn kubectl(space: &Space<'_>, args: &[&str], object: &Value) -> Result<String, String> {
    let args = [&["-n", space.name], args, &["-f", "-"]].concat();
    let out = space.cluster.kubectl_stdin(Kubectl::Newest, &args, &object.to_string());
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    if out.status.success() { Ok(said) } else { Err(said) }
}

fn create(space: &Space<'_>, object: &Value) -> Result<String, String> {
    kubectl(space, &["create"], object)
}

#[track_caller]
fn refused(said: Result<String, String>, part: &str) {
    let why = said.unwrap_err();
    assert!(why.contains(part), "{why}");
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn pod(name: &str, label: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"webhook-e2e-test": label}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "container1", "image": "busybox:test", "command": ["sleep", "100000"]}]}})
}

fn documents(cluster: &Cluster) {
    let known = cluster.kubectl(&["get", "--raw", "/apis"]);
    assert!(known.contains("admissionregistration.k8s.io/v1"));
    let resources = cluster.kubectl(&["get", "--raw", "/apis/admissionregistration.k8s.io/v1"]);
    for resource in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        assert!(resources.contains(resource));
        assert!(cluster.kubectl(&["explain", &format!("{resource}.webhooks")]).contains("failurePolicy"));
    }
}

fn denials(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-denials");
    let stranger = with(
        hook(&space, "fail-open", "/configmaps", &["CREATE"], ("", "configmaps")),
        json!({"failurePolicy": "Ignore"}),
    );
    let mut stranger = stranger;
    stranger["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    let pods = with(hook(&space, "deny-pods", "/pods", &["CREATE"], ("", "pods")), json!({"timeoutSeconds": 1}));
    let maps = hook(&space, "deny-maps", "/configmaps", &["CREATE", "UPDATE", "DELETE"], ("", "configmaps"));
    create(&space, &configuration("Validating", "denials", &[pods, maps, stranger])).unwrap();
    refused(
        create(&space, &pod("a", "webhook-disallow")),
        "admission webhook \"deny-pods.k8s.io\" denied the request: the pod contains unwanted label",
    );
    refused(
        create(&space, &pod("b", "wait-forever")),
        "failed calling webhook \"deny-pods.k8s.io\": failed to call webhook: Post \"https://hook.hooks.svc:8443/pods?timeout=1s\": context deadline exceeded",
    );
    let bad = json!({"webhook-e2e-test": "webhook-disallow"});
    let why = "the configmap contains unwanted key and value";
    refused(create(&space, &map("bad", bad.clone())), why);
    create(&space, &map("good", json!({"admit": "this"}))).unwrap();
    refused(kubectl(&space, &["replace"], &map("good", bad.clone())), why);
    refused(kubectl(&space, &["apply"], &map("good", bad.clone())), why);
    refused(kubectl(&space, &["apply", "--server-side", "--force-conflicts"], &map("good", bad.clone())), why);
    let other = Space::new(cluster, "hook-exempt");
    create(&other, &map("bad", bad.clone())).unwrap();
    // the configuration changes, and holds for the next write
    let operations = |operation: &str| {
        let patch =
            json!([{"op": "replace", "path": "/webhooks/1/rules/0/operations", "value": [operation]}]).to_string();
        cluster.kubectl(&["patch", "validatingwebhookconfiguration", "denials", "--type=json", "-p", &patch]);
    };
    operations("UPDATE");
    create(&space, &map("bad", bad.clone())).unwrap();
    operations("CREATE");
    refused(create(&space, &map("worse", bad.clone())), why);
    let told = cluster.kubectl(&["describe", "validatingwebhookconfiguration", "denials"]);
    for part in ["deny-maps.k8s.io", "Failure Policy:  Ignore", "Timeout Seconds:  1", "Match Policy:"] {
        assert!(told.contains(part), "{told}");
    }
    // ten at once, by their label
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", "denials"]);
    for n in 0..10 {
        let mut one = configuration(
            "Validating",
            &format!("listed-{n}"),
            &[hook(&space, "listed", "/configmaps", &["*"], ("", "configmaps"))],
        );
        one["metadata"]["labels"] = json!({"listed": "yes"});
        create(&space, &one).unwrap();
    }
    refused(create(&space, &map("worse", bad.clone())), why);
    assert_eq!(
        cluster.kubectl(&["get", "validatingwebhookconfigurations", "-l", "listed=yes", "-o", "name"]).lines().count(),
        10
    );
    cluster.kubectl(&["delete", "validatingwebhookconfigurations", "-l", "listed=yes"]);
    create(&space, &map("worse", bad)).unwrap();
}

fn attaching(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-attaching");
    create(&space, &pod("to-be-attached", "")).unwrap();
    space.ready(&["to-be-attached"]);
    create(
        &space,
        &configuration(
            "Validating",
            "attaching",
            &[hook(&space, "attach", "/attach", &["CONNECT"], ("", "pods/attach"))],
        ),
    )
    .unwrap();
    let out =
        cluster.try_kubectl(Kubectl::Newest, &["-n", space.name, "attach", "to-be-attached", "-i", "-c", "container1"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("attaching to pod 'to-be-attached' is not allowed"), "{said}");
    assert_eq!(space.kubectl(&["exec", "to-be-attached", "--", "echo", "yes"]), "yes\n");
}

fn custom_resources(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-custom");
    let text = json!({"type": "string"});
    let pruning = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {"mutation-start": text, "mutation-stage-1": text}}}});
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let object = |kind: &str, name: &str, data: Value| json!({"apiVersion": "hooks.example.com/v1", "kind": kind, "metadata": {"name": name}, "data": data});
    for (plural, kind, schema) in [("closeds", "Closed", pruning), ("opens", "Open", open)] {
        let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]);
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.hooks.example.com")},
            "spec": {"group": "hooks.example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind}, "versions": versions}});
        create(&space, &definition).unwrap();
        cluster.kubectl(&[
            "wait",
            "--for=condition=Established",
            &format!("crd/{plural}.hooks.example.com"),
            "--timeout=60s",
        ]);
        let stage = |n: usize| {
            hook(&space, &format!("{plural}-{n}"), "/mutate", &["CREATE", "UPDATE"], ("hooks.example.com", plural))
        };
        create(&space, &configuration("Mutating", plural, &[stage(1), stage(2)])).unwrap();
        create(&space, &object(kind, "changed", json!({"mutation-start": "yes"}))).unwrap();
        let data = space.field(&format!("{plural}/changed"), ".data");
        assert!(data.contains("stage-1"), "{data}");
        assert_eq!(data.contains("stage-2"), kind == "Open", "{data}");
    }
    create(
        &space,
        &configuration(
            "Validating",
            "custom",
            &[hook(&space, "custom", "/custom", &["CREATE", "UPDATE", "DELETE"], ("hooks.example.com", "opens"))],
        ),
    )
    .unwrap();
    let marked = |name: &str, mark: &str| object("Open", name, json!({"webhook-e2e-test": mark}));
    refused(create(&space, &marked("a", "webhook-disallow")), "the custom resource contains unwanted data");
    create(&space, &marked("b", "webhook-nondeletable")).unwrap();
    refused(
        kubectl(&space, &["apply"], &marked("b", "webhook-disallow")),
        "the custom resource contains unwanted data",
    );
    refused(
        kubectl(&space, &["delete"], &marked("b", "")),
        "the custom resource cannot be deleted because it contains unwanted key and value",
    );
    kubectl(&space, &["apply"], &marked("b", "webhook-allow")).unwrap();
    kubectl(&space, &["delete"], &marked("b", "")).unwrap();
}

fn failing_closed(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-closed");
    let mut closed = hook(&space, "fail-closed", "/configmaps", &["CREATE"], ("", "configmaps"));
    closed["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    create(&space, &configuration("Validating", "closed", &[closed.clone()])).unwrap();
    let why = "Error from server (InternalError): error when creating \"STDIN\": Internal error occurred: failed calling webhook \"fail-closed.k8s.io\": failed to call webhook: Post \"https://hook.hooks.svc:8443/configmaps?timeout=10s\": tls: failed to verify certificate: x509: certificate signed by unknown authority";
    refused(create(&space, &map("m", json!({}))), why);
    // nobody behind the service, and no service
    for (service, why) in
        [("nobody", "no endpoints available for service \"nobody\""), ("nothing", "service \"nothing\" not found")]
    {
        if service == "nobody" {
            space.kubectl(&["create", "service", "clusterip", "nobody", "--tcp=443"]);
        }
        closed["clientConfig"] = json!({"service": {"namespace": space.name, "name": service}});
        kubectl(&space, &["replace"], &configuration("Validating", "closed", &[closed.clone()])).unwrap();
        refused(create(&space, &map("m", json!({}))), why);
    }
}

fn changes(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-changes");
    // by the server's own address
    let by_address = json!({"clientConfig": hooks().address("/mutate")});
    let stage = |n: usize| {
        with(hook(&space, &format!("stage-{n}"), "/mutate", &["CREATE"], ("", "configmaps")), by_address.clone())
    };
    create(&space, &configuration("Mutating", "changes", &[stage(1), stage(2)])).unwrap();
    let start = || json!({"mutation-start": "yes"});
    create(&space, &map("m", start())).unwrap();
    assert_eq!(
        space.field("configmap/m", ".data"),
        r#"{"mutation-stage-1":"yes","mutation-stage-2":"yes","mutation-start":"yes"}"#
    );
    let dry = kubectl(
        &space,
        &["create", "--dry-run=server", "-o", "jsonpath={.data.mutation-stage-2}"],
        &map("dry", start()),
    )
    .unwrap();
    assert_eq!(dry, "yes");
    // the other way round: the first is asked again for what the second has done, if it wants to be
    for (policy, data) in [("Never", "yes "), ("IfNeeded", "yes yes")] {
        let more = json!({"reinvocationPolicy": policy, "clientConfig": hooks().address("/mutate-late")});
        let first = with(hook(&space, "late", "", &["CREATE"], ("", "configmaps")), more);
        kubectl(&space, &["replace"], &configuration("Mutating", "changes", &[first, stage(1)])).unwrap();
        let name = policy.to_lowercase();
        create(&space, &map(&name, start())).unwrap();
        let found = space.kubectl(&[
            "get",
            "configmap",
            &name,
            "-o",
            "jsonpath={.data.mutation-stage-1} {.data.mutation-stage-2}",
        ]);
        assert_eq!(found, data);
    }
    kubectl(
        &space,
        &["replace"],
        &configuration("Mutating", "changes", &[hook(&space, "pods", "/mutate-pods", &["CREATE"], ("", "pods"))]),
    )
    .unwrap();
    create(&space, &pod("p", "")).unwrap();
    assert_eq!(space.field("pod/p", ".spec.initContainers[*].name"), "webhook-added-init-container");
    assert_eq!(space.field("pod/p", ".spec.initContainers[0].terminationMessagePolicy"), "File");
    space.ready(&["p"]);
}

fn configurations(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-configurations");
    let all = |name: &str, path: &str| {
        let hook = hook(&space, name, path, &["*"], ("admissionregistration.k8s.io", "*"));
        with(hook, json!({"namespaceSelector": {}}))
    };
    create(&space, &configuration("Validating", "blocking", &[all("deny", "/always-deny")])).unwrap();
    create(&space, &configuration("Mutating", "blocking", &[all("label", "/add-label")])).unwrap();
    for kind in ["Validating", "Mutating"] {
        let dummy = configuration(kind, "dummy", &[hook(&space, "dummy", "", &["CREATE"], ("", "invalid"))]);
        create(&space, &dummy).unwrap();
        let what = format!("{}webhookconfiguration", kind.to_lowercase());
        assert_eq!(space.field(&format!("{what}/dummy"), ".metadata.labels"), "");
        cluster.kubectl(&["delete", &what, "dummy", "blocking"]);
    }
}

fn definitions(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-definitions");
    let selecting = json!({"namespaceSelector": {}, "objectSelector": {"matchLabels": {"hooks": "yes"}}});
    let hook = with(
        hook(&space, "crd", "/crd", &["CREATE"], ("apiextensions.k8s.io", "customresourcedefinitions")),
        selecting,
    );
    create(&space, &configuration("Validating", "definitions", &[hook])).unwrap();
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "denieds.hooks.example.com", "labels": {"hooks": "yes", "webhook-e2e-test": "webhook-disallow"}},
        "spec": {"group": "hooks.example.com", "scope": "Namespaced", "names": {"plural": "denieds", "kind": "Denied"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    refused(create(&space, &definition), "the crd contains unwanted label");
}

fn timeouts(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-timeouts");
    for (policy, seconds, refusal) in [
        ("Fail", json!(1), "/delay?timeout=1s\": context deadline exceeded"),
        ("Ignore", json!(1), ""),
        ("Fail", json!(10), ""),
        ("Fail", Value::Null, ""),
    ] {
        let slow = with(
            hook(&space, "slow", "/delay", &["CREATE"], ("", "configmaps")),
            json!({"failurePolicy": policy, "timeoutSeconds": seconds}),
        );
        create(&space, &configuration("Validating", "slow", &[slow])).unwrap();
        match refusal {
            "" => drop(create(&space, &map("m", json!({}))).unwrap()),
            why => refused(create(&space, &map("m", json!({}))), why),
        }
        cluster.kubectl(&["delete", "validatingwebhookconfiguration", "slow"]);
        space.kubectl(&["delete", "configmap", "m", "--ignore-not-found"]);
    }
}

fn conditions(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-conditions");
    let on = |kind: &str, conditions: Value| {
        let hook = with(
            hook(&space, "conditional", "/mutate", &["CREATE"], ("", "configmaps")),
            json!({"matchConditions": conditions}),
        );
        configuration(kind, "conditional", &[hook])
    };
    let condition = |name: &str, expression: &str| json!({"name": name, "expression": expression});
    for kind in ["Validating", "Mutating"] {
        let what = format!("{}webhookconfiguration/conditional", kind.to_lowercase());
        let bad = json!([condition("invalid-expression-1", "... [] bad expression")]);
        refused(create(&space, &on(kind, bad)), "compilation failed");
        let one = condition("expression-1", "object.metadata.namespace == 'production'");
        let two = condition("expression-2", "object.metadata.namespace == 'staging'");
        create(&space, &on(kind, json!([one]))).unwrap();
        kubectl(&space, &["replace"], &on(kind, json!([one, two]))).unwrap();
        assert_eq!(space.field(&what, ".webhooks[0].matchConditions[*].name"), "expression-1 expression-2");
        assert_eq!(space.field(&what, ".metadata.generation"), "2");
        cluster.kubectl(&["delete", &what]);
    }
    create(&space, &on("Mutating", json!([condition("skip-me", "object.metadata.name != 'skip-me'")]))).unwrap();
    for (name, stage) in [("changed", "yes"), ("skip-me", "")] {
        create(&space, &map(name, json!({"mutation-start": "yes"}))).unwrap();
        assert_eq!(space.field(&format!("configmap/{name}"), ".data.mutation-stage-1"), stage);
    }
}

/// What service meshes do.
fn sidecars(cluster: &Cluster) {
    let space = Space::new(cluster, "hook-sidecars");
    create(
        &space,
        &configuration("Mutating", "sidecars", &[hook(&space, "inject", "/inject", &["CREATE"], ("", "pods"))]),
    )
    .unwrap();
    let labels = json!({"app": "web"});
    let container = json!({"name": "c", "image": "busybox:test", "command": ["sleep", "100000"]});
    let template = json!({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}});
    create(&space, &deployment).unwrap();
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let names = space.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={range .items[*]}{.spec.containers[*].name}{'\\n'}{end}",
    ]);
    assert_eq!(names, "c sidecar\nc sidecar\n");
    assert_eq!(space.field("deployment/web", ".spec.template.spec.containers[*].name"), "c");
    // a pod is not made while its webhook says nothing, and is when it can be asked again
    let dead = with(
        hook(&space, "inject", "/inject", &["CREATE"], ("", "pods")),
        json!({"clientConfig": {"url": format!("https://{}:1/", cluster.ip)}}),
    );
    kubectl(&space, &["replace"], &configuration("Mutating", "sidecars", &[dead])).unwrap();
    space.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    eventually("the failure is told", || {
        let said = space.kubectl(&["get", "events", "--field-selector=reason=FailedCreate"]);
        if said.contains("failed calling webhook") { Ok(()) } else { Err(said) }
    });
    kubectl(
        &space,
        &["replace"],
        &configuration("Mutating", "sidecars", &[hook(&space, "inject", "/inject", &["CREATE"], ("", "pods"))]),
    )
    .unwrap();
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

/// A webhook for everything with nobody behind it: nothing can be written, but the server starts, and the webhook can be taken away.
#[test]
fn a_server_starts_under_a_dead_webhook_for_everything() {
    let mut cluster = Cluster::start();
    let rule = json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]});
    let dead = json!({"name": "dead.k8s.io", "rules": [rule], "clientConfig": {"url": format!("https://{}:1/", cluster.ip)}, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "failurePolicy": "Fail"});
    for kind in ["Validating", "Mutating"] {
        cluster.apply(&configuration(kind, "dead", std::slice::from_ref(&dead)).to_string());
    }
    let refused = |cluster: &Cluster| {
        let out = cluster.try_kubectl(Kubectl::Newest, &["create", "namespace", "x"]);
        String::from_utf8_lossy(&out.stderr).contains("failed calling webhook \"dead.k8s.io\"")
    };
    assert!(refused(&cluster));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        cluster.stop(signal);
        // the node says nothing while it may not; the API answers
        let url = format!("https://{}:6443/livez", cluster.ip);
        let answers = || Command::new("curl").args(["-fsk", "--max-time", "1", &url]).status().unwrap().success();
        cluster.try_launch(answers);
        eventually("the webhook is in force again", || {
            if refused(&cluster) { Ok(()) } else { Err("not refused".to_owned()) }
        });
    }
    for kind in ["validating", "mutating"] {
        cluster.kubectl(&["delete", &format!("{kind}webhookconfiguration"), "dead"]);
    }
    cluster.kubectl(&["create", "namespace", "x"]);
    cluster.wait_for("node/node-1", "condition=Ready");
}
