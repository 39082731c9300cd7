//! Custom resources: what all of them have in common.

use super::Strategy;
use edge_api::Object;

pub(crate) static STRATEGY: Strategy = Strategy { generation: true, unconditional_update: false, ..Strategy::DEFAULT };

/// What `/status` may change: the status alone, and who has written it.
pub(crate) fn status_only(new: &mut Object, live: &Object) {
    let status = new.fields_mut().remove("status");
    let managed = new.metadata_mut().remove("managedFields");
    let version = new.resource_version().to_owned();
    *new = live.clone();
    new.set_meta("resourceVersion", &version);
    match status {
        Some(status) => drop(new.fields_mut().insert("status".into(), status)),
        None => drop(new.fields_mut().remove("status")),
    }
    match managed {
        Some(managed) => drop(new.metadata_mut().insert("managedFields".into(), managed)),
        None => drop(new.metadata_mut().remove("managedFields")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_brings_nothing_else() {
        let live = json!({"kind": "A", "metadata": {"name": "a", "labels": {"l": "1"}, "managedFields": [1]}, "spec": {"x": 1}, "extra": 1, "status": {"s": 1}});
        let new =
            json!({"kind": "A", "metadata": {"name": "a", "managedFields": [2]}, "spec": {"x": 2}, "status": {"s": 2}});
        let mut new = Object::from_value(new).unwrap();
        status_only(&mut new, &Object::from_value(live).unwrap());
        let expected = json!({"kind": "A", "metadata": {"name": "a", "labels": {"l": "1"}, "managedFields": [2]}, "spec": {"x": 1}, "extra": 1, "status": {"s": 2}});
        assert_eq!(new.into_value(), expected);
    }
}
