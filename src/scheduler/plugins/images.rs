//! ImageLocality: nodes that have the pod's images need not pull them.

use super::MAX_SCORE;
use crate::cluster::{Cluster, NodeState, normalized};
use crate::pod::Pending;

const MIB: i64 = 1 << 20;
/// Less than this counts as nothing.
const SMALL: i64 = 23 * MIB;
/// More than this counts no more, for each container.
const LARGE: i64 = 1000 * MIB;

/// The scores of nodes; `None`: no image is on any of them.
pub(crate) fn scores(pod: &Pending, cluster: &Cluster, nodes: &[&NodeState]) -> Option<Vec<i64>> {
    let spec = pod.spec();
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let count = containers().count().max(1) as i64;
    let all = cluster.len().max(1) as f64;
    // an image that is on few nodes counts for less, so that not all pods go to them
    let images: Vec<(String, f64)> = containers()
        .filter_map(|c| Some(normalized(c.image.as_deref()?)))
        .map(|name| {
            let share = cluster.nodes_with_image(&name) as f64 / all;
            (name, share)
        })
        .filter(|(_, share)| *share > 0.0)
        .collect();
    if images.is_empty() {
        return None;
    }
    let of = |state: &&NodeState| {
        let present = |(name, share): &(String, f64)| Some((*state.images.get(name)? as f64 * share) as i64);
        let sum: i64 = images.iter().filter_map(present).sum();
        let large = LARGE * count;
        MAX_SCORE * (sum.clamp(SMALL, large) - SMALL) / (large - SMALL)
    };
    Some(nodes.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, pending};
    use serde_json::json;

    #[test]
    fn what_is_there_need_not_be_pulled() {
        let node =
            |name: &str, images: serde_json::Value| json!({"metadata": {"name": name}, "status": {"images": images}});
        let image = json!([{"names": ["registry/app:latest"], "sizeBytes": 2000 * MIB}]);
        let c = cluster(&[node("a", image), node("b", json!([]))]);
        let nodes: Vec<&NodeState> = c.nodes().map(|(_, s, _)| s).collect();
        let pod = |image: &str| pending(json!({"containers": [{"name": "c", "image": image}]}));
        // half of the nodes have it: it counts as half as large
        assert_eq!(scores(&pod("registry/app"), &c, &nodes), Some(vec![100, 0]));
        assert_eq!(scores(&pod("registry/other"), &c, &nodes), None);
    }
}
