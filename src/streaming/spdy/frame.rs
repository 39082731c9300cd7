//! Frames: eight bytes of header, then data or a control message. No IO.

use super::headers::{HeaderCompressor, HeaderDecompressor, Headers};
use crate::outbound::Outbound;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Identifies a stream of a connection; the client's are odd.
pub(crate) type StreamId = u32;

const VERSION: u16 = 3;
const HEADER: usize = 8;
/// Largest control frame. Data frames have no limit, since they are passed on piece by piece.
const MAX_CONTROL: usize = 64 * 1024;
const FIN: u8 = 0x01;
const CONTROL: u32 = 0x8000_0000;
/// Status of a RST_STREAM: the stream is not wanted any more.
const CANCEL: u32 = 5;
/// Status of a RST_STREAM: the stream was not looked at.
const REFUSED: u32 = 3;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
}

/// What the peer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Opened a stream; `fin` says that it will send nothing on it.
    Open { id: StreamId, headers: Headers, fin: bool },
    /// Accepted a stream of ours; a server sees none.
    Reply { id: StreamId },
    /// Sent a piece of data; `fin` comes with the last one, which may be empty.
    Data { id: StreamId, bytes: Bytes, fin: bool },
    /// Ended a stream at once, in both directions.
    Reset { id: StreamId },
    /// Wants this number back.
    Ping { id: u32 },
    /// Will open no more streams.
    GoAway,
    /// Something that needs no reaction: settings, windows, later headers.
    Ignored,
}

/// Turns bytes into events.
pub(crate) struct Decoder {
    headers: HeaderDecompressor,
    /// The data frame being passed on.
    data: Option<DataFrame>,
}

struct DataFrame {
    id: StreamId,
    remaining: usize,
    fin: bool,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { headers: HeaderDecompressor::new(), data: None }
    }

    /// Takes the next event from `buffer`; `None` when it needs more bytes. The text of an error says what is wrong;
    /// nothing more can be decoded then.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, String> {
        if let Some(event) = self.data_piece(buffer) {
            return Ok(Some(event));
        }
        if self.data.is_some() || buffer.len() < HEADER {
            return Ok(None);
        }
        let mut header = &buffer[..HEADER];
        let (word, flags_and_length) = (header.get_u32(), header.get_u32());
        let flags = (flags_and_length >> 24) as u8;
        let length = (flags_and_length & 0x00ff_ffff) as usize;
        if word & CONTROL == 0 {
            if word == 0 {
                return Err("data on stream 0".to_owned());
            }
            buffer.advance(HEADER);
            self.data = Some(DataFrame { id: word, remaining: length, fin: flags & FIN != 0 });
            return Ok(self.data_piece(buffer));
        }
        let version = (word >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(format!("version {version} instead of {VERSION}"));
        }
        if length > MAX_CONTROL {
            return Err(format!("control frame of {length} bytes"));
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        buffer.advance(HEADER);
        let payload = buffer.split_to(length).freeze();
        self.control(word as u16, flags, payload).map(Some)
    }

    /// The next piece of the current data frame. An empty frame is a piece too, for it may carry the end.
    fn data_piece(&mut self, buffer: &mut BytesMut) -> Option<Event> {
        let frame = self.data.as_mut()?;
        if frame.remaining > 0 && buffer.is_empty() {
            return None;
        }
        let bytes = buffer.split_to(frame.remaining.min(buffer.len())).freeze();
        frame.remaining -= bytes.len();
        let last = frame.remaining == 0;
        let event = Event::Data { id: frame.id, bytes, fin: frame.fin && last };
        if last {
            self.data = None;
        }
        Some(event)
    }

    fn control(&mut self, frame_kind: u16, flags: u8, mut payload: Bytes) -> Result<Event, String> {
        let mut number = |what: &str| payload.try_get_u32().map_err(|_| format!("truncated {what} frame"));
        match frame_kind {
            kind::SYN_STREAM => {
                let id = number("SYN_STREAM")? & !CONTROL;
                // Associated stream, priority and slot: of no use to us.
                number("SYN_STREAM")?;
                payload.try_get_u16().map_err(|_| "truncated SYN_STREAM frame".to_owned())?;
                let headers = self.headers.decompress(&payload)?;
                if id == 0 {
                    return Err("stream 0 opened".to_owned());
                }
                Ok(Event::Open { id, headers, fin: flags & FIN != 0 })
            }
            kind::SYN_REPLY | kind::HEADERS => {
                let id = number("header")? & !CONTROL;
                // Even if unused they must be read: all blocks are one zlib stream.
                self.headers.decompress(&payload)?;
                Ok(if frame_kind == kind::SYN_REPLY { Event::Reply { id } } else { Event::Ignored })
            }
            kind::RST_STREAM => Ok(Event::Reset { id: number("RST_STREAM")? & !CONTROL }),
            kind::PING => Ok(Event::Ping { id: number("PING")? }),
            kind::GOAWAY => Ok(Event::GoAway),
            _ => Ok(Event::Ignored),
        }
    }
}

