//! The errors of this room.

use std::io;
use std::path::PathBuf;

/// What can go wrong when the network is set up, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation, or the socket to it failed.
    #[error("{operation}")]
    Kernel {
        /// What was attempted, for instance `create link edge0`.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("{operation}: malformed netlink message")]
    Malformed {
        /// What was attempted.
        operation: String,
    },
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All addresses of the node's pod network are taken.
    #[error("no free pod address in {0}")]
    AddressesExhausted(crate::Cidr),
    /// The node's pod network is not known yet: the cluster has to assign it first.
    #[error("the node has no pod network yet")]
    NoPodNetwork,
    /// A pod network that was assigned to this node is none of the cluster's.
    #[error("the node's pod network {0} is not in the cluster's (--cluster-cidr)")]
    PodNetworkOutside(crate::Cidr),
    /// A network that was chosen for the cluster is in use on this machine already.
    #[error(
        "link {link} of this machine has the address {address}/{prefix}, which is in {network}, the cluster's network of {what}: \
             give the one or the other another network ({flag})"
    )]
    NetworkInUse {
        /// The link.
        link: String,
        /// Its address.
        address: std::net::IpAddr,
        /// The length of the prefix of the link's network.
        prefix: u8,
        /// The cluster's network.
        network: crate::Cidr,
        /// `pods` or `services`.
        what: &'static str,
        /// The flag that chooses the cluster's network.
        flag: &'static str,
    },
    /// The node's own network is too small for the packets that it has to carry.
    #[error(
        "packets of {available} bytes are too small for pods: link {link} has an MTU of {mtu}, at least {needed} are needed"
    )]
    MtuTooSmall {
        /// The link to other machines.
        link: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// What it leaves for pods.
        available: u32,
        /// The least MTU of the link that would do.
        needed: u32,
    },
    /// Another program, or another link, has the UDP port that packets between nodes go to.
    #[error("UDP port {port}, which link {link} needs, is in use by another program or link")]
    PortInUse {
        /// The port.
        port: u16,
        /// The link of edge that needs it.
        link: String,
    },
    /// The kernel has no WireGuard.
    #[error("this kernel has no WireGuard")]
    NoWireGuard,
    /// Another network plugin could not be used.
    #[error(transparent)]
    Cni(#[from] crate::CniError),
    /// A text is no network in CIDR notation.
    #[error("{0:?} is not a network in CIDR notation")]
    InvalidCidr(String),
    /// A pod UID contains characters that cannot be part of a file name.
    #[error("{0:?} is not a valid pod uid")]
    InvalidPodUid(String),
    /// Another pod of this node has the host port already.
    #[error("host port {port}/{protocol} is in use by pod {owner}")]
    HostPortInUse {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: crate::Protocol,
        /// UID of the pod that has it.
        owner: String,
    },
}

impl Error {
    pub(crate) fn kernel(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel { operation: operation.into(), source: source.into() }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { path: path.into(), source }
    }

    /// The error number of a refused kernel operation.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
