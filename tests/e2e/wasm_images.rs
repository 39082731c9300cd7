//! WebAssembly as images: every packing from archives and a registry, compiled when it arrives, shown and removed by
//! `edge image`; and what is none, or wants to harm.

use crate::harness::images::{OciArchive, architecture, busybox_archive, layer};
use crate::harness::wasm::{Packing, archive, component, module};
use crate::harness::{Cluster, Kubectl, eventually, success};
use crate::images::Registry;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The machine code that the cluster's node has on disk.
fn machine_code(cluster: &Cluster) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cluster.data_dir().join("agent/wasm")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "code")).collect()
}

fn image(cluster: &Cluster, args: &[&str]) -> String {
    success("edge image", edge_image(cluster, args))
}

fn edge_image(cluster: &Cluster, args: &[&str]) -> std::process::Output {
    let data_dir = cluster.data_dir();
    cluster.edge(&[&["image", "--data-dir", data_dir.to_str().unwrap()], args].concat())
}

fn refused(cluster: &Cluster, args: &[&str]) -> String {
    let output = edge_image(cluster, args);
    assert!(!output.status.success(), "edge image {args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pod(name: &str, image: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: '{image}', imagePullPolicy: {policy}}}\n"
    )
}

fn succeeds_with(cluster: &Cluster, name: &str, log: &str) {
    cluster.wait_for(&format!("pod/{name}"), "jsonpath={.status.phase}=Succeeded");
    let logs = cluster.kubectl(&["logs", name]);
    assert!(logs.contains(log), "{name}: {logs}");
}

#[test]
fn every_packing_runs_from_archives() {
    let cluster = Cluster::start();
    let hello = module("hello");
    for (name, packing) in [
        ("artifact", Packing::Artifact),
        ("spin", Packing::Spin),
        ("buildx", Packing::Buildx),
        ("scratch", Packing::Scratch),
    ] {
        let tag = format!("packed-{name}:test");
        image(&cluster, &["import", archive(&hello, packing, &tag).to_str().unwrap()]);
        // All four are the same module, which is compiled once, and before the import has ended.
        assert_eq!(machine_code(&cluster).len(), 1);
        cluster.apply(&pod(name, &tag, "Never"));
    }
    for name in ["artifact", "spin", "buildx", "scratch"] {
        succeeds_with(&cluster, name, "hello from wasm");
    }
    // A root file system is there with all its files, and another program of it can be named.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: files}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: 'packed-buildx:test', imagePullPolicy: Never, command: [app.wasm], args: [cat, /data/file, env, FROM_IMAGE]}
"#,
    );
    succeeds_with(&cluster, "files", "of the image\nFROM_IMAGE=yes");
    // Of an index the native image is taken where there is one for this machine, else the WebAssembly.
    for (name, architecture) in [("both", architecture()), ("foreign", "s390x")] {
        let mut archive = OciArchive::default();
        let layer = layer(&[("app.wasm", 0o755, &std::fs::read(&hello).unwrap()), ("app", 0o755, b"#!/bin/sh")]);
        let wasm = archive.image(&layer, &json!({"Entrypoint": ["/app.wasm"]}), ("wasi", "wasm"), &[]);
        let native = archive.image(&layer, &json!({"Entrypoint": ["/app"]}), ("linux", architecture), &[]);
        archive.index(&[wasm, native], &[&format!("docker.io/library/packed-{name}:test")]);
        let path = cluster.dir.join(format!("{name}.tar"));
        archive.write(&path);
        image(&cluster, &["import", path.to_str().unwrap()]);
    }
    let list = image(&cluster, &["list"]);
    let kinds = [
        ("artifact", "wasm-artifact"),
        ("spin", "wasm-artifact"),
        ("buildx", "wasm-image"),
        ("scratch", "wasm-image"),
        ("both", "linux"),
        ("foreign", "wasm-image"),
    ];
    for (name, kind) in kinds {
        let line = list.lines().find(|line| line.contains(&format!("packed-{name} "))).unwrap();
        assert!(line.contains(kind), "{line}");
    }
}

