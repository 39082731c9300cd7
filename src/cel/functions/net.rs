//! Addresses and networks.

use super::{Context, Function, global, member, opaque, text};
use crate::error::Error;
use crate::value::{Opaque, Value};
use std::net::IpAddr;

pub(super) static FUNCTIONS: &[Function] = &[
    global("ip", &["string : ip"], to_ip),
    global("isIP", &["string : bool"], |_, a| Ok(Value::Bool(read_ip(text(a, 0)?).is_ok()))),
    global("ip.isCanonical", &["string : bool"], is_canonical),
    global("cidr", &["string : cidr"], to_cidr),
    global("isCIDR", &["string : bool"], |_, a| Ok(Value::Bool(read_cidr(text(a, 0)?).is_ok()))),
    member("family", &["ip : int"], |_, a| Ok(Value::Int(if address(a)?.is_ipv4() { 4 } else { 6 }))),
    member("isUnspecified", &["ip : bool"], |_, a| judged(a, |ip| ip.is_unspecified())),
    member("isLoopback", &["ip : bool"], |_, a| judged(a, |ip| ip.is_loopback())),
    member("isLinkLocalMulticast", &["ip : bool"], |_, a| judged(a, is_link_local_multicast)),
    member("isLinkLocalUnicast", &["ip : bool"], |_, a| judged(a, is_link_local)),
    member("isGlobalUnicast", &["ip : bool"], |_, a| judged(a, is_global)),
    member("containsIP", &["cidr ip : bool", "cidr string : bool"], contains_ip),
    member("containsCIDR", &["cidr cidr : bool", "cidr string : bool"], contains_cidr),
    member("ip", &["cidr : ip"], |_, a| Ok(Value::opaque(Opaque::Ip(network(a, 0)?.0)))),
    member("masked", &["cidr : cidr"], masked),
    member("prefixLength", &["cidr : int"], |_, a| Ok(Value::Int(network(a, 0)?.1.into()))),
];

type Out<'a> = Result<Value<'a>, Error>;

fn read_ip(text: &str) -> Result<IpAddr, Error> {
    let ip: IpAddr = text
        .parse()
        .map_err(|_| Error::new(format!("IP Address {text:?} parse error during conversion from string")))?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Error::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        ip => Ok(ip),
    }
}

fn read_cidr(text: &str) -> Result<(IpAddr, u8), Error> {
    let bad = || Error::new(format!("network address parse error during conversion from string: {text:?}"));
    let (ip, bits) = text.split_once('/').ok_or_else(bad)?;
    let ip = read_ip(ip).map_err(|_| bad())?;
    let is_plain =
        !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits: u8 = bits.parse().ok().filter(|_| is_plain).ok_or_else(bad)?;
    if bits > width(&ip) { Err(bad()) } else { Ok((ip, bits)) }
}

fn width(ip: &IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The address with only the first bits.
fn prefix(ip: &IpAddr, bits: u8) -> u128 {
    let value = match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    value & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

fn within(inner: (IpAddr, u8), outer: (IpAddr, u8)) -> bool {
    inner.0.is_ipv4() == outer.0.is_ipv4()
        && inner.1 >= outer.1
        && prefix(&inner.0, outer.1) == prefix(&outer.0, outer.1)
}

fn to_ip<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::opaque(Opaque::Ip(read_ip(text(a, 0)?)?)))
}

fn to_cidr<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (ip, bits) = read_cidr(text(a, 0)?)?;
    Ok(Value::opaque(Opaque::Cidr(ip, bits)))
}

fn is_canonical<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let this = text(a, 0)?;
    Ok(Value::Bool(read_ip(this)?.to_string() == **this))
}

fn address(a: &[Value<'_>]) -> Result<IpAddr, Error> {
    if let Opaque::Ip(ip) = opaque(a, 0)? { Ok(*ip) } else { Err(Error::no_overload()) }
}

fn network(a: &[Value<'_>], i: usize) -> Result<(IpAddr, u8), Error> {
    match a.get(i) {
        Some(Value::String(text)) if i > 0 => read_cidr(text),
        _ => {
            if let Opaque::Cidr(ip, bits) = opaque(a, i)? {
                Ok((*ip, *bits))
            } else {
                Err(Error::no_overload())
            }
        }
    }
}

fn judged<'a>(a: &[Value<'a>], how: fn(&IpAddr) -> bool) -> Out<'a> {
    Ok(Value::Bool(how(&address(a)?)))
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_global(ip: &IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !is_broadcast && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !is_link_local(ip)
}

fn contains_ip<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let inner = match a.get(1) {
        Some(Value::String(text)) => read_ip(text)?,
        _ => {
            if let Opaque::Ip(ip) = opaque(a, 1)? {
                *ip
            } else {
                return Err(Error::no_overload());
            }
        }
    };
    Ok(Value::Bool(within((inner, width(&inner)), network(a, 0)?)))
}

fn contains_cidr<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::Bool(within(network(a, 1)?, network(a, 0)?)))
}

fn masked<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let (ip, bits) = network(a, 0)?;
    let value = prefix(&ip, bits);
    let ip = match ip {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::from_bits(u32::try_from(value >> 96).unwrap_or(0))),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::from_bits(value)),
    };
    Ok(Value::opaque(Opaque::Cidr(ip, bits)))
}
