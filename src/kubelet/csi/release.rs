//! From a volume that a pod has to one that nobody has: unpublished with the pod, unstaged after the last one.

use super::Csi;
use super::drivers::DriverError;
use super::volume::Key;
use crate::context::Context;
use crate::plugins::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::volumes::local;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::timeout;

/// Why a volume is still there.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("{0}")]
    Records(String),
    #[error("kubernetes.io/csi: failed to remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Csi {
    /// Takes all volumes of a pod back; ends when they are.
    pub(crate) async fn release(&self, cx: &Arc<Context>, uid: &str) {
        let keys = self.state.look(|volumes| volumes.of_pod(uid));
        join_all(keys.into_iter().map(async |key| {
            self.until_done(&key, "UnmountVolume.TearDown", || self.unpublish(cx, &key, uid)).await;
            settle(cx, key);
        }))
        .await;
    }

    /// Takes back what no pod has any more.
    pub(crate) fn settle_all(&self, cx: &Arc<Context>) {
        let left = self.state.look(|volumes| {
            let left = volumes.0.iter().filter(|(_, volume)| volume.pods.is_empty());
            left.map(|(key, _)| key.clone()).collect::<Vec<_>>()
        });
        left.into_iter().for_each(|key| settle(cx, key));
    }

    /// Tries until it succeeds, after growing pauses, and when drivers come.
    async fn until_done<F>(&self, key: &Key, what: &str, attempt: impl Fn() -> F)
    where
        F: Future<Output = Result<(), ReleaseError>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut drivers = self.drivers.changes();
            let Err(error) = attempt().await else { return };
            let error_text = edge_runtime::error::chain(&error);
            tracing::warn!(driver = key.0, volume = key.1, error = error_text, "{what} failed, trying again");
            if matches!(error, ReleaseError::Driver(DriverError::Unknown(_))) {
                // only its coming changes that
                let _ = drivers.changed().await;
                continue;
            }
            let _ = timeout(pause, drivers.changed()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn unpublish(&self, cx: &Context, key: &Key, uid: &str) -> Result<(), ReleaseError> {
        let _held = self.state.busy(&BTreeSet::from([key.clone()])).await;
        let published = self.state.look(|volumes| volumes.0.get(key).and_then(|volume| volume.pods.get(uid)).cloned());
        let Some(published) = published else { return Ok(()) };
        if let Some(target) = published.target {
            let client = self.drivers.of(&key.0)?.connect().await.map_err(DriverError::from)?;
            client.unpublish(&key.1, &target).await.map_err(DriverError::from)?;
            remove(target, cx.config.kubelet_dir.clone()).await?;
        }
        self.change(|volumes| volumes.forget(key, uid)).await.map_err(ReleaseError::Records)
    }

    async fn unstage(&self, cx: &Context, key: &Key) -> Result<(), ReleaseError> {
        let _held = self.state.busy(&BTreeSet::from([key.clone()])).await;
        let known = self.state.look(|volumes| volumes.0.get(key).cloned());
        let Some(known) = known.filter(|volume| volume.pods.is_empty()) else { return Ok(()) };
        if let Some(staging) = known.staging {
            let client = self.drivers.of(&key.0)?.connect().await.map_err(DriverError::from)?;
            // what a new pod asks for meanwhile is done after this, and from the beginning
            let undone = self.change(|volumes| volumes.0.entry(key.clone()).or_default().is_staged = false);
            undone.await.map_err(ReleaseError::Records)?;
            client.unstage(&key.1, &staging).await.map_err(DriverError::from)?;
            remove(staging, cx.config.kubelet_dir.clone()).await?;
        }
        let forget = self.change(|volumes| {
            if let Some(volume) = volumes.0.get_mut(key) {
                volume.staging = None;
            }
            // a pod may have come to want it
            volumes.forget(key, "");
        });
        forget.await.map_err(ReleaseError::Records)
    }
}

/// Takes a volume from the node when no pod has it, in the background.
fn settle(cx: &Arc<Context>, key: Key) {
    let cx = cx.clone();
    tokio::spawn(async move {
        let work = cx.csi.until_done(&key, "UnmountDevice", || cx.csi.unstage(&cx, &key));
        cx.stop.run_until_cancelled(work).await;
    });
}

async fn remove(path: PathBuf, kubelet_dir: PathBuf) -> Result<(), ReleaseError> {
    let place = path.clone();
    let removed = tokio::task::spawn_blocking(move || remove_place(&place, &kubelet_dir)).await;
    let removed = removed.unwrap_or_else(|error| Err(io::Error::other(error)));
    removed.map_err(|source| ReleaseError::Remove { path, source })
}

/// Removes where a volume was, and the directories that were made for it as far as they are empty now. Whatever is in the place itself is
/// nobody's to delete: it may be the volume. Blocking.
fn remove_place(path: &Path, kubelet_dir: &Path) -> io::Result<()> {
    // a driver that says it is done should have done so
    local::unmount_below(path)?;
    let is_dir = fs::symlink_metadata(path).map(|meta| meta.is_dir());
    let removed = match is_dir {
        Ok(true) => fs::remove_dir(path),
        Ok(false) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let ends = [kubelet_dir.join("pods"), kubelet_dir.join("plugins/kubernetes.io/csi")];
    for parent in path.ancestors().skip(1) {
        let is_own = ends.iter().any(|end| parent.starts_with(end) && parent != end);
        if !is_own || fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn places_go_and_what_is_in_a_volume_stays() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("pods/u/volumes/kubernetes.io~csi/pv");
        let mount = volume.join("mount");
        fs::create_dir_all(&mount).unwrap();
        fs::write(dir.path().join("pods/u/pod.json"), "").unwrap();
        fs::write(mount.join("data"), "precious").unwrap();
        assert!(remove_place(&mount, dir.path()).is_err());
        assert!(mount.join("data").exists());
        fs::remove_file(mount.join("data")).unwrap();
        remove_place(&mount, dir.path()).unwrap();
        assert!(!dir.path().join("pods/u/volumes").exists());
        assert!(dir.path().join("pods/u/pod.json").exists());
        remove_place(&mount, dir.path()).unwrap();
        let device = dir.path().join("plugins/kubernetes.io/csi/volumeDevices/publish/pv/u");
        fs::create_dir_all(device.parent().unwrap()).unwrap();
        fs::write(&device, "").unwrap();
        remove_place(&device, dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("plugins/kubernetes.io/csi")).unwrap().count(), 0);
    }
}
