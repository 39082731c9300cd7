//! A connection whose client may call the server by a name that is none.
//!
//! Go's gRPC takes the path of a socket for the server's name when it is given to it plainly, as many device plugins do, and sends it as
//! `:authority`: `/var/lib/kubelet/device-plugins/kubelet.sock`, in later versions with `%2F`. `h2` takes such a call for malformed, and has no
//! switch for it. So the header blocks that a client sends are read here, such a name is replaced, and they are written again. Everything
//! else passes as it is.

use super::hpack::{self, Decoder};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::uri::Authority;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client says first.
const PREFACE: usize = 24;
/// The head of a frame, and the most bytes after it, as long as nobody agrees on more.
const HEAD: usize = 9;
const MAX_FRAME: usize = 16 << 10;
/// Most bytes of a block in several frames.
const MAX_BLOCK: usize = 64 << 10;
/// Bytes that are read at once.
const READ: usize = 8 << 10;

/// Kinds of frames.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// What is special about a frame.
const END_STREAM: u8 = 0x01;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

/// What a server is called whose name is none.
const NAME: &[u8] = b"localhost";

/// A block that has begun: the flags of the stream, its number, what there is of it.
struct Begun {
    flags: u8,
    stream: [u8; 4],
    block: BytesMut,
}

/// See the module.
pub(super) struct Lenient<S> {
    inner: S,
    decoder: Decoder,
    /// What has come and is not understood yet.
    raw: BytesMut,
    /// What the server may read.
    ready: BytesMut,
    /// So many bytes pass as they are.
    pass: usize,
    begun: Option<Begun>,
}

impl<S> Lenient<S> {
    pub(super) fn new(inner: S) -> Self {
        let (raw, ready) = (BytesMut::new(), BytesMut::new());
        Self { inner, decoder: Decoder::new(), raw, ready, pass: PREFACE, begun: None }
    }

    /// Understands what has come.
    fn advance(&mut self) -> Result<(), hpack::Malformed> {
        loop {
            let passing = self.pass.min(self.raw.len());
            self.ready.extend_from_slice(&self.raw.split_to(passing));
            self.pass -= passing;
            let [a, b, c, kind, flags, s1, s2, s3, s4, ..] = self.raw[..] else { return Ok(()) };
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if !matches!(kind, HEADERS | CONTINUATION) {
                // also one that is too large: the server says so
                self.pass = HEAD + length;
                continue;
            }
            if length > MAX_FRAME {
                return Err(hpack::Malformed);
            }
            if self.raw.len() < HEAD + length {
                return Ok(());
            }
            self.raw.advance(HEAD);
            let payload = self.raw.split_to(length).freeze();
            let stream = [s1, s2, s3, s4];
            match (&mut self.begun, kind) {
                (None, HEADERS) => {
                    let block = BytesMut::from(&fragment(&payload, flags)?[..]);
                    self.begun = Some(Begun { flags: flags & END_STREAM, stream, block });
                }
                (Some(begun), CONTINUATION) if begun.stream == stream => begun.block.extend_from_slice(&payload),
                _ => return Err(hpack::Malformed),
            }
            if self.begun.as_ref().is_some_and(|begun| begun.block.len() > MAX_BLOCK) {
                return Err(hpack::Malformed);
            }
            if flags & END_HEADERS != 0
                && let Some(begun) = self.begun.take()
            {
                self.end(begun)?;
            }
        }
    }

    /// Writes a block that is complete.
    fn end(&mut self, begun: Begun) -> Result<(), hpack::Malformed> {
        let mut headers = self.decoder.decode(&begun.block)?;
        for (name, value) in &mut headers {
            if &name[..] == b":authority" && Authority::try_from(&value[..]).is_err() {
                *value = Bytes::from_static(NAME);
            }
        }
        let block = hpack::encode(&headers);
        let count = block.len().div_ceil(MAX_FRAME).max(1);
        for n in 0..count {
            let part = block.slice(n * MAX_FRAME..block.len().min((n + 1) * MAX_FRAME));
            let end = if n + 1 == count { END_HEADERS } else { 0 };
            let (kind, flags) = if n == 0 { (HEADERS, begun.flags | end) } else { (CONTINUATION, end) };
            self.ready.put_uint(part.len() as u64, 3);
            self.ready.put_slice(&[kind, flags]);
            self.ready.put_slice(&begun.stream);
            self.ready.put_slice(&part);
        }
        Ok(())
    }
}