#[test]
fn images_are_shown_imported_pulled_and_removed() {
    let mut cluster = Cluster::prepare(&[]);
    let registry = Registry::start(&cluster, 5000, "");
    let at = registry.address.clone();
    let digest = registry.push(&archive(&module("hello"), Packing::Artifact, "hello:test"), "apps/hello", "v1");
    std::fs::write(
        cluster.dir.join("registries.yaml"),
        format!("mirrors:\n  \"{at}\": {{endpoint: [\"http://{at}\"]}}\n"),
    )
    .unwrap();
    let error = refused(&cluster, &["list"]);
    assert!(error.contains("no edge answers"), "{error}");
    cluster.launch();
    let hello = format!("{at}/apps/hello:v1");

    // A pull by a pod: compiled before it counts as pulled.
    cluster.apply(&pod("hello", &hello, "Always"));
    succeeds_with(&cluster, "hello", "hello from wasm");
    assert_eq!(machine_code(&cluster).len(), 1);
    let found: Value = serde_json::from_str(&image(&cluster, &["inspect", &hello])).unwrap();
    let found = &found[0];
    assert_eq!((&found["kind"], &found["inUse"]), (&json!("wasm-artifact"), &json!(true)), "{found}");
    assert_eq!(found["repoDigests"], json!([format!("{at}/apps/hello@{digest}")]));

    // A pull and an import by hand.
    assert_eq!(image(&cluster, &["pull", &hello]), format!("{hello}\n"));
    let imported = image(&cluster, &["import", busybox_archive().to_str().unwrap()]);
    assert_eq!(imported, "docker.io/library/busybox:test\n");
    let list: Value = serde_json::from_str(&image(&cluster, &["list", "-o", "json"])).unwrap();
    let kind_of = |tag: &str| {
        let found = list.as_array().unwrap().iter().find(|i| i["repoTags"] == json!([tag]));
        found.unwrap_or_else(|| panic!("no {tag} in {list}"))["kind"].clone()
    };
    assert_eq!((kind_of(&hello), kind_of("docker.io/library/busybox:test")), (json!("wasm-artifact"), json!("linux")));

    // What is used stays; what is not goes, with its machine code.
    assert!(refused(&cluster, &["rm", &hello]).contains("is used by a pod"));
    assert!(refused(&cluster, &["rm", "nobody/has:it"]).contains("is not on this node"));
    assert!(refused(&cluster, &["pull", &format!("{at}/apps/none:v1")]).contains("not found"));
    let before = image(&cluster, &["list"]);
    image(&cluster, &["prune"]);
    assert_eq!(image(&cluster, &["list"]), before, "pinned and used images stay");
    cluster.kubectl(&["delete", "pod", "hello"]);
    eventually("the image is not used any more", || {
        let output = edge_image(&cluster, &["rm", &hello]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    assert_eq!(machine_code(&cluster), Vec::<PathBuf>::new());
    image(&cluster, &["prune", "--all"]);
    assert_eq!(image(&cluster, &["list"]).lines().count(), 1, "all are gone");
}

#[test]
fn what_is_hostile_or_damaged_hurts_nobody() {
    let cluster = Cluster::start();
    let pack = |name: &str, bytes: &[u8]| {
        let module = cluster.dir.join(format!("{name}.bytes"));
        std::fs::write(&module, bytes).unwrap();
        let to = cluster.dir.join(format!("{name}.tar"));
        let mut archive = OciArchive::default();
        archive.wasm(bytes, Packing::Artifact, &[&format!("docker.io/library/{name}:test")]);
        archive.write(&to);
        to
    };
    let import = |path: &Path| refused(&cluster, &["import", path.to_str().unwrap()]);
    let whole = std::fs::read(module("hello")).unwrap();
    // Refused at the door.
    assert!(import(&pack("script", b"#!/bin/sh\necho hello\n")).contains("not a WebAssembly module"));
    let torn = cluster.dir.join("torn.tar");
    std::fs::write(&torn, &std::fs::read(pack("whole", &whole)).unwrap()[..20_000]).unwrap();
    assert!(import(&torn).contains("torn.tar"));
    // WebAssembly, but nothing that runs: it says why at once, and again in the pod's description.
    let error = import(&pack("truncated", &whole[..whole.len() / 2]));
    assert!(error.contains("truncated"), "{error}");
    let missing = wat::parse_str(r#"(module (import "env" "rocket" (func)) (func (export "_start")))"#).unwrap();
    let error = import(&pack("missing", &missing));
    assert!(error.contains("env.rocket"), "{error}");
    cluster.apply(&pod("missing", "missing:test", "Never"));
    eventually("the pod says what is missing", || {
        let described = cluster.kubectl(&["describe", "pod", "missing"]);
        if described.contains("env.rocket") { Ok(()) } else { Err(described) }
    });
    // A bomb for the compiler: a function that no compiler can do anything with in the time it is given.
    let error = import(&pack("bomb", &bomb()));
    assert!(error.contains("given up"), "{error}");
    assert_eq!(machine_code(&cluster), Vec::<PathBuf>::new());
    image(&cluster, &["import", archive(&module("hello"), Packing::Artifact, "fine:test").to_str().unwrap()]);
    cluster.apply(&pod("fine", "fine:test", "Never"));
    succeeds_with(&cluster, "fine", "hello from wasm");
}

/// One function of many jumps and values that live for long.
fn bomb() -> Vec<u8> {
    let locals = "(local i64)".repeat(1000);
    let mut body = String::new();
    for i in 0..30_000 {
        let (a, b, c) = (i * 7 % 1000, i * 13 % 1000, i * 31 % 1000);
        body += &format!(
            "(block (br_table 0 0 0 (i32.wrap_i64 (local.get {a})))) \
             (loop (local.set {a} (i64.add (local.get {b}) (local.get {c}))) (br_if 0 (i64.eqz (local.get {a}))))"
        );
    }
    wat::parse_str(format!(r#"(module (func (export "_start") {locals} {body}))"#)).unwrap()
}

#[test]
fn runtime_classes_are_there_and_hold() {
    let cluster = Cluster::start();
    let classes = cluster.kubectl(&["get", "runtimeclass", "-o", "jsonpath={.items[*].handler}"]);
    assert_eq!(classes, "wasm wasm-dense");
    let handlers = cluster.get(&["nodes"])["items"][0]["status"]["runtimeHandlers"].clone();
    let names: Vec<&str> = handlers.as_array().unwrap().iter().filter_map(|h| h["name"].as_str()).collect();
    assert!(names.contains(&"wasm") && names.contains(&"wasm-dense"), "{handlers}");
    cluster.drop_image("hello.tar", &archive(&module("hello"), Packing::Artifact, "hello:test"));
    cluster.drop_image("busybox.tar", busybox_archive());
    // Its overhead is added to every pod of the class, and counted by the scheduler.
    cluster.apply(
        r#"
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: heavy}
handler: wasm
overhead: {podFixed: {memory: 16Mi}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: huge}
handler: wasm
overhead: {podFixed: {memory: 100Ti}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: unknown}
handler: kata
"#,
    );
    let of_class = |name: &str, class: &str, image: &str| {
        pod(name, image, "IfNotPresent") + &format!("  runtimeClassName: {class}\n")
    };
    for class in ["wasm", "heavy"] {
        cluster.apply(&of_class(class, class, "hello:test"));
        succeeds_with(&cluster, class, "hello from wasm");
    }
    assert_eq!(cluster.get(&["pod", "heavy"])["spec"]["overhead"], json!({"memory": "16Mi"}));
    cluster.apply(&of_class("huge", "huge", "hello:test"));
    cluster.apply(&of_class("unknown", "unknown", "hello:test"));
    cluster.apply(&of_class("linux", "wasm", "busybox:test"));
    for (name, words) in [
        ("huge", "Insufficient memory"),
        ("unknown", "no runtime for \"kata\" is configured"),
        ("linux", "native programs"),
    ] {
        eventually(&format!("pod {name} says why it does not run"), || {
            let described = cluster.kubectl(&["describe", "pod", name]);
            if described.contains(words) { Ok(()) } else { Err(described) }
        });
    }
    let denied = cluster.kubectl_stdin(
        Kubectl::Newest,
        &["apply", "-f", "-"],
        &of_class("none", "nobody-made-it", "hello:test"),
    );
    assert!(String::from_utf8_lossy(&denied.stderr).contains("RuntimeClass \"nobody-made-it\" not found"));
}

#[test]
fn an_http_component_is_known_as_one() {
    let cluster = Cluster::start();
    image(&cluster, &["import", archive(&component("http"), Packing::Artifact, "http:test").to_str().unwrap()]);
    let description = machine_code(&cluster).pop().unwrap().with_extension("json");
    let description: Value = serde_json::from_str(&std::fs::read_to_string(description).unwrap()).unwrap();
    assert_eq!(description["world"], "http-proxy");
}
