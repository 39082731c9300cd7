//! Custom resources with kubectl: what a user of an operator does, and what may happen to his machine meanwhile.

use crate::harness::etcd::Etcd;
use crate::harness::{Cluster, Kubectl, Server, eventually, success};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: foos.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: foos, singular: foo, kind: Foo, shortNames: [fo], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns:
    - {name: Colour, type: string, jsonPath: .spec.colour}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        description: A foo of the test.
        properties:
          spec:
            type: object
            description: What the foo is to be.
            required: [colour]
            properties:
              colour: {type: string, enum: [red, blue], description: Its colour.}
              replicas: {type: integer, default: 1, minimum: 0}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;

fn foo(name: &str, colour: &str) -> String {
    format!("apiVersion: stable.example.com/v1\nkind: Foo\nmetadata: {{name: {name}}}\nspec: {{colour: {colour}}}\n")
}

fn established(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["wait", "--for=condition=Established", &format!("crd/{name}"), "--timeout=60s"]);
}

fn gone(cluster: &Cluster, what: &[&str]) {
    eventually(&format!("{what:?} goes"), || {
        let out = cluster.try_kubectl(Kubectl::Newest, &[&["get"], what].concat());
        if out.status.success() { Err(String::from_utf8_lossy(&out.stdout).into_owned()) } else { Ok(()) }
    });
}

