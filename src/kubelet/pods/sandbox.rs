//! The sandbox of a pod: its network, its `/etc` files, its namespaces and cgroup; and the end of all that.

use super::record::{Kind, spec_containers};
use super::shared::PodShared;
use crate::containers::qos;
use crate::context::Context;
use crate::env::resolv::{self, ResolvConf};
use edge_client::EventType;
use edge_network::{HostPort, PodIdentity, Protocol};
use edge_runtime::{Resources, SandboxSpec};
use edge_sys::fsutil::write_atomic_volatile;
use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// Parameters of a pod's own network, unless the pod sets them.
const UNPRIVILEGED_NETWORK: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Why a sandbox cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error(transparent)]
    Runtime(#[from] edge_runtime::Error),
    #[error("network")]
    Network(#[from] edge_network::Error),
    #[error("{0}")]
    Name(String),
    #[error("devices not given up: {0}")]
    Devices(String),
    #[error(transparent)]
    RuntimeClass(#[from] super::runtime_class::RuntimeClassError),
    #[error("cannot write {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("internal task failed")]
    Worker(#[from] tokio::task::JoinError),
}

/// What the agent needs to know of a sandbox after a restart; kept by the runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Labels {
    pub(crate) start_time: Option<Timestamp>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The ports of the node that lead to ports of the pod.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let ports =
        spec_containers(pod).filter(|(kind, _)| *kind != Kind::Init).flat_map(|(_, c)| c.ports.iter().flatten());
    ports.filter_map(host_port).collect()
}

fn host_port(port: &ContainerPort) -> Option<HostPort> {
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    let host_ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()).filter(|ip| !ip.is_unspecified());
    Some(HostPort {
        host_ip,
        host_port: number(port.host_port?)?,
        container_port: number(port.container_port)?,
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
    })
}

/// Makes the sandbox; returns the pod's addresses (none with the host's network).
pub(crate) async fn create(shared: &PodShared, pod: &Pod, start_time: Timestamp) -> Result<Vec<IpAddr>, SandboxError> {
    let cx = &shared.cx;
    // names that cannot be are told here, where the pod's other troubles are told too
    let names = resolv::names(pod, &cx.config.cluster_domain).map_err(SandboxError::Name)?;
    super::runtime_class::handler(cx, pod).await?;
    let _making = cx.runtime.expect_sandbox();
    let host_network = shared.uses_host_network();
    let (ips, netns) = if host_network {
        (Vec::new(), None)
    } else {
        let (network, ports) = (cx.network.clone(), host_ports(pod));
        let identity =
            PodIdentity { uid: shared.uid.clone(), namespace: shared.namespace.clone(), name: shared.name.clone() };
        let attached = tokio::task::spawn_blocking(move || network.attach_pod(&identity, &ports)).await??;
        (attached.addresses, Some(attached.netns))
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let labels = Labels {
        start_time: Some(start_time),
        ips: ips.clone(),
        namespace: shared.namespace.clone(),
        name: shared.name.clone(),
    };
    let context = spec.security_context.as_ref();
    let sandbox = SandboxSpec {
        id: shared.uid.clone(),
        hostname: (!host_network).then(|| names.hostname.clone()),
        netns,
        host_ipc: spec.host_ipc.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        sysctls: sysctls(context.and_then(|c| c.sysctls.as_deref()).unwrap_or_default(), host_network),
        cgroup: qos::cgroup(pod),
        resources: Resources { pids_limit: cx.config.pod_max_pids.map(i64::from), ..qos::pod_resources(pod) },
        // plain data always serializes
        labels: serde_json::to_value(labels).unwrap_or_default(),
    };
    let files = write_etc(shared, pod, names, &ips);
    let (made, written) = tokio::join!(cx.runtime.create_sandbox(sandbox), files);
    written?;
    made?;
    Ok(ips)
}

fn sysctls(list: &[k8s_openapi::api::core::v1::Sysctl], host_network: bool) -> BTreeMap<String, String> {
    // as with containerd: in a network of its own a pod needs no privilege to listen on any port, and to ping
    let usual = if host_network { &[][..] } else { &UNPRIVILEGED_NETWORK };
    let mut all: BTreeMap<String, String> = usual.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    // both notations of the API, `a/b` and `a.b`, name the same parameter
    all.extend(list.iter().map(|s| (s.name.replace('/', "."), s.value.clone())));
    all
}

async fn write_etc(shared: &PodShared, pod: &Pod, names: resolv::Names, ips: &[IpAddr]) -> Result<(), SandboxError> {
    let (dir, config, pod, ips) = (shared.etc_dir(), shared.cx.config.clone(), pod.clone(), ips.to_vec());
    let host_network = shared.uses_host_network();
    tokio::task::spawn_blocking(move || {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| SandboxError::Io { path, source }
        };
        std::fs::create_dir_all(&dir).map_err(failed(&dir))?;
        // a host without the file resolves nothing, which is no reason not to run pods
        let host = ResolvConf::parse(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default());
        let conf = resolv::for_pod(&pod, &host, &config.cluster_dns, &config.cluster_domain);
        let host_file = host_network.then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let hosts = resolv::hosts(&pod, &names, &ips, host_file.as_deref());
        let hostname = if host_network { config.node_name.clone() } else { names.hostname };
        for (name, text) in [("resolv.conf", conf.format()), ("hosts", hosts), ("hostname", hostname + "\n")] {
            let path = dir.join(name);
            write_atomic_volatile(&path, text.as_bytes(), 0o644).map_err(failed(&path))?;
        }
        Ok(())
    })
    .await?
}

/// Removes the sandbox and its network.
pub(crate) async fn remove(shared: &PodShared) -> Result<(), SandboxError> {
    shared.cx.runtime.remove_sandbox(&shared.uid).await?;
    let (network, uid) = (shared.cx.network.clone(), shared.uid.clone());
    Ok(tokio::task::spawn_blocking(move || network.detach(&uid)).await??)
}

/// Removes everything of the pod but its logs and what the agent keeps of it.
pub(crate) async fn tear_down(shared: &PodShared) -> Result<(), SandboxError> {
    remove(shared).await?;
    if let Err(why) = shared.cx.devices.unprepare(&shared.uid).await {
        let message = format!("Failed to unprepare dynamic resources: unprepare dynamic resources: {why}");
        shared.cx.recorder.event(&*shared.pod(), EventType::Warning, "FailedUnprepareDynamicResources", message);
        return Err(SandboxError::Devices(why));
    }
    shared.cx.device_plugins.free(&shared.uid).await.map_err(|error| SandboxError::Devices(error.to_string()))?;
    let (dir, kept) = (shared.cx.config.pod_dir(&shared.uid), shared.kept.clone());
    release_volumes(&shared.cx, &shared.uid).await.map_err(|source| SandboxError::Io { path: dir.clone(), source })?;
    let path = dir.clone();
    let done = tokio::task::spawn_blocking(move || {
        kept.discard()?;
        crate::volumes::tear_down(&dir)
    })
    .await?;
    done.map_err(|source| SandboxError::Io { path, source })
}

/// Has drivers take back the volumes of a pod without containers; ends when they have.
pub(super) async fn release_volumes(cx: &Arc<Context>, uid: &str) -> io::Result<()> {
    let dir = cx.config.pod_dir(uid);
    // parts of volumes are mounts of them
    let parts = tokio::task::spawn_blocking(move || crate::volumes::unmount_parts(&dir)).await;
    parts.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    cx.csi.release(cx, uid).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_need_no_privilege_in_a_network_of_ones_own() {
        let own = |name: &str| k8s_openapi::api::core::v1::Sysctl { name: name.to_owned(), value: "9".to_owned() };
        let port = "net.ipv4.ip_unprivileged_port_start";
        assert_eq!(sysctls(&[], false)[port], "0");
        assert_eq!(sysctls(&[own(&port.replace('.', "/"))], false)[port], "9");
        assert_eq!(sysctls(&[], true).len(), 0);
    }

    #[test]
    fn host_ports_of_containers_that_stay() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i", "ports": [{"containerPort": 1, "hostPort": 1}]}],
            "containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81},
                {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
                {"containerPort": 99, "hostPort": 99999}]}],
        }}))
        .unwrap();
        let ports = host_ports(&pod);
        assert_eq!(ports.len(), 2);
        assert_eq!((ports[0].host_ip, ports[0].host_port, ports[0].container_port), (None, 8080, 80));
        assert_eq!((ports[1].host_ip, ports[1].protocol), (Some(Ipv4Addr::LOCALHOST), Protocol::Udp));
    }
}
