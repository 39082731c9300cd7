//! The WireGuard link to other nodes, by the kernel's generic netlink family `wireguard`.
//!
//! The private key is made once and kept in a file; the kernel tells the public key that belongs to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::link::{self, octets};
use crate::netlink::{Message, Socket, attribute, attributes};
use crate::overlay;
use crate::subnet::Subnet;
use crate::{Cidr, Error};

/// The link to other nodes.
pub(crate) const LINK: &str = "edge-wg";
/// The UDP port of WireGuard packets, k3s's.
pub const WIREGUARD_PORT: u16 = 51820;
/// How often, in seconds, a packet keeps the way through a NAT open.
const KEEPALIVE: u16 = 25;

/// A WireGuard public key.
pub type PublicKey = [u8; 32];

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_ALLOWED: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;
/// So many peers go into one message, whose list of peers must be below 64 KiB.
const PEERS_PER_MESSAGE: usize = 200;

/// A peer as the device has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// Where it is; `None` where it has to come to us.
    pub(crate) endpoint: Option<IpAddr>,
    /// The networks behind it.
    pub(crate) allowed: Vec<Cidr>,
}

/// What is told to the device of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    key: PublicKey,
    remove: bool,
    endpoint: Option<IpAddr>,
    allowed: Option<Vec<Cidr>>,
}

/// The WireGuard device of this node.
#[derive(Debug)]
pub(crate) struct Device {
    index: u32,
    family: u16,
    public_key: PublicKey,
    /// The endpoints this process has set. A peer behind a NAT is at another place than it says, which the kernel learns
    /// from its packets; so an endpoint is set again only when what the peer says has changed.
    endpoints: Mutex<BTreeMap<PublicKey, Option<IpAddr>>>,
}

fn generic_header(command: u8) -> [u8; 4] {
    [command, 1, 0, 0]
}

fn family(socket: &mut Socket) -> Result<u16, Error> {
    let mut message = Message::new(CONTROLLER, 0, &generic_header(GET_FAMILY));
    message.text(FAMILY_NAME, "wireguard");
    let operation = "look up netlink family wireguard";
    let (_, payload) = socket.get(operation, message).map_err(|error| match error.errno() {
        Some(libc::ENOENT) => Error::NoWireGuard,
        _ => error,
    })?;
    let id = payload.get(4..).and_then(|body| attribute(body, FAMILY_ID)).and_then(|id| id.try_into().ok());
    id.map(u16::from_ne_bytes).ok_or_else(|| Error::Malformed { operation: operation.to_owned() })
}