fn refused(cluster: &Cluster, manifest: &str) -> String {
    let out = cluster.kubectl_stdin(Kubectl::Newest, &["apply", "-f", "-"], manifest);
    assert!(!out.status.success(), "{manifest}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_day_with_a_custom_resource() {
    let cluster = Cluster::start();
    let k = |args: &[&str]| cluster.kubectl(args);
    cluster.apply(DEFINITION);
    established(&cluster, "foos.stable.example.com");
    // at once, and by all its names
    cluster.apply(&foo("a", "red"));
    for name in ["foos", "foo", "fo", "foos.stable.example.com", "foos.v1.stable.example.com"] {
        let table = k(&["get", name]);
        let mut lines = table.lines();
        assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["NAME", "COLOUR", "READY", "AGE"]);
        assert!(lines.next().unwrap().starts_with("a      red"), "{table}");
    }
    assert!(k(&["get", "all"]).contains("foo.stable.example.com/a"));
    assert!(k(&["api-resources", "--api-group=stable.example.com"]).contains("fo"));
    let told = k(&["explain", "foo.spec"]);
    assert!(
        told.contains("What the foo is to be.") && told.contains("Its colour.") && told.contains("-required-"),
        "{told}"
    );
    assert!(k(&["explain", "foo", "--recursive"]).contains("replicas"));
    // changes
    let mut watch = cluster.spawn_kubectl(Kubectl::Newest, &["get", "foo", "a", "-w", "-o", "json"]);
    watch.read_until("\"red\"");
    assert!(cluster.apply(&foo("a", "blue")).contains("configured"));
    watch.read_until("\"blue\"");
    k(&["patch", "foo", "a", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]);
    k(&["patch", "foo", "a", "--type=json", "-p", r#"[{"op":"add","path":"/metadata/labels","value":{"l":"1"}}]"#]);
    k(&["annotate", "foo", "a", "note=x"]);
    k(&[
        "patch",
        "foo",
        "a",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
    ]);
    assert!(k(&["get", "foo", "a"]).contains("True"));
    k(&["wait", "--for=condition=Ready", "foo/a", "--timeout=20s"]);
    assert_eq!(k(&["scale", "foo", "a", "--replicas=5"]), "foo.stable.example.com/a scaled\n");
    assert_eq!(k(&["get", "foo", "a", "-o", "jsonpath={.spec.replicas} {.metadata.labels.l}"]), "5 1");
    let applied = cluster.kubectl_stdin(
        Kubectl::Newest,
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
        &foo("a", "red"),
    );
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    // mistakes
    let said = refused(&cluster, &foo("b", "green"));
    assert!(said.contains(r#"spec.colour: Unsupported value: "green": supported values: "red", "blue""#), "{said}");
    let said = refused(&cluster, &foo("b", "red").replace("colour:", "size: 1, colour:"));
    assert!(said.contains(r#"unknown field "spec.size""#), "{said}");
    // the built-in kubectl says and does the same
    let own = |args: &[&str]| {
        let mut command = cluster.edge_command(&[&["kubectl"], args].concat());
        success(&args.join(" "), command.env("PATH", "/nowhere").output().unwrap())
    };
    assert_eq!(own(&["explain", "foo.spec"]), k(&["explain", "foo.spec"]));
    assert_eq!(own(&["get", "foo", "a", "-o", "name"]), "foo.stable.example.com/a\n");
    assert_eq!(own(&["get", "fo"]).lines().next(), k(&["get", "fo"]).lines().next());
    let file = cluster.dir.join("own.yaml");
    for colour in ["blue", "red"] {
        fs::write(&file, foo("own", colour)).unwrap();
        own(&["apply", "-f", file.to_str().unwrap()]);
        assert_eq!(k(&["get", "foo", "own", "-o", "jsonpath={.spec.colour}"]), colour);
    }
    own(&["label", "foo", "own", "x=y"]);
    own(&["scale", "foo", "own", "--replicas=3"]);
    assert_eq!(k(&["get", "foo", "own", "-o", "jsonpath={.spec.replicas} {.metadata.labels.x}"]), "3 y");
    own(&["delete", "foo", "own"]);
    // the end
    k(&["delete", "foo", "a"]);
    cluster.apply(&foo("c", "red"));
    k(&["delete", "crd", "foos.stable.example.com", "--timeout=60s"]);
    gone(&cluster, &["foos.stable.example.com"]);
}

#[test]
fn definitions_survive_whatever_happens_to_the_server() {
    let mut cluster = Cluster::start();
    cluster.apply(DEFINITION);
    established(&cluster, "foos.stable.example.com");
    cluster.apply(&foo("a", "red"));
    for (i, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        cluster.stop(signal);
        cluster.launch();
        // the first thing that is asked
        assert_eq!(cluster.kubectl(&["get", "foo", "a", "-o", "jsonpath={.spec.colour}"]), "red");
        cluster.apply(&foo(&format!("after-{i}"), "blue"));
    }
    // right after a creation, before anybody could establish it
    for i in 0..3 {
        let name = format!("bars{i}");
        cluster.apply(
            &DEFINITION
                .replace("foos", &name)
                .replace("singular: foo", &format!("singular: bar{i}"))
                .replace("kind: Foo", &format!("kind: Bar{i}"))
                .replace("[fo]", "[]"),
        );
        cluster.stop(Signal::SIGKILL);
        cluster.launch();
        established(&cluster, &format!("{name}.stable.example.com"));
        cluster.apply(&foo("x", "red").replace("Foo", &format!("Bar{i}")));
        cluster.kubectl(&["get", &name, "x"]);
    }
    // and in the middle of a deletion
    cluster.kubectl(&[
        "patch",
        "foo",
        "a",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":["example.com/hold"]}}"#,
    ]);
    cluster.kubectl(&["delete", "crd", "foos.stable.example.com", "--wait=false"]);
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    cluster.kubectl(&["patch", "foo", "a", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    gone(&cluster, &["crd", "foos.stable.example.com"]);
}

#[test]
fn owners_quotas_and_namespaces_know_custom_resources() {
    let cluster = Cluster::start();
    let k = |args: &[&str]| cluster.kubectl(args);
    cluster.apply(DEFINITION);
    established(&cluster, "foos.stable.example.com");
    let uid = |what: &[&str]| -> String {
        let object: Value = cluster.get(what);
        object["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let owned = |manifest: &str, owner: &str, of: &str| {
        let reference = format!(
            "ownerReferences: [{{apiVersion: stable.example.com/v1, kind: Foo, name: {owner}, uid: {of}, blockOwnerDeletion: true}}]"
        );
        manifest.replacen("metadata: {", &format!("metadata: {{{reference}, "), 1)
    };
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: owned}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "echo:v1"}]}
"#;
    // a chain: foo, foo, pod
    cluster.apply(&foo("top", "red"));
    cluster.apply(&owned(&foo("middle", "red"), "top", &uid(&["foo", "top"])));
    cluster.apply(&owned(pod, "middle", &uid(&["foo", "middle"])));
    cluster.wait_for("pod/owned", "condition=Ready");
    k(&["delete", "foo", "top", "--cascade=background"]);
    gone(&cluster, &["pod", "owned"]);
    gone(&cluster, &["foo", "middle"]);
    // the owner waits
    cluster.apply(&foo("top", "red"));
    cluster.apply(&owned(&foo("middle", "red"), "top", &uid(&["foo", "top"])));
    k(&["delete", "foo", "top", "--cascade=foreground", "--timeout=60s"]);
    gone(&cluster, &["foo", "middle"]);
    // the dependent stays
    cluster.apply(&foo("top", "red"));
    cluster.apply(&owned(&foo("middle", "red"), "top", &uid(&["foo", "top"])));
    k(&["delete", "foo", "top", "--cascade=orphan", "--timeout=60s"]);
    assert!(cluster.get(&["foo", "middle"])["metadata"]["ownerReferences"].is_null());
    // quotas
    k(&["create", "namespace", "small"]);
    k(&["create", "quota", "few", "-n", "small", "--hard=count/foos.stable.example.com=1"]);
    eventually("the quota is counted", || {
        let quota = cluster.get(&["quota", "few", "-n", "small"]);
        let used = quota["status"]["used"]["count/foos.stable.example.com"].as_str().map(str::to_owned);
        used.ok_or_else(|| quota.to_string())
    });
    let in_small = |name: &str| foo(name, "red").replace("metadata: {", "metadata: {namespace: small, ");
    cluster.apply(&in_small("one"));
    assert!(refused(&cluster, &in_small("two")).contains("exceeded quota: few"));
    k(&["delete", "foo", "one", "-n", "small"]);
    eventually("there is room again", || {
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["apply", "-f", "-"], &in_small("two"));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    // rights
    k(&["create", "role", "reader", "-n", "small", "--verb=get,list", "--resource=foos.stable.example.com"]);
    k(&["create", "rolebinding", "reader", "-n", "small", "--role=reader", "--user=jane"]);
    assert!(k(&["get", "foos", "-n", "small", "--as=jane"]).contains("two"));
    let out = cluster.try_kubectl(Kubectl::Newest, &["get", "foos", "-n", "default", "--as=jane"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("forbidden"));
    // a namespace goes with all that is in it
    k(&["delete", "namespace", "small", "--timeout=60s"]);
    assert_eq!(k(&["get", "foos", "-A", "-o", "name"]), "foo.stable.example.com/middle\n");
}

/// What one server of a store says to be established, the other one serves, without a moment between.
#[test]
fn servers_of_one_store_know_each_others_definitions() {
    let mut cluster = Cluster::prepare(&[]);
    let etcd = Etcd::start(&cluster, 1);
    cluster.add_flag(format!("--datastore-endpoint={}", etcd.endpoints()));
    cluster.launch();
    let token = fs::read_to_string(cluster.data_dir().join("server/token")).unwrap().trim().to_owned();
    let flags = [format!("--datastore-endpoint={}", etcd.endpoints()), format!("--token={token}")];
    let mut second = Server::start(&cluster, 1, &flags);
    for i in 0..3 {
        cluster.apply(&renamed(DEFINITION, "both", i));
        established(&cluster, &format!("boths{i}.stable.example.com"));
        let path = format!("/apis/stable.example.com/v1/namespaces/default/boths{i}");
        second.kubectl(&["get", "--raw", &path]);
        cluster.apply(&foo("x", "red").replace("kind: Foo", &format!("kind: Kboth{i}")));
        assert_eq!(second.kubectl(&["get", &format!("boths{i}"), "x", "-o", "jsonpath={.spec.replicas}"]), "1");
    }
    // one goes while the other one ends a definition, and finds it gone
    second.stop(Signal::SIGKILL);
    cluster.kubectl(&["delete", "crd", "boths0.stable.example.com", "--timeout=60s"]);
    second.launch();
    let out = second.try_kubectl(&["get", "boths0"]);
    assert!(!out.status.success());
    assert!(second.kubectl(&["get", "boths1"]).contains("red"));
}

/// As operators bring them: everything in one file, before the server has ever run.
#[test]
fn a_manifest_brings_a_definition_and_its_objects() {
    let mut cluster = Cluster::prepare(&[]);
    let dir = cluster.data_dir().join("server/manifests");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("operator.yaml"), format!("{}---\n{DEFINITION}", foo("early", "red"))).unwrap();
    cluster.launch();
    eventually("the object is there", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["get", "foo", "early", "-o", "jsonpath={.spec.replicas}"]);
        if out.stdout == b"1" { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}

/// A schema as operators have them: some 20 kB, most of it descriptions.
fn large() -> String {
    let text = "What this field is for, at some length, as it is with operators. ".repeat(3);
    let fields: String =
        (0..100).map(|n| format!("              field{n}: {{type: string, description: \"{text}\"}}\n")).collect();
    DEFINITION.replace("              colour: {type", &format!("{fields}              colour: {{type"))
}

/// The definition of the test under another name.
fn renamed(definition: &str, name: &str, i: usize) -> String {
    definition
        .replace("foos", &format!("{name}s{i}"))
        .replace("singular: foo", &format!("singular: {name}{i}"))
        .replace("kind: Foo", &format!("kind: K{name}{i}"))
        .replace("[fo]", "[]")
}

#[test]
fn a_hundred_definitions_cost_little() {
    let cluster = Cluster::start();
    for (name, text, most) in [("small", DEFINITION.to_owned(), 15), ("large", large(), 30)] {
        cluster.kubectl(&["get", "crd"]);
        let before = cluster.footprint().memory;
        let all: Vec<String> = (0..100).map(|i| renamed(&text, name, i)).collect();
        let bytes: usize = all.iter().map(String::len).sum();
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["create", "-f", "-"], &all.join("---\n"));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        for i in [0, 50, 99] {
            established(&cluster, &format!("{name}s{i}.stable.example.com"));
        }
        // what making them needed is given back after a while
        let used = eventually("the memory is given back", || {
            let used = cluster.footprint().memory.saturating_sub(before);
            if used < most << 10 { Ok(used) } else { Err(format!("{used} KiB")) }
        });
        println!("100 definitions of {} KiB together: {used} KiB more memory", bytes >> 10);
    }
}

/// Rules in a schema, in Kubernetes' expression language.
#[test]
fn rules_of_a_schema_hold() {
    let mut cluster = Cluster::start();
    let ruled = |rules: &str| {
        DEFINITION.replace(
            "            required: [colour]\n",
            &format!("            required: [colour]\n            {rules}\n"),
        )
    };
    // one that cannot be compiled is refused with the definition
    let error = refused(&cluster, &ruled("x-kubernetes-validations: [{rule: 'self.replicaz < 3'}]"));
    assert!(error.contains("x-kubernetes-validations[0].rule") && error.contains("replicaz"), "{error}");
    // one that could cost too much, too: nobody knows how long the text of a number is, says Kubernetes
    let costly = "x-kubernetes-validations: [{rule: 'self.replicas < 3', messageExpression: \"'not ' + string(self.replicas)\"}]";
    let error = refused(&cluster, &ruled(costly));
    assert!(
        error.contains("messageExpression") && error.contains("exceeds budget by factor of more than 100x"),
        "{error}"
    );
    let rules = ruled(
        "x-kubernetes-validations: [{rule: \"self.colour != 'blue' || self.replicas <= 2\", message: at most two blue ones, fieldPath: .replicas}, \
         {rule: 'self.replicas >= oldSelf.replicas', messageExpression: \"'never fewer than %d'.format([oldSelf.replicas])\"}]",
    );
    cluster.apply(&rules);
    established(&cluster, "foos.stable.example.com");
    let of = |colour: &str, replicas: u32| foo("a", &format!("{colour}, replicas: {replicas}"));
    let error = refused(&cluster, &of("blue", 3));
    assert!(error.contains("spec.replicas: Invalid value") && error.contains("at most two blue ones"), "{error}");
    cluster.apply(&of("blue", 2));
    let error = refused(&cluster, &of("blue", 1));
    assert!(error.contains("never fewer than 2"), "{error}");
    cluster.apply(&of("red", 5));
    // they are there again after a start
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    assert!(refused(&cluster, &of("blue", 5)).contains("at most two blue ones"));
}
