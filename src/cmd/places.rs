//! Where files go when the usual place is on a file system that is mounted read-only, as on machines of which only the data directory can
//! be written.

use nix::sys::statvfs::{FsFlags, statvfs};
use std::path::{Path, PathBuf};

/// Where `edge server` writes the administrator's kubeconfig unless it is told otherwise.
pub(crate) const KUBECONFIG: &str = "/etc/edge/edge.yaml";
/// Its name in the data directory, where that place cannot be written.
const KUBECONFIG_INSTEAD: &str = "edge.yaml";
/// Where containers' logs are unless edge is told otherwise.
pub(crate) const POD_LOGS: &str = "/var/log/pods";
/// The same in the node's own directory.
const POD_LOGS_INSTEAD: &str = "logs";
/// Where plugins register and drivers mount volumes, as with every kubelet: that path is in the drivers' manifests.
pub(crate) const KUBELET: &str = "/var/lib/kubelet";
/// Where drivers describe their devices for containers, as with every container runtime.
pub(crate) const CDI: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
const DATA_DIR: &str = "/var/lib/edge";

/// Where the administrator's kubeconfig goes. A place that was chosen is not left.
pub(crate) fn for_kubeconfig(wanted: PathBuf, data_dir: &Path) -> PathBuf {
    instead_of(wanted, KUBECONFIG, &data_dir.join(KUBECONFIG_INSTEAD))
}

/// Where containers' logs go. A place that was chosen is not left.
pub(crate) fn for_logs(wanted: PathBuf, agent_dir: &Path) -> PathBuf {
    instead_of(wanted, POD_LOGS, &agent_dir.join(POD_LOGS_INSTEAD))
}

/// Where commands find the administrator's kubeconfig, when they are told nothing else.
pub(crate) fn kubeconfig() -> PathBuf {
    let data_dir = std::env::var_os("EDGE_DATA_DIR").unwrap_or_else(|| DATA_DIR.into());
    let instead = Path::new(&data_dir).join(KUBECONFIG_INSTEAD);
    if !Path::new(KUBECONFIG).exists() && instead.exists() { instead } else { KUBECONFIG.into() }
}

fn instead_of(wanted: PathBuf, usual: &str, instead: &Path) -> PathBuf {
    if wanted != Path::new(usual) || !is_read_only(&wanted) {
        return wanted;
    }
    tracing::warn!(usual, instead = %instead.display(), "the usual place is read-only");
    instead.to_owned()
}

/// Whether nothing can be made there: what exists of the way to it is on a file system that is mounted so.
fn is_read_only(path: &Path) -> bool {
    let nearest = path.ancestors().find_map(|ancestor| statvfs(ancestor).ok());
    nearest.is_some_and(|system| system.flags().contains(FsFlags::ST_RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_was_chosen_stays() {
        // the kernel's own file system is one that nothing can be made in, and not mounted so
        assert!(!is_read_only(Path::new("/proc/none/of/these")));
        let chosen = PathBuf::from("/proc/none/edge.yaml");
        assert_eq!(for_kubeconfig(chosen.clone(), Path::new("/data")), chosen);
    }
}
