//! Volumes of drivers (Container Storage Interface): staged once for the node, published for each pod, and taken back in the opposite order.
//!
//! In: drivers that have registered ([`drivers`]), what pods want ([`volume`]), what the node is told to be attached. Out: directories and devices
//! for the pods' containers, the node's `volumesInUse`, what the API knows of the drivers ([`node`]). What a driver is asked for is written down
//! before ([`state`]), so that it is undone whatever happens. A driver that does not answer holds up the pods with its volumes, and nobody else.

mod client;
mod drivers;
mod expand;
mod mount;
mod node;
mod release;
mod state;
mod stats;
mod volume;

pub(crate) use expand::Growth;
pub(crate) use mount::{MountError, Use};
pub(crate) use volume::Source;

use crate::context::Context;
use crate::plugins::Handler;
use crate::records::Records;
use crate::volumes::Ready;
use drivers::Drivers;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::api::storage::v1::CSIDriver;
use state::Volumes;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use volume::{Policy, unique_name};

/// The volumes of drivers on this node.
pub(crate) struct Csi {
    drivers: Arc<Drivers>,
    state: Records<Volumes>,
    /// What the node is to say that it uses.
    in_use: watch::Sender<Vec<String>>,
    /// What it has said.
    reported: watch::Sender<Vec<String>>,
}

/// What is attached for pods that have or want it, by the names that the controller knows.
fn in_use(volumes: &Volumes) -> Vec<String> {
    volumes.0.iter().filter(|(_, volume)| volume.is_attached).map(|(key, _)| unique_name(key)).collect()
}

/// Where drivers have mounted volumes for the pods of an agent, as it has noted: pods' places first. Blocking.
#[must_use]
pub fn mounted_by_drivers(agent_dir: &Path) -> Vec<PathBuf> {
    Records::<Volumes>::open(agent_dir).look(|volumes| {
        let published = volumes.0.values().flat_map(|volume| volume.pods.values().filter_map(|p| p.target.clone()));
        let staged = volumes.0.values().filter_map(|volume| volume.staging.clone());
        published.chain(staged).collect()
    })
}

impl Csi {
    /// What is known from before. Blocking.
    pub(crate) fn open(agent_dir: &Path) -> Self {
        let state = Records::open(agent_dir);
        let known = state.look(in_use);
        Self { drivers: Arc::default(), state, in_use: watch::Sender::new(known), reported: watch::Sender::default() }
    }

    /// Takes drivers in.
    pub(crate) fn handler(&self) -> Arc<dyn Handler> {
        self.drivers.clone()
    }

    /// Follows drivers as they come and go.
    pub(crate) fn driver_changes(&self) -> watch::Receiver<u64> {
        self.drivers.changes()
    }

    /// Tells of the drivers anew, for a node that the API has not known any more.
    pub(crate) async fn node_is_new(&self, cx: &Context, node: &Node) {
        if let Err(error) = node::own(cx, node).await {
            // the first driver that comes makes it
            tracing::warn!(%error, "CSINode not made");
        }
        self.drivers.tell_again();
    }

    /// The volumes that the node is to say it uses: none of them may be detached.
    pub(crate) fn in_use(&self) -> watch::Receiver<Vec<String>> {
        self.in_use.subscribe()
    }

    /// Takes note of what the API has of the node's status.
    pub(crate) fn reported(&self, status: &NodeStatus) {
        let told = status.volumes_in_use.clone().unwrap_or_default();
        self.reported.send_if_modified(|known| {
            *known != told && {
                *known = told;
                true
            }
        });
    }

    /// The volume of a pod, if it is there already.
    pub(crate) fn ready(&self, uid: &str, name: &str) -> Option<Ready> {
        self.state.look(|volumes| {
            let of = volumes.0.values().filter_map(|volume| Some((volume, volume.pods.get(uid)?)));
            let (volume, published) = of.into_iter().find(|(_, p)| p.is_done && p.names.iter().any(|n| n == name))?;
            let path = published.target.clone()?;
            Some(Ready { path, read_only: published.read_only, is_device: volume.is_block })
        })
    }

    /// The pods that have or want volumes.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.state.look(|volumes| volumes.0.values().flat_map(|volume| volume.pods.keys().cloned()).collect())
    }

    /// What a driver's object says, once the API has told.
    pub(crate) async fn policy(&self, cx: &Context, driver: &str) -> Policy {
        let objects = cx.informers.of::<CSIDriver>();
        objects.synced().await;
        Policy::of(objects.get("", driver).as_deref())
    }

    /// Changes what is known, and what the node is to say.
    async fn change<T>(&self, change: impl FnOnce(&mut Volumes) -> T) -> Result<T, String> {
        let changed = self.state.change(change).await;
        let now = self.state.look(in_use);
        self.in_use.send_if_modified(|known| {
            *known != now && {
                *known = now;
                true
            }
        });
        changed.map_err(|error| format!("volumes in use not written down: {error}"))
    }
}
