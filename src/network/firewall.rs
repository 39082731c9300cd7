//! What other software's packet filters do to the pods' packets, and to this room's tables.
//!
//! A packet has to be accepted by every table, so a table of somebody else that drops what is forwarded (Docker, ufw and
//! firewalld do, each in its own way) cuts pods off, and nothing that edge may write can overrule it. That is found out here, so
//! that somebody can be told. Whether a rule lets a packet through is not computed: a table that names the pods' bridge or the
//! pod network in any of its rules is taken to have been made by somebody who knew of them.
//!
//! Not seen: rules of the older iptables (`iptables-legacy`), which nftables does not list.

use std::fmt;
use std::os::fd::OwnedFd;

use edge_sys::async_fd::{self, AsyncFd};
use nix::errno::Errno;

use crate::netlink::{Message, Received, Socket, attribute, attribute_at, attributes, be_u32, messages, text};
use crate::nft::{DELCHAIN, DELTABLE, GETCHAIN, GETSET, GETSETELEM, NEWCHAIN, NEWRULE, TABLE, kind};
use crate::{BRIDGE, Cidr, Error};

/// The group of nfnetlink that tells of every change of nftables.
const NFNLGRP_NFTABLES: u32 = 7;
/// Families of tables whose chains see what is forwarded: number, nft's name of it.
const FAMILIES: [(u8, &str); 3] =
    [(libc::NFPROTO_INET as u8, "inet"), (libc::NFPROTO_IPV4 as u8, "ip"), (libc::NFPROTO_IPV6 as u8, "ip6")];
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const HOOK_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

/// A chain of another table that drops what is forwarded, and knows nothing of pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocker {
    /// nft's name of the family: `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
}

/// What happens, and what would help.
impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain } = self;
        write!(
            f,
            "packets from and to pods are dropped: chain \"{chain}\" of the nftables table \"{family} {table}\", which is not \
             edge's, drops what is forwarded. Let pods through, in the configuration of what made it or with: nft insert rule \
             {family} {table} {chain} iifname {BRIDGE} accept; nft insert rule {family} {table} {chain} oifname {BRIDGE} accept"
        )
    }
}

/// The chains of other tables that drop the packets of pods in `cluster`.
pub(crate) fn blockers(cluster: &[Cidr]) -> Result<Vec<Blocker>, Error> {
    let mut socket = Socket::netfilter()?;
    let mut found = Vec::new();
    for (family, name) in FAMILIES {
        // a family without networks of pods has nothing to drop
        let ours = |ipv4: bool| cluster.iter().any(|network| network.base().is_ipv4() == ipv4);
        if (name == "ip" && !ours(true)) || (name == "ip6" && !ours(false)) {
            continue;
        }
        for (table, chain, drops) in forward_chains(&mut socket, family)? {
            let rules = rules(&mut socket, family, &table)?;
            let last = rules.iter().rev().find(|rule| rule.chain == chain);
            let drops = drops || last.is_some_and(|rule| drops_everything(&rule.expressions));
            if drops && !knows_pods(&mut socket, family, &table, &rules, cluster)? {
                found.push(Blocker { family: name, table, chain });
            }
        }
    }
    found.sort();
    Ok(found)
}

fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// Table, name, and whether the policy is to drop, of all base chains of others at the forward hook.
fn forward_chains(socket: &mut Socket, family: u8) -> Result<Vec<(String, String, bool)>, Error> {
    let dumped = socket.dump("list chains", Message::new(kind(GETCHAIN), 0, &header(family)))?;
    let parse = |payload: &[u8]| {
        let body = payload.get(4..)?;
        let table = attribute(body, 1).and_then(text).filter(|table| *table != TABLE)?;
        let hook = attribute_at(body, &[4, 1]).and_then(be_u32)?;
        let drops = attribute(body, 5).and_then(be_u32) == Some(NF_DROP);
        let name = attribute(body, 3).and_then(text)?;
        (hook == HOOK_FORWARD).then(|| (table.to_owned(), name.to_owned(), drops))
    };
    Ok(dumped.iter().filter_map(|(_, payload)| parse(payload)).collect())
}

struct Rule {
    chain: String,
    /// `NFTA_RULE_EXPRESSIONS`
    expressions: Vec<u8>,
}

/// The rules of a table in their order.
fn rules(socket: &mut Socket, family: u8, table: &str) -> Result<Vec<Rule>, Error> {
    let mut message = Message::new(kind(GETRULE), 0, &header(family));
    message.text(1, table);
    let dumped = socket.dump("list rules", message)?;
    let parse = |payload: &[u8]| {
        let body = payload.get(4..)?;
        // a kernel may give those of other tables, too
        attribute(body, 1).and_then(text).filter(|name| *name == table)?;
        let chain = attribute(body, 2).and_then(text)?.to_owned();
        Some(Rule { chain, expressions: attribute(body, 4).unwrap_or_default().to_vec() })
    };
    Ok(dumped.iter().filter_map(|(_, payload)| parse(payload)).collect())
}

