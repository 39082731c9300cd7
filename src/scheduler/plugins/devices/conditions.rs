//! Devices that have to be made ready for a node before a pod is bound to it: their drivers say so in conditions of the claim's status.

use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// How long drivers may take (Kubernetes' value).
pub(crate) const PATIENCE: SignedDuration = SignedDuration::from_secs(600);

/// How far the devices of a claim are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Until then, if that is known.
    Waits(Option<Timestamp>),
    /// A driver has given up, or taken too long.
    Failed(String),
}

fn has_any(list: Option<&Vec<String>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

/// How far the devices of a claim are.
pub(crate) fn readiness(claim: &ResourceClaim, now: Timestamp) -> Readiness {
    let status = claim.status.as_ref();
    let Some(allocation) = status.and_then(|s| s.allocation.as_ref()) else { return Readiness::Ready };
    let results = || allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let conditions = |result: &DeviceRequestAllocationResult| {
        let all = status.and_then(|s| s.devices.as_deref()).unwrap_or_default();
        let of = all.iter().find(|device| {
            (&device.driver, &device.pool, &device.device, &device.share_id)
                == (&result.driver, &result.pool, &result.device, &result.share_id)
        });
        of.and_then(|device| device.conditions.as_deref()).unwrap_or_default()
    };
    let is_true = |result: &DeviceRequestAllocationResult, condition: &String| {
        conditions(result).iter().any(|c| c.type_ == *condition && c.status == "True")
    };
    let mut waits = false;
    for result in results().filter(|result| has_any(result.binding_conditions.as_ref())) {
        let failed = result.binding_failure_conditions.iter().flatten().find(|c| is_true(result, c));
        if let Some(failed) = failed {
            return Readiness::Failed(format!("claim {name} binding failed: {failed} of device {}", result.device));
        }
        waits |= result.binding_conditions.iter().flatten().any(|c| !is_true(result, c));
    }
    if !waits {
        return Readiness::Ready;
    }
    let until = allocation.allocation_timestamp.as_ref().and_then(|time| time.0.checked_add(PATIENCE).ok());
    if until.is_some_and(|until| until < now) {
        return Readiness::Failed(format!("claim {name} binding timeout"));
    }
    Readiness::Waits(until)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn drivers_say_when_devices_are_ready() {
        let at = "2026-01-01T00:00:00Z";
        let of = |conditions: Value, after: i64| {
            let result = json!({"request": "r", "driver": "d.io", "pool": "p", "device": "g", "bindingConditions": ["Attached"],
                "bindingFailureConditions": ["Broken"]});
            let free = json!({"request": "r", "driver": "d.io", "pool": "p", "device": "h"});
            let devices = json!([{"driver": "d.io", "pool": "p", "device": "g", "conditions": conditions}]);
            let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": {"devices": devices,
                "allocation": {"allocationTimestamp": at, "devices": {"results": [result, free]}}}});
            let claim: ResourceClaim = serde_json::from_value(claim).unwrap();
            readiness(&claim, at.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(after))
        };
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": at});
        assert!(matches!(of(json!([]), 1), Readiness::Waits(Some(_))));
        assert!(matches!(of(json!([condition("Attached", "False")]), 1), Readiness::Waits(_)));
        assert_eq!(of(json!([condition("Attached", "True")]), 1), Readiness::Ready);
        let both = json!([condition("Attached", "True"), condition("Broken", "True")]);
        assert_eq!(of(both, 1), Readiness::Failed("claim c binding failed: Broken of device g".into()));
        assert_eq!(of(json!([]), 601), Readiness::Failed("claim c binding timeout".into()));
        assert_eq!(of(json!([condition("Attached", "True")]), 601), Readiness::Ready);
        assert_eq!(readiness(&ResourceClaim::default(), at.parse().unwrap()), Readiness::Ready);
    }
}
