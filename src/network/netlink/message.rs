//! Netlink messages as bytes: writing headers and attributes, reading attributes of answers.

/// Marks an attribute that contains attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are its number.
const NLA_TYPE_MASK: u16 = !(3 << 14);
/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct nlattr`.
pub(crate) const ATTRIBUTE_HEADER: usize = 4;
/// The most that the 16-bit length of one attribute can say, header included.
pub(crate) const ATTRIBUTE_MAX: usize = u16::MAX as usize;

/// A netlink request under construction. Its length and sequence number are filled in when it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    buffer: Vec<u8>,
}

impl Message {
    /// A request of `kind` (`nlmsg_type`) with `flags` (NLM_F_REQUEST is added) and the protocol's fixed header.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut buffer = Vec::with_capacity(128);
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        buffer.extend_from_slice(header);
        let mut message = Self { buffer };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("invariant: callers chunk large attributes");
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a text with its terminating NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends a number in host byte order (as rtnetlink has it).
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network byte order (as nfnetlink has it).
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends an attribute that consists of the attributes `fill` appends.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.buffer.len();
        self.bytes(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.buffer.len() - start).expect("invariant: callers chunk large attributes");
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Appends raw bytes: the fixed header inside an attribute that contains a whole message (`VETH_INFO_PEER`).
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Length so far in bytes.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn add_flags(&mut self, flags: u16) {
        let all = u16::from_ne_bytes([self.buffer[6], self.buffer[7]]) | flags;
        self.buffer[6..8].copy_from_slice(&all.to_ne_bytes());
    }

    /// The finished message with its length and sequence number.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len()).expect("invariant: messages are far below 4 GiB");
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.buffer
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits a received datagram into its messages; stops at the first one that is malformed.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = ne_u32(datagram.get(0..4)?)? as usize;
        let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind: ne_u16(&message[4..6])?,
            flags: ne_u16(&message[6..8])?,
            sequence: ne_u32(&message[8..12])?,
            payload: &message[HEADER..],
        })
    })
}

/// The attributes in `bytes` with the flag bits of their types removed; stops at the first one that is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(ne_u16(bytes.get(0..2)?)?);
        let kind = ne_u16(bytes.get(2..4)?)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The attribute at the end of a path of nested attributes.
pub(crate) fn attribute_at<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter().try_fold(bytes, |inner, kind| attribute(inner, *kind))
}

/// A text attribute, without its terminating NUL.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

pub(crate) fn ne_u16(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

pub(crate) fn ne_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

pub(crate) fn be_u16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

pub(crate) fn be_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(16, 4, &[1, 2, 3]);
        message.text(3, "edge0").nested(18, |m| {
            m.u32(1, 7).be32(2, 9);
        });
        message.bytes(4, &[5]);
        let bytes = message.finish(42);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].sequence, all[0].flags), (16, 42, 5));
        let body = &all[0].payload[4..];
        assert_eq!(text(attribute(body, 3).unwrap()), Some("edge0"));
        assert_eq!(ne_u32(attribute_at(body, &[18, 1]).unwrap()), Some(7));
        assert_eq!(be_u32(attribute_at(body, &[18, 2]).unwrap()), Some(9));
        assert_eq!(attribute(body, 4), Some(&[5_u8][..]));
        assert_eq!(attribute(body, 99), None);
    }

    /// Truncated and random input: no panic, no endless loop.
    #[test]
    fn malformed_input_is_survived() {
        let mut message = Message::new(16, 0, &[0; 16]);
        message.text(3, "edge0").nested(18, |m| {
            m.u32(1, 7);
        });
        let bytes = message.finish(1);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0);
            let _ = attributes(bytes.get(32..end).unwrap_or_default()).count();
        }
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let garbage: Vec<u8> = (0..64)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ((state >> 33) as u8) & if state & (1 << 40) == 0 { 0x1f } else { 0xff }
                })
                .collect();
            for received in messages(&garbage) {
                let _ = attributes(received.payload).map(|(_, v)| attributes(v).count()).sum::<usize>();
            }
            let _ = attributes(&garbage).count();
        }
    }
}
