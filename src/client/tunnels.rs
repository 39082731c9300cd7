//! Tunnels to every server of a cluster that has several: a server reaches a node only over a tunnel that leads to it.
//!
//! Which servers there are says the EndpointSlice of the Service `kubernetes`. One of them is at home: the node is its own, or has
//! a tunnel to it by other means. To that one none is opened here, so in a cluster with one server there is none at all.

use crate::servers::{Protocol, Servers};
use crate::tunnel::{Rounds, ServeStream};
use crate::{Informer, Informers, Key};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Namespace and name of the EndpointSlice that lists the servers.
const SERVERS: (&str, &str) = ("default", "kubernetes");

/// Keeps a tunnel open to each of the cluster's servers but `home`, for ever; what servers open is given to `serve`.
/// `connect` makes the way to a server. Nothing is opened before it is known where home is.
///
/// Tunnels come and go with the servers. One that is there when its server becomes home stays until it breaks, since
/// somebody may be using it.
pub async fn keep_tunnels(
    informers: &Informers,
    home: watch::Receiver<Option<SocketAddr>>,
    connect: impl Fn(SocketAddr) -> Arc<Servers>,
    serve: impl ServeStream,
) {
    let slices = informers.of::<EndpointSlice>();
    // what is remembered from before may name servers that are gone
    slices.synced().await;
    let servers = Key::new(SERVERS.0, SERVERS.1);
    let mut changes = slices.subscribe();
    let mut tunnels = HashMap::new();
    while let Some(change) = changes.recv().await {
        if Key::of(&**change.object()) != servers {
            continue;
        }
        // it was removed by somebody, and the servers will write it again
        let Some(listed) = listed(&slices) else { continue };
        tunnels.retain(|at, _| listed.contains(at));
        for at in listed {
            tunnels.entry(at).or_insert_with(|| {
                AbortOnDropHandle::new(tokio::spawn(keep(at, connect(at), home.clone(), serve.clone())))
            });
        }
    }
}

fn listed(slices: &Informer<EndpointSlice>) -> Option<BTreeSet<SocketAddr>> {
    slices.get(SERVERS.0, SERVERS.1).map(|slice| servers_of(&slice))
}

/// The servers that an EndpointSlice lists.
fn servers_of(slice: &EndpointSlice) -> BTreeSet<SocketAddr> {
    let mut ports = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok());
    let Some(port) = ports.next() else { return BTreeSet::new() };
    let all = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
    all.filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, port))).collect()
}

/// Keeps a tunnel to one server, while it is not home.
async fn keep(
    at: SocketAddr,
    servers: Arc<Servers>,
    mut home: watch::Receiver<Option<SocketAddr>>,
    serve: impl ServeStream,
) {
    let mut rounds = Rounds::default();
    // nobody tells where home is any more when the process ends
    while home.wait_for(|home| home.is_some_and(|home| home != at)).await.is_ok() {
        let connection = tokio::select! {
            connection = servers.connect_at_last(Protocol::Http1, "tunnel") => connection,
            Ok(_) = home.wait_for(|home| *home == Some(at)) => continue,
        };
        rounds.pass(&servers, connection, &serve, |_| {}).await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_of_a_slice() {
        let of = |ports: serde_json::Value, addresses: &[&str]| {
            let endpoints: Vec<_> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
            let slice = json!({"addressType": "IPv4", "metadata": {}, "endpoints": endpoints, "ports": ports});
            let found = servers_of(&serde_json::from_value(slice).unwrap());
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let https = json!([{"name": "https", "port": 6443}]);
        assert_eq!(of(https.clone(), &["192.0.2.2", "192.0.2.1"]), ["192.0.2.1:6443", "192.0.2.2:6443"]);
        assert_eq!(of(https.clone(), &["fd00::1", "not an address"]), ["[fd00::1]:6443"]);
        assert!(of(https, &[]).is_empty());
        assert!(of(json!([]), &["192.0.2.1"]).is_empty());
        assert!(of(json!([{"port": 70000}]), &["192.0.2.1"]).is_empty());
    }
}
