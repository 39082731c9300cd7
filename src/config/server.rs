//! What `edge server` can be told, and the checked form of it.

use super::audit::{AuditArgs, AuditConfig};
use super::autoscaling::AutoscalingArgs;
use super::node::{ConfigError, NodeArgs, NodeConfig, TokenSource, wrong};
use super::parts::Part;
use super::time::parse_time;
use clap::Args;
use edge_api::cron::Schedule;
use edge_controllers::{Autoscaling, NodeMasks};
use edge_network::{Backend, Cidr};
use edge_storage::EtcdOptions;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Lives of certificates: up to that of the authorities.
const SIGNING_DURATIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7300 * 24 * 60 * 60);

/// The flags of `edge server`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    /// Configuration file: flags' names as keys; drop-ins in FILE.d/*.yaml
    #[arg(long, short, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Directory for all state
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where nodes have the directories of volumes of the class `local-path` [default: storage in the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) default_local_storage_path: Option<PathBuf>,
    /// Log more
    #[arg(long, env = "EDGE_DEBUG")]
    pub(crate) debug: bool,

    /// Address on which the API is served [default: all, of both families]
    #[arg(long, value_name = "IP", help_heading = "Listener")]
    pub(crate) bind_address: Option<IpAddr>,
    /// Port on which the API is served
    #[arg(long, default_value_t = 6443, value_name = "PORT", help_heading = "Listener")]
    pub(crate) https_listen_port: u16,
    /// Address by which the API is reached from other machines and from pods [default: the node's address]
    #[arg(long, value_name = "IP", help_heading = "Listener")]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Further name or address for the API's certificate (can be repeated)
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Listener")]
    pub(crate) tls_san: Vec<String>,
    /// Where the administrator's kubeconfig is written
    #[arg(
        long,
        short = 'o',
        env = "EDGE_KUBECONFIG_OUTPUT",
        default_value = "/etc/edge/edge.yaml",
        value_name = "FILE",
        help_heading = "Listener"
    )]
    pub(crate) write_kubeconfig: PathBuf,
    /// Mode of the administrator's kubeconfig, octal
    #[arg(long, env = "EDGE_KUBECONFIG_MODE", default_value = "0600", value_name = "MODE", help_heading = "Listener")]
    pub(crate) write_kubeconfig_mode: String,

    /// Addresses of pods; an IPv4 and an IPv6 network, separated by a comma, for both families
    #[arg(long, default_value = "10.42.0.0/16", value_name = "CIDR", value_delimiter = ',', help_heading = "Network")]
    pub(crate) cluster_cidr: Vec<String>,
    /// Addresses of services, of the same families as those of pods
    #[arg(long, default_value = "10.43.0.0/16", value_name = "CIDR", value_delimiter = ',', help_heading = "Network")]
    pub(crate) service_cidr: Vec<String>,
    /// Prefix length of the part of the pods' IPv4 network that a node gets: 24 is enough for 254 pods
    #[arg(
        long,
        visible_alias = "node-cidr-mask-size",
        default_value_t = 24,
        value_name = "BITS",
        help_heading = "Network"
    )]
    pub(crate) node_cidr_mask_size_ipv4: u8,
    /// The same of the IPv6 network
    #[arg(long, default_value_t = 64, value_name = "BITS", help_heading = "Network")]
    pub(crate) node_cidr_mask_size_ipv6: u8,
    /// How packets reach the pods of other nodes: directly where both are on one network and by VXLAN otherwise (auto),
    /// always by vxlan, host-gw or wireguard, or by another network plugin (none: CNI configuration in /etc/cni/net.d)
    #[arg(
        long,
        visible_alias = "flannel-backend",
        default_value = "auto",
        value_name = "BACKEND",
        help_heading = "Network"
    )]
    pub(crate) network: String,
    /// Ports for services of type NodePort
    #[arg(long, default_value = "30000-32767", value_name = "FROM-TO", help_heading = "Network")]
    pub(crate) service_node_port_range: String,
    /// Address of the cluster's DNS, one of a family [default: the tenth of the service addresses]
    #[arg(long, value_name = "IP", value_delimiter = ',', help_heading = "Network")]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN", help_heading = "Network")]
    pub(crate) cluster_domain: String,

    /// How long certificates hold that are signed on request, those of nodes among them, such as 8760h or 365d. Nodes renew
    /// theirs after two thirds of that
    #[arg(long, default_value = "8760h", value_name = "TIME", help_heading = "Cluster")]
    pub(crate) cluster_signing_duration: String,
    /// Part of edge to leave out in the whole cluster: servicelb (load balancers on the nodes' addresses), coredns (the cluster's
    /// DNS), kube-proxy (services' addresses and ports), network-policy, metrics-server (what nodes and pods use), local-storage (the
    /// class local-path and its volumes) (can be repeated)
    #[arg(long, value_name = "PART", value_delimiter = ',', help_heading = "Network")]
    pub(crate) disable: Vec<String>,
    /// The same as --disable=network-policy, as k3s has it
    #[arg(long, help_heading = "Network")]
    pub(crate) disable_network_policy: bool,
    /// The same as --disable=kube-proxy, as k3s has it
    #[arg(long, help_heading = "Network")]
    pub(crate) disable_kube_proxy: bool,

    #[command(flatten)]
    pub(crate) autoscaling: AutoscalingArgs,
    /// What the scheduler goes by: a KubeSchedulerConfiguration, with profiles, weights of plugins and extenders [default:
    /// Kubernetes' defaults]
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub(crate) kube_scheduler_config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) audit: AuditArgs,

    /// etcd (3.4 or later) as the store, which several servers can share: https://HOST:2379,HOST:2379 [default: a store of
    /// this server's own, in its data directory]
    #[arg(long, env = "EDGE_DATASTORE_ENDPOINT", value_name = "URLS", help_heading = "Store")]
    pub(crate) datastore_endpoint: Option<String>,
    /// Certificate authority (PEM) that vouches for etcd [default: those of the machine]
    #[arg(long, env = "EDGE_DATASTORE_CAFILE", value_name = "FILE", help_heading = "Store")]
    pub(crate) datastore_cafile: Option<PathBuf>,
    /// Certificate (PEM) that is shown to etcd
    #[arg(long, env = "EDGE_DATASTORE_CERTFILE", value_name = "FILE", help_heading = "Store")]
    pub(crate) datastore_certfile: Option<PathBuf>,
    /// Key (PEM) of that certificate
    #[arg(long, env = "EDGE_DATASTORE_KEYFILE", value_name = "FILE", help_heading = "Store")]
    pub(crate) datastore_keyfile: Option<PathBuf>,

    /// When backups are made, as a cron line such as "0 3 * * *" or @daily [default: never]
    #[arg(long, visible_alias = "etcd-snapshot-schedule-cron", value_name = "CRON", help_heading = "Backup")]
    pub(crate) backup_schedule: Option<String>,
    /// How many scheduled backups are kept
    #[arg(
        long,
        visible_alias = "etcd-snapshot-retention",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "N",
        help_heading = "Backup"
    )]
    pub(crate) backup_retention: u32,
    /// Where scheduled backups are written [default: backups in the data directory]
    #[arg(long, visible_alias = "etcd-snapshot-dir", value_name = "DIR", help_heading = "Backup")]
    pub(crate) backup_dir: Option<PathBuf>,

    /// Serve the control plane only, run no pods here
    #[arg(long, help_heading = "Node")]
    pub(crate) disable_agent: bool,
    #[command(flatten)]
    pub(crate) node: NodeArgs,

    /// Token with which servers and agents join, in any form [default: made at the first start]
    #[arg(long, short, env = "EDGE_TOKEN", value_name = "TOKEN", hide_env_values = true, help_heading = "Cluster")]
    pub(crate) token: Option<String>,
    /// File that holds the token
    #[arg(long, env = "EDGE_TOKEN_FILE", value_name = "FILE", help_heading = "Cluster")]
    pub(crate) token_file: Option<PathBuf>,
    /// Token with which only agents join [default: the secret of the token]
    #[arg(long, env = "EDGE_AGENT_TOKEN", value_name = "TOKEN", hide_env_values = true, help_heading = "Cluster")]
    pub(crate) agent_token: Option<String>,
    /// File that holds the agents' token
    #[arg(long, env = "EDGE_AGENT_TOKEN_FILE", value_name = "FILE", help_heading = "Cluster")]
    pub(crate) agent_token_file: Option<PathBuf>,
}

