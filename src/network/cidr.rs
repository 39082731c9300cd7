//! Networks in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::Error;

/// A network: its first address and the length of its prefix. Either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network of `prefix` bits that holds `address` (whose host bits are cleared).
    ///
    /// # Errors
    /// When `prefix` is longer than an address of that family.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, Error> {
        let base = match address {
            IpAddr::V4(v4) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask_v4(prefix))),
            IpAddr::V6(v6) if prefix <= 128 => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask_v6(prefix))),
            _ => return Err(Error::InvalidCidr(format!("{address}/{prefix}"))),
        };
        Ok(Self { base, prefix })
    }

    /// First address of the network.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address at `offset` from the first one; it may lie outside of the network.
    pub fn nth(&self, offset: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().wrapping_add(offset))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().wrapping_add(u128::from(offset)))),
        }
    }

    /// Number of addresses, at most `u32::MAX`.
    pub fn size(&self) -> u32 {
        let bits = if self.base.is_ipv4() { 32 } else { 128 } - u32::from(self.prefix);
        1_u32.checked_shl(bits).unwrap_or(u32::MAX)
    }

    /// Whether all of `other` is in the network.
    pub fn contains_network(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    /// Whether some address is in both networks.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains_network(other) || other.contains_network(self)
    }

    /// Whether `address` is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_ok_and(|network| network == *self)
    }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        Self::new(address.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn parses_and_contains() {
        let pods: Cidr = "10.42.7.9/16".parse().unwrap();
        assert_eq!((pods.to_string(), pods.size()), ("10.42.0.0/16".to_owned(), 65536));
        assert!(pods.contains("10.42.255.255".parse().unwrap()));
        assert!(!pods.contains("10.43.0.0".parse().unwrap()));
        assert!(!pods.contains("fd00::1".parse().unwrap()));
        assert_eq!(pods.nth(258).to_string(), "10.42.1.2");
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert_eq!("fd00::5/64".parse::<Cidr>().unwrap().to_string(), "fd00::/64");
        assert_eq!("10.0.0.1/32".parse::<Cidr>().unwrap().size(), 1);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
