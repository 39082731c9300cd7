//! Conversion webhooks: `ConversionReview`s, and what is believed of their answers.

use crate::Server;
use crate::outgoing::{CallError, Callee};
use async_trait::async_trait;
use edge_api::{Object, Status};
use edge_registry::{Converter, Webhook};
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

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
        let callee = Callee {
            endpoint: &webhook.endpoint,
            ca_bundle: &webhook.ca_bundle,
            patience: PATIENCE,
            knows_patience: false,
            longest: LONGEST,
        };
        let answer = server.outgoing.post(&callee, review.to_string().into()).await;
        let answer = answer.map_err(|e| match e {
            CallError::Deadline { .. } => failed(format!("no answer within {} s", PATIENCE.as_secs())),
            other => failed(other.to_string()),
        })?;
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