/// The configuration of `edge server`, checked before anything is opened or bound.
#[derive(Clone, Debug)]
pub(crate) struct ServerConfig {
    pub(crate) data_dir: PathBuf,
    /// Where nodes have the directories of volumes of the class `local-path`.
    pub(crate) local_storage: PathBuf,
    /// Address, where not all are meant, and port.
    pub(crate) bind: (Option<IpAddr>, u16),
    pub(crate) advertise_address: Option<IpAddr>,
    pub(crate) tls_san: Vec<String>,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) kubeconfig_mode: u32,
    /// One of a family, the primary one first; never empty.
    pub(crate) cluster_cidrs: Vec<Cidr>,
    /// How large the part of a node is.
    pub(crate) node_masks: NodeMasks,
    /// Of the same families in the same order.
    pub(crate) service_cidrs: Vec<Cidr>,
    pub(crate) backend: Backend,
    pub(crate) node_ports: RangeInclusive<u16>,
    /// Of the same families in the same order.
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    /// How long certificates hold that are signed on request.
    pub(crate) signing_duration: Duration,
    /// What autoscaling goes by.
    pub(crate) autoscaling: Autoscaling,
    /// A file that says what the scheduler goes by; read when it starts.
    pub(crate) scheduler: Option<PathBuf>,
    /// `None`: there is no audit log.
    pub(crate) audit: Option<AuditConfig>,
    /// Parts that are left out.
    pub(crate) disabled: BTreeSet<Part>,
    /// Where the store is, when it is not in the data directory.
    pub(crate) etcd: Option<EtcdOptions>,
    /// `None`: no backups on a schedule.
    pub(crate) backup: Option<BackupConfig>,
    pub(crate) agent: bool,
    pub(crate) node: NodeConfig,
    /// As given; read and checked when it is used.
    pub(crate) token: TokenSource,
    pub(crate) agent_token: TokenSource,
}

