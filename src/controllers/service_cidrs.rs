//! ServiceCIDRs: ready as soon as they exist, and kept from going while services have addresses in no other one.
//!
//! The API server gives addresses out of a network from when it is ready until its deletion begins. In Kubernetes
//! IPAddress objects say which addresses are in use; here the services themselves do.

use crate::context::{Context, each, unless_changed};
use crate::finalizers;
use edge_client::{
    Api, Change, Client, Error, ListParams, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// First address and length of the prefix.
type Network = (IpAddr, u8);

pub(crate) async fn run(context: Context) {
    let cidrs = context.informers.of::<ServiceCIDR>();
    let services = context.informers.of::<Service>();
    let queue = WorkQueue::<String>::new();
    cidrs.synced().await;
    services.synced().await;
    // another network that comes or goes decides about those that wait for their end, and so does a service
    let waiting = || {
        for cidr in cidrs.list().iter().filter(|c| c.metadata.deletion_timestamp.is_some()) {
            queue.add(cidr.name_any());
        }
    };
    let watch = each(&cidrs, |change| {
        queue.add(change.object().name_any());
        waiting();
    });
    let watch_services = each(&services, |change| {
        let loses = match change {
            Change::Deleted(_) => true,
            Change::Applied { old, new } => old.as_ref().is_some_and(|old| addresses(old) != addresses(new)),
        };
        if loses {
            waiting();
        }
    });
    let work = run_workers("service-cidrs", queue.clone(), 1, |name: String| {
        let (cidr, all, client) = (cidrs.get("", &name), cidrs.list(), context.client.clone());
        async move {
            let Some(cidr) = cidr else { return Ok::<_, Error>(Outcome::Done) };
            let api: Api<ServiceCIDR> = Api::all(client.clone());
            let change = async |patch: Value| {
                unless_changed(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await).map(drop)
            };
            if cidr.metadata.deletion_timestamp.is_none() {
                if !finalizers::has(&*cidr, FINALIZER) {
                    // it comes back with its finalizer
                    change(finalizers::with(&*cidr, FINALIZER)).await?;
                    return Ok(Outcome::Done);
                }
                condition(&api, &cidr, "True", "", "Kubernetes Service CIDR is ready").await?;
            } else if finalizers::has(&*cidr, FINALIZER) {
                if is_needed(&cidr, &all, &client).await? {
                    let message = "There are still services with addresses in this network and in no other one: \
                        remove them, or create a ServiceCIDR that holds them";
                    condition(&api, &cidr, "False", "Terminating", message).await?;
                } else {
                    change(finalizers::without(&*cidr, FINALIZER)).await?;
                }
            }
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch, watch_services, work);
}

/// Sets the condition `Ready`, if that changes anything.
async fn condition(
    api: &Api<ServiceCIDR>,
    cidr: &ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
) -> Result<(), Error> {
    let conditions = cidr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut list: Vec<Value> = Vec::new();
    for known in conditions {
        if known.type_ != "Ready" {
            list.push(serde_json::to_value(known).unwrap_or_default());
        } else if (known.status.as_str(), known.reason.as_str()) == (status, reason) {
            return Ok(());
        }
    }
    list.push(json!({"type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": Time(Timestamp::now())}));
    let patch = json!({"metadata": {"uid": cidr.uid(), "resourceVersion": cidr.resource_version()},
        "status": {"conditions": list}});
    unless_changed(api.patch_status(&cidr.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await).map(drop)
}

/// Whether a service would lose the network of its address with a ServiceCIDR.
async fn is_needed(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], client: &Client) -> Result<bool, Error> {
    let own = networks(cidr);
    let others: Vec<Network> = all
        .iter()
        .filter(|other| other.metadata.uid != cidr.metadata.uid && other.metadata.deletion_timestamp.is_none())
        .flat_map(|other| networks(other))
        .collect();
    if own.iter().all(|network| others.iter().any(|other| other.1 <= network.1 && holds(other, network.0))) {
        return Ok(false);
    }
    // the cache may not have seen the newest services yet, so those are asked for: no further ones get an address here
    let services: Api<Service> = Api::all(client.clone());
    let services = services.list(&ListParams::default()).await?;
    let only_here =
        |address: &IpAddr| own.iter().any(|n| holds(n, *address)) && !others.iter().any(|n| holds(n, *address));
    Ok(services.iter().flat_map(addresses).any(|address| only_here(&address)))
}

fn networks(cidr: &ServiceCIDR) -> Vec<Network> {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    let network = |text: &String| {
        let (address, prefix) = text.split_once('/')?;
        Some((address.parse().ok()?, prefix.parse().ok()?))
    };
    cidrs.filter_map(network).collect()
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let list = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    list.filter_map(|address| address.parse().ok()).collect()
}

fn holds(network: &Network, address: IpAddr) -> bool {
    let prefix = u32::from(network.1);
    match (network.0, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => (n.to_bits() ^ a.to_bits()).leading_zeros() >= prefix,
        (IpAddr::V6(n), IpAddr::V6(a)) => (n.to_bits() ^ a.to_bits()).leading_zeros() >= prefix,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_a_network_holds() {
        for (network, prefix, address, want) in [
            ("10.43.0.0", 16, "10.43.255.255", true),
            ("10.43.0.0", 16, "10.44.0.0", false),
            ("10.43.0.0", 32, "10.43.0.0", true),
            ("0.0.0.0", 0, "200.1.1.1", true),
            ("2001:db8::", 64, "2001:db8::a", true),
            ("2001:db8::", 64, "2001:db8:0:1::a", false),
            ("::", 0, "10.0.0.1", false),
        ] {
            let network = (network.parse().unwrap(), prefix);
            assert_eq!(holds(&network, address.parse().unwrap()), want, "{network:?} {address}");
        }
    }
}
