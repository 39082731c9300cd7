//! Protobuf, as far as the messages of probes and drivers need it: numbers, text, and messages in messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What kind a field is, as it is written.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// A message that is being written. Zeros and empty texts are left out, as protobuf has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(BytesMut);

impl Message {
    pub(crate) fn flag(mut self, field: u32, value: bool) -> Self {
        if value {
            self.varint(u64::from(field) << 3 | u64::from(VARINT));
            self.varint(1);
        }
        self
    }

    pub(crate) fn text(self, field: u32, value: &str) -> Self {
        if value.is_empty() { self } else { self.bytes(field, value.as_bytes()) }
    }

    /// A message in this one, even an empty one.
    pub(crate) fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// The message in a gRPC frame: not compressed, its length, itself.
    pub(super) fn into_frame(self) -> Bytes {
        let mut frame = BytesMut::with_capacity(self.0.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        frame.put_slice(&self.0);
        frame.freeze()
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | u64::from(LENGTH));
        self.varint(value.len() as u64);
        self.0.put_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.put_u8(value as u8);
    }
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    Bytes(Bytes),
}

impl Value {
    /// As a number; zero when it is something else.
    pub(crate) fn number(&self) -> u64 {
        if let Self::Number(value) = self { *value } else { 0 }
    }

    /// As the fields of a message; none when it is something else.
    pub(crate) fn fields(self) -> Fields {
        Fields(if let Self::Bytes(value) = self { value } else { Bytes::new() })
    }

    /// As text.
    ///
    /// # Errors
    /// [`Malformed`] when it is not UTF-8.
    pub(crate) fn text(self) -> Result<String, Malformed> {
        let Self::Bytes(value) = self else { return Ok(String::new()) };
        String::from_utf8(value.to_vec()).map_err(|_| Malformed)
    }
}

/// The message is not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is malformed")]
pub(crate) struct Malformed;

/// The fields of a message that is read, in their order. Nothing is copied.
#[derive(Clone, Debug)]
pub(crate) struct Fields(Bytes);

impl Fields {
    pub(crate) fn of(message: Bytes) -> Self {
        Self(message)
    }

    /// The next field with its number.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value)>, Malformed> {
        while self.0.has_remaining() {
            let tag = self.varint()?;
            let field = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
            match (tag & 7) as u8 {
                VARINT => return Ok(Some((field, Value::Number(self.varint()?)))),
                LENGTH => {
                    let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                    return Ok(Some((field, Value::Bytes(self.take(length)?))));
                }
                FIXED64 => drop(self.take(8)?),
                FIXED32 => drop(self.take(4)?),
                _ => return Err(Malformed),
            }
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if self.0.remaining() < length { Err(Malformed) } else { Ok(self.0.split_to(length)) }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for place in 0..10 {
            if !self.0.has_remaining() {
                return Err(Malformed);
            }
            let byte = self.0.get_u8();
            value |= u64::from(byte & 0x7f).checked_shl(7 * place).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn messages_come_back() {
        let long = "x".repeat(200);
        let message = Message::default().text(1, "").text(2, &long).flag(3, true).flag(4, false);
        let outer = Message::default().message(1, &message).message(2, &Message::default());
        let mut fields = Fields::of(outer.into_frame().slice(5..));
        let (field, value) = fields.next().unwrap().unwrap();
        let mut inner = value.fields();
        assert_eq!(field, 1);
        assert_eq!(inner.next(), Ok(Some((2, Value::Bytes(long.into_bytes().into())))));
        assert_eq!(inner.next(), Ok(Some((3, Value::Number(1)))));
        assert_eq!(inner.next(), Ok(None));
        assert_eq!(fields.next(), Ok(Some((2, Value::Bytes(Bytes::new())))));
        assert_eq!(fields.next(), Ok(None));
    }

    #[test]
    fn garbage_is_no_message() {
        for garbage in [&[0x08][..], &[0x0a, 5, 1], &[0x0f], &[0xff; 30], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 1]] {
            assert_eq!(Fields::of(Bytes::copy_from_slice(garbage)).next(), Err(Malformed), "{garbage:?}");
        }
        assert_eq!(Value::Bytes(Bytes::from_static(&[0xff])).text(), Err(Malformed));
        // fields of fixed length are passed over
        assert_eq!(Fields::of(Bytes::from_static(&[0x0d, 1, 2, 3, 4])).next(), Ok(None));
    }
}
