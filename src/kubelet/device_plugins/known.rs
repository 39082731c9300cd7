//! The resources that plugins have told of, and whether they still do. Plain data behind a lock; what goes on with the plugins is in
//! [`super::registry`].

use super::plugin::{Devices, Plugin};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// How it is with the plugin of a resource.
#[derive(Default)]
pub(super) enum Presence {
    /// It was there before the agent's start, and may come again.
    #[default]
    Awaited,
    /// It is connected.
    Here(Arc<Plugin>),
    /// It is away, but not for long yet.
    Away,
    /// It has been away for so long that the resource is none any more. The node's status is to say so.
    Gone,
}

/// A resource of a plugin.
#[derive(Default)]
pub(super) struct Resource {
    pub(super) presence: Presence,
    pub(super) devices: Devices,
    /// Its plugin has told of its devices since the agent's start.
    pub(super) is_listed: bool,
    /// Counts registrations: who has been replaced has no say any more.
    pub(super) generation: u64,
    /// What goes on with the plugin; with its replacement it ends.
    pub(super) task: Option<AbortOnDropHandle<()>>,
}

impl Resource {
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.presence, Presence::Gone)
    }

    /// What of it there is may be known soon: it was there before the agent's start.
    pub(super) fn is_awaited(&self) -> bool {
        match self.presence {
            Presence::Awaited => true,
            Presence::Here(_) => !self.is_listed,
            Presence::Away | Presence::Gone => false,
        }
    }

    /// Those that can be given away; none while the plugin is away.
    pub(super) fn healthy(&self) -> BTreeSet<String> {
        let is_here = matches!(self.presence, Presence::Here(_));
        let healthy = self.devices.iter().filter(|(_, device)| is_here && device.is_healthy);
        healthy.map(|(id, _)| id.clone()).collect()
    }

    /// How a device is, as a pod's status tells it.
    pub(super) fn health(&self, id: &str) -> &'static str {
        match (&self.presence, self.devices.get(id)) {
            (Presence::Here(_), Some(device)) if device.is_healthy => "Healthy",
            (Presence::Here(_), Some(_)) => "Unhealthy",
            // it is not listed any more, or nobody lists anything
            (Presence::Here(_), None) if self.is_listed => "Unhealthy",
            _ => "Unknown",
        }
    }
}

/// All resources of plugins.
pub(super) type Known = BTreeMap<String, Resource>;

/// What the node's status says of devices of plugins.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeDevices {
    pub(crate) capacity: BTreeMap<String, Quantity>,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

/// What there is of each resource. Of one that is gone there is nothing: Kubernetes' kubelet does not remove it from the status either.
pub(super) fn on_node(known: &Known) -> NodeDevices {
    let mut out = NodeDevices::default();
    for (name, resource) in known {
        let all = if resource.is_gone() { 0 } else { resource.devices.len() };
        out.capacity.insert(name.clone(), Quantity(all.to_string()));
        out.allocatable.insert(name.clone(), Quantity(resource.healthy().len().to_string()));
    }
    out
}
