//! What one kind of scheduling goes by: which plugins count, and how much.

use crate::plugins::{Plugin, Plugins, near, resources, spread};
use k8s_openapi::api::core::v1::NodeAffinity;
use std::time::Duration;

/// How pods that ask for a scheduler of some name are scheduled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    /// The name by which pods ask for it.
    pub(crate) name: String,
    /// Plugins that refuse nodes.
    pub(crate) filters: Plugins,
    /// Plugins that compare nodes, with their weights.
    pub(crate) weights: Vec<(Plugin, i64)>,
    /// Whether pods of lower priority make room.
    pub(crate) preempts: bool,
    /// Of how many nodes the best is chosen, in percent of all; none: the fewer percent the more nodes there are.
    pub(crate) percentage: Option<usize>,
    pub(crate) resources: resources::Settings,
    pub(crate) near: near::Settings,
    pub(crate) spread: spread::Defaults,
    /// What is asked of the nodes of all pods.
    pub(crate) added_affinity: Option<NodeAffinity>,
    /// On how many nodes it is tried whether pods can make room: in percent of those on which they might, and at least.
    pub(crate) candidates: (usize, usize),
    /// How long a pod keeps its place while its volumes are made.
    pub(crate) bind_timeout: Duration,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: crate::NAME.into(),
            filters: Plugins::ALL,
            weights: vec![
                (Plugin::TaintToleration, 3),
                (Plugin::NodeAffinity, 2),
                (Plugin::PodTopologySpread, 2),
                (Plugin::InterPodAffinity, 2),
                (Plugin::DynamicResources, 2),
                (Plugin::NodeResourcesFit, 1),
                (Plugin::NodeResourcesBalancedAllocation, 1),
                (Plugin::ImageLocality, 1),
            ],
            preempts: true,
            percentage: None,
            resources: resources::Settings::default(),
            near: near::Settings::default(),
            spread: spread::Defaults::System,
            added_affinity: None,
            candidates: (10, 100),
            bind_timeout: Duration::from_secs(600),
        }
    }
}

/// Of fewer nodes than so many all are looked at (Kubernetes' values, as those below).
const FEW: usize = 100;
/// The least part of the nodes, in percent.
const LEAST: usize = 5;

impl Profile {
    /// How many possible nodes are enough to choose from, of so many.
    pub(crate) fn enough(&self, nodes: usize) -> usize {
        let percent = self.percentage.unwrap_or_else(|| 50_usize.saturating_sub(nodes / 125).max(LEAST));
        (nodes.saturating_mul(percent) / 100).max(FEW).min(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_nodes_some_are_enough() {
        let enough = |percentage, nodes| Profile { percentage, ..Profile::default() }.enough(nodes);
        for (nodes, want) in [(0, 0), (10, 10), (100, 100), (150, 100), (1000, 420), (5000, 500), (20_000, 1000)] {
            assert_eq!(enough(None, nodes), want, "{nodes}");
        }
        assert_eq!((enough(Some(100), 5000), enough(Some(1), 5000), enough(Some(40), 5000)), (5000, 100, 2000));
    }
}