/// The private key in a file, which is made when it is not there.
fn private_key(path: &Path) -> Result<[u8; 32], Error> {
    let failed = |source| Error::file(path, source);
    match fs::read(path) {
        Ok(bytes) => match bytes.try_into() {
            Ok(key) => return Ok(key),
            // A key that is cut short is nobody's; peers learn the new one.
            Err(_) => tracing::warn!(path = %path.display(), "damaged WireGuard key, making a new one"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut key = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut key)).map_err(failed)?;
    edge_sys::fsutil::write_atomic(path, &key, 0o600).map_err(failed)?;
    Ok(key)
}

impl Device {
    /// Makes sure that the device is there and up, with the private key in the file `key`.
    pub(crate) fn set_up(key: &Path, subnet: &Subnet) -> Result<Self, Error> {
        let private_key = private_key(key)?;
        let mut socket = Socket::route()?;
        if link::find_kind(&mut socket, LINK, "wireguard")?.is_none() {
            link::create(&mut socket, LINK, "wireguard", |_| {}).map_err(|error| match error.errno() {
                Some(libc::EOPNOTSUPP) => Error::NoWireGuard,
                _ => error,
            })?;
        }
        let found = link::find(&mut socket, LINK)?;
        let link = found.ok_or_else(|| Error::kernel(format!("find link {LINK}"), nix::errno::Errno::ENODEV))?;
        let mut generic = Socket::generic()?;
        let mut device =
            Self { index: link.index, family: family(&mut generic)?, public_key: [0; 32], endpoints: Mutex::default() };
        let mut message = device.message(SET_DEVICE);
        message.bytes(DEVICE_PRIVATE_KEY, &private_key).bytes(DEVICE_LISTEN_PORT, &WIREGUARD_PORT.to_ne_bytes());
        generic.request(&format!("set key of link {LINK}"), message)?;
        device.public_key = device.read(&mut generic)?.0;
        overlay::prepare(&mut socket, &link, subnet)?;
        link::configure(&mut socket, &link, None, subnet.mtu).map_err(|error| match error.errno() {
            Some(libc::EADDRINUSE) => Error::PortInUse { port: WIREGUARD_PORT, link: LINK.to_owned() },
            _ => error,
        })?;
        overlay::finish(&mut socket, &link, subnet)?;
        Ok(device)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    fn message(&self, command: u8) -> Message {
        let mut message = Message::new(self.family, 0, &generic_header(command));
        message.u32(DEVICE_INDEX, self.index);
        message
    }

    /// The public key, and the peers' networks by their keys.
    fn read(&self, socket: &mut Socket) -> Result<(PublicKey, BTreeMap<PublicKey, BTreeSet<Cidr>>), Error> {
        let dumped = socket.dump(&format!("read link {LINK}"), self.message(GET_DEVICE))?;
        let mut public_key = [0; 32];
        let mut peers: BTreeMap<PublicKey, BTreeSet<Cidr>> = BTreeMap::new();
        for (_, payload) in &dumped {
            let body = payload.get(4..).unwrap_or_default();
            if let Some(key) = attribute(body, DEVICE_PUBLIC_KEY).and_then(|key| key.try_into().ok()) {
                public_key = key;
            }
            for (_, peer) in attributes(attribute(body, DEVICE_PEERS).unwrap_or_default()) {
                let Some(key) = attribute(peer, PEER_PUBLIC_KEY).and_then(|key| key.try_into().ok()) else { continue };
                // a peer with many networks comes in several pieces
                let allowed = attributes(attribute(peer, PEER_ALLOWED).unwrap_or_default());
                peers.entry(key).or_default().extend(allowed.filter_map(|(_, entry)| parse_allowed(entry)));
            }
        }
        Ok((public_key, peers))
    }

    /// Makes these the device's peers; sessions with those that stay go on.
    pub(crate) fn set_peers(&self, wanted: &[Peer]) -> Result<(), Error> {
        let mut socket = Socket::generic()?;
        let (_, existing) = self.read(&mut socket)?;
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = changes(&existing, &endpoints, wanted);
        for part in changes.chunks(PEERS_PER_MESSAGE) {
            let mut message = self.message(SET_DEVICE);
            message.nested(DEVICE_PEERS, |list| part.iter().for_each(|change| change.encode(list)));
            socket.request(&format!("set peers of link {LINK}"), message)?;
        }
        *endpoints = wanted.iter().map(|peer| (peer.key, peer.endpoint)).collect();
        Ok(())
    }
}

/// What has to be told to the device, first which peers go.
fn changes(
    existing: &BTreeMap<PublicKey, BTreeSet<Cidr>>,
    endpoints: &BTreeMap<PublicKey, Option<IpAddr>>,
    wanted: &[Peer],
) -> Vec<Change> {
    let stays = |key: &PublicKey| wanted.iter().any(|peer| peer.key == *key);
    let gone = existing.keys().filter(|key| !stays(key));
    let gone = gone.map(|key| Change { key: *key, remove: true, endpoint: None, allowed: None });
    let changed = wanted.iter().filter_map(|peer| {
        let known = existing.get(&peer.key);
        let allowed: BTreeSet<Cidr> = peer.allowed.iter().copied().collect();
        // after a restart, what the device has learned of a peer is better than what the peer says
        let moved = match endpoints.get(&peer.key) {
            Some(before) => *before != peer.endpoint,
            None => known.is_none(),
        };
        let change = Change {
            key: peer.key,
            remove: false,
            endpoint: peer.endpoint.filter(|_| moved),
            allowed: (known != Some(&allowed)).then(|| peer.allowed.clone()),
        };
        (change.endpoint.is_some() || change.allowed.is_some()).then_some(change)
    });
    gone.chain(changed).collect()
}

fn parse_allowed(entry: &[u8]) -> Option<Cidr> {
    let address = attribute(entry, ALLOWED_ADDRESS).and_then(link::parse_ip)?;
    let prefix = attribute(entry, ALLOWED_PREFIX)?.first()?;
    Cidr::new(address, *prefix).ok()
}

impl Change {
    fn encode(&self, list: &mut Message) {
        list.nested(0, |peer| {
            peer.bytes(PEER_PUBLIC_KEY, &self.key);
            if self.remove {
                peer.u32(PEER_FLAGS, REMOVE);
                return;
            }
            if let Some(endpoint) = self.endpoint {
                peer.bytes(PEER_ENDPOINT, &socket_address(endpoint, WIREGUARD_PORT));
                // to a private address there is no NAT in between, as a rule, and nothing has to be kept open
                if !is_private(endpoint) {
                    peer.bytes(PEER_KEEPALIVE, &KEEPALIVE.to_ne_bytes());
                }
            }
            let Some(allowed) = &self.allowed else { return };
            peer.u32(PEER_FLAGS, REPLACE_ALLOWED).nested(PEER_ALLOWED, |networks| {
                for network in allowed {
                    networks.nested(0, |entry| {
                        entry.bytes(ALLOWED_FAMILY, &u16::from(link::family(network.base())).to_ne_bytes());
                        entry
                            .bytes(ALLOWED_ADDRESS, &octets(network.base()))
                            .bytes(ALLOWED_PREFIX, &[network.prefix()]);
                    });
                }
            });
        });
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn socket_address(address: IpAddr, port: u16) -> Vec<u8> {
    let mut bytes = u16::from(link::family(address)).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    match address {
        IpAddr::V4(v4) => {
            bytes.extend(v4.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(v6) => {
            bytes.extend([0; 4]);
            bytes.extend(v6.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::netlink::{attribute_at, messages, ne_u32};

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn peer(n: u8, endpoint: &str, allowed: &[&str]) -> Peer {
        let allowed = allowed.iter().map(|text| cidr(text)).collect();
        Peer { key: [n; 32], endpoint: Some(endpoint.parse().unwrap()), allowed }
    }

    #[test]
    fn only_what_differs_is_told() {
        let (a, b) =
            (peer(1, "192.0.2.1", &["10.42.1.0/24", "fd42:0:0:1::/64"]), peer(2, "2001:db8::2", &["10.42.2.0/24"]));
        let none = BTreeMap::new();
        let first = changes(&none, &BTreeMap::new(), &[a.clone(), b.clone()]);
        assert_eq!(first.len(), 2);
        assert!(first.iter().all(|change| change.endpoint.is_some() && change.allowed.is_some() && !change.remove));
        let existing: BTreeMap<PublicKey, BTreeSet<Cidr>> =
            [&a, &b].into_iter().map(|peer| (peer.key, peer.allowed.iter().copied().collect())).collect();
        let endpoints: BTreeMap<_, _> = [&a, &b].into_iter().map(|peer| (peer.key, peer.endpoint)).collect();
        assert_eq!(changes(&existing, &endpoints, &[a.clone(), b.clone()]), []);
        assert_eq!(changes(&existing, &BTreeMap::new(), &[a.clone(), b.clone()]), [], "after a restart sessions go on");
        let moved = peer(1, "192.0.2.9", &["10.42.1.0/24", "fd42:0:0:1::/64"]);
        let told = changes(&existing, &endpoints, &[moved.clone(), b.clone()]);
        assert_eq!(told, [Change { key: a.key, remove: false, endpoint: moved.endpoint, allowed: None }]);
        let gone = changes(&existing, &endpoints, &[b]);
        assert_eq!(gone, [Change { key: a.key, remove: true, endpoint: None, allowed: None }]);
    }

    #[test]
    fn peers_as_the_kernel_reads_them() {
        let a = peer(1, "192.0.2.1", &["10.42.1.0/24", "fd42::/64"]);
        let change = Change { key: a.key, remove: false, endpoint: a.endpoint, allowed: Some(a.allowed) };
        let mut message = Message::new(40, 0, &generic_header(SET_DEVICE));
        message.u32(DEVICE_INDEX, 7).nested(DEVICE_PEERS, |list| change.encode(list));
        let bytes = message.finish(1);
        let body = &messages(&bytes).next().unwrap().payload[4..];
        assert_eq!(attribute(body, DEVICE_INDEX).and_then(ne_u32), Some(7));
        let peer = attribute_at(body, &[DEVICE_PEERS, 0]).unwrap();
        assert_eq!(attribute(peer, PEER_PUBLIC_KEY), Some(&[1; 32][..]));
        assert_eq!(attribute(peer, PEER_FLAGS).and_then(ne_u32), Some(REPLACE_ALLOWED));
        let endpoint = attribute(peer, PEER_ENDPOINT).unwrap();
        assert_eq!((endpoint.len(), &endpoint[2..8]), (16, &[0xca, 0x6c, 192, 0, 2, 1][..]));
        assert_eq!(attribute(peer, PEER_KEEPALIVE), Some(&KEEPALIVE.to_ne_bytes()[..]));
        let allowed: Vec<Cidr> =
            attributes(attribute(peer, PEER_ALLOWED).unwrap()).filter_map(|(_, entry)| parse_allowed(entry)).collect();
        assert_eq!(allowed, [cidr("10.42.1.0/24"), cidr("fd42::/64")]);
        assert_eq!(socket_address("fd00::1".parse().unwrap(), 1).len(), 28);
    }

    #[test]
    fn the_key_is_made_once_and_is_secret() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let key = private_key(&path).unwrap();
        assert_eq!(private_key(&path).unwrap(), key);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, &key[..31]).unwrap();
        let new = private_key(&path).unwrap();
        assert_ne!(new, key);
        assert_eq!(private_key(&path).unwrap(), new);
    }
}
