//! The rules by which nodes are possible for a pod and by which one is better than another: Kubernetes' default plugins, by their names.

pub(crate) mod devices;
pub(crate) mod images;
pub(crate) mod near;
pub(crate) mod node;
pub(crate) mod resources;
pub(crate) mod spread;
pub(crate) mod volumes;

use std::borrow::Cow;

/// The best score that a plugin gives a node.
pub(crate) const MAX_SCORE: i64 = 100;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Plugin {
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    DynamicResources,
    DefaultPreemption,
    Extender,
}

impl Plugin {
    /// All that a configuration can name, with their names.
    pub(crate) const NAMED: [(&'static str, Self); 16] = [
        ("NodeUnschedulable", Self::NodeUnschedulable),
        ("NodeName", Self::NodeName),
        ("TaintToleration", Self::TaintToleration),
        ("NodeAffinity", Self::NodeAffinity),
        ("NodePorts", Self::NodePorts),
        ("NodeResourcesFit", Self::NodeResourcesFit),
        ("VolumeRestrictions", Self::VolumeRestrictions),
        ("NodeVolumeLimits", Self::NodeVolumeLimits),
        ("VolumeBinding", Self::VolumeBinding),
        ("VolumeZone", Self::VolumeZone),
        ("PodTopologySpread", Self::PodTopologySpread),
        ("InterPodAffinity", Self::InterPodAffinity),
        ("NodeResourcesBalancedAllocation", Self::NodeResourcesBalancedAllocation),
        ("ImageLocality", Self::ImageLocality),
        ("DynamicResources", Self::DynamicResources),
        ("DefaultPreemption", Self::DefaultPreemption),
    ];

    /// The plugin of a name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(n, _)| *n == name).map(|(_, plugin)| *plugin)
    }
}

/// A set of plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Plugins(u32);

impl Plugins {
    pub(crate) const ALL: Self = Self(u32::MAX);

    pub(crate) fn with(self, plugin: Plugin) -> Self {
        Self(self.0 | 1 << plugin as u32)
    }

    pub(crate) fn without(self, plugin: Plugin) -> Self {
        Self(self.0 & !(1 << plugin as u32))
    }

    pub(crate) fn has(self, plugin: Plugin) -> bool {
        self.0 & 1 << plugin as u32 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Why a node is impossible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) plugin: Plugin,
    /// As Kubernetes words them.
    pub(crate) reasons: Vec<Cow<'static, str>>,
    /// The deletion of other pods would not change it.
    pub(crate) is_final: bool,
}

impl Refusal {
    /// One that the deletion of other pods may change.
    pub(crate) fn open(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, reasons: vec![reason.into()], is_final: false }
    }

    /// One that stays whatever pods go.
    pub(crate) fn lasting(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, reasons: vec![reason.into()], is_final: true }
    }
}

/// Stretched so that the highest is [`MAX_SCORE`]; `reverse`: the highest counts least.
pub(crate) fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().max().copied().unwrap_or(0);
    for score in scores {
        let stretched = if highest == 0 { 0 } else { *score * MAX_SCORE / highest };
        *score = if reverse { MAX_SCORE - stretched } else { stretched };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stretched() {
        let of = |mut scores: Vec<i64>, reverse| {
            normalize(&mut scores, reverse);
            scores
        };
        assert_eq!(of(vec![1, 4, 2], false), [25, 100, 50]);
        assert_eq!(of(vec![1, 4, 2], true), [75, 0, 50]);
        assert_eq!(of(vec![0, 0], false), [0, 0]);
        assert_eq!(of(vec![0, 0], true), [100, 100]);
    }

    #[test]
    fn every_plugin_has_its_bit() {
        let all = Plugin::NAMED.iter().fold(Plugins::default(), |set, (_, plugin)| set.with(*plugin));
        assert!(Plugin::NAMED.iter().all(|(name, plugin)| all.has(*plugin) && Plugin::named(name) == Some(*plugin)));
        assert!(!all.has(Plugin::Extender) && Plugins::default().is_empty());
        assert!(!all.without(Plugin::NodePorts).has(Plugin::NodePorts));
    }
}
