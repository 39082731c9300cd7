//! Parts of edge that can be left out, for those who bring their own.

use super::node::{ConfigError, wrong};
use std::collections::BTreeSet;

/// A part that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The cluster's DNS on every node.
    Dns,
    /// Load balancing of services on every node.
    ServiceProxy,
    /// Load balancers on the nodes' own addresses.
    ServiceLb,
    /// The class `local-path`, and the making of its volumes.
    LocalStorage,
    /// Enforcement of NetworkPolicies.
    NetworkPolicy,
    /// What nodes and pods use, told by the API.
    Metrics,
}

impl Part {
    const ALL: [Self; 6] =
        [Self::Dns, Self::ServiceProxy, Self::ServiceLb, Self::LocalStorage, Self::NetworkPolicy, Self::Metrics];
    /// Components of k3s that edge does not have: leaving them out is no mistake.
    const FOREIGN: [&str; 2] = ["traefik", "runtimes"];

    /// Its name, k3s' where k3s has one.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dns => "coredns",
            Self::ServiceProxy => "kube-proxy",
            Self::ServiceLb => "servicelb",
            Self::LocalStorage => "local-storage",
            Self::NetworkPolicy => "network-policy",
            Self::Metrics => "metrics-server",
        }
    }

    /// The parts with these names.
    ///
    /// # Errors
    /// [`ConfigError`] for a name that nothing has.
    pub(super) fn parse(names: &[String]) -> Result<BTreeSet<Self>, ConfigError> {
        let mut parts = BTreeSet::new();
        for name in names.iter().map(|name| name.trim()).filter(|name| !Self::FOREIGN.contains(name)) {
            let Some(part) = Self::ALL.into_iter().find(|part| part.name() == name) else {
                let known: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
                return Err(wrong("disable", format!("{name:?} is none of {}", known.join(", "))));
            };
            parts.insert(part);
        }
        Ok(parts)
    }
}
