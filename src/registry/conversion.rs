//! Served versions that are not the stored one.
//!
//! Of built-in resources a pair of functions goes between the two; versions of custom resources differ in their names only, or a
//! webhook is asked, which the API server does ([`Converter`]).

mod autoscaler;

use crate::custom::Webhook;
use async_trait::async_trait;
use edge_api::{Object, Status};
use serde_json::Value;
use std::sync::Arc;

/// Between a served version and the stored one.
#[derive(Clone, Debug)]
pub enum Conversion {
    /// Of a built-in resource.
    BuiltIn(&'static Functions),
    /// Only `apiVersion` differs.
    Renamed {
        /// `apiVersion`, as stored.
        stored_api_version: String,
    },
    /// A webhook knows. Rows of the stored version have it, too, as there may be objects of an earlier stored version.
    Webhook {
        /// `apiVersion`, as stored.
        stored_api_version: String,
        /// Who is asked.
        webhook: Arc<Webhook>,
    },
}

/// A pair of functions between a served version and the stored one.
#[derive(Debug)]
pub struct Functions {
    /// `apiVersion`, as stored.
    pub stored_api_version: &'static str,
    /// From the served version; sets `apiVersion`.
    pub to_stored: fn(&mut Object),
    /// To the served version; sets `apiVersion`.
    pub from_stored: fn(&mut Object),
}

/// Asks webhooks; implemented by the API server.
#[async_trait]
pub trait Converter: Send + Sync + 'static {
    /// The objects in another version, in the same order.
    ///
    /// # Errors
    /// When the webhook cannot be asked, or does not convert.
    async fn convert(&self, webhook: &Webhook, desired: &str, objects: Vec<Value>) -> Result<Vec<Value>, Status>;
}

impl Conversion {
    /// `apiVersion`, as stored.
    pub fn stored_api_version(&self) -> &str {
        match self {
            Self::BuiltIn(functions) => functions.stored_api_version,
            Self::Renamed { stored_api_version } | Self::Webhook { stored_api_version, .. } => stored_api_version,
        }
    }
}

/// `events.k8s.io/v1` over the core Event: the same facts under other names.
static EVENTS: Functions =
    Functions { stored_api_version: "v1", to_stored: event_to_core, from_stored: event_from_core };

/// `autoscaling/v1` over `autoscaling/v2`: CPU has a field of its own there.
static AUTOSCALERS: Functions =
    Functions { stored_api_version: "autoscaling/v2", to_stored: autoscaler::to_v2, from_stored: autoscaler::from_v2 };

/// The conversion of a built-in row, if its version is not the stored one.
pub(crate) fn of(group: &str, version: &str, plural: &str) -> Option<Conversion> {
    match (group, version, plural) {
        ("events.k8s.io", "v1", "events") => Some(Conversion::BuiltIn(&EVENTS)),
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(Conversion::BuiltIn(&AUTOSCALERS)),
        _ => None,
    }
}

/// Names in `events.k8s.io/v1` and in the core group.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.fields_mut().remove(from) {
        object.fields_mut().insert(to.to_owned(), value);
    }
}

fn event_to_core(object: &mut Object) {
    for (new, core) in EVENT_FIELDS {
        rename(object, new, core);
    }
    object.fields_mut().insert("apiVersion".into(), "v1".into());
}

fn event_from_core(object: &mut Object) {
    for (new, core) in EVENT_FIELDS {
        rename(object, core, new);
    }
    object.fields_mut().insert("apiVersion".into(), "events.k8s.io/v1".into());
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"}, "reason": "R"});
        let mut o = Object::from_value(event.clone()).unwrap();
        event_to_core(&mut o);
        assert_eq!((o.str_at("/message"), o.str_at("/involvedObject/name"), o.api_version()), ("n", "p", "v1"));
        event_from_core(&mut o);
        assert_eq!(o.into_value(), event);
    }
}
