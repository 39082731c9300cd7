//! WebAssembly as images: every packing from archives and a registry, compiled when it arrives, shown and removed by
//! `edge image`; and what is none, or wants to harm.

use crate::harness::images::{OciArchive, architecture, busybox_archive, layer};
use crate::harness::wasm::{Packing, archive, component, module};
use crate::harness::{Cluster, Kubectl, eventually, success};
use crate::images::Registry;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::SigningKey as _;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
        ("both", "wasm-image"),
        ("foreign", "wasm-image"),
    ];
    for (name, kind) in kinds {
        let lines: Vec<&str> = list.lines().filter(|line| line.contains(&format!("packed-{name} "))).collect();
        assert!(lines.iter().any(|line| line.contains(kind)), "{name} is no {kind}: {list}");
    }
    // Both are here, and a class says which one a pod wants; both count as used, and go together.
    for (class, words) in [("wasm", "hello from wasm"), ("wasm-dense", "hello from wasm")] {
        cluster.apply(&(pod(class, "packed-both:test", "Never") + &format!("  runtimeClassName: {class}\n")));
        succeeds_with(&cluster, class, words);
    }
    cluster.apply(&pod("native", "packed-both:test", "Never"));
    eventually("the native program is tried", || {
        let described = cluster.kubectl(&["describe", "pod", "native"]);
        // it is a script of no system
        if described.contains("exec") && described.contains("/app") { Ok(()) } else { Err(described) }
    });
    assert!(refused(&cluster, &["rm", "packed-both:test"]).contains("is used by a pod"));
    cluster.kubectl(&["delete", "pod", "wasm", "wasm-dense", "native", "--grace-period=1"]);
    eventually("both can be removed", || {
        let output = edge_image(&cluster, &["rm", "packed-both:test"]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    assert!(!image(&cluster, &["list"]).contains("packed-both"));
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
    // Which is told; and a pod that finds it compiled says nothing of it.
    let described = cluster.kubectl(&["describe", "pod", "hello"]);
    assert!(described.contains("Compiling the WebAssembly program of image"), "{described}");
    assert!(described.contains("Machine code size: "), "{described}");
    cluster.apply(&pod("again", &hello, "Always"));
    succeeds_with(&cluster, "again", "hello from wasm");
    assert!(!cluster.kubectl(&["describe", "pod", "again"]).contains("Compil"));
    cluster.kubectl(&["delete", "pod", "again"]);

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
    // on a machine that is busy the clock may be faster than the processor
    assert!(error.contains("given up") || error.contains("did not end within"), "{error}");
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

/// Gives tokens for a registry to whoever has the right name and password, as Docker's own does.
struct TokenServer {
    cert: rcgen::CertifiedKey<rcgen::KeyPair>,
    listener: TcpListener,
}

impl TokenServer {
    fn new(ip: Ipv4Addr) -> Self {
        let cert = rcgen::generate_simple_self_signed(["tokens".to_owned()]).unwrap();
        Self { cert, listener: TcpListener::bind((ip, 0)).unwrap() }
    }

    fn registry_config(&self, dir: &Path) -> String {
        let bundle = dir.join("tokens.crt");
        std::fs::write(&bundle, self.cert.cert.pem()).unwrap();
        let realm = format!("http://{}/token", self.listener.local_addr().unwrap());
        let bundle = bundle.display();
        format!("auth: {{token: {{realm: \"{realm}\", service: images, issuer: tests, rootcertbundle: {bundle}}}}}")
    }

    /// Answers for ever.
    fn serve(self) {
        std::thread::spawn(move || self.listener.incoming().flatten().for_each(|stream| self.answer(stream)));
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let allowed = STANDARD.encode("anna:ge:heim");
        let known =
            head.lines().any(|l| l.to_lowercase().starts_with("authorization: basic ") && l.ends_with(&allowed));
        let (status, body) = match known {
            true => ("200 OK", json!({"token": self.token(scope(&head))}).to_string()),
            false => ("401 Unauthorized", json!({"details": "who are you?"}).to_string()),
        };
        let length = body.len();
        let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    }

    fn token(&self, (name, actions): (String, Vec<String>)) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(self.cert.cert.der())]});
        let access = json!([{"type": "repository", "name": name, "actions": actions}]);
        let claims = json!({"iss": "tests", "sub": "anna", "aud": "images", "exp": now + 300, "nbf": now - 60, "iat": now - 60,
            "jti": "1", "access": access});
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = raw_signature(&self.cert.signing_key.sign(signed.as_bytes()).unwrap());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Repository and actions that a request for a token names.
fn scope(head: &str) -> (String, Vec<String>) {
    let scope = head.split(['?', '&', ' ']).find_map(|part| part.strip_prefix("scope=")).unwrap_or_default();
    let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let mut parts = scope.split(':').skip(1);
    let name = parts.next().unwrap_or_default().to_owned();
    (name, parts.next().unwrap_or_default().split(',').map(str::to_owned).collect())
}

/// The two numbers of a signature, 32 bytes each, out of their ASN.1.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let (mut at, mut raw) = (2, Vec::new());
    for _ in 0..2 {
        let length = der[at + 1] as usize;
        let number = &der[at + 2..at + 2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        raw.extend(std::iter::repeat_n(0, 32 - number.len()));
        raw.extend(number);
        at += 2 + length;
    }
    raw
}

#[test]
fn registries_that_ask_who_one_is() {
    let mut cluster = Cluster::prepare(&[]);
    let tokens = TokenServer::new(cluster.address(1));
    let by_token = Registry::start(&cluster, 5000, &tokens.registry_config(&cluster.dir));
    tokens.serve();
    let users = cluster.dir.join("htpasswd");
    let mut htpasswd = std::process::Command::new("htpasswd");
    assert!(htpasswd.args(["-Bbc"]).arg(&users).args(["anna", "ge:heim"]).output().unwrap().status.success());
    let by_password =
        Registry::start(&cluster, 5001, &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", users.display()));
    let config = cluster.dir.join("registries.yaml");
    let plain = |at: &str| format!("  \"{at}\": {{endpoint: [\"http://{at}\"]}}\n");
    std::fs::write(&config, format!("mirrors:\n{}{}", plain(&by_token.address), plain(&by_password.address))).unwrap();
    cluster.launch();
    let docker = cluster.dir.join("docker");
    std::fs::create_dir(&docker).unwrap();
    let (hello, config) = (module("hello"), config.to_str().unwrap());
    for at in [&by_token.address, &by_password.address] {
        let name = format!("{at}/apps/hello:v1");
        let push = ["wasm", "push", hello.to_str().unwrap(), &name, "--private-registry", config];
        let data_dir = cluster.data_dir();
        let pull = ["image", "pull", &name, "--data-dir", data_dir.to_str().unwrap()];
        for args in [&push[..], &pull[..]] {
            // nobody, somebody else, by hand, and by what docker knows
            let auths = json!({"auths": {at: {"auth": STANDARD.encode("anna:ge:heim")}}});
            let attempts = [
                (None, None, false),
                (Some("anna:wrong"), None, false),
                (Some("anna:ge:heim"), None, true),
                (None, Some(auths), true),
            ];
            for (creds, auths, well) in attempts {
                std::fs::write(docker.join("config.json"), auths.clone().unwrap_or(json!({})).to_string()).unwrap();
                let mut command = cluster.edge_command(args);
                command.env("DOCKER_CONFIG", &docker).args(creds.map(|creds| format!("--creds={creds}")));
                let output = command.output().unwrap();
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.success(), well, "{args:?} as {creds:?} {auths:?}: {error}");
                assert!(well || error.contains("uthoriz") || error.contains("401"), "{error}");
                assert!(!error.contains("heim"), "{error}");
            }
        }
        cluster.apply(&pod(if at == &by_token.address { "token" } else { "password" }, &name, "Never"));
    }
    for name in ["token", "password"] {
        succeeds_with(&cluster, name, "hello from wasm");
    }
}
