//! What pods have on this node's disk, and how full their volumes are.
//!
//! Nobody is counted unasked: those who ask are whoever wants stats, limits of pods, and the choice of a pod that has to go. What was found is
//! kept for them for a while; the work is done once whoever asks, for one pod at a time, and most of the time not at all.

mod walk;

pub(crate) use walk::Used;

use crate::context::Context;
use crate::pods::record::State;
use crate::pods::shared::PodShared;
use edge_client::claims;
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// For so long what was found is told to whoever asks for stats.
pub(crate) const FOR_STATS: Duration = Duration::from_secs(60);
/// So long they wait for it; after that they get what was found before.
pub(crate) const STATS_PATIENCE: Duration = Duration::from_secs(3);
/// What took long is not done again before that many times the time has passed.
const REST: u32 = 20;
/// How long the driver of a volume may take to say how full it is.
const DRIVER: Duration = Duration::from_secs(10);

/// A file system, or what one directory has of it, as the stats API tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FsStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<Timestamp>,
    pub(crate) available_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) inodes_free: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_used: u64,
}

impl FsStats {
    /// All that is on the file system of a path. Blocking.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let s = nix::sys::statvfs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(s.fragment_size());
        Some(Self {
            time: Some(Timestamp::now()),
            available_bytes: bytes(s.blocks_available()),
            capacity_bytes: bytes(s.blocks()),
            used_bytes: bytes(s.blocks().saturating_sub(s.blocks_free())),
            inodes_free: s.files_free(),
            inodes: s.files(),
            inodes_used: s.files().saturating_sub(s.files_free()),
        })
    }

    /// The same file system, of which only this counts.
    pub(crate) fn with(&self, used: Used) -> Self {
        Self { used_bytes: used.bytes, inodes_used: used.inodes, ..self.clone() }
    }
}

/// What a container has on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OfContainer {
    /// In the files that it wrote.
    pub(crate) rootfs: Used,
    /// In its logs.
    pub(crate) logs: Used,
}

impl OfContainer {
    pub(crate) fn total(&self) -> Used {
        self.rootfs + self.logs
    }
}

/// A volume whose files are the pod's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfVolume {
    stats: FsStats,
    used: Used,
    /// It takes room on the node's disk.
    is_on_disk: bool,
}

/// What a pod has on the node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Local {
    /// The file system with all of it.
    pub(crate) node: FsStats,
    pub(crate) containers: BTreeMap<String, OfContainer>,
    volumes: BTreeMap<String, OfVolume>,
}

impl Local {
    #[cfg(test)]
    pub(crate) fn of(containers: BTreeMap<String, OfContainer>, volumes: impl Iterator<Item = (String, Used)>) -> Self {
        let volume = |(name, used)| (name, OfVolume { used, is_on_disk: true, ..OfVolume::default() });
        Self { containers, volumes: volumes.map(volume).collect(), ..Self::default() }
    }

    pub(crate) fn volume(&self, name: &str) -> Option<Used> {
        self.volumes.get(name).map(|volume| volume.used)
    }

    /// All that counts as the pod's local storage.
    pub(crate) fn total(&self) -> Used {
        let volumes = self.volumes.values().filter(|v| v.is_on_disk).map(|v| v.used);
        self.containers.values().map(OfContainer::total).chain(volumes).sum()
    }

    /// The volumes, as the stats API tells them.
    pub(crate) fn volume_stats(&self) -> impl Iterator<Item = VolumeStats> + use<'_> {
        self.volumes.iter().map(|(name, volume)| VolumeStats {
            stats: volume.stats.with(volume.used),
            name: name.clone(),
            pvc_ref: None,
            volume_health_stats: None,
        })
    }
}

/// A claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct ClaimRef {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

/// What the driver of a volume says of its health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Health {
    #[serde(rename = "abnormal")]
    pub(crate) is_abnormal: bool,
    #[serde(skip)]
    pub(crate) message: String,
}

/// A volume, as the stats API tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeStats {
    #[serde(flatten)]
    pub(crate) stats: FsStats,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pvc_ref: Option<ClaimRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_health_stats: Option<Health>,
}

/// What was found out, and when.
struct Found<T> {
    value: Arc<T>,
    at: Instant,
    took: Duration,
}

