//! The errors of this room.

use std::io;
use std::net::IpAddr;
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
    /// An IPv6 address where the node handles only IPv4.
    #[error("{0} is not an IPv4 address")]
    NotIpv4(IpAddr),
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
