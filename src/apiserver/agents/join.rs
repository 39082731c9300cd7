//! Joining: a machine proves that it may (a join token), and that it is the node that it says it is (the node's password,
//! which the first machine of that name brings along), and gets certificates for keys that never left it.
//!
//! The password alone is enough for a machine that has been a node before: it may have been off for longer than its
//! certificate and its token lived.

use crate::Server;
use crate::body::Body;
use crate::encode::plain;
use crate::handler::read_body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_api::{Object, Reason, Status, UserInfo};
use edge_auth::{BOOTSTRAPPERS, NODES, password_hash, password_matches};
use edge_registry::{Target, WatchOptions, WriteOptions};
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the certificates may take.
const PATIENCE: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "kube-system";
/// Passwords are secrets of agents' own making; shorter ones could be guessed.
const SHORTEST_PASSWORD: usize = 16;

/// A node's kubelet may be so many minor versions older than the API server.
const OLDEST: u32 = 3;

#[derive(Deserialize)]
// what a newer node says besides does not keep it from hearing that it is too new
#[serde(rename_all = "camelCase")]
struct Wanted {
    node_name: String,
    node_password: String,
    /// Certificate signing requests (PEM).
    client_request: String,
    serving_request: String,
    /// The version of the node's kubelet, such as `v1.36.0+edge0.1.0`.
    version: String,
}

pub(super) async fn serve(server: &Server, user: &UserInfo, request: Request<Body>) -> Result<Response<Body>, Status> {
    let bytes = read_body(request.into_body()).await?;
    let wanted: Wanted = serde_json::from_slice(&bytes).map_err(|e| Status::bad_request(e.to_string()))?;
    let node = wanted.node_name.as_str();
    edge_api::names::dns1123_subdomain(node)
        .map_err(|e| Status::bad_request(format!("node name {node:?} is invalid: {e}")))?;
    skew(&wanted.version, &server.options.git_version).map_err(|why| Status::new(403, Reason::Forbidden, why))?;
    if wanted.node_password.len() < SHORTEST_PASSWORD {
        return Err(Status::bad_request("the node's password is too short"));
    }
    let may_begin = user.in_group(BOOTSTRAPPERS);
    claim(server, node, &wanted.node_password, may_begin).await?;
    tracing::info!(node, user = user.username, "node joins");
    let identity = UserInfo::new(format!("system:node:{node}"), [NODES]);
    let client = certificate(
        server,
        &identity,
        "kubernetes.io/kube-apiserver-client-kubelet",
        "client auth",
        &wanted.client_request,
    );
    let serving =
        certificate(server, &identity, "kubernetes.io/kubelet-serving", "server auth", &wanted.serving_request);
    let (client, serving) = futures::try_join!(client, serving)?;
    let answer = json!({
        "clientCertificate": client,
        "servingCertificate": serving,
        "cluster": *server.options.cluster_facts,
    });
    Ok(plain(StatusCode::OK, "application/json", answer.to_string()))
}

/// Whether a node of this version may be in a cluster of that one: Kubernetes' skew policy.
///
/// # Errors
/// Why not.
fn skew(node: &str, server: &str) -> Result<(), String> {
    let (Some(ours), Some(its)) = (minor(server), minor(node)) else {
        return Err(format!("the node's version {node:?} is not understood; this server is {server}"));
    };
    if its > ours {
        return Err(format!("the node ({node}) is newer than the server ({server}): update the server first"));
    }
    if its.0 != ours.0 || ours.1 - its.1 > OLDEST {
        return Err(format!(
            "the node ({node}) is too old for the server ({server}): it may be {OLDEST} minor versions older at most"
        ));
    }
    Ok(())
}

/// Major and minor version.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('v')?.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn password_secret(node: &str) -> String {
    format!("{node}.node-password.edge")
}

