//! Protobuf's wire format: tags, variable-length integers, length-delimited fields.

use super::ProtoError;

/// Wire type of integers and booleans.
pub(super) const VARINT: u8 = 0;
/// Wire type of doubles.
pub(super) const FIXED64: u8 = 1;
/// Wire type of strings, bytes and messages.
pub(super) const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// Writes a message back to front, so that a length is known when its prefix is written.
pub(crate) struct Writer {
    /// The bytes so far, in reverse order.
    reversed: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { reversed: Vec::with_capacity(1024) }
    }

    /// The bytes in their right order.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.reversed.reverse();
        self.reversed
    }

    /// Bytes written so far; also where a length-delimited field ends that [`Self::close`] will begin.
    pub(crate) fn mark(&self) -> usize {
        self.reversed.len()
    }

    /// Begins the length-delimited field that ends at `mark`.
    pub(crate) fn close(&mut self, number: u32, mark: usize) {
        self.varint((self.reversed.len() - mark) as u64);
        self.tag(number, LENGTH);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.reversed.extend(bytes.iter().rev());
    }

    pub(crate) fn varint(&mut self, mut n: u64) {
        let at = self.reversed.len();
        while n >= 0x80 {
            self.reversed.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.reversed.push(n as u8);
        self.reversed[at..].reverse();
    }

    pub(crate) fn tag(&mut self, number: u32, wire: u8) {
        self.varint(u64::from(number) << 3 | u64::from(wire));
    }

    pub(crate) fn int(&mut self, number: u32, n: i64) {
        self.varint(n.cast_unsigned());
        self.tag(number, VARINT);
    }

    pub(crate) fn double(&mut self, number: u32, n: f64) {
        self.raw(&n.to_le_bytes());
        self.tag(number, FIXED64);
    }

    pub(crate) fn string(&mut self, number: u32, text: &str) {
        self.string_bytes(number, text.as_bytes());
    }

    pub(crate) fn string_bytes(&mut self, number: u32, bytes: &[u8]) {
        let mark = self.mark();
        self.raw(bytes);
        self.close(number, mark);
    }
}

/// One field as it is on the wire.
#[derive(Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Length(&'a [u8]),
    Fixed32,
}

impl Wire<'_> {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Wire::Varint(_) => VARINT,
            Wire::Fixed64(_) => FIXED64,
            Wire::Length(_) => LENGTH,
            Wire::Fixed32 => FIXED32,
        }
    }
}

/// Reads the fields of a message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field, or `None` at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n != 0).ok_or(ProtoError::Tag(tag))?;
        let wire = match (tag & 7) as u8 {
            VARINT => Wire::Varint(self.varint()?),
            FIXED64 => Wire::Fixed64(self.array()?),
            LENGTH => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtoError::Truncated)?;
                let (head, rest) = self.rest.split_at_checked(length).ok_or(ProtoError::Truncated)?;
                self.rest = rest;
                Wire::Length(head)
            }
            FIXED32 => self.array::<4>().map(|_| Wire::Fixed32)?,
            _ => return Err(ProtoError::Tag(tag)),
        };
        Ok(Some((number, wire)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(ProtoError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(ProtoError::Overflow);
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(ProtoError::Overflow)
    }
}
