//! Webhooks on the host, which plays the outside: an HTTPS server, and the Service that leads to it.

use super::Cluster;
use super::space::outside;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Where the Service is.
const NAMESPACE: &str = "hooks";
/// Longer than any webhook's patience here.
const LONG: Duration = Duration::from_secs(5);

/// The server's address and certificate.
pub(crate) struct Hooks {
    url: String,
    bundle: String,
}

impl Hooks {
    /// Starts it, and makes the Service `hook` in a namespace of its own.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let ip = outside(cluster);
        let names = [ip.to_string(), format!("hook.{NAMESPACE}.svc")];
        let (port, certificate) = serve_json(ip, &names, |path, review| {
            let mut response = respond(path, &review["request"]);
            response["uid"] = review["request"]["uid"].clone();
            json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
        });
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: hook, namespace: {NAMESPACE}}}, spec: {{ports: [{{port: 8443}}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: hook-1, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: hook}}}},
  addressType: IPv4, ports: [{{name: '', port: {port}, protocol: TCP}}], endpoints: [{{addresses: ['{ip}']}}]}}"
        ));
        Self { url: format!("https://{ip}:{port}"), bundle: BASE64_STANDARD.encode(certificate) }
    }

    /// How the server is reached by the Service.
    pub(crate) fn service(&self, path: &str) -> Value {
        json!({"service": {"namespace": NAMESPACE, "name": "hook", "port": 8443, "path": path}, "caBundle": self.bundle})
    }

    /// And by its own address.
    pub(crate) fn address(&self, path: &str) -> Value {
        json!({"url": format!("{}{path}", self.url), "caBundle": self.bundle})
    }
}

/// An HTTPS server, which ends with the test: what it answers to JSON at a path. Gives its port, and the certificate that it shows.
pub(crate) fn serve_json(
    ip: Ipv4Addr,
    names: &[String],
    answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let (config, answer) = (Arc::new(config), Arc::new(answer));
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (config, answer) = (config.clone(), answer.clone());
            std::thread::spawn(move || serve(socket, config, answer.as_ref()));
        }
    });
    (port, made.cert.pem())
}

fn serve(socket: TcpStream, config: Arc<ServerConfig>, answer: &impl Fn(&str, &Value) -> Value) -> Option<()> {
    let connection = ServerConnection::new(config).ok()?;
    let mut stream = BufReader::new(StreamOwned::new(connection, socket));
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let target = line.split(' ').nth(1)?.to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let answer = answer(target.split('?').next()?, &serde_json::from_slice(&body).ok()?).to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        let out = stream.get_mut();
        out.write_all(head.as_bytes())
            .and_then(|()| out.write_all(answer.as_bytes()))
            .and_then(|()| out.flush())
            .ok()?;
    }
}

/// What the webhooks of Kubernetes' conformance suite do, and an injector of sidecars.
fn respond(path: &str, request: &Value) -> Value {
    let object = &request["object"];
    let allow = || json!({"allowed": true});
    let deny = |why: &str| json!({"allowed": false, "status": {"message": why, "reason": why}});
    let patch = |patch: Value| json!({"allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(patch.to_string())});
    let mark = &object["data"]["webhook-e2e-test"];
    match path {
        "/always-deny" => deny("this webhook denies all requests"),
        "/delay" => {
            std::thread::sleep(LONG);
            allow()
        }
        "/pods" if object["metadata"]["labels"]["webhook-e2e-test"] == "webhook-disallow" => {
            deny("the pod contains unwanted label")
        }
        "/pods" if object["metadata"]["labels"]["webhook-e2e-test"] == "wait-forever" => {
            std::thread::sleep(LONG);
            allow()
        }
        "/attach" => {
            deny(&format!("attaching to pod '{}' is not allowed", request["name"].as_str().unwrap_or_default()))
        }
        "/configmaps" if mark == "webhook-disallow" => deny("the configmap contains unwanted key and value"),
        "/custom" if mark == "webhook-disallow" => deny("the custom resource contains unwanted data"),
        "/custom"
            if request["operation"] == "DELETE"
                && request["oldObject"]["data"]["webhook-e2e-test"] == "webhook-nondeletable" =>
        {
            deny("the custom resource cannot be deleted because it contains unwanted key and value")
        }
        "/crd" if object["metadata"]["labels"]["webhook-e2e-test"] == "webhook-disallow" => {
            deny("the crd contains unwanted label")
        }
        "/mutate" if object["data"]["mutation-start"] == "yes" && object["data"]["mutation-stage-1"].is_null() => {
            patch(json!([{"op": "add", "path": "/data/mutation-stage-1", "value": "yes"}]))
        }
        "/mutate" | "/mutate-late"
            if object["data"]["mutation-stage-1"] == "yes" && object["data"]["mutation-stage-2"].is_null() =>
        {
            patch(json!([{"op": "add", "path": "/data/mutation-stage-2", "value": "yes"}]))
        }
        "/mutate-pods" => patch(
            json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "webhook-added-init-container", "image": "busybox:test", "command": ["true"]}]}]),
        ),
        "/inject" => patch(
            json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "sidecar", "image": "busybox:test", "command": ["sleep", "100000"]}}]),
        ),
        "/add-label" => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"added-label": "yes"}}])),
        _ => allow(),
    }
}
