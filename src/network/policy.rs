//! The desired network policy of this node's pods: pure data, made by the room `proxy`, applied by [`crate::nft`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{Cidr, Protocol};

/// Names a group of peers; equal names mean equal groups. Names are of letters, digits and `-`, at most 64 long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Pods.
    Addresses(String),
    /// Certain ports of pods.
    Ports(String),
}

/// One member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// Address of a pod.
    pub address: IpAddr,
    /// In a group of ports, the port that is meant; elsewhere `None`.
    pub port: Option<(Protocol, u16)>,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everybody.
    Any,
    /// The members of a group. One of ports is only for what leaves a pod.
    Group(Group),
    /// The addresses of a network without those of some others.
    Block(Cidr, Vec<Cidr>),
}

/// A range of ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The protocol.
    pub protocol: Protocol,
    /// First and last port; all when there are none.
    pub range: Option<(u16, u16)>,
}

/// Something that is allowed: traffic with these peers and (on the receiving side) one of these ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allow {
    /// The peers.
    pub peers: Peers,
    /// The ports; `None` is everything, also what has no ports.
    pub ports: Option<Vec<Ports>>,
}

/// What a pod may exchange with others. `None` means that it is not isolated in that direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// What may come in.
    pub ingress: Option<BTreeSet<Allow>>,
    /// What may go out.
    pub egress: Option<BTreeSet<Allow>>,
}

/// News about policies, applied in one atomic step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChanges {
    /// What pods of this node, by UID, may do now; `None` for pods that have ended.
    pub pods: BTreeMap<String, Option<Isolation>>,
    /// Groups with all of their members; `None` for groups that nobody refers to any more.
    pub groups: BTreeMap<Group, Option<BTreeSet<Member>>>,
    /// Whether this is all there is: what is not mentioned ends.
    pub complete: bool,
}
