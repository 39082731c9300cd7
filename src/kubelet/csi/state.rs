//! Which volumes of drivers are on this node, kept in `<agent>/csi.json`: written before a driver is asked for something, so that all of it is
//! found again and undone whatever happens in between. After a reboot nothing is mounted, and everything is done anew.

use super::volume::Key;
use crate::records::Content;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A volume that a pod has or wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Volume {
    /// The name of the PersistentVolume, or the pod's for a volume of its own.
    pub(super) name: String,
    pub(super) is_block: bool,
    /// It is attached to the node by somebody else, who is told when it is not in use.
    pub(super) is_attached: bool,
    /// Where it is staged, or may be.
    pub(super) staging: Option<PathBuf>,
    /// It certainly is.
    pub(super) is_staged: bool,
    /// The pods that have or want it, by their UIDs.
    pub(super) pods: BTreeMap<String, Published>,
}

/// A volume for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Published {
    /// Where it is published, or may be; none: it only is wanted.
    pub(super) target: Option<PathBuf>,
    /// It certainly is, and usable.
    pub(super) is_done: bool,
    pub(super) read_only: bool,
    /// What the pod calls it.
    pub(super) names: Vec<String>,
}

/// The volumes of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Volumes(pub(super) BTreeMap<Key, Volume>);

#[derive(Serialize, Deserialize)]
struct File {
    boot: String,
    volumes: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    driver: String,
    handle: String,
    #[serde(flatten)]
    volume: Volume,
}

impl Volumes {
    /// The volumes of a pod.
    pub(super) fn of_pod(&self, uid: &str) -> Vec<Key> {
        self.0.iter().filter(|(_, volume)| volume.pods.contains_key(uid)).map(|(key, _)| key.clone()).collect()
    }

    /// Forgets that a pod has a volume, and the volume when nothing is left of it.
    pub(super) fn forget(&mut self, key: &Key, uid: &str) {
        let Some(volume) = self.0.get_mut(key) else { return };
        volume.pods.remove(uid);
        if volume.pods.is_empty() && volume.staging.is_none() {
            self.0.remove(key);
        }
    }
}

impl Content for Volumes {
    type Key = Key;
    const FILE: &'static str = "csi.json";
    const LOST: &'static str = "volumes of drivers that are mounted are not known any more";

    fn read(bytes: &[u8], boot: &str) -> serde_json::Result<Self> {
        let content: File = serde_json::from_slice(bytes)?;
        let same_boot = content.boot == boot;
        let entries = content.volumes.into_iter().map(|Entry { driver, handle, mut volume }| {
            volume.is_staged &= same_boot;
            volume.pods.values_mut().for_each(|published| published.is_done &= same_boot);
            ((driver, handle), volume)
        });
        Ok(Self(entries.collect()))
    }

    fn write(&self, boot: &str) -> serde_json::Result<Vec<u8>> {
        let entry = |((driver, handle), volume): (&Key, &Volume)| Entry {
            driver: driver.clone(),
            handle: handle.clone(),
            volume: volume.clone(),
        };
        serde_json::to_vec(&File { boot: boot.to_owned(), volumes: self.0.iter().map(entry).collect() })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn volumes_are_kept_and_mounted_anew_after_a_reboot() {
        let key = ("d.io".to_owned(), "h".to_owned());
        let published =
            Published { target: Some("/t".into()), is_done: true, read_only: true, names: vec!["data".into()] };
        let volume = Volume {
            name: "pv".into(),
            is_attached: true,
            staging: Some("/s".into()),
            is_staged: true,
            pods: BTreeMap::from([("pod".to_owned(), published)]),
            ..Volume::default()
        };
        let volumes = Volumes(BTreeMap::from([(key.clone(), volume)]));
        let bytes = volumes.write("now").unwrap();
        assert_eq!(Volumes::read(&bytes, "now").unwrap(), volumes);
        let mut later = Volumes::read(&bytes, "later").unwrap();
        assert!(!later.0[&key].is_staged && !later.0[&key].pods["pod"].is_done);
        assert_eq!(later.of_pod("pod"), std::slice::from_ref(&key));
        later.forget(&key, "pod");
        assert!(later.0[&key].pods.is_empty(), "what may be staged is not forgotten");
        later.0.get_mut(&key).unwrap().staging = None;
        later.forget(&key, "pod");
        assert_eq!(later, Volumes::default());
    }
}
