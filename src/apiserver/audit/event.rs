//! The form of an event, `audit.k8s.io/v1` `Event`, its fields in Kubernetes' order.
//!
//! An event is written once, without its kind, as it is in an `EventList`; what stands alone gets its kind put before it.

use bytes::Bytes;
use edge_api::{Status, UserInfo};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What stands before the fields of an event that is alone.
const KIND: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
/// Says that parts of an event were left out.
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// The length of what [`line`] makes of an event.
pub(super) fn line_len(event: &[u8]) -> usize {
    KIND.len() + event.len()
}

/// An event that stands alone, with the end of its line.
pub(super) fn line(event: &[u8]) -> Vec<u8> {
    // in place of its first brace
    [KIND, event.get(1..).unwrap_or_default(), b"\n"].concat()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    pub(super) level: &'static str,
    #[serde(rename = "auditID")]
    pub(super) audit_id: String,
    pub(super) stage: &'static str,
    #[serde(rename = "requestURI")]
    pub(super) request_uri: String,
    pub(super) verb: String,
    pub(super) user: User,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) impersonated_user: Option<User>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub(super) source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object_ref: Option<ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_status: Option<ResponseStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_object: Option<Value>,
    pub(super) request_received_timestamp: String,
    pub(super) stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Event {
    /// JSON without the kind.
    pub(super) fn json(&self) -> Option<Bytes> {
        // a tree of JSON with text for keys can always be written
        serde_json::to_vec(self).ok().map(Bytes::from)
    }

    /// The same without what was submitted and answered, which it says.
    pub(super) fn json_without_objects(&mut self) -> Option<Bytes> {
        let objects = (self.request_object.take(), self.response_object.take());
        let before = self.annotations.insert(TRUNCATED.to_owned(), "true".to_owned());
        let json = self.json();
        // others get all of it
        (self.request_object, self.response_object) = objects;
        match before {
            Some(before) => drop(self.annotations.insert(TRUNCATED.to_owned(), before)),
            None => drop(self.annotations.remove(TRUNCATED)),
        }
        json
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct User {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

impl From<&UserInfo> for User {
    fn from(user: &UserInfo) -> Self {
        let UserInfo { username, uid, groups, extra } = user.clone();
        Self { username, uid, groups, extra }
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) subresource: String,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct ResponseStatus {
    metadata: BTreeMap<(), ()>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    reason: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    details: Value,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) code: u16,
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}

impl From<&Status> for ResponseStatus {
    fn from(status: &Status) -> Self {
        // as it goes over the wire, without its kind
        let mut wire = serde_json::to_value(status).unwrap_or_default();
        Self {
            metadata: BTreeMap::new(),
            status: if wire["status"] == "Success" { "Success" } else { "Failure" },
            message: status.message.clone(),
            reason: wire["reason"].take(),
            details: wire["details"].take(),
            code: status.code,
        }
    }
}
