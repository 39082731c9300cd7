//! `edge teardown`: takes away what runs on this machine because of edge, and what edge has changed on it.

use super::server::{Failure, doing};
use super::{fail, instance};
use clap::Args;
use edge_runtime::RuntimeConfig;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The cgroup of all pods, below the root.
const PODS: &str = "kubepods";

/// `edge teardown`
#[derive(Args)]
pub(crate) struct TeardownArgs {
    /// Configuration file of edge, for where things are
    #[arg(long, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Directory for all state, as edge was told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    data_dir: PathBuf,
    /// Control group below which the pods' are, as edge was told
    #[arg(long, default_value = "/", value_name = "PATH")]
    cgroup_root: PathBuf,
}

/// Does everything that can be done; says what could not.
pub(crate) fn main(args: &TeardownArgs) -> ExitCode {
    // nobody else may work there meanwhile; without the directory nobody does
    let run = args.data_dir.join("run");
    let _instance = match run.is_dir().then(|| instance::claim(&args.data_dir)).transpose() {
        Ok(instance) => instance,
        Err(error) => return fail(1, &error),
    };
    let mut code = ExitCode::SUCCESS;
    for result in tear_down(&args.data_dir, &args.cgroup_root) {
        if let Err(error) = result {
            code = fail(1, &error);
        }
    }
    code
}

/// What drivers have mounted for pods: their own pods, which would take it back, have ended.
fn unmount_drivers(agent_dir: &Path) -> Result<(), Failure> {
    let places = edge_kubelet::mounted_by_drivers(agent_dir);
    let mut all = Ok(());
    for place in places.iter().filter_map(|place| place.parent()) {
        // whatever is wrong with one, the others go
        let result = edge_sys::mount::unmount_below(place).map_err(doing("unmounting the volumes of drivers"));
        all = all.and(result);
    }
    all
}

/// First what runs, then what it stands on.
fn tear_down(data_dir: &Path, cgroup_root: &Path) -> [Result<(), Failure>; 4] {
    let config =
        RuntimeConfig { directory: data_dir.join("run/pods"), cgroup_root: cgroup_root.to_string_lossy().into_owned() };
    [
        edge_runtime::tear_down(&config, PODS).map_err(doing("ending the pods")),
        unmount_drivers(&data_dir.join("agent")),
        edge_sys::mount::unmount_below(&data_dir.join("agent/pods")).map_err(doing("unmounting the pods' volumes")),
        edge_network::tear_down(&data_dir.join("run/network")).map_err(doing("removing the network")),
    ]
}