/// Whether a rule drops or rejects every packet: nothing stands before its verdict that a packet could fail.
fn drops_everything(expressions: &[u8]) -> bool {
    for (_, expression) in attributes(expressions) {
        match attribute(expression, 1).and_then(text) {
            Some("counter" | "log" | "meta" | "comment") => {}
            Some("reject") => return true,
            Some("target") => {
                return attribute_at(expression, &[2, 1]).and_then(text).is_some_and(|name| name == "REJECT");
            }
            Some("immediate") => {
                return attribute_at(expression, &[2, 2, 2, 1]).and_then(be_u32) == Some(NF_DROP);
            }
            _ => return false,
        }
    }
    false
}

/// Whether a table names the pods' bridge, or their network, in a rule or a set.
fn knows_pods(socket: &mut Socket, family: u8, table: &str, rules: &[Rule], cluster: &[Cidr]) -> Result<bool, Error> {
    let signs = signs(cluster);
    let shows =
        |bytes: &[u8]| signs.iter().any(|sign| bytes.windows(sign.len()).any(|window| window == sign.as_slice()));
    if rules.iter().any(|rule| shows(&rule.expressions)) {
        return Ok(true);
    }
    let mut message = Message::new(kind(GETSET), 0, &header(family));
    message.text(1, table);
    for (_, set) in socket.dump("list sets", message)? {
        let body = set.get(4..).unwrap_or_default();
        let of_table = attribute(body, 1).and_then(text).is_some_and(|name| name == table);
        let Some(name) = attribute(body, 2).and_then(text).filter(|_| of_table) else { continue };
        let mut message = Message::new(kind(GETSETELEM), 0, &header(family));
        message.text(1, table).text(2, name);
        match socket.dump(&format!("list set {name}"), message) {
            Ok(elements) if elements.iter().any(|(_, payload)| shows(payload)) => return Ok(true),
            Ok(_) => {}
            // it went in the meantime
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What the bridge's name and the pod networks look like as values of nftables: an attribute's header (its length, and 1 for
/// a value), then the bytes. nft compares as many bytes of an address as its prefix covers.
fn signs(cluster: &[Cidr]) -> Vec<Vec<u8>> {
    let value = |bytes: &[u8]| {
        let mut sign = Vec::with_capacity(4 + bytes.len());
        sign.extend((4 + bytes.len() as u16).to_ne_bytes());
        sign.extend(1_u16.to_ne_bytes());
        sign.extend(bytes);
        sign
    };
    let mut signs = vec![BRIDGE.as_bytes().to_vec(), value(b"edge")];
    for network in cluster {
        let bytes = crate::link::octets(network.base());
        let covered = usize::from(network.prefix()).div_ceil(8).max(1);
        signs.push(value(&bytes[..covered]));
        signs.push(value(&bytes));
    }
    signs
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallChange {
    /// A table of edge went away, as with `nft flush ruleset`.
    Lost,
    /// Something of others.
    Others,
}

/// Watches the packet filter of the network namespace of the thread that made it.
pub struct FirewallWatch {
    socket: Socket,
    /// The socket in the event loop, once somebody has waited.
    polled: Option<AsyncFd<OwnedFd>>,
}

impl FirewallWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::watch_netfilter(1 << (NFNLGRP_NFTABLES - 1))?, polled: None })
    }

    /// Takes what has come in, without waiting; the worst of it.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn take(&mut self) -> Result<Option<FirewallChange>, Error> {
        let mut found = None;
        loop {
            match self.socket.try_receive() {
                Ok(datagram) => {
                    for message in messages(datagram) {
                        match of_interest(&message) {
                            Some(FirewallChange::Lost) => found = Some(FirewallChange::Lost),
                            other => found = found.or(other),
                        }
                    }
                }
                Err(Errno::EAGAIN) => return Ok(found),
                // more than the socket could hold, as when this room writes thousands of services: anything may have changed
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => found = found.or(Some(FirewallChange::Others)),
                Err(errno) => return Err(Error::kernel("watch the packet filter", errno)),
            }
        }
    }

    /// Waits for a change. Must be called within a tokio runtime; nothing is lost when it is dropped.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn news(&mut self) -> Result<FirewallChange, Error> {
        let failed = |source| Error::kernel("watch the packet filter", source);
        let polled = match self.polled.take() {
            Some(polled) => polled,
            None => async_fd::register(self.socket.as_fd().try_clone_to_owned().map_err(failed)?).map_err(failed)?,
        };
        self.polled = Some(polled);
        loop {
            if let Some(change) = self.take()? {
                return Ok(change);
            }
            let Some(polled) = &self.polled else { continue };
            polled.readable().await.map_err(failed)?.clear_ready();
        }
    }
}

/// What this room writes itself comes back as news, and does not matter.
fn of_interest(message: &Received<'_>) -> Option<FirewallChange> {
    let table = attribute(message.payload.get(4..)?, 1).and_then(text)?;
    let is = |kinds: &[u16]| kinds.iter().any(|number| kind(*number) == message.kind);
    if table == TABLE {
        return is(&[DELTABLE]).then_some(FirewallChange::Lost);
    }
    // sets' elements of others come and go (fail2ban, say), chains and rules rarely
    is(&[DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE]).then_some(FirewallChange::Others)
}
