//! The server's own certificates: what the API shows, and what the administrator's kubeconfig holds. Renewed in good time
//! and when the server's address changes, without a restart.

use crate::config::ServerConfig;
use edge_apiserver::ApiServer;
use edge_pki::{ClientName, ClusterPki, Identity, PkiError, ServerNames, SharedIdentity};
use edge_sys::clock;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Certificates are renewed so long before they end: what `edge_pki` does when it is asked.
const AHEAD: Duration = Duration::from_secs(89 * 24 * 60 * 60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(60);

pub(crate) struct OwnCertificates {
    config: ServerConfig,
    pki: Arc<ClusterPki>,
    addresses: watch::Receiver<Vec<IpAddr>>,
    serving: SharedIdentity,
    kubelet: SharedIdentity,
    node: Option<SharedIdentity>,
    front_proxy: SharedIdentity,
    end: SystemTime,
}

impl OwnCertificates {
    /// Reads or makes what is needed now.
    pub(crate) fn open(
        config: &ServerConfig,
        pki: Arc<ClusterPki>,
        addresses: watch::Receiver<Vec<IpAddr>>,
    ) -> Result<Self, PkiError> {
        let first = pki.serving(&names(config, &addresses.borrow()))?;
        let serving = SharedIdentity::new(&first)?;
        let kubelet = SharedIdentity::new(&pki.kubelet_serving(&config.node.name, &addresses.borrow())?)?;
        // only where there may be other servers
        let has_others = config.agent && config.etcd.is_some();
        let node = has_others.then(|| SharedIdentity::new(&node_client(config, &pki)?)).transpose()?;
        let front_proxy = SharedIdentity::new(&pki.front_proxy()?)?;
        let (config, end) = (config.clone(), first.not_after());
        let mut own = Self { config, pki, addresses, serving, kubelet, node, front_proxy, end };
        own.renew()?;
        Ok(own)
    }

    /// What the API shows.
    pub(crate) fn identity(&self) -> SharedIdentity {
        self.serving.clone()
    }

    /// What the kubelet of this process shows.
    pub(crate) fn kubelet_identity(&self) -> SharedIdentity {
        self.kubelet.clone()
    }

    /// What the node of this process shows to other servers, where there may be any.
    pub(crate) fn node_identity(&self) -> Option<SharedIdentity> {
        self.node.clone()
    }

    /// What the API shows to extension API servers.
    pub(crate) fn front_proxy_identity(&self) -> SharedIdentity {
        self.front_proxy.clone()
    }

    /// The address at which the API is advertised.
    pub(crate) fn advertised(&self) -> IpAddr {
        advertised(self.config.advertise_address, &self.addresses.borrow())
    }

    fn renew(&mut self) -> Result<(), PkiError> {
        let addresses = self.addresses.borrow_and_update().clone();
        let serving = self.pki.serving(&names(&self.config, &addresses))?;
        let kubelet = self.pki.kubelet_serving(&self.config.node.name, &addresses)?;
        let admin = self.pki.client("admin", &ClientName::admin())?;
        let front_proxy = self.pki.front_proxy()?;
        self.serving.replace(&serving)?;
        self.kubelet.replace(&kubelet)?;
        self.front_proxy.replace(&front_proxy)?;
        let url = format!("https://127.0.0.1:{}", self.config.bind.1);
        let (path, mode) = (&self.config.kubeconfig, self.config.kubeconfig_mode);
        edge_pki::write_kubeconfig(path, mode, &url, &self.pki.server_ca, &admin)?;
        let ends = [serving.not_after(), kubelet.not_after(), admin.not_after(), front_proxy.not_after()];
        self.end = ends.into_iter().min().unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some(node) = &self.node {
            let fresh = node_client(&self.config, &self.pki)?;
            node.replace(&fresh)?;
            self.end = self.end.min(fresh.not_after());
        }
        Ok(())
    }

    /// Renews what ends, and what is missing at a rotation, and follows the address, for ever.
    pub(crate) async fn keep(mut self, api: ApiServer, mut rotations: watch::Receiver<u64>) {
        loop {
            let due = self.end.checked_sub(AHEAD).unwrap_or(SystemTime::UNIX_EPOCH);
            tokio::select! {
                waited = clock::sleep_until(due) => {
                    if let Err(error) = waited {
                        tracing::error!(%error, "no timer for the renewal of certificates");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                changed = self.addresses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Ok(()) = rotations.changed() => tracing::info!("renewing certificates: SIGHUP"),
            }
            let before = self.end;
            let renewed = self.renew();
            let advertised = api.advertise(self.advertised()).await;
            match (renewed, advertised) {
                (Ok(()), Ok(())) if self.end > before || SystemTime::now() < due => {}
                // nothing better is to be had at this moment
                (Ok(()), Ok(())) => tokio::time::sleep(RETRY).await,
                (renewed, advertised) => {
                    let error = renewed.err().map(|e| super::with_causes(&e));
                    let error = error.or(advertised.err().map(|e| e.message)).unwrap_or_default();
                    tracing::error!(error, "the server's certificates and address are not up to date");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// The address at which a server with these addresses is advertised, unless another one is given.
pub(crate) fn advertised(given: Option<IpAddr>, addresses: &[IpAddr]) -> IpAddr {
    given.or(addresses.first().copied()).unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
}

fn node_client(config: &ServerConfig, pki: &ClusterPki) -> Result<Identity, PkiError> {
    pki.client("node", &ClientName::node(&config.node.name))
}

/// The names by which the API is reached.
fn names(config: &ServerConfig, addresses: &[IpAddr]) -> ServerNames {
    let mut ips: Vec<IpAddr> = config.service_cidrs.iter().map(|network| network.nth(1)).collect();
    ips.extend(addresses);
    ips.extend(config.advertise_address);
    let mut names = config.tls_san.clone();
    names.push(config.node.name.clone());
    ServerNames::new(&config.cluster_domain, &ips, &names)
}