/// Binds a node's name to a password, or checks that it is bound to this one.
///
/// # Errors
/// 403 when it is bound to another one; 401 when it is bound to none and `may_begin` is false.
pub(crate) async fn claim(server: &Server, node: &str, password: &str, may_begin: bool) -> Result<(), Status> {
    let name = password_secret(node);
    loop {
        if let Some(secret) = server.stored_object("", "secrets", NAMESPACE, &name) {
            let hash = STANDARD.decode(secret.str_at("/data/hash")).ok().and_then(|h| String::from_utf8(h).ok());
            if hash.is_some_and(|hash| password_matches(&hash, password)) {
                return Ok(());
            }
            if !may_begin {
                return Err(Status::unauthorized());
            }
            return Err(Status::new(
                403,
                Reason::Forbidden,
                format!(
                    "the node name {node:?} belongs to another machine: choose another name (--node-name), or, if that \
                     machine is gone or this one was set up anew, free the name with `kubectl delete node {node}`"
                ),
            ));
        }
        if !may_begin {
            return Err(Status::unauthorized());
        }
        let salt = edge_pki::random_secret(8).map_err(Status::internal)?;
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "edge.io/node-password", "immutable": true,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "data": {"hash": STANDARD.encode(password_hash(&salt, password))},
        });
        match create(server, &UserInfo::new("system:apiserver", [UserInfo::MASTERS]), object).await {
            Ok(_) => return Ok(()),
            // another machine was faster, or this one asks twice
            Err(e) if e.reason == Reason::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

async fn create(server: &Server, user: &UserInfo, object: Value) -> Result<Object, Status> {
    let object = Object::from_value(object).map_err(|_| Status::internal("an object is expected"))?;
    let gvk = object.gvk().ok_or_else(|| Status::internal("an object with a kind is expected"))?;
    let row = server.registry.catalog().kind(&gvk.group, &gvk.version, &gvk.kind);
    let row = row.ok_or_else(|| Status::internal(format!("{gvk} is not served")))?;
    let namespace = object.namespace().to_owned();
    let target = Target { info: &row, namespace: &namespace, name: "", subresource: "" };
    let options = WriteOptions { user, field_manager: "edge-join", dry_run: false };
    server.registry.create(&target, &options, object).await?.object()
}

/// Makes a certificate signing request in the node's name, and waits until the cluster's controllers have answered it.
async fn certificate(
    server: &Server,
    node: &UserInfo,
    signer: &str,
    usage: &str,
    request: &str,
) -> Result<String, Status> {
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {
            "request": STANDARD.encode(request), "signerName": signer, "usages": ["digital signature", usage],
        },
    });
    let created = create(server, node, object).await?;
    let row = server.registry.catalog().preferred("certificates.k8s.io", "certificatesigningrequests");
    let row = row.ok_or_else(|| Status::internal("certificate requests are not served"))?;
    let target = Target { info: &row, namespace: "", name: created.name(), subresource: "" };
    let from = WatchOptions { resource_version: created.resource_version().to_owned(), ..WatchOptions::default() };
    let mut events = server.registry.watch(&target, &from).await?;
    let answered = async {
        while let Some(event) = events.next().await {
            let object = event.object.object()?;
            if object.name() != created.name() {
                continue;
            }
            if let Ok(pem) = STANDARD.decode(object.str_at("/status/certificate"))
                && !pem.is_empty()
            {
                return String::from_utf8(pem).map_err(Status::internal);
            }
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let refused = conditions.into_iter().flatten().find(|c| c["type"] == "Denied" || c["type"] == "Failed");
            if let Some(refused) = refused {
                let why = refused["message"].as_str().unwrap_or_default();
                return Err(Status::new(403, Reason::Forbidden, format!("no certificate was issued: {why}")));
            }
        }
        Err(Status::unavailable("the server is stopping"))
    };
    let late = |_| Status::unavailable("no certificate was issued in time; see `kubectl get csr`");
    tokio::time::timeout(PATIENCE, answered).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_may_be_older_but_not_newer() {
        let why = |node: &str| skew(node, "v1.36.0+edge0.1.0").err().unwrap_or_default();
        for fine in ["v1.36.0", "v1.36.9+edge7", "v1.35.0-rc.1", "v1.33.2"] {
            assert_eq!(why(fine), "", "{fine}");
        }
        for newer in ["v1.37.0", "v2.0.0"] {
            assert!(why(newer).contains("newer than the server"), "{newer}");
        }
        for older in ["v1.32.9", "v0.40.0"] {
            assert!(why(older).contains("too old"), "{older}");
        }
        for odd in ["", "1.36", "v1", "vx.y"] {
            assert!(why(odd).contains("not understood"), "{odd}");
        }
    }
}
