//! Limits of local storage: of emptyDirs, of containers, and of pods as a whole.

use super::rank::is_critical;
use crate::containers::qos;
use crate::context::Context;
use crate::pods::Manager;
use crate::pods::record::{Eviction, spec_containers};
use crate::pods::shared::PodShared;
use crate::storage::Local;
use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

const STORAGE: &str = "ephemeral-storage";

/// Which limit, in the words of Kubernetes' metrics.
const OF_EMPTY_DIR: &str = "emptydirfs.limit";
const OF_POD: &str = "ephemeralpodfs.limit";
const OF_CONTAINER: &str = "ephemeralcontainerfs.limit";

/// The limit of an emptyDir on disk. (Those in memory are as large as they may be.)
fn volume_limit(volume: &Volume) -> Option<Quantity> {
    let source = volume.empty_dir.as_ref().filter(|s| s.medium.as_deref().unwrap_or_default().is_empty())?;
    let limit = Quantity::parse(&source.size_limit.as_ref()?.0).ok()?;
    (!limit.is_negative() && !limit.is_zero()).then_some(limit)
}

fn container_limit(container: &Container) -> Option<Quantity> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    Quantity::parse(&limits.get(STORAGE)?.0).ok().filter(|limit| !limit.is_zero())
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Whether a pod can have too much on the disk.
fn has_limits(pod: &Pod) -> bool {
    volumes(pod).any(|v| volume_limit(v).is_some())
        || spec_containers(pod).any(|(_, c)| container_limit(c).is_some())
        || qos::pod_limit(pod, STORAGE).is_some()
}

fn bytes(n: u64) -> Quantity {
    Quantity::from_bytes(i64::try_from(n).unwrap_or(i64::MAX))
}

/// The limit that a pod is over, and Kubernetes' words for it.
fn exceeded(pod: &Pod, local: &Local) -> Option<(&'static str, String)> {
    for volume in volumes(pod) {
        let (Some(limit), Some(used)) = (volume_limit(volume), local.volume(&volume.name)) else { continue };
        if bytes(used.bytes) > limit {
            let message = format!("Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ", volume.name);
            return Some((OF_EMPTY_DIR, message));
        }
    }
    if let Some(limit) = qos::pod_limit(pod, STORAGE).filter(|limit| bytes(local.total().bytes) > *limit) {
        let message = format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some((OF_POD, message));
    }
    let main = pod.spec.iter().flat_map(|spec| &spec.containers);
    main.filter_map(|c| Some((&c.name, container_limit(c)?, local.containers.get(&c.name)?)))
        .find(|(_, limit, used)| bytes(used.total().bytes) > *limit)
        .map(|(name, limit, _)| {
            (OF_CONTAINER, format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "))
        })
}

/// Evicts pods that are over their limits, for ever. Those without are not looked at.
pub(super) async fn keep(cx: &Context, manager: &Manager) {
    let mut tick = interval(super::LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for pod in manager.list() {
            let object = pod.pod();
            if has_limits(&object) && !is_critical(&object) && super::can_go(&pod.record()) {
                check(cx, manager, &pod, &object).await;
            }
        }
    }
}

async fn check(cx: &Context, manager: &Manager, pod: &Arc<PodShared>, object: &Pod) {
    let newer_than = super::LOOK - Duration::from_secs(1);
    let Some(local) = crate::storage::local(pod, newer_than, super::PATIENCE).await else { return };
    if let Some((signal, message)) = exceeded(object, &local) {
        // the pod itself is to blame: what counts disruptions does not count this
        super::evict(cx, manager, pod, signal, Eviction { message, is_disruption: false }).await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::storage::{OfContainer, Used};
    use serde_json::{Value, json};

    fn pod(containers: Value, volumes: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "volumes": volumes}})).unwrap()
    }

    fn limited(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    fn used(containers: &[(&str, u64, u64)], volumes: &[(&str, u64)]) -> Local {
        let mib = |n: u64| Used { bytes: n << 20, inodes: 1 };
        let of = |&(name, rootfs, logs): &(&str, u64, u64)| {
            (name.to_owned(), OfContainer { rootfs: mib(rootfs), logs: mib(logs) })
        };
        Local::of(containers.iter().map(of).collect(), volumes.iter().map(|(name, n)| ((*name).to_owned(), mib(*n))))
    }

    #[test]
    fn who_is_over_which_limit() {
        let empty = |limit: &str| json!([{"name": "x", "emptyDir": {"sizeLimit": limit}}]);
        let two = || json!([limited("a", "10Mi"), limited("b", "10Mi")]);
        for (pod, local, told) in [
            (pod(json!([]), empty("1Mi")), used(&[], &[("x", 1)]), None),
            (
                pod(json!([]), empty("1Mi")),
                used(&[], &[("x", 2)]),
                Some("Usage of EmptyDir volume \"x\" exceeds the limit \"1Mi\". "),
            ),
            (pod(json!([]), empty("0")), used(&[], &[("x", 2)]), None),
            (pod(json!([]), json!([{"name": "x", "emptyDir": {}}])), used(&[], &[("x", 200)]), None),
            (pod(two(), json!([])), used(&[("a", 5, 5), ("b", 5, 5)], &[]), None),
            (
                pod(two(), json!([])),
                used(&[("a", 5, 6), ("b", 1, 1)], &[]),
                Some("Container a exceeded its local ephemeral storage limit \"10Mi\". "),
            ),
            (
                pod(two(), json!([{"name": "x", "emptyDir": {}}])),
                used(&[("a", 5, 5), ("b", 5, 0)], &[("x", 6)]),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. "),
            ),
            // as in Kubernetes, the sum of the limits that there are is the pod's
            (
                pod(json!([limited("a", "10Mi"), {"name": "b"}]), json!([])),
                used(&[("a", 1, 1), ("b", 9, 0)], &[]),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "),
            ),
        ] {
            let found = exceeded(&pod, &local).map(|(_, message)| message);
            assert_eq!(found.as_deref(), told, "{local:?}");
        }
    }

    #[test]
    fn only_pods_with_limits_are_looked_at() {
        assert!(!has_limits(&pod(json!([{"name": "a"}]), json!([{"name": "x", "emptyDir": {}}]))));
        let in_memory = json!([{"name": "x", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
        assert!(!has_limits(&pod(json!([{"name": "a"}]), in_memory)));
        assert!(has_limits(&pod(json!([limited("a", "1Gi")]), json!([]))));
        assert!(has_limits(&pod(json!([]), json!([{"name": "x", "emptyDir": {"sizeLimit": "1Mi"}}]))));
    }
}
