//! What both `edge server` and `edge agent` can be told about their node.

use super::time::parse_time;
use clap::Args;
use edge_kubelet::Thresholds;
use edge_network::Cidr;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {reason}")]
pub(crate) struct ConfigError {
    flag: &'static str,
    reason: String,
}

pub(super) fn wrong(flag: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError { flag, reason: reason.into() }
}

/// A token that was given as text or in a file.
#[derive(Clone, Default)]
pub(crate) struct TokenSource {
    pub(crate) text: Option<String>,
    pub(crate) file: Option<PathBuf>,
}

/// Secrets are not shown.
impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSource").field("given", &self.text.is_some()).field("file", &self.file).finish()
    }
}

impl TokenSource {
    /// The token, if one was given.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub(crate) fn read(&self) -> std::io::Result<Option<String>> {
        match (&self.text, &self.file) {
            (Some(text), _) => Ok(Some(text.trim().to_owned())),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map(|t| Some(t.trim().to_owned()))
                .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", file.display()))),
            (None, None) => Ok(None),
        }
    }
}

/// The flags about the node.
#[derive(Args, Clone, Debug)]
pub(crate) struct NodeArgs {
    /// Name of this node [default: the host's name]
    #[arg(long, env = "EDGE_NODE_NAME", value_name = "NAME", help_heading = "Node")]
    pub(crate) node_name: Option<String>,
    /// Address of this node, one of a family [default: that of the default route]
    #[arg(long, short = 'i', value_name = "IP", value_delimiter = ',', help_heading = "Node")]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Label for this node when it first registers, KEY=VALUE (can be repeated)
    #[arg(long, value_name = "LABEL", value_delimiter = ',', help_heading = "Node")]
    pub(crate) node_label: Vec<String>,
    /// Taint for this node when it first registers, KEY=VALUE:EFFECT (can be repeated)
    #[arg(long, value_name = "TAINT", value_delimiter = ',', help_heading = "Node")]
    pub(crate) node_taint: Vec<String>,
    /// Networks of those addresses of this node that serve node ports (can be repeated) [default: all of its addresses]
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Node")]
    pub(crate) nodeport_addresses: Vec<String>,
    /// Registries' mirrors and credentials, in k3s's format
    #[arg(long, default_value = "/etc/edge/registries.yaml", value_name = "FILE", help_heading = "Node")]
    pub(crate) private_registry: PathBuf,
    /// Name servers that pods with dnsPolicy Default use, and that the cluster's DNS forwards to
    #[arg(
        long,
        env = "EDGE_RESOLV_CONF",
        default_value = "/etc/resolv.conf",
        value_name = "FILE",
        help_heading = "Node"
    )]
    pub(crate) resolv_conf: PathBuf,
    /// Where the logs of containers are written
    #[arg(long, default_value = "/var/log/pods", value_name = "DIR", help_heading = "Node")]
    pub(crate) pod_logs_dir: PathBuf,
    /// Port on which metrics collectors and others reach this node's kubelet
    #[arg(long, default_value_t = 10250, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT", help_heading = "Node")]
    pub(crate) kubelet_port: u16,
    /// Most pods on this node. The network of its pods has addresses for some 250 in the usual case
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u32).range(1..=10000), value_name = "NUMBER", help_heading = "Node")]
    pub(crate) max_pods: u32,
    /// Most processes and threads of a pod, all of its containers together; -1 is no limit
    #[arg(long, default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=4_194_304), allow_hyphen_values = true, value_name = "NUMBER", help_heading = "Node")]
    pub(crate) pod_max_pids: i64,
    /// How little may be left before pods have to go, as kubelets take it; what is not named has no limit then
    #[arg(
        long,
        default_value_t = Thresholds::default().to_string(),
        value_name = "SIGNAL<VALUE",
        help_heading = "Node"
    )]
    pub(crate) eviction_hard: String,
    /// How long the node is said to be short of something after it was
    #[arg(long, default_value = "5m", value_name = "TIME", help_heading = "Node")]
    pub(crate) eviction_pressure_transition_period: String,
    /// Keep the secrets and tokens of this node's pods on its disk (mode 0600), so that the pods start after a reboot even
    /// while no server can be reached. Without that, pods that use secrets wait for the server then
    #[arg(
        long,
        env = "EDGE_OFFLINE_SECRETS",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        value_name = "BOOL",
        help_heading = "Node"
    )]
    pub(crate) offline_secrets: bool,
    /// Control group below which the pods' are made
    #[arg(long, default_value = "/", value_name = "PATH", help_heading = "Node")]
    pub(crate) cgroup_root: PathBuf,
}

