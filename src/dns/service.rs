//! What one Service and its EndpointSlices mean for the DNS; pure.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    /// In small letters.
    pub(crate) protocol: String,
    pub(crate) number: u16,
}

/// An endpoint of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its label below the service's name: the host name, or the address with dashes.
    pub(crate) label: String,
    pub(crate) address: IpAddr,
    pub(crate) ports: Vec<Port>,
}

/// What a service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Addresses of its own.
    Cluster { addresses: Vec<IpAddr>, ports: Vec<Port> },
    /// Its endpoints.
    Headless(Vec<Endpoint>),
    /// Another name.
    External(Name),
}

fn port(name: Option<&String>, protocol: Option<&String>, number: i32) -> Option<Port> {
    Some(Port {
        name: name.map(|name| name.to_ascii_lowercase()).unwrap_or_default(),
        protocol: protocol.map_or("tcp".to_owned(), |protocol| protocol.to_ascii_lowercase()),
        number: u16::try_from(number).ok()?,
    })
}

/// The label of an endpoint without a host name.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

impl Entry {
    /// The entry of a service; `None` for one that no name leads to (yet).
    pub(crate) fn compile<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref()?.trim_end_matches('.');
            return Name::from_ascii(format!("{target}.")).ok().map(Entry::External);
        }
        let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        if ips.clone().any(|ip| ip == "None") {
            return Some(Entry::Headless(endpoints(slices, spec.publish_not_ready_addresses == Some(true))));
        }
        let mut addresses: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter_map(|p| port(p.name.as_ref(), p.protocol.as_ref(), p.port)).collect();
        (!addresses.is_empty()).then_some(Entry::Cluster { addresses, ports })
    }
}

fn endpoints<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, not_ready_too: bool) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let ports: Vec<Port> = ports.filter_map(|p| port(p.name.as_ref(), p.protocol.as_ref(), p.port?)).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            if !ready && !not_ready_too {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
                let host_name = endpoint.hostname.as_ref().filter(|name| !name.is_empty());
                let label = host_name.map_or_else(|| dashed(address), |name| name.to_ascii_lowercase());
                all.push(Endpoint { label, address, ports: ports.clone() });
            }
        }
    }
    all.sort_unstable_by(|a, b| (a.address, &a.label).cmp(&(b.address, &b.label)));
    // The same endpoint may be in two slices while the controller moves it.
    all.dedup_by(|a, b| {
        let same = (a.address, &a.label) == (b.address, &b.label);
        if same {
            let missing = a.ports.iter().filter(|port| !b.ports.contains(port)).cloned().collect::<Vec<_>>();
            b.ports.extend(missing);
        }
        same
    });
    all
}
