//! How much of the processors the classes of pods get when there is not enough for all. Each class has a cgroup; without
//! these weights all pods that requested nothing would get as much as all that did.

use super::has_ended;
use crate::containers::qos;
use crate::context::Context;
use edge_runtime::Resources;
use edge_runtime::error::chain;
use k8s_openapi::api::core::v1::Pod;
use std::borrow::Borrow;
use std::sync::Arc;
use tokio::sync::watch;

/// Below this cgroup are all pods; Guaranteed ones directly.
const PODS: &str = "kubepods";
const BURSTABLE: &str = "kubepods/burstable";
const BEST_EFFORT: &str = "kubepods/besteffort";

/// What the Burstable pods that have not ended request of the processors together, in thousandths.
pub(super) fn burstable<P: Borrow<Pod>>(pods: impl Iterator<Item = P>) -> i64 {
    let counts = |pod: &Pod| !has_ended(pod) && qos::class(pod) == "Burstable";
    let request = |pod: P| Some(pod).filter(|p| counts(p.borrow())).map_or(0, |p| qos::pod_request(p.borrow(), "cpu"));
    pods.map(request).sum()
}

/// Makes the classes' cgroups and keeps their weights, for ever.
pub(super) async fn keep(cx: Arc<Context>, mut burstable: watch::Receiver<i64>) {
    let all = i64::try_from(cx.machine.cpus).unwrap_or(i64::MAX).saturating_mul(1000);
    weigh(&cx, PODS, all).await;
    weigh(&cx, BEST_EFFORT, 0).await;
    loop {
        let request = *burstable.borrow_and_update();
        weigh(&cx, BURSTABLE, request).await;
        if burstable.changed().await.is_err() {
            return;
        }
    }
}

async fn weigh(cx: &Context, cgroup: &str, milli_cpu: i64) {
    let resources = Resources { cpu_shares: Some(qos::shares(milli_cpu)), ..Resources::default() };
    if let Err(error) = cx.runtime.update_group(cgroup, resources).await {
        tracing::warn!(cgroup, error = chain(&error), "the CPU weight of a class of pods was not set");
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pod(requests: serde_json::Value, limits: serde_json::Value, phase: &str) -> Pod {
        let containers = json!([{"name": "c", "resources": {"requests": requests, "limits": limits}}]);
        serde_json::from_value(json!({"spec": {"containers": containers}, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn only_burstable_pods_that_run_count() {
        let guaranteed = json!({"cpu": "2", "memory": "1Gi"});
        let pods = [
            pod(json!({"cpu": "100m"}), json!({}), "Running"),
            pod(json!({"cpu": "1500m"}), json!({"cpu": "2"}), "Pending"),
            pod(json!({"cpu": "4"}), json!({}), "Succeeded"),
            pod(json!({}), json!({}), "Running"),
            pod(guaranteed.clone(), guaranteed, "Running"),
        ];
        assert_eq!(burstable(pods.iter()), 1600);
    }
}