/// Backups on a schedule.
#[derive(Clone, Debug)]
pub(crate) struct BackupConfig {
    pub(crate) schedule: Schedule,
    /// How many are kept, at least one.
    pub(crate) retention: usize,
    pub(crate) directory: PathBuf,
}

/// Networks of a flag: one, or one of each family.
fn cidrs(flag: &'static str, texts: &[String]) -> Result<Vec<Cidr>, ConfigError> {
    let parse = |text: &String| {
        let cidr: Cidr = text
            .trim()
            .parse()
            .map_err(|_| wrong(flag, format!("{text:?} is not a network such as 10.42.0.0/16 or fd42::/56")))?;
        // smaller networks have no room for addresses; larger ones are mistakes
        let sizes = if cidr.base().is_ipv4() { 8..=28 } else { 32..=120 };
        if !sizes.contains(&cidr.prefix()) {
            return Err(wrong(flag, format!("{cidr}: the prefix must be /{} to /{}", sizes.start(), sizes.end())));
        }
        Ok(cidr)
    };
    let all: Vec<Cidr> = texts.iter().map(parse).collect::<Result<_, _>>()?;
    match all.as_slice() {
        [_] => Ok(all),
        [a, b] if a.base().is_ipv4() != b.base().is_ipv4() => Ok(all),
        _ => Err(wrong(flag, "expected one network, or one of IPv4 and one of IPv6")),
    }
}

/// How large the part of a node is. A network that is smaller than that goes to one node as a whole.
fn node_masks(pods: &[Cidr], ipv4: u8, ipv6: u8) -> Result<NodeMasks, ConfigError> {
    let given = |v4: bool| pods.iter().find(|network| network.base().is_ipv4() == v4).map(Cidr::prefix);
    for (flag, v4, mask, default, most) in
        [("node-cidr-mask-size-ipv4", true, ipv4, 24, 30), ("node-cidr-mask-size-ipv6", false, ipv6, 64, 126)]
    {
        let least = given(v4).unwrap_or(1).max(1);
        if mask != default && !(least..=most).contains(&mask) {
            let reason = format!("{mask} is not between {least}, the prefix of --cluster-cidr, and {most}");
            return Err(wrong(flag, reason));
        }
    }
    Ok(NodeMasks { ipv4, ipv6 })
}