/// One answer to all who ask.
struct Kept<T> {
    found: Mutex<Option<Found<T>>>,
    turn: tokio::sync::Mutex<()>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { found: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<T> Kept<T> {
    fn fresh(&self, newer_than: Duration) -> Option<Arc<T>> {
        let found = self.found.lock();
        let found = found.as_ref().filter(|f| f.at.elapsed() < newer_than.max(f.took * REST))?;
        Some(found.value.clone())
    }

    fn latest(&self) -> Option<Arc<T>> {
        self.found.lock().as_ref().map(|found| found.value.clone())
    }

    /// What is known, or else what is found out now. Who comes meanwhile waits for the same.
    async fn get(&self, newer_than: Duration, find: impl Future<Output = Option<T>>) -> Option<Arc<T>> {
        let _mine = self.turn.lock().await;
        if let Some(known) = self.fresh(newer_than) {
            return Some(known);
        }
        let begun = Instant::now();
        let value = Arc::new(find.await?);
        *self.found.lock() = Some(Found { value: value.clone(), at: Instant::now(), took: begun.elapsed() });
        Some(value)
    }
}

/// What is known of a pod's storage.
#[derive(Default)]
pub(crate) struct Storage {
    local: Kept<Local>,
    claims: Kept<Vec<VolumeStats>>,
}

/// What a pod has on the node's disk, as it was at most `newer_than` ago, or longer when it cannot be had within `patience`.
pub(crate) async fn local(pod: &Arc<PodShared>, newer_than: Duration, patience: Duration) -> Option<Arc<Local>> {
    known(pod, |storage| &storage.local, newer_than, patience, count).await
}

/// How full the volumes of a pod are that are more than its own directories.
pub(crate) async fn claims(pod: &Arc<PodShared>) -> Option<Arc<Vec<VolumeStats>>> {
    known(pod, |storage| &storage.claims, FOR_STATS, STATS_PATIENCE, ask).await
}

/// What is known of a pod's storage and new enough, or can be had within `patience`, or else what was known before.
async fn known<T, F>(
    pod: &Arc<PodShared>,
    of: fn(&Storage) -> &Kept<T>,
    newer_than: Duration,
    patience: Duration,
    find: impl FnOnce(Arc<PodShared>) -> F,
) -> Option<Arc<T>>
where
    T: Send + Sync + 'static,
    F: Future<Output = Option<T>> + Send + 'static,
{
    let kept = of(&pod.storage);
    if let Some(known) = kept.fresh(newer_than) {
        return Some(known);
    }
    if kept.turn.try_lock().is_err() {
        // somebody is at it already, and may be for long
        let _ = timeout(patience, kept.turn.lock()).await;
        return kept.latest();
    }
    // goes on when nobody waits any more: the next one gets what it finds
    let (work, found) = (pod.clone(), find(pod.clone()));
    let work = tokio::spawn(async move { of(&work.storage).get(newer_than, found).await });
    match timeout(patience, work).await {
        Ok(Ok(found)) => found,
        _ => kept.latest(),
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Whether a volume is a directory of the pod alone, and whether it counts as its local storage.
fn is_own(volume: &Volume) -> Option<bool> {
    match volume {
        Volume { empty_dir: Some(source), .. } => Some(source.medium.as_deref().unwrap_or_default().is_empty()),
        Volume { config_map: Some(_), .. } => Some(true),
        Volume { secret: Some(_), .. } | Volume { projected: Some(_), .. } | Volume { downward_api: Some(_), .. } => {
            Some(false)
        }
        _ => None,
    }
}

/// Counts what a pod has on the disk.
async fn count(pod: Arc<PodShared>) -> Option<Local> {
    let (cx, object, ready) = (&pod.cx, pod.pod(), pod.ready_volumes());
    let own = volumes(&object).filter_map(|v| Some((v.name.clone(), ready.get(&v.name)?.path.clone(), is_own(v)?)));
    let volumes: Vec<(String, PathBuf, bool)> = own.collect();
    let containers: Vec<(String, Option<PathBuf>)> = pod
        .record()
        .containers
        .iter()
        .filter(|c| matches!(c.state, State::Running(_) | State::Exited(..)))
        .map(|c| (c.name.clone(), c.id().and_then(|id| cx.runtime.written_files(id))))
        .collect();
    let (agent_dir, logs, stop) = (cx.config.agent_dir.clone(), pod.log_dir(), cx.stop.clone());
    // one at a time, whoever asks: a disk gets no faster by more
    let _turn = cx.counting.acquire().await.ok()?;
    let work = move || {
        let used = |path: &Path| {
            walk::used(path, &|| stop.is_cancelled()).unwrap_or_else(|error| {
                tracing::debug!(directory = %path.display(), %error, "not counted");
                Used::default()
            })
        };
        let of_container = |(name, files): (String, Option<PathBuf>)| {
            let rootfs = files.map(|files| used(&files)).unwrap_or_default();
            let logs = used(&logs.join(&name));
            (name, OfContainer { rootfs, logs })
        };
        let of_volume = |(name, path, is_on_disk): (String, PathBuf, bool)| {
            let stats = FsStats::of(&path).unwrap_or_default();
            (name, OfVolume { stats, used: used(&path), is_on_disk })
        };
        Local {
            node: FsStats::of(&agent_dir).unwrap_or_default(),
            containers: containers.into_iter().map(of_container).collect(),
            volumes: volumes.into_iter().map(of_volume).collect(),
        }
    };
    tokio::task::spawn_blocking(work).await.ok()
}

/// Asks file systems, and the drivers of volumes, how full they are.
async fn ask(pod: Arc<PodShared>) -> Option<Vec<VolumeStats>> {
    let (cx, object, ready) = (&pod.cx, pod.pod(), pod.ready_volumes());
    let mut found = Vec::new();
    for volume in volumes(&object) {
        let claim = claims::claim_name(&object, volume);
        let Some(known) = ready.get(&volume.name).filter(|_| claim.is_some() || volume.csi.is_some()) else { continue };
        let asked = timeout(DRIVER, cx.csi.stats(&pod.uid, &volume.name)).await;
        let (stats, health) = match asked {
            Ok(Some(Ok(answer))) => answer,
            Ok(Some(Err(error))) => {
                tracing::debug!(pod = pod.name, volume = volume.name, error, "how full a volume is is not known");
                continue;
            }
            Err(_) => continue,
            // it is a directory of the machine
            Ok(None) if known.is_device => continue,
            Ok(None) => {
                let path = known.path.clone();
                let Ok(Some(stats)) = tokio::task::spawn_blocking(move || FsStats::of(&path)).await else { continue };
                (stats, None)
            }
        };
        tell(cx, &object, volume, health.as_ref());
        let pvc_ref = claim.map(|name| ClaimRef { name, namespace: pod.namespace.clone() });
        found.push(VolumeStats { stats, name: volume.name.clone(), pvc_ref, volume_health_stats: health });
    }
    Some(found)
}

/// Tells that something is wrong with a volume.
fn tell(cx: &Context, pod: &Pod, volume: &Volume, health: Option<&Health>) {
    if let Some(health) = health.filter(|health| health.is_abnormal) {
        let message = format!("Volume {}: {}", volume.name, health.message);
        cx.recorder.event(pod, edge_client::EventType::Warning, "VolumeConditionAbnormal", message);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn stats_have_the_names_of_the_api() {
        let stats = FsStats { available_bytes: 1, capacity_bytes: 2, inodes: 9, ..FsStats::default() };
        let volume = VolumeStats {
            stats: stats.with(Used { bytes: 3, inodes: 4 }),
            name: "v".into(),
            pvc_ref: Some(ClaimRef { name: "c".into(), namespace: "ns".into() }),
            volume_health_stats: Some(Health { is_abnormal: true, message: "odd".into() }),
        };
        let told = json!({"availableBytes": 1, "capacityBytes": 2, "usedBytes": 3, "inodesFree": 0, "inodes": 9,
            "inodesUsed": 4, "name": "v", "pvcRef": {"name": "c", "namespace": "ns"},
            "volumeHealthStats": {"abnormal": true}});
        assert_eq!(serde_json::to_value(volume).unwrap(), told);
    }

    #[test]
    fn what_counts_as_local_storage() {
        let mib = |n: u64| Used { bytes: n << 20, inodes: n };
        let containers = BTreeMap::from([("c".to_owned(), OfContainer { rootfs: mib(1), logs: mib(2) })]);
        let mut local = Local::of(containers, [("disk".to_owned(), mib(4))].into_iter());
        local.volumes.insert("memory".into(), OfVolume { used: mib(8), ..OfVolume::default() });
        assert_eq!(local.total(), mib(7));
        assert_eq!(local.volume("memory"), Some(mib(8)));
        assert_eq!(local.volume("other"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_kept_for_a_while() {
        let kept = Kept::<u32>::default();
        let second = Duration::from_secs(1);
        let find = async |value| Some(value);
        assert_eq!(kept.get(second, find(1)).await.as_deref(), Some(&1));
        assert_eq!(kept.get(second, find(2)).await.as_deref(), Some(&1));
        tokio::time::advance(second).await;
        assert_eq!(kept.get(second, find(2)).await.as_deref(), Some(&2));
        // what took long is not done again so soon
        tokio::time::advance(second).await;
        let slow = async {
            tokio::time::sleep(second).await;
            Some(3)
        };
        assert_eq!(kept.get(second, slow).await.as_deref(), Some(&3));
        tokio::time::advance(19 * second).await;
        assert_eq!(kept.get(second, find(4)).await.as_deref(), Some(&3));
        tokio::time::advance(second).await;
        assert_eq!(kept.get(second, find(4)).await.as_deref(), Some(&4));
        tokio::time::advance(60 * second).await;
        assert_eq!(kept.get(second, async { None }).await, None);
        assert_eq!(kept.latest().as_deref(), Some(&4));
    }
}
