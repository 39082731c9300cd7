//! Logs of containers: where they are, under which other names they can be found, and how they are read.
//!
//! `<root>/<namespace>_<pod>_<uid>/<container>/<restarts>.log`, written by the runtime in CRI format; links in
//! `/var/log/containers` for log collectors.

pub(crate) mod reader;

use crate::config::KubeletConfig;
use k8s_openapi::api::core::v1::Pod;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn link_path(config: &KubeletConfig, pod: &Pod, container: &str, id: &str) -> Option<PathBuf> {
    let dir = config.container_logs_dir.as_ref()?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(dir.join(format!("{name}_{namespace}_{container}-{id}.log")))
}

/// Makes the collectors' link to a log. A failure is only logged: the log itself is there.
pub(crate) fn link(config: &KubeletConfig, pod: &Pod, container: &str, id: &str, log: &Path) {
    let Some(link) = link_path(config, pod, container, id) else { return };
    let made = link.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(log, &link));
    if let Err(error) = made {
        tracing::debug!(link = %link.display(), %error, "link to log not made");
    }
}

/// Removes the link of one container.
pub(crate) fn unlink(config: &KubeletConfig, pod: &Pod, container: &str, id: &str) {
    if let Some(link) = link_path(config, pod, container, id)
        && let Err(error) = edge_sys::fsutil::remove_file_if_exists(&link)
    {
        tracing::debug!(link = %link.display(), %error, "link to log not removed");
    }
}

/// Removes all links that lead into a directory of logs.
pub(crate) fn unlink_all(links: &Path, logs: &Path) {
    for entry in fs::read_dir(links).into_iter().flatten().flatten() {
        let leads_there = fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(logs));
        if leads_there && let Err(error) = fs::remove_file(entry.path()) {
            tracing::debug!(link = %entry.path().display(), %error, "link to log not removed");
        }
    }
}

/// Keeps the log of this start and the one before; older ones go, with what rotation has left of them.
pub(crate) fn remove_old(current: &Path, restarts: i32) {
    let Some(dir) = current.parent() else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.split('.').next()).and_then(|n| n.parse::<i32>().ok());
        if number.is_some_and(|n| n < restarts - 1)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(log = %entry.path().display(), %error, "old log not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_the_last_two_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20260101-000000", "1.log", "2.log", "2.log.20260101-000000", "other"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_old(&dir.path().join("2.log"), 2);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["1.log", "2.log", "2.log.20260101-000000", "other"]);
    }

    #[test]
    fn links_into_other_directories_stay() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/logs/a/c/0.log", dir.path().join("mine")).unwrap();
        symlink("/logs/ab/c/0.log", dir.path().join("theirs")).unwrap();
        unlink_all(dir.path(), Path::new("/logs/a"));
        assert!(fs::symlink_metadata(dir.path().join("mine")).is_err());
        assert!(fs::symlink_metadata(dir.path().join("theirs")).is_ok());
    }
}