/// The networks of pods and of services: of the same families, and apart.
fn networks(pods: &[String], services: &[String]) -> Result<(Vec<Cidr>, Vec<Cidr>), ConfigError> {
    let (pods, services) = (cidrs("cluster-cidr", pods)?, cidrs("service-cidr", services)?);
    let families = |all: &[Cidr]| all.iter().map(|c| c.base().is_ipv4()).collect::<Vec<_>>();
    if families(&pods) != families(&services) {
        return Err(wrong("service-cidr", "its families, and their order, must be those of --cluster-cidr"));
    }
    for (pod, service) in pods.iter().zip(&services) {
        if pod.contains(service.base()) || service.contains(pod.base()) {
            return Err(wrong("service-cidr", format!("{service} overlaps the cluster CIDR {pod}")));
        }
    }
    Ok((pods, services))
}

fn cluster_dns(given: &[IpAddr], services: &[Cidr]) -> Result<Vec<IpAddr>, ConfigError> {
    if given.is_empty() {
        return Ok(services.iter().map(|network| network.nth(10)).collect());
    }
    if let Some(outside) = given.iter().find(|ip| !services.iter().any(|network| network.contains(**ip))) {
        return Err(wrong("cluster-dns", format!("{outside} is not in the service CIDR {}", services[0])));
    }
    // an address of each family, in the order of the networks; a family without one takes the default
    let of = |network: &Cidr| given.iter().find(|ip| network.contains(**ip)).copied().unwrap_or(network.nth(10));
    Ok(services.iter().map(of).collect())
}

impl ServerArgs {
    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    /// [`ConfigError`] names the flag and says what is expected.
    pub(crate) fn check(self) -> Result<ServerConfig, ConfigError> {
        let kubeconfig_mode = u32::from_str_radix(self.write_kubeconfig_mode.trim_start_matches("0o"), 8)
            .ok()
            .filter(|m| *m <= 0o777)
            .ok_or_else(|| wrong("write-kubeconfig-mode", "expected an octal mode such as 0600"))?;
        let (cluster_cidrs, service_cidrs) = networks(&self.cluster_cidr, &self.service_cidr)?;
        let node_masks = node_masks(&cluster_cidrs, self.node_cidr_mask_size_ipv4, self.node_cidr_mask_size_ipv6)?;
        let cluster_dns = cluster_dns(&self.cluster_dns, &service_cidrs)?;
        let backend = self.network.parse().map_err(|_| {
            wrong("network", format!("{:?} is none of auto, vxlan, host-gw, wireguard, none", self.network))
        })?;
        edge_api::names::dns1123_subdomain(&self.cluster_domain).map_err(|e| wrong("cluster-domain", e))?;
        let mut disabled = Part::parse(&self.disable)?;
        disabled.extend(self.disable_network_policy.then_some(Part::NetworkPolicy));
        disabled.extend(self.disable_kube_proxy.then_some(Part::ServiceProxy));
        let autoscaling = self.autoscaling.check()?;
        let node = self.node.check()?;
        let tls = (self.datastore_cafile, self.datastore_certfile, self.datastore_keyfile);
        let etcd = etcd(self.datastore_endpoint, tls)?;
        let schedule = self.backup_schedule.as_deref().filter(|line| !line.trim().is_empty());
        let schedule =
            schedule.map(Schedule::parse).transpose().map_err(|e| wrong("backup-schedule", e.to_string()))?;
        if schedule.is_some() && etcd.is_some() {
            let reason = "the store is an etcd, which has backups of its own: `etcdctl snapshot save`";
            return Err(wrong("backup-schedule", reason));
        }
        let backup = schedule.map(|schedule| BackupConfig {
            schedule,
            retention: self.backup_retention as usize,
            directory: self.backup_dir.unwrap_or_else(|| self.data_dir.join("backups")),
        });
        let audit = self.audit.check()?;
        Ok(ServerConfig {
            audit,
            etcd,
            local_storage: std::path::absolute(
                self.default_local_storage_path.unwrap_or_else(|| self.data_dir.join("storage")),
            )
            .map_err(|e| wrong("default-local-storage-path", e.to_string()))?,
            data_dir: self.data_dir,
            bind: (self.bind_address, self.https_listen_port),
            advertise_address: self.advertise_address,
            tls_san: self.tls_san,
            kubeconfig: self.write_kubeconfig,
            kubeconfig_mode,
            cluster_cidrs,
            node_masks,
            service_cidrs,
            backend,
            node_ports: port_range(&self.service_node_port_range)?,
            cluster_dns,
            cluster_domain: self.cluster_domain,
            signing_duration: parse_time(&self.cluster_signing_duration)
                .filter(|d| SIGNING_DURATIONS.contains(d))
                .ok_or_else(|| wrong("cluster-signing-duration", "expected a time from 1s to 7300d, such as 8760h"))?,
            autoscaling,
            scheduler: self.kube_scheduler_config,
            disabled,
            backup,
            agent: !self.disable_agent,
            node,
            token: TokenSource { text: self.token, file: self.token_file },
            agent_token: TokenSource { text: self.agent_token, file: self.agent_token_file },
        })
    }
}

