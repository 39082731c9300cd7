//! Which container has which devices, kept in `<agent>/device_plugins.json`: no device is given to two containers, whatever happens in between.
//!
//! The names of the resources are kept with it, so that after a restart their plugins are waited for, and so that the node does not go on
//! telling of devices of a plugin that never comes back. What plugins have done before a reboot has to be done anew.

use super::plugin::Given;
use crate::records::{Content, boot};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Devices of one resource in one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Held {
    /// The devices, with the memory nodes that they are near.
    pub(super) devices: BTreeMap<String, Vec<i64>>,
    /// They are to be made ready by their plugin before each start of the container.
    #[serde(default)]
    pub(super) pre_start: bool,
    #[serde(default)]
    pub(super) given: Given,
}

impl Held {
    pub(super) fn ids(&self) -> BTreeSet<String> {
        self.devices.keys().cloned().collect()
    }
}

/// Devices of a pod by container and resource.
pub(super) type PodDevices = BTreeMap<String, BTreeMap<String, Held>>;

/// A pod that has devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Holder {
    /// In which boot of the machine its plugins have made them ready.
    pub(super) boot: String,
    pub(super) containers: PodDevices,
}

/// All that is held on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Holders {
    /// Resources that plugins have told of.
    pub(super) resources: BTreeSet<String>,
    /// By the pods' UIDs.
    pub(super) pods: BTreeMap<String, Holder>,
}

impl Holders {
    /// The devices of a container.
    pub(super) fn of(&self, pod: &str, container: &str) -> Option<&BTreeMap<String, Held>> {
        self.pods.get(pod)?.containers.get(container)
    }

    /// Whether a container has devices of a resource that are ready.
    pub(super) fn has(&self, pod: &str, container: &str, resource: &str) -> bool {
        let is_ready = self.pods.get(pod).is_some_and(|holder| holder.boot == boot());
        is_ready && self.of(pod, container).is_some_and(|of| of.contains_key(resource))
    }

    /// The devices of a resource that somebody has.
    pub(super) fn in_use(&self, resource: &str) -> BTreeSet<String> {
        self.pods.values().flat_map(|holder| taken(&holder.containers, resource)).cloned().collect()
    }
}

/// The devices of a resource that a pod has.
pub(super) fn taken<'a>(pod: &'a PodDevices, resource: &str) -> impl Iterator<Item = &'a String> {
    let of = pod.values().filter_map(move |resources| resources.get(resource));
    of.flat_map(|held| held.devices.keys())
}

impl Content for Holders {
    type Key = String;
    const FILE: &'static str = "device_plugins.json";
    const LOST: &'static str = "devices in use are not known any more";

    fn read(bytes: &[u8], _: &str) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    fn write(&self, _: &str) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::records::Records;
    use std::fs;

    fn holders() -> Holders {
        let given = Given { envs: BTreeMap::from([("A".to_owned(), "b".to_owned())]), ..Given::default() };
        let held = Held { devices: BTreeMap::from([("d0".to_owned(), vec![1])]), given, pre_start: false };
        let containers = BTreeMap::from([("c".to_owned(), BTreeMap::from([("x.io/d".to_owned(), held)]))]);
        let holder = Holder { boot: boot(), containers };
        Holders { resources: BTreeSet::from(["x.io/d".to_owned()]), pods: BTreeMap::from([("u".to_owned(), holder)]) }
    }

    #[tokio::test]
    async fn what_is_held_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let before: Records<Holders> = Records::open(dir.path());
        before.change(|all| *all = holders()).await.unwrap();
        let after: Records<Holders> = Records::open(dir.path());
        assert_eq!(after.look(Holders::clone), holders());
        assert!(
            after.look(|all| all.has("u", "c", "x.io/d") && !all.has("u", "c", "x.io/e") && !all.has("u", "e", ""))
        );
        assert_eq!(after.look(|all| all.in_use("x.io/d")), BTreeSet::from(["d0".to_owned()]));
        // after a reboot the device is still the container's, but not ready
        after.change(|all| all.pods.get_mut("u").unwrap().boot = "another".to_owned()).await.unwrap();
        assert!(after.look(|all| !all.has("u", "c", "x.io/d") && all.in_use("x.io/d").len() == 1));
    }

    #[tokio::test]
    async fn what_is_damaged_or_torn_is_put_aside() {
        let whole = holders().write("").unwrap();
        let mut damaged: Vec<Vec<u8>> =
            [&b""[..], b"[]", b"\xff\xfe", b"{\"pods\": 1}"].map(<[u8]>::to_vec).into_iter().collect();
        damaged.extend((1..whole.len()).step_by(7).map(|end| whole[..end].to_vec()));
        for content in damaged {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(Holders::FILE);
            fs::write(&path, &content).unwrap();
            let open: Records<Holders> = Records::open(dir.path());
            assert_eq!(open.look(Holders::clone), Holders::default());
            assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), content);
            // and it works on
            open.change(|all| *all = holders()).await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }
}
