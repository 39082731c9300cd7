//! How each of several servers reaches every node: over tunnels that nodes open, those of agents as well as servers' own.

use super::own_certificates::advertised;
use super::server::{Failure, doing};
use crate::config::ServerConfig;
use edge_client::{Informers, ServeStream, Servers, TunnelStream};
use edge_kubelet::Kubelet;
use edge_pki::SharedIdentity;
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What servers open leads to the kubelet.
pub(crate) fn serve(kubelet: &Kubelet) -> impl ServeStream + use<> {
    let server = kubelet.server();
    move |stream: TunnelStream| -> BoxFuture<'static, ()> {
        let server = server.clone();
        Box::pin(async move { server.serve(stream).await })
    }
}

/// Keeps tunnels to all servers but that at `home`.
pub(crate) fn reach_servers(
    kubelet: &Kubelet,
    informers: &Informers,
    home: watch::Receiver<Option<SocketAddr>>,
    server: impl Fn(SocketAddr) -> Arc<Servers> + Send + Sync + 'static,
    tasks: &mut JoinSet<()>,
) {
    let (informers, serve) = (informers.clone(), serve(kubelet));
    tasks.spawn(async move { edge_client::keep_tunnels(&informers, home, server, serve).await });
}

/// What a server shows to the others, and how it knows them.
pub(crate) struct Own<'a> {
    pub(crate) config: &'a ServerConfig,
    /// The certificate of its node.
    pub(crate) identity: &'a SharedIdentity,
    /// The cluster's authority, PEM.
    pub(crate) ca: &'a str,
    pub(crate) addresses: watch::Receiver<Vec<IpAddr>>,
    /// Changes whenever links, addresses or routes of this machine do.
    pub(crate) network: watch::Receiver<u64>,
}

/// Lets the other servers of the cluster reach the kubelet of this one.
pub(crate) fn reach_other_servers(
    own: Own<'_>,
    kubelet: &Kubelet,
    informers: &Informers,
    tasks: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let Own { config, identity, ca, mut addresses, network } = own;
    let tls = edge_pki::remote_client_config(ca.as_bytes(), Some(identity)).map_err(doing("preparing TLS"))?;
    let (given, port) = (config.advertise_address, config.bind.1);
    let now = move |addresses: &[IpAddr]| Some(SocketAddr::new(advertised(given, addresses), port));
    let home = watch::Sender::new(now(&addresses.borrow_and_update()));
    let server = move |at| Servers::listed(at, &tls, network.clone());
    reach_servers(kubelet, informers, home.subscribe(), server, tasks);
    tasks.spawn(async move {
        while addresses.changed().await.is_ok() {
            home.send_replace(now(&addresses.borrow_and_update()));
        }
    });
    Ok(())
}
