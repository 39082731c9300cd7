//! How packets reach the pods of other nodes.

use std::fmt;
use std::str::FromStr;

/// How packets reach the pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Directly where both nodes are on one network, by VXLAN otherwise.
    Auto,
    /// Always by VXLAN.
    Vxlan,
    /// Always directly: all nodes have to be on one network.
    HostGw,
    /// By WireGuard, encrypted; needs a kernel that has it.
    WireGuard,
    /// Another network plugin cares for the pods' network.
    None,
}

/// Names as they are written in the configuration.
const NAMES: [(&str, Backend); 5] = [
    ("auto", Backend::Auto),
    ("vxlan", Backend::Vxlan),
    ("host-gw", Backend::HostGw),
    ("wireguard", Backend::WireGuard),
    ("none", Backend::None),
];

impl Backend {
    /// How many bytes it adds to a packet, by the version of IP between the nodes.
    pub(crate) fn overhead(self, over_ipv6: bool) -> u32 {
        let ip = if over_ipv6 { 40 } else { 20 };
        match self {
            // UDP, VXLAN, and the Ethernet header inside
            Self::Auto | Self::Vxlan => ip + 8 + 8 + 14,
            // UDP and WireGuard
            Self::WireGuard => ip + 8 + 32,
            Self::HostGw | Self::None => 0,
        }
    }
}

impl FromStr for Backend {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // k3s's name of it
        let text = if text == "wireguard-native" { "wireguard" } else { text };
        NAMES.iter().find(|(name, _)| *name == text).map(|(_, backend)| *backend).ok_or(())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        NAMES.iter().find(|(_, backend)| backend == self).map_or(Ok(()), |(name, _)| f.write_str(name))
    }
}
