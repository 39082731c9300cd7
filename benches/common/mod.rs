//! What the benchmarks of whole clusters share.

use super::harness::Cluster;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::{Path, PathBuf};

/// A client with the rights of the administrator.
pub(crate) async fn connect(cluster: &Cluster) -> kube::Client {
    let mut kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    for c in &mut kubeconfig.clusters {
        c.cluster.as_mut().unwrap().server = Some(format!("https://{}:6443", cluster.ip));
    }
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// The server, its zygote, monitors and WebAssembly programs: all that carry the cluster's mark in their environment.
pub(crate) fn processes(cluster: &Cluster) -> Vec<PathBuf> {
    let mark = format!("EDGE_E2E={}", cluster.dir.file_name().unwrap().to_str().unwrap());
    let has_mark = |process: &PathBuf| {
        std::fs::read(process.join("environ")).unwrap_or_default().split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    let mut all: Vec<PathBuf> =
        std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(has_mark).collect();
    // One that has no environment: the process of dense programs.
    let pids: std::collections::BTreeSet<i32> = cluster.processes().into_iter().collect();
    let in_cgroups = pids.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}")));
    all.extend(in_cgroups.filter(|process| {
        std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "edge-dense")
    }));
    all
}

/// Proportional set size of a process; 0 when it has ended.
pub(crate) fn pss_kib(process: &Path) -> u64 {
    let rollup = std::fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find(|l| l.starts_with("Pss:")).unwrap_or("Pss: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
