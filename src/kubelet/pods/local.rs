//! What the agent keeps on disk of each pod, to go on with it when the API is away: `<agent>/pods/<uid>/pod.json`, and
//! `evicted.json` when the node cannot keep it, `status.json` once the pod has ended. (What it was given is in `kept.json`, see [`super::kept`].)

use super::kept::Content;
use super::record::Eviction;
use crate::config::KubeletConfig;
use edge_sys::fsutil::{create_dir_all_mode, remove_dir_all_if_exists, write_atomic};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::Path;

const POD: &str = "pod.json";
const STATUS: &str = "status.json";
const EVICTED: &str = "evicted.json";

/// A pod as it was kept.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) pod: Pod,
    /// Its last status, if it had ended.
    pub(crate) finished: Option<PodStatus>,
    /// Why it has to go, if it has.
    pub(crate) evicted: Option<Eviction>,
    /// What it is started with where the API does not answer.
    pub(crate) kept: Content,
}

/// Keeps a pod. Blocking.
pub(crate) fn save(dir: &Path, pod: &Pod, finished: Option<&PodStatus>) -> io::Result<()> {
    create_dir_all_mode(dir, 0o700)?;
    write_atomic(&dir.join(POD), &serde_json::to_vec(pod)?, 0o600)?;
    match finished {
        Some(status) => write_atomic(&dir.join(STATUS), &serde_json::to_vec(status)?, 0o600),
        None => Ok(()),
    }
}

/// Notes that a pod has to go. Blocking.
pub(crate) fn save_eviction(dir: &Path, eviction: &Eviction) -> io::Result<()> {
    write_atomic(&dir.join(EVICTED), &serde_json::to_vec(eviction)?, 0o600)
}

/// The pods that were kept, by their UIDs; directories without a readable pod come without one. Blocking.
pub(crate) fn load_all(pods_dir: &Path) -> io::Result<Vec<(String, Option<Saved>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pods_dir)? {
        let entry = entry?;
        let uid = entry.file_name().to_string_lossy().into_owned();
        let saved = load(&entry.path(), &uid);
        if let Err(error) = &saved {
            tracing::warn!(pod = uid, %error, "pod on disk not readable");
        }
        found.push((uid, saved.ok()));
    }
    Ok(found)
}

fn load(dir: &Path, uid: &str) -> io::Result<Saved> {
    let pod: Pod = serde_json::from_slice(&fs::read(dir.join(POD))?)?;
    if pod.metadata.uid.as_deref() != Some(uid) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is another pod's"));
    }
    let (finished, evicted) = (load_if_there(&dir.join(STATUS))?, load_if_there(&dir.join(EVICTED))?);
    Ok(Saved { pod, finished, evicted, kept: Content::load(dir) })
}

fn load_if_there<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what is left of a pod on disk: its state and its logs.
pub(crate) async fn remove(config: &KubeletConfig, namespace: &str, name: &str, uid: &str) {
    let (state, logs) = (config.pod_dir(uid), config.pod_log_dir(namespace, name, uid));
    let links = config.container_logs_dir.clone();
    let work = move || -> io::Result<()> {
        crate::volumes::tear_down(&state)?;
        remove_dir_all_if_exists(&state)?;
        if let Some(links) = links {
            crate::logs::unlink_all(&links, &logs);
        }
        remove_dir_all_if_exists(&logs)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(pod = name, %error, "remains of the pod not removed"),
        Err(error) => tracing::error!(pod = name, %error, "remains of the pod not removed"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_kept_and_garbage_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": []}})).unwrap();
        let status = PodStatus { phase: Some("Failed".into()), ..PodStatus::default() };
        save(&dir.path().join("u"), &pod, None).unwrap();
        save(&dir.path().join("u"), &pod, Some(&status)).unwrap();
        let eviction = Eviction { message: "too much".into(), is_disruption: true };
        save_eviction(&dir.path().join("u"), &eviction).unwrap();
        assert!(save_eviction(&dir.path().join("gone"), &eviction).is_err(), "nothing is made for it");
        save(&dir.path().join("other"), &pod, None).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::create_dir(dir.path().join("torn")).unwrap();
        fs::write(dir.path().join("torn").join(POD), "{\"metadata\": ").unwrap();
        let mut all = load_all(dir.path()).unwrap();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<(&str, bool)> = all.iter().map(|(uid, saved)| (uid.as_str(), saved.is_some())).collect();
        assert_eq!(names, [("empty", false), ("other", false), ("torn", false), ("u", true)]);
        let saved = all.pop().unwrap().1.unwrap();
        assert_eq!((saved.finished, saved.evicted), (Some(status), Some(eviction)));
        assert_eq!(saved.pod, pod);
    }
}