/// The node, checked.
#[derive(Clone, Debug)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    /// Addresses; empty where they are to be found out.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    /// Networks of the addresses that serve node ports; of a family without one, all addresses do.
    pub(crate) node_port_networks: Vec<Cidr>,
    pub(crate) registries: PathBuf,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) pod_logs_dir: PathBuf,
    pub(crate) cgroup_root: PathBuf,
    pub(crate) kubelet_port: u16,
    pub(crate) max_pods: u32,
    pub(crate) pod_max_pids: Option<u32>,
    pub(crate) eviction_hard: Thresholds,
    pub(crate) pressure_transition: Duration,
    pub(crate) offline_secrets: bool,
}

/// A taint for the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

impl NodeArgs {
    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    /// [`ConfigError`] names the flag and says what is expected.
    pub(crate) fn check(self) -> Result<NodeConfig, ConfigError> {
        let name = match self.node_name {
            Some(name) => name,
            None => host_name()?,
        };
        edge_api::names::dns1123_subdomain(&name).map_err(|e| wrong("node-name", format!("{name:?}: {e}")))?;
        Ok(NodeConfig {
            name,
            ips: self.node_ip,
            labels: labels(&self.node_label)?,
            taints: self.node_taint.iter().map(|t| taint(t)).collect::<Result<_, _>>()?,
            node_port_networks: self
                .nodeport_addresses
                .iter()
                .map(|t| node_port_network(t))
                .collect::<Result<_, _>>()?,
            registries: self.private_registry,
            resolv_conf: self.resolv_conf,
            pod_logs_dir: self.pod_logs_dir,
            cgroup_root: self.cgroup_root,
            kubelet_port: self.kubelet_port,
            max_pods: self.max_pods,
            // as a kubelet has it: neither -1 nor 0 is a limit
            pod_max_pids: u32::try_from(self.pod_max_pids).ok().filter(|most| *most > 0),
            eviction_hard: self
                .eviction_hard
                .parse()
                .map_err(|e: edge_kubelet::ThresholdError| wrong("eviction-hard", e.to_string()))?,
            pressure_transition: transition(&self.eviction_pressure_transition_period)?,
            offline_secrets: self.offline_secrets,
        })
    }
}

/// The host's name, as the kubelet takes it: lower case.
pub(crate) fn host_name() -> Result<String, ConfigError> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(|e| wrong("node-name", format!("cannot read the host's name: {e}")))?;
    Ok(name.trim().to_lowercase())
}

fn labels(list: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut out = BTreeMap::new();
    for text in list {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let valid = edge_api::names::qualified_name(key).and_then(|()| edge_api::names::label_value(value));
        valid.map_err(|e| wrong("node-label", format!("{text:?}: {e}")))?;
        if !edge_api::names::is_node_own_label(key) {
            return Err(wrong(
                "node-label",
                format!("{text:?}: a node may not give itself this label; set it with `kubectl label node`"),
            ));
        }
        out.insert(key.to_owned(), value.to_owned());
    }
    Ok(out)
}

fn node_port_network(text: &str) -> Result<Cidr, ConfigError> {
    // an address without a prefix may be a mistake for its network
    let parsed = text.contains('/').then(|| text.trim().parse().ok()).flatten();
    parsed.ok_or_else(|| wrong("nodeport-addresses", format!("{text:?} is not a network such as 192.0.2.0/24")))
}

fn transition(text: &str) -> Result<Duration, ConfigError> {
    let malformed = || wrong("eviction-pressure-transition-period", format!("{text:?} is not a time such as 5m"));
    parse_time(text).ok_or_else(malformed)
}

fn taint(text: &str) -> Result<Taint, ConfigError> {
    let malformed = || wrong("node-taint", format!("{text:?} is not KEY=VALUE:EFFECT"));
    let (head, effect) = text.rsplit_once(':').ok_or_else(malformed)?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(wrong("node-taint", format!("{text:?}: the effect is NoSchedule, PreferNoSchedule or NoExecute")));
    }
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    edge_api::names::qualified_name(key).map_err(|e| wrong("node-taint", format!("{text:?}: {e}")))?;
    Ok(Taint { key: key.into(), value: value.into(), effect: effect.into() })
}
