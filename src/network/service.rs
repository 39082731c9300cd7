//! The desired state of service load balancing on a node: pure data, made by the room `proxy`, applied by [`crate::nft`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

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
    /// The address; `None` is every address of the node itself (node ports).
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Where connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: Ipv4Addr,
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
    /// The endpoints; each new connection goes to a random one.
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
}

impl Route {
    /// A route to `endpoints` for all clients, without affinity and masquerade; rejecting while there are none.
    pub fn to(endpoints: Vec<Endpoint>) -> Self {
        let no_endpoints = NoEndpoints::Reject;
        Self { endpoints, internal_endpoints: None, affinity_seconds: None, masquerade: false, no_endpoints }
    }
}

/// Every frontend of the cluster's services on this node.
pub type ServiceTable = BTreeMap<Frontend, Route>;
