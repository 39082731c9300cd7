//! Protobuf, as far as the messages of etcd, of probes and of plugins need it: numbers, bytes, text, and messages in messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What kind a field is, as it is written.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// A message that is being written. Zeros and empty bytes are left out, as protobuf has it.
#[derive(Clone, Debug, Default)]
pub struct Message(BytesMut);

impl Message {
    /// A message that was written elsewhere.
    pub fn written(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Texts, one after the other, also empty ones.
    pub fn texts<'t>(self, field: u32, values: impl IntoIterator<Item = &'t str>) -> Self {
        values.into_iter().fold(self, |message, value| message.present(field, value.as_bytes()))
    }

    /// Messages in this one, one after the other.
    pub fn messages(self, field: u32, values: impl IntoIterator<Item = Self>) -> Self {
        values.into_iter().fold(self, |message, value| message.message(field, &value))
    }

    /// A number; none when it is zero.
    pub fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.tag(field, VARINT);
            self.varint(value);
        }
        self
    }

    /// A flag; none when it is not set.
    pub fn flag(self, field: u32, value: bool) -> Self {
        self.number(field, u64::from(value))
    }

    /// Bytes; none when there are none.
    pub fn bytes(self, field: u32, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.present(field, value) }
    }

    /// Text; none when it is empty.
    pub fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message in this one, even an empty one.
    pub fn message(self, field: u32, value: &Self) -> Self {
        self.present(field, &value.0)
    }

    /// A number even when it is zero, for the members of unions.
    pub fn present_number(mut self, field: u32, value: u64) -> Self {
        self.tag(field, VARINT);
        self.varint(value);
        self
    }

    /// The message in a gRPC frame: not compressed, its length, itself.
    pub fn into_frame(self) -> Bytes {
        let mut frame = BytesMut::with_capacity(self.0.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        frame.put_slice(&self.0);
        frame.freeze()
    }

    fn present(mut self, field: u32, value: &[u8]) -> Self {
        self.tag(field, LENGTH);
        self.varint(value.len() as u64);
        self.0.put_slice(value);
        self
    }

    fn tag(&mut self, field: u32, kind: u8) {
        self.varint(u64::from(field) << 3 | u64::from(kind));
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
pub enum Value {
    /// A number that is written in as many bytes as it needs.
    Number(u64),
    /// Bytes, text, or a message.
    Bytes(Bytes),
}

impl Value {
    /// As a number; zero when it is something else.
    pub fn number(&self) -> u64 {
        if let Self::Number(value) = self { *value } else { 0 }
    }

    /// As bytes; none when it is something else.
    pub fn bytes(self) -> Bytes {
        if let Self::Bytes(value) = self { value } else { Bytes::new() }
    }

    /// As the fields of a message; none when it is something else.
    pub fn fields(self) -> Fields {
        Fields(self.bytes())
    }

    /// As text; empty when it is something else.
    ///
    /// # Errors
    /// [`Malformed`] when it is not UTF-8.
    pub fn text(self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes().to_vec()).map_err(|_| Malformed)
    }
}

/// The message is not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is malformed")]
pub struct Malformed;

/// The fields of a message that is read, in their order. Nothing is copied.
#[derive(Clone, Debug)]
pub struct Fields(Bytes);

impl Fields {
    /// The fields of a message.
    pub fn of(message: Bytes) -> Self {
        Self(message)
    }

    /// The next field with its number.
    ///
    /// # Errors
    /// [`Malformed`].
    #[expect(clippy::should_implement_trait, reason = "it fails, and ends then")]
    pub fn next(&mut self) -> Result<Option<(u32, Value)>, Malformed> {
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
        if length > self.0.len() { Err(Malformed) } else { Ok(self.0.split_to(length)) }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for place in 0..10 {
            if !self.0.has_remaining() {
                break;
            }
            let byte = self.0.get_u8();
            value |= u64::from(byte & 0x7f) << (7 * place);
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
    fn what_is_written_is_read() {
        let inner = Message::default().number(1, u64::MAX).bytes(2, b"").flag(3, false);
        let frame =
            Message::default().bytes(1, b"key").message(15, &inner).message(16, &Message::default()).into_frame();
        assert_eq!((frame[0], u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize), (0, frame.len() - 5));
        let mut fields = Fields::of(frame.slice(5..));
        assert_eq!(fields.next(), Ok(Some((1, Value::Bytes("key".into())))));
        let Some((15, Value::Bytes(inner))) = fields.next().unwrap() else { panic!() };
        assert_eq!(fields.next(), Ok(Some((16, Value::Bytes(Bytes::new())))));
        assert_eq!(fields.next(), Ok(None));
        let mut inner = Fields::of(inner);
        assert_eq!(inner.next(), Ok(Some((1, Value::Number(u64::MAX)))));
        assert_eq!(inner.next(), Ok(None));
    }

    #[test]
    fn text_and_messages_come_back() {
        let long = "x".repeat(200);
        let message = Message::default().text(1, "").text(2, &long).flag(3, true).flag(4, false);
        let mut fields = Fields::of(Message::default().message(1, &message).into_frame().slice(5..));
        let mut inner = fields.next().unwrap().unwrap().1.fields();
        let (field, value) = inner.next().unwrap().unwrap();
        assert_eq!((field, value.text()), (2, Ok(long)));
        assert_eq!(inner.next(), Ok(Some((3, Value::Number(1)))));
        assert_eq!(inner.next(), Ok(None));
        assert_eq!(Value::Bytes(Bytes::from_static(&[0xff])).text(), Err(Malformed));
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        for bad in [&[0x0a][..], &[0x0a, 5, 1], &[0x08], &[0x08, 0x80], &[0x0b], &[0xff; 11], &[0x09, 1], &[0x0d, 1]] {
            let mut fields = Fields::of(Bytes::copy_from_slice(bad));
            assert_eq!(fields.next(), Err(Malformed), "{bad:?}");
        }
        // fields of other kinds are passed over
        let mut fields = Fields::of(Bytes::from_static(&[0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x0d, 1, 2, 3, 4, 0x10, 7]));
        assert_eq!(fields.next(), Ok(Some((2, Value::Number(7)))));
    }
}
