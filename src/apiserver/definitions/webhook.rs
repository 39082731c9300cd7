//! Conversion webhooks: `ConversionReview` over HTTPS, to a Service of the cluster or an address of its own.

use crate::Server;
use crate::proxy;
use async_trait::async_trait;
use bytes::Bytes;
use edge_api::{Object, Status};
use edge_registry::custom::Endpoint;
use edge_registry::{Converter, Webhook};
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a webhook may take (kube-apiserver's value).
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;
/// Versions of ConversionReview, the best first; they differ in their name only.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Asks conversion webhooks. The server owns the registry that owns this, so this does not own the server.
pub(crate) struct WebhookConverter(Weak<Server>);

impl WebhookConverter {
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self(Arc::downgrade(server))
    }
}

#[async_trait]
impl Converter for WebhookConverter {
    async fn convert(&self, webhook: &Webhook, desired: &str, objects: Vec<Value>) -> Result<Vec<Value>, Status> {
        let server = self.0.upgrade().ok_or_else(|| Status::unavailable("the server is stopping"))?;
        let what = objects.first().map(describe).unwrap_or_default();
        let failed = |why: String| Status::internal(format!("conversion webhook for {what} failed: {why}"));
        let understood = REVIEWS.iter().find(|v| webhook.review_versions.iter().any(|r| r == **v));
        let version = understood
            .ok_or_else(|| failed("it understands no version of ConversionReview that edge has".to_owned()))?;
        let uid = format!("{:016x}{:016x}", RandomState::new().hash_one(0u8), RandomState::new().hash_one(1u8));
        let review = json!({"apiVersion": format!("apiextensions.k8s.io/{version}"), "kind": "ConversionReview",
            "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects}});
        let asked = tokio::time::timeout(PATIENCE, ask(&server, webhook, review.to_string().into())).await;
        let answer =
            asked.map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?.map_err(failed)?;
        let Value::Object(mut review) = review else { return Ok(Vec::new()) };
        let objects = review.get_mut("request").and_then(|r| r.get_mut("objects")).map(Value::take).unwrap_or_default();
        let Value::Array(objects) = objects else { return Ok(Vec::new()) };
        converted(answer, &uid, desired, objects).map_err(failed)
    }
}

fn describe(object: &Value) -> String {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}

/// Takes a review apart.
fn converted(review: Value, uid: &str, desired: &str, before: Vec<Value>) -> Result<Vec<Value>, String> {
    let response = review.get("response").ok_or("the answer has no response")?;
    if response.get("uid").and_then(Value::as_str) != Some(uid) {
        return Err(format!("expected response.uid={uid:?}"));
    }
    let result = |name: &str| response.pointer(&format!("/result/{name}")).and_then(Value::as_str);
    if result("status") != Some("Success") {
        return Err(result("message").unwrap_or("it gives no reason").to_owned());
    }
    let after = response.get("convertedObjects").and_then(Value::as_array).cloned().unwrap_or_default();
    if after.len() != before.len() {
        return Err(format!("returned {} objects, expected {}", after.len(), before.len()));
    }
    let pairs = before.into_iter().zip(after).enumerate();
    pairs
        .map(|(i, (before, after))| {
            restored(before, after, desired).map_err(|why| format!("invalid converted object at index {i}: {why}"))
        })
        .collect()
}

/// The converted object with the metadata of the one before: a webhook may change labels and annotations only.
fn restored(before: Value, after: Value, desired: &str) -> Result<Value, String> {
    let object = |value| Object::from_value(value).map_err(|_| "it is no object".to_owned());
    let (before, mut after) = (object(before)?, object(after)?);
    if after.api_version() != desired {
        return Err(format!("wrong groupVersion: {} instead of {desired}", after.api_version()));
    }
    if after.kind() != before.kind() {
        return Err(format!("wrong kind: {} instead of {}", after.kind(), before.kind()));
    }
    if (after.name(), after.namespace(), after.uid()) != (before.name(), before.namespace(), before.uid()) {
        return Err("name, namespace and uid must not change".to_owned());
    }
    let mut metadata = before.metadata().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match after.metadata_mut().remove(field) {
            Some(value) => drop(metadata.insert(field.to_owned(), value)),
            None => drop(metadata.remove(field)),
        }
    }
    after.fields_mut().insert("metadata".into(), metadata.into());
    Ok(after.into_value())
}

/// Posts a review and reads the answer.
async fn ask(server: &Server, webhook: &Webhook, review: Bytes) -> Result<Value, String> {
    let (address, host, path) = place(server, &webhook.endpoint).await?;
    let say = |e: &dyn std::fmt::Display| e.to_string();
    let mut config = trusting(&webhook.ca_bundle).await?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.clone()).map_err(|e| say(&e))?;
    let socket = TcpStream::connect(address).await.map_err(|e| say(&e))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|e| say(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| say(&e))?;
    // it ends with the sender
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a webhook ended");
        }
    });
    let request = Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(Full::new(review))
        .map_err(|e| say(&e))?;
    let response = sender.send_request(request).await.map_err(|e| say(&e))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(|e| say(&e))?.to_bytes();
    if status != StatusCode::OK {
        return Err(format!("it answered {status}"));
    }
    serde_json::from_slice(&body).map_err(|e| say(&e))
}

