//! Served versions that are not the stored one.

mod autoscaler;

use crate::resource::Conversion;
use edge_api::Object;

/// `events.k8s.io/v1` over the core Event: the same facts under other names.
static EVENTS: Conversion =
    Conversion { stored_api_version: "v1", to_stored: event_to_core, from_stored: event_from_core };

/// `autoscaling/v1` over `autoscaling/v2`: CPU has a field of its own there.
static AUTOSCALERS: Conversion =
    Conversion { stored_api_version: "autoscaling/v2", to_stored: autoscaler::to_v2, from_stored: autoscaler::from_v2 };

/// The conversion of a row, if its version is not the stored one.
pub(crate) fn of(group: &str, version: &str, plural: &str) -> Option<&'static Conversion> {
    match (group, version, plural) {
        ("events.k8s.io", "v1", "events") => Some(&EVENTS),
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(&AUTOSCALERS),
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