/// Turns what we have to say into bytes.
pub(crate) struct Encoder {
    headers: HeaderCompressor,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { headers: HeaderCompressor::new() }
    }

    pub(crate) fn encode(&mut self, frame: &Outbound, out: &mut BytesMut) {
        match frame {
            Outbound::Data { stream, bytes, fin } => {
                out.put_u32(*stream);
                put_flags_and_length(out, if *fin { FIN } else { 0 }, bytes.len());
                out.extend_from_slice(bytes);
            }
            Outbound::Accept { stream } => {
                let block = self.headers.compress(&Headers::default());
                put_control(out, kind::SYN_REPLY, 0, 4 + block.len());
                out.put_u32(*stream);
                out.extend_from_slice(&block);
            }
            Outbound::Refuse { stream } => put_reset(out, *stream, REFUSED),
            Outbound::Reset { stream } => put_reset(out, *stream, CANCEL),
            Outbound::Pong { id } => {
                put_control(out, kind::PING, 0, 4);
                out.put_u32(*id);
            }
            Outbound::Close => {
                put_control(out, kind::GOAWAY, 0, 8);
                // The last stream that was accepted is of interest only to those who retry; status 0 is a normal end.
                out.put_u32(0);
                out.put_u32(0);
            }
        }
    }

    /// Opens a stream, as a client does it.
    #[cfg(test)]
    pub(crate) fn open(&mut self, id: StreamId, headers: &Headers, out: &mut BytesMut) {
        let block = self.headers.compress(headers);
        put_control(out, kind::SYN_STREAM, 0, 10 + block.len());
        out.put_u32(id);
        out.put_u32(0);
        out.put_u16(0);
        out.extend_from_slice(&block);
    }
}

fn put_control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    put_flags_and_length(out, flags, length);
}

fn put_flags_and_length(out: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).ok().filter(|length| *length < 1 << 24);
    out.put_u32(u32::from(flags) << 24 | length.expect("invariant: frames hold at most one buffer"));
}

fn put_reset(out: &mut BytesMut, stream: StreamId, status: u32) {
    put_control(out, kind::RST_STREAM, 0, 8);
    out.put_u32(stream);
    out.put_u32(status);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn conversation() -> (Vec<u8>, Vec<Event>) {
        let mut encoder = Encoder::new();
        let mut out = BytesMut::new();
        let headers = Headers::of(&[("streamtype", "stdin"), ("port", "80")]);
        encoder.open(1, &headers, &mut out);
        encoder.encode(&Outbound::Accept { stream: 1 }, &mut out);
        encoder.encode(&Outbound::Data { stream: 1, bytes: Bytes::from_static(b"hello"), fin: false }, &mut out);
        encoder.open(3, &headers, &mut out);
        encoder.encode(&Outbound::Pong { id: 7 }, &mut out);
        encoder.encode(&Outbound::Data { stream: 1, bytes: Bytes::new(), fin: true }, &mut out);
        encoder.encode(&Outbound::Reset { stream: 3 }, &mut out);
        // WINDOW_UPDATE and SETTINGS.
        out.extend_from_slice(b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\xff\xff\x80\x03\0\x04\0\0\0\x04\0\0\0\0");
        encoder.encode(&Outbound::Close, &mut out);
        let events = vec![
            Event::Open { id: 1, headers: headers.clone(), fin: false },
            Event::Reply { id: 1 },
            Event::Data { id: 1, bytes: Bytes::from_static(b"hello"), fin: false },
            Event::Open { id: 3, headers, fin: false },
            Event::Ping { id: 7 },
            Event::Data { id: 1, bytes: Bytes::new(), fin: true },
            Event::Reset { id: 3 },
            Event::Ignored,
            Event::Ignored,
            Event::GoAway,
        ];
        (out.to_vec(), events)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let (bytes, events) = conversation();
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(bytes.as_slice()));
        for event in events {
            assert_eq!(decoder.decode(&mut buffer).unwrap(), Some(event));
        }
        assert_eq!(decoder.decode(&mut buffer).unwrap(), None);
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        let (bytes, events) = conversation();
        let (mut decoder, mut buffer, mut seen) = (Decoder::new(), BytesMut::new(), Vec::new());
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some(event) = decoder.decode(&mut buffer).unwrap() {
                match (seen.last_mut(), event) {
                    (Some(Event::Data { bytes, .. }), Event::Data { bytes: more, .. }) if !more.is_empty() => {
                        *bytes = Bytes::from([&bytes[..], &more[..]].concat());
                    }
                    (_, event) => seen.push(event),
                }
            }
        }
        assert_eq!(seen, events);
    }

    #[test]
    fn malformed_frames_are_errors() {
        for bytes in [
            &b"\x80\x02\0\x01\0\0\0\0"[..],                      // version 2
            b"\x80\x03\0\x01\0\xff\xff\xff",                     // a control frame of 16 MiB
            b"\x80\x03\0\x01\0\0\0\x04\0\0\0\x01",               // SYN_STREAM that is too short
            b"\x80\x03\0\x03\0\0\0\0",                           // empty RST_STREAM
            b"\x80\x03\0\x06\0\0\0\x02\0\0",                     // short PING
            b"\0\0\0\0\0\0\0\0",                                 // data on stream 0
            b"\x80\x03\0\x01\0\0\0\x0c\0\0\0\x01\0\0\0\0\0\0xx", // headers that are not compressed
        ] {
            assert!(Decoder::new().decode(&mut BytesMut::from(bytes)).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn damaged_conversations_never_panic() {
        let (good, _) = conversation();
        let mut seed = 0x2545_F491_4F6C_DD1D_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 33).unwrap()
        };
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=random() % 4 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(random() % (bytes.len() + 1));
            let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(bytes.as_slice()));
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }
}