/// Whom to believe: the authorities of the definition, or where it names none those of the machine.
async fn trusting(ca_bundle: &[u8]) -> Result<rustls::ClientConfig, String> {
    if !ca_bundle.is_empty() {
        return edge_pki::remote_client_config(ca_bundle, None).map_err(|e| e.to_string());
    }
    let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(read.map_err(|e| e.to_string())?.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// Address, name and path of a webhook.
async fn place(server: &Server, endpoint: &Endpoint) -> Result<(SocketAddr, String, String), String> {
    match endpoint {
        Endpoint::Service { namespace, name, path, port } => {
            let service = server.stored_object("", "services", namespace, name);
            let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
            let slices = server.stored_objects("discovery.k8s.io", "endpointslices", namespace).await;
            let slices = slices.map_err(|e| e.message)?;
            let address = proxy::ready_endpoint(&service, &slices, *port)
                .ok_or_else(|| format!("no endpoints available for service {name:?}"))?;
            let path = if path.is_empty() { "/".to_owned() } else { path.clone() };
            Ok((address, format!("{name}.{namespace}.svc"), path))
        }
        Endpoint::Url(url) => {
            let uri: Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
            let host = uri.host().ok_or_else(|| format!("{url:?} has no host"))?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let addresses = tokio::net::lookup_host((host.as_str(), uri.port_u16().unwrap_or(443))).await;
            let address = addresses.map_err(|e| e.to_string())?.next();
            let address = address.ok_or_else(|| format!("{host} has no address"))?;
            Ok((address, host, uri.path().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn object(version: &str, extra: Value) -> Value {
        let mut o = json!({"apiVersion": format!("a.b/{version}"), "kind": "Foo", "metadata": {"name": "x", "namespace": "n", "uid": "u", "finalizers": ["f"]}});
        o.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        o
    }

    fn answer(objects: Value) -> Value {
        json!({"response": {"uid": "1", "result": {"status": "Success"}, "convertedObjects": objects}})
    }

    #[test]
    fn answers_are_believed_only_as_far_as_they_may_go() {
        let before = || vec![object("v1", json!({"spec": 1}))];
        let take = |objects: Value| converted(answer(objects), "1", "a.b/v2", before());
        let good = take(json!([object("v2", json!({"spec": 2, "metadata": {"name": "x", "namespace": "n", "uid": "u", "labels": {"l": "1"}, "finalizers": []}}))])).unwrap();
        assert_eq!(
            good[0]["metadata"],
            json!({"name": "x", "namespace": "n", "uid": "u", "labels": {"l": "1"}, "finalizers": ["f"]})
        );
        assert_eq!(good[0]["spec"], 2);
        for (objects, says) in [
            (json!([]), "returned 0 objects, expected 1"),
            (json!([object("v1", json!({}))]), "wrong groupVersion"),
            (json!([object("v2", json!({"kind": "Bar"}))]), "wrong kind"),
            (json!([object("v2", json!({"metadata": {"name": "y"}}))]), "must not change"),
            (json!([3]), "it is no object"),
        ] {
            let error = take(objects).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let other = converted(answer(json!([])), "2", "a.b/v2", before()).unwrap_err();
        assert!(other.contains("response.uid"), "{other}");
        let refusal = json!({"response": {"uid": "1", "result": {"status": "Failure", "message": "no way"}}});
        assert_eq!(converted(refusal, "1", "a.b/v2", before()).unwrap_err(), "no way");
        assert!(converted(json!({}), "1", "a.b/v2", before()).is_err());
    }
}
