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
            resources: resources::Settings::default(),
            near: near::Settings::default(),
            spread: spread::Defaults::System,
            added_affinity: None,
            candidates: (10, 100),
            bind_timeout: Duration::from_secs(600),
        }
    }
}
