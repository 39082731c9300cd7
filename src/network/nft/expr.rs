//! The nftables expressions this room uses and their encoding for the kernel.

use crate::Family;
use crate::netlink::Message;

/// Attribute that holds one member of a list.
pub(super) const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG32_00: u32 = 8;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

/// One of the sixteen 32-bit registers. Values longer than four bytes take the following registers too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Register(pub(super) u32);

impl Register {
    fn number(self) -> u32 {
        NFT_REG32_00 + self.0
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is thrown away.
    Drop,
    /// It passes this hook.
    Accept,
    /// It continues where the chain was jumped to from.
    Return,
    /// It continues in another chain and does not return.
    Goto(String),
    /// It continues in another chain and returns at its end.
    Jump(String),
}

impl Verdict {
    pub(super) fn encode(&self, message: &mut Message, kind: u16) {
        message.nested(kind, |data| {
            data.nested(NFTA_DATA_VERDICT, |verdict| {
                let (code, chain) = match self {
                    Self::Drop => (NF_DROP, None),
                    Self::Accept => (NF_ACCEPT, None),
                    Self::Return => (NFT_RETURN, None),
                    Self::Goto(chain) => (NFT_GOTO, Some(chain)),
                    Self::Jump(chain) => (NFT_JUMP, Some(chain)),
                };
                verdict.bytes(NFTA_VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.text(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    }

    /// The verdict in a dumped attribute; `None` for one this room does not write.
    pub(super) fn decode(data: &[u8]) -> Option<Self> {
        use crate::netlink::{attribute, attribute_at, be_u32, text};
        let verdict = attribute(data, NFTA_DATA_VERDICT)?;
        let chain = || attribute_at(verdict, &[NFTA_VERDICT_CHAIN]).and_then(text).map(str::to_owned);
        match attribute(verdict, NFTA_VERDICT_CODE).and_then(be_u32)? as i32 {
            NF_DROP => Some(Self::Drop),
            NF_ACCEPT => Some(Self::Accept),
            NFT_RETURN => Some(Self::Return),
            NFT_GOTO => Some(Self::Goto(chain()?)),
            NFT_JUMP => Some(Self::Jump(chain()?)),
            _ => None,
        }
    }
}

/// Appends plain data as an attribute of kind `kind`.
pub(super) fn value(message: &mut Message, kind: u16, bytes: &[u8]) {
    message.nested(kind, |data| {
        data.bytes(NFTA_DATA_VALUE, bytes);
    });
}

/// Plain data in a dumped attribute.
pub(super) fn decode_value(data: &[u8]) -> Option<&[u8]> {
    crate::netlink::attribute(data, NFTA_DATA_VALUE)
}

/// Keys of the `meta` expression.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    Protocol = 16,
}

/// Keys of the `ct` expression (those of the original direction where there are two).
#[derive(Clone, Copy, Debug)]
pub(super) enum Ct {
    State = 0,
    Status = 2,
    OriginalPort = 12,
    OriginalAddress = 20,
    OriginalAddress6 = 22,
}

/// An expression: a step of a rule. A rule ends at the first step that does not match.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    /// Loads bytes of the IP header.
    NetworkHeader { offset: u32, length: u32, to: Register },
    /// Loads bytes of the transport header.
    TransportHeader { offset: u32, length: u32, to: Register },
    /// Loads a property of the packet.
    Meta(Meta, Register),
    /// Loads a property of the connection.
    Ct(Ct, Register),
    /// Loads the routing type of the destination address (host byte order).
    DestinationType(Register),
    /// Loads the routing type of the source address (host byte order).
    SourceType(Register),
    /// Loads bytes.
    Immediate(Register, Vec<u8>),
    /// Loads a random number of `offset..offset + modulus` (host byte order).
    Random { modulus: u32, offset: u32, to: Register },
    /// Combines a register with a mask.
    And(Register, Vec<u8>),
    /// Continues when the register holds these bytes.
    Equal(Register, Vec<u8>),
    /// Continues when the register does not hold these bytes.
    NotEqual(Register, Vec<u8>),
    /// Continues when the register is at least this, in network byte order.
    AtLeast(Register, Vec<u8>),
    /// Continues when the register is at most this, in network byte order.
    AtMost(Register, Vec<u8>),
    /// Continues when the set holds the key.
    InSet(String, Register),
    /// Loads what the map has for a key; does not continue when it has none.
    Map(&'static str, Register, Register),
    /// Does what the verdict map has for a key; continues when it has none.
    VerdictMap(&'static str, Register),
    /// Puts key and data into a map, or makes the element young again when it is there already.
    Update { set: &'static str, key: Register, data: Register, seconds: u32 },
    /// Changes the destination to the address and port in two registers.
    DestinationNat { family: Family, address: Register, port: Register },
    /// Changes the source to the address of the outgoing interface.
    Masquerade,
    /// Answers with a TCP reset.
    RejectTcpReset,
    /// Answers with ICMP "port unreachable".
    RejectPortUnreachable(Family),
    /// Ends the rule.
    Verdict(Verdict),
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::NetworkHeader { .. } | Self::TransportHeader { .. } => "payload",
            Self::Meta(..) => "meta",
            Self::Ct(..) => "ct",
            Self::DestinationType(_) | Self::SourceType(_) => "fib",
            Self::Immediate(..) | Self::Verdict(_) => "immediate",
            Self::Random { .. } => "numgen",
            Self::And(..) => "bitwise",
            Self::Equal(..) | Self::NotEqual(..) | Self::AtLeast(..) | Self::AtMost(..) => "cmp",
            Self::InSet(..) | Self::Map(..) | Self::VerdictMap(..) => "lookup",
            Self::Update { .. } => "dynset",
            Self::DestinationNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::RejectTcpReset | Self::RejectPortUnreachable(_) => "reject",
        }
    }

    /// Appends the expression as a member of a rule's list.
    pub(super) fn encode(&self, message: &mut Message) {
        message.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, self.name()).nested(NFTA_EXPR_DATA, |data| self.encode_data(data));
        });
    }

    fn encode_data(&self, m: &mut Message) {
        match self {
            Self::NetworkHeader { offset, length, to } => payload(m, PAYLOAD_NETWORK, *offset, *length, *to),
            Self::TransportHeader { offset, length, to } => payload(m, PAYLOAD_TRANSPORT, *offset, *length, *to),
            Self::Meta(key, to) => {
                m.be32(1, to.number()).be32(2, *key as u32);
            }
            Self::Ct(key, to) => {
                m.be32(1, to.number()).be32(2, *key as u32);
                if matches!(key, Ct::OriginalAddress | Ct::OriginalAddress6 | Ct::OriginalPort) {
                    m.bytes(3, &[0]);
                }
            }
            Self::DestinationType(to) => address_type(m, 2, *to),
            Self::SourceType(to) => address_type(m, 1, *to),
            Self::Immediate(to, bytes) => {
                m.be32(1, to.number());
                value(m, 2, bytes);
            }
            Self::Verdict(verdict) => {
                m.be32(1, NFT_REG_VERDICT);
                verdict.encode(m, 2);
            }
            Self::Random { modulus, offset, to } => {
                const TYPE_RANDOM: u32 = 1;
                m.be32(1, to.number()).be32(2, *modulus).be32(3, TYPE_RANDOM).be32(4, *offset);
            }
            Self::And(register, mask) => {
                m.be32(1, register.number()).be32(2, register.number()).be32(3, mask.len() as u32);
                value(m, 4, mask);
                value(m, 5, &vec![0; mask.len()]);
            }
            Self::Equal(register, bytes) => compare(m, 0, *register, bytes),
            Self::NotEqual(register, bytes) => compare(m, 1, *register, bytes),
            Self::AtMost(register, bytes) => compare(m, 3, *register, bytes),
            Self::AtLeast(register, bytes) => compare(m, 5, *register, bytes),
            Self::InSet(set, key) => {
                m.text(1, set).be32(2, key.number());
            }
            Self::Map(set, key, to) => {
                m.text(1, set).be32(2, key.number()).be32(3, to.number());
            }
            Self::VerdictMap(set, key) => {
                m.text(1, set).be32(2, key.number()).be32(3, NFT_REG_VERDICT);
            }
            Self::Update { set, key, data, seconds } => {
                const OPERATION_UPDATE: u32 = 1;
                let milliseconds = u64::from(*seconds) * 1000;
                m.text(1, set).be32(3, OPERATION_UPDATE).be32(4, key.number()).be32(5, data.number());
                m.bytes(6, &milliseconds.to_be_bytes());
            }
            Self::DestinationNat { family, address, port } => {
                const TYPE_DNAT: u32 = 1;
                m.be32(1, TYPE_DNAT).be32(2, u32::from(number(*family)));
                m.be32(3, address.number()).be32(5, port.number());
            }
            Self::Masquerade => {
                m.be32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
            }
            Self::RejectTcpReset => {
                m.be32(1, 1);
            }
            Self::RejectPortUnreachable(family) => {
                // ICMP and ICMPv6 number it differently.
                let port_unreachable = match family {
                    Family::V4 => 3,
                    Family::V6 => 4,
                };
                m.be32(1, 0).bytes(2, &[port_unreachable]);
            }
        }
    }
}

fn payload(m: &mut Message, base: u32, offset: u32, length: u32, to: Register) {
    m.be32(1, to.number()).be32(2, base).be32(3, offset).be32(4, length);
}

/// nftables' number of a family (`NFPROTO_*`).
pub(super) fn number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}

fn address_type(m: &mut Message, which: u32, to: Register) {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    m.be32(1, to.number()).be32(2, RESULT_ADDRESS_TYPE).be32(3, which);
}

fn compare(m: &mut Message, operator: u32, register: Register, bytes: &[u8]) {
    m.be32(1, register.number()).be32(2, operator);
    value(m, 3, bytes);
}
