//! The desired state of service load balancing on a node: pure data, made by the room `proxy`, applied by [`crate::nft`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::Cidr;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address that stands for all addresses.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number of the protocol in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with that number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The address; the unspecified one is every address of the node itself of that family (node ports).
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl Frontend {
    /// A port of every address of the node of one family.
    pub fn node(family: Family, protocol: Protocol, port: u16) -> Self {
        Self { address: family.unspecified(), protocol, port }
    }

    /// Whether this is a port of every address of the node.
    pub fn is_node(&self) -> bool {
        self.address.is_unspecified()
    }

    /// The family of the address.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }
}

/// Where connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// What clients get that find no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoEndpoints {
    /// An answer that nobody is there: the service has no ready endpoint at all.
    Reject,
    /// No answer: a traffic policy `Local` excludes endpoints that exist on other nodes.
    Drop,
}

/// What happens to the connections to one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The endpoints; each new connection goes to a random one. Those of another family than the frontend are left out.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints for clients inside of the cluster (pods, this node) when they differ: with `externalTrafficPolicy:
    /// Local` these reach the endpoints on all nodes.
    pub internal_endpoints: Option<Vec<Endpoint>>,
    /// Session affinity by client address: a client that comes back within so many seconds gets the same endpoint.
    pub affinity_seconds: Option<u32>,
    /// Whether endpoints see this node instead of the client as the source, so that answers come back through this node.
    pub masquerade: bool,
    /// What happens while `endpoints` is empty.
    pub no_endpoints: NoEndpoints,
    /// The only networks clients may come from; everybody else gets no answer. `None` lets all in.
    pub source_ranges: Option<Vec<Cidr>>,
}

impl Route {
    /// A route to `endpoints` for all clients, without affinity and masquerade; rejecting while there are none.
    pub fn to(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            internal_endpoints: None,
            affinity_seconds: None,
            masquerade: false,
            no_endpoints: NoEndpoints::Reject,
            source_ranges: None,
        }
    }
}

/// Every frontend of the cluster's services on this node.
pub type ServiceTable = BTreeMap<Frontend, Route>;

/// New routes of some frontends; `None` for a frontend that no service has any more.
pub type ServiceChanges = BTreeMap<Frontend, Option<Route>>;