/// etcd's addresses, and its files: authority, certificate and key.
fn etcd(
    endpoints: Option<String>,
    (ca_file, cert_file, key_file): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
) -> Result<Option<EtcdOptions>, ConfigError> {
    let Some(endpoints) = endpoints else {
        for (flag, file) in
            [("datastore-cafile", ca_file), ("datastore-certfile", cert_file), ("datastore-keyfile", key_file)]
        {
            if file.is_some() {
                return Err(wrong(flag, "it is for etcd, whose address is missing (--datastore-endpoint)"));
            }
        }
        return Ok(None);
    };
    let options = EtcdOptions { endpoints, ca_file, cert_file, key_file };
    options.check().map_err(|e| wrong("datastore-endpoint", e.to_string()))?;
    Ok(Some(options))
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, ConfigError> {
    text.split_once('-')
        .and_then(|(a, b)| Some(a.trim().parse::<u16>().ok()?..=b.trim().parse::<u16>().ok()?))
        .filter(|r| *r.start() > 0 && !r.is_empty())
        .ok_or_else(|| wrong("service-node-port-range", format!("{text:?} is not a range such as 30000-32767")))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: ServerArgs,
    }

    fn check(args: &[&str]) -> Result<ServerConfig, ConfigError> {
        let all = ["edge", "--node-name=a"].iter().chain(args);
        Only::try_parse_from(all).unwrap().args.check()
    }

    #[test]
    fn defaults_are_those_of_k3s() {
        let c = check(&[]).unwrap();
        assert_eq!(c.cluster_cidrs, ["10.42.0.0/16".parse().unwrap()]);
        assert_eq!(c.service_cidrs, ["10.43.0.0/16".parse().unwrap()]);
        assert_eq!(c.cluster_dns, [IpAddr::from([10, 43, 0, 10])]);
        assert_eq!(c.backend, Backend::Auto);
        assert_eq!(c.bind.1, 6443);
        assert_eq!(c.node_ports, 30000..=32767);
        assert_eq!(c.kubeconfig_mode, 0o600);
        assert_eq!((c.autoscaling.period, c.autoscaling.tolerance), (Duration::from_secs(15), 0.1));
        assert_eq!(c.autoscaling.downscale_window, Duration::from_secs(300));
        assert_eq!(c.signing_duration, Duration::from_secs(365 * 24 * 60 * 60));
    }

    #[test]
    fn both_families() {
        let c = check(&["--cluster-cidr=10.42.0.0/16,fd42::/56", "--service-cidr=10.43.0.0/16,fd43::/112"]).unwrap();
        assert_eq!(c.cluster_cidrs.len(), 2);
        assert_eq!(c.cluster_dns, ["10.43.0.10".parse::<IpAddr>().unwrap(), "fd43::a".parse().unwrap()]);
        let c = check(&["--cluster-cidr=fd42::/56", "--service-cidr=fd43::/112", "--flannel-backend=host-gw"]).unwrap();
        assert_eq!((c.cluster_cidrs.len(), c.backend), (1, Backend::HostGw));
    }

    #[test]
    fn parts_are_left_out_by_the_names_of_k3s() {
        let c = check(&["--disable=traefik,servicelb", "--disable=coredns", "--disable-network-policy"]).unwrap();
        assert_eq!(c.disabled, BTreeSet::from([Part::Dns, Part::ServiceLb, Part::NetworkPolicy]));
        assert!(check(&[]).unwrap().disabled.is_empty());
    }

    #[test]
    fn backups_are_made_when_somebody_says_when() {
        assert!(check(&[]).unwrap().backup.is_none());
        let backup = check(&["--backup-schedule=@daily", "--data-dir=/d"]).unwrap().backup.unwrap();
        assert_eq!((backup.retention, backup.directory), (5, PathBuf::from("/d/backups")));
        let of_k3s =
            ["--etcd-snapshot-schedule-cron=0 */6 * * *", "--etcd-snapshot-retention=2", "--etcd-snapshot-dir=/b"];
        let backup = check(&of_k3s).unwrap().backup.unwrap();
        assert_eq!((backup.retention, backup.directory), (2, PathBuf::from("/b")));
    }

    #[test]
    fn mistakes_name_their_flag() {
        for (args, flag) in [
            (&["--cluster-cidr=10.0.0.0"][..], "--cluster-cidr"),
            (&["--cluster-cidr=10.0.0.0/8"], "--service-cidr"),
            (&["--cluster-cidr=10.42.0.0/16,fd42::/56"], "--service-cidr"),
            (&["--cluster-cidr=10.42.0.0/16,10.44.0.0/16"], "--cluster-cidr"),
            (&["--cluster-cidr=fd42::/16"], "--cluster-cidr"),
            (&["--cluster-cidr=10.42.0.0/16,fd42::/56", "--service-cidr=fd43::/112,10.43.0.0/16"], "--service-cidr"),
            (&["--node-cidr-mask-size=15"], "--node-cidr-mask-size-ipv4"),
            (&["--node-cidr-mask-size-ipv4=31"], "--node-cidr-mask-size-ipv4"),
            (&["--network=calico"], "--network"),
            (&["--disable=dns"], "--disable"),
            (&["--nodeport-addresses=192.0.2.1"], "--nodeport-addresses"),
            (&["--cluster-dns=1.1.1.1"], "--cluster-dns"),
            (&["--backup-schedule=daily"], "--backup-schedule"),
            (&["--backup-schedule=@daily", "--datastore-endpoint=http://127.0.0.1:2379"], "--backup-schedule"),
            (&["--node-label=a b=c"], "--node-label"),
            (&["--node-taint=a=b"], "--node-taint"),
            (&["--node-taint=a=b:Never"], "--node-taint"),
            (&["--service-node-port-range=9-1"], "--service-node-port-range"),
            (&["--cluster-signing-duration=soon"], "--cluster-signing-duration"),
            (&["--cluster-signing-duration=0"], "--cluster-signing-duration"),
            (&["--horizontal-pod-autoscaler-sync-period=0"], "--horizontal-pod-autoscaler-sync-period"),
            (&["--horizontal-pod-autoscaler-tolerance=NaN"], "--horizontal-pod-autoscaler-tolerance"),
            (
                &["--horizontal-pod-autoscaler-downscale-stabilization=x"],
                "--horizontal-pod-autoscaler-downscale-stabilization",
            ),
            (&["--write-kubeconfig-mode=9"], "--write-kubeconfig-mode"),
            (&["--datastore-endpoint=mysql://x"], "--datastore-endpoint"),
            (&["--datastore-endpoint=etcd:2379"], "--datastore-endpoint"),
            (&["--datastore-endpoint="], "--datastore-endpoint"),
            (&["--datastore-cafile=ca.crt"], "--datastore-cafile"),
        ] {
            let error = check(args).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{args:?}: {error}");
        }
    }
}