/// The part of a block that a frame has, without what it is padded with and what it says of priorities.
fn fragment(payload: &Bytes, flags: u8) -> Result<Bytes, hpack::Malformed> {
    let (mut begin, mut end) = (0, payload.len());
    if flags & PADDED != 0 {
        let padding = *payload.first().ok_or(hpack::Malformed)?;
        begin += 1;
        end = end.checked_sub(usize::from(padding)).ok_or(hpack::Malformed)?;
    }
    if flags & PRIORITY != 0 {
        begin += 5;
    }
    if begin > end { Err(hpack::Malformed) } else { Ok(payload.slice(begin..end)) }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            let mut space = [0; READ];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.raw.extend_from_slice(read.filled());
            this.advance().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        let count = this.ready.len().min(out.remaining());
        out.put_slice(&this.ready.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const STREAM: [u8; 4] = [0, 0, 0, 1];

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        [length, &[kind, flags], &STREAM, payload].concat()
    }

    fn block(authority: &str) -> Bytes {
        let header = |name: &'static str, value: &str| (Bytes::from(name), Bytes::copy_from_slice(value.as_bytes()));
        hpack::encode(&[header(":method", "POST"), header(":authority", authority), header("te", "trailers")])
    }

    /// What comes out when a client says something, in pieces of one size.
    async fn through(said: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let (mut client, server) = tokio::io::duplex(64);
        let said = [&[b'P'; PREFACE][..], said].concat();
        let write = async move {
            for piece in said.chunks(piece) {
                // who is not understood is not read any further
                let _ = client.write_all(piece).await;
            }
        };
        let mut lenient = Lenient::new(server);
        let read = async {
            let mut out = Vec::new();
            let result = lenient.read_to_end(&mut out).await;
            drop(lenient);
            result.map(|_| out.split_off(PREFACE))
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn names_that_are_none_are_replaced_and_all_else_passes() {
        let data = frame(0, END_STREAM, &[7; 20_000]);
        for (said, want) in [
            ("/var/lib/kubelet/kubelet.sock", "localhost"),
            ("%2Fvar%2Flib%2Fkubelet.sock", "localhost"),
            ("", "localhost"),
            ("localhost", "localhost"),
            ("example.com:80", "example.com:80"),
        ] {
            let asked = [frame(4, 0, &[]), frame(HEADERS, END_HEADERS, &block(said)), data.clone()].concat();
            let heard = [frame(4, 0, &[]), frame(HEADERS, END_HEADERS, &block(want)), data.clone()].concat();
            for piece in [1, 7, 100_000] {
                assert_eq!(through(&asked, piece).await.unwrap(), heard, "{said} in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn blocks_in_parts_are_put_together() {
        let (said, heard) = (block("/socket"), block("localhost"));
        let padded = [&[3, 0, 0, 0, 0, 16][..], &said[..10], &[0; 3]].concat();
        let asked = [
            frame(HEADERS, END_STREAM | PADDED | PRIORITY, &padded),
            frame(CONTINUATION, 0, &said[10..12]),
            frame(CONTINUATION, END_HEADERS, &said[12..]),
        ];
        assert_eq!(through(&asked.concat(), 5).await.unwrap(), frame(HEADERS, END_HEADERS | END_STREAM, &heard));
        // and what does not fit into a frame is told in several
        let header = (Bytes::from("x"), Bytes::from("y".repeat(MAX_FRAME)));
        let large = hpack::encode(&[header]);
        let (first, second) = large.split_at(MAX_FRAME);
        let same = [frame(HEADERS, 0, first), frame(CONTINUATION, END_HEADERS, second)].concat();
        assert_eq!(through(&same, 1000).await.unwrap(), same);
    }

    #[tokio::test]
    async fn what_cannot_be_understood_ends_the_connection() {
        let endless: Vec<u8> =
            (0..6).flat_map(|n| frame(if n == 0 { HEADERS } else { CONTINUATION }, 0, &[0; MAX_FRAME])).collect();
        for bad in [
            frame(CONTINUATION, END_HEADERS, &[]),
            [frame(HEADERS, 0, &[]), frame(HEADERS, END_HEADERS, &[])].concat(),
            frame(HEADERS, END_HEADERS, &[0x80]),
            frame(HEADERS, END_HEADERS | PADDED, &[9, 0]),
            frame(HEADERS, END_HEADERS | PRIORITY, &[0; 4]),
            frame(HEADERS, END_HEADERS, &[0; MAX_FRAME + 1]),
            endless,
        ] {
            assert_eq!(through(&bad, 1000).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
