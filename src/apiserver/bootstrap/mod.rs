//! What a new cluster has before anybody uses it.
//!
//! Runs at every start: absent objects are made, the few that follow the options (`kubernetes` endpoints) or the program's
//! version (RBAC policy) are brought up to date, and whatever an administrator added to them stays.

mod objects;
mod reconcile;

use crate::Server;
use edge_api::{Object, Reason, Status, UserInfo};
use edge_registry::{Target, UpdateKind, WriteOptions};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;
use std::net::IpAddr;

/// Creations under way at once: they share the store's commits.
const AT_ONCE: usize = 64;

/// Under which name the server itself writes.
const MANAGER: &str = "kube-apiserver";

/// Makes everything.
///
/// # Errors
/// The first object that could not be written.
pub(crate) async fn run(server: &Server) -> Result<(), Status> {
    let o = &server.options;
    // everything else is in one of these
    all(server, objects::NAMESPACES.iter().map(|n| (objects::namespace(n), Policy::Keep)).collect()).await?;
    let mut rest: Vec<(Value, Policy)> = Vec::new();
    rest.extend(objects::priority_classes().map(|v| (v, Policy::Keep)));
    rest.extend(objects::runtime_classes().map(|v| (v, Policy::Keep)));
    rest.extend(o.local_storage.then(|| (objects::local_storage_class(), Policy::Keep)));
    rest.push((objects::kubernetes_service(o), Policy::Keep));
    rest.push((objects::service_cidr(o), Policy::Widen));
    if !o.dns_ips.is_empty() {
        rest.push((objects::dns_service(o), Policy::Keep));
    }
    rest.push((objects::authentication(&server.aggregation.front_proxy), Policy::Replace));
    let local = crate::aggregation::wanted(server.registry.catalog());
    rest.extend(local.into_values().map(|v| (v, Policy::Keep)));
    rest.extend(edge_auth::bootstrap_policy().into_iter().map(|v| (v, Policy::Grow)));
    all(server, rest).await?;
    endpoints(server).await
}

/// Namespace and name of the ConfigMap that tells extension API servers whose requests they get.
pub(crate) const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");

/// Brings that ConfigMap up to date.
///
/// # Errors
/// When it could not be written.
pub(crate) async fn authentication(server: &Server) -> Result<(), Status> {
    ensure(server, objects::authentication(&server.aggregation.front_proxy), Policy::Replace).await
}

/// Brings the endpoints of the Service `kubernetes` up to date.
///
/// # Errors
/// When they could not be written.
pub(crate) async fn endpoints(server: &Server) -> Result<(), Status> {
    let (own, port) = (*server.advertised.read(), server.options.advertise_port);
    let others = match server.registry.servers() {
        Some(servers) => servers.list().await?,
        None => Vec::new(),
    };
    write_endpoints(server, &of_one_family(others, own, server.options.service_ip), port).await
}

/// The addresses of the servers, this one's among them, that the endpoints have: an EndpointSlice is of one family. All servers
/// agree on that of the Service's address, where one of them has it.
fn of_one_family(others: Vec<IpAddr>, own: IpAddr, service: IpAddr) -> Vec<IpAddr> {
    let mut at = others;
    at.retain(|ip| *ip != own);
    at.push(own);
    at.sort_unstable();
    let wanted = service.is_ipv4();
    let family = if at.iter().any(|ip| ip.is_ipv4() == wanted) { wanted } else { own.is_ipv4() };
    at.retain(|ip| ip.is_ipv4() == family);
    at
}

async fn write_endpoints(server: &Server, at: &[IpAddr], port: u16) -> Result<(), Status> {
    let both = [objects::kubernetes_endpoints(at, port), objects::kubernetes_endpoint_slice(at, port)];
    all(server, both.map(|v| (v, Policy::Replace)).into()).await
}

/// What happens to an object that is there already.
#[derive(Clone, Copy, Debug)]
enum Policy {
    /// It stays as it is.
    Keep,
    /// Its content becomes the one given.
    Replace,
    /// A ServiceCIDR of one family gets the second one.
    Widen,
    /// What it lacks of the RBAC rules and subjects is added.
    Grow,
}

async fn all(server: &Server, objects: Vec<(Value, Policy)>) -> Result<(), Status> {
    stream::iter(objects)
        .map(|(value, policy)| ensure(server, value, policy))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

async fn ensure(server: &Server, value: Value, policy: Policy) -> Result<(), Status> {
    let wanted = Object::from_value(value).map_err(|_| Status::internal("bootstrap object is no object"))?;
    let gvk = wanted.gvk().ok_or_else(|| Status::internal("bootstrap object without a kind"))?;
    let Some(row) = server.registry.catalog().kind(&gvk.group, &gvk.version, &gvk.kind) else {
        return Err(Status::internal(format!("bootstrap object of unknown kind {gvk}")));
    };
    let user = UserInfo::new("system:apiserver", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: MANAGER, dry_run: false };
    let target = Target { info: &row, namespace: wanted.namespace(), name: wanted.name(), subresource: "" };
    if server.registry.get(&target).is_err() {
        let create = Target { name: "", ..target };
        match server.registry.create(&create, &options, wanted.clone()).await {
            Err(e) if e.reason == Reason::AlreadyExists => {}
            other => return other.map(drop),
        }
    }
    let becomes = |live: &Object| match policy {
        Policy::Keep => None,
        Policy::Replace => reconcile::replace(live, &wanted),
        Policy::Widen => reconcile::widen(live, &wanted),
        Policy::Grow => reconcile::grow(live, &wanted),
    };
    if becomes(&server.registry.get(&target)?.object()?).is_none() {
        return Ok(());
    }
    let transform = |live: Option<&Object>| {
        let live = live.ok_or_else(|| Status::not_found(&row.group_resource(), target.name))?;
        Ok(becomes(live).unwrap_or_else(|| live.clone()))
    };
    server.registry.update(&target, &options, UpdateKind::Patch, &transform).await.map(drop)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn servers_of_both_families_agree() {
        let ips = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<IpAddr>>();
        let all = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];
        for (service, expected) in [("10.43.0.1", ["10.0.0.1", "10.0.0.2"]), ("fd43::1", ["fd00::1", "fd00::2"])] {
            // whichever of them writes, and whether it is listed already or not
            for own in all {
                let own: IpAddr = own.parse().unwrap();
                let service = service.parse().unwrap();
                assert_eq!(of_one_family(ips(&all), own, service), ips(&expected));
                let others = ips(&all).into_iter().filter(|ip| *ip != own).collect();
                assert_eq!(of_one_family(others, own, service), ips(&expected));
            }
        }
        // nobody has the Service's family
        let only = of_one_family(ips(&["fd00::1"]), "fd00::2".parse().unwrap(), "10.43.0.1".parse().unwrap());
        assert_eq!(only, ips(&["fd00::1", "fd00::2"]));
    }
}
