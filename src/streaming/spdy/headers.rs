//! Header blocks: pairs of strings, compressed with one zlib stream per direction that starts from a known dictionary.

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Largest decompressed header block; a bomb ends here.
const MAX_BLOCK: usize = 64 * 1024;
const MAX_HEADERS: u32 = 256;

/// Words of the dictionary (SPDY/3 section 2.6.10.1), each preceded by its length there.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges \
age allow authorization cache-control connection content-base content-encoding content-language content-length \
content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
www-authenticate method get status 200|OK version HTTP/1.1 url public set-cookie keep-alive origin";
/// What follows them, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split(' ').map(|word| word.replace('|', " ")) {
        put_text(&mut dictionary, &word);
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

/// The headers of a stream; names are lower-case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(BTreeMap<String, String>);

impl Headers {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn parse(mut block: &[u8]) -> Result<Self, String> {
        let truncated = || "truncated header block".to_owned();
        let count = block.try_get_u32().map_err(|_| truncated())?;
        if count > MAX_HEADERS {
            return Err(format!("{count} headers"));
        }
        let mut headers = BTreeMap::new();
        for _ in 0..count {
            let mut text = || {
                let length = block.try_get_u32().map_err(|_| truncated())? as usize;
                let bytes = block.get(..length).ok_or_else(truncated)?;
                let text = std::str::from_utf8(bytes).map_err(|_| "header is not UTF-8".to_owned())?.to_owned();
                block = &block[length..];
                Ok::<_, String>(text)
            };
            let (name, value) = (text()?.to_ascii_lowercase(), text()?);
            if headers.insert(name, value).is_some() {
                return Err("duplicate header".to_owned());
            }
        }
        Ok(Self(headers))
    }

    fn serialize(&self) -> Vec<u8> {
        let mut block = Vec::new();
        block.put_u32(u32::try_from(self.0.len()).expect("invariant: we write a handful of headers"));
        for (name, value) in &self.0 {
            put_text(&mut block, name);
            put_text(&mut block, value);
        }
        block
    }
}

fn put_text(block: &mut Vec<u8>, text: &str) {
    block.put_u32(u32::try_from(text.len()).expect("invariant: our own headers are short"));
    block.extend_from_slice(text.as_bytes());
}

/// Compresses the header blocks that we send.
pub(super) struct HeaderCompressor(Compress);

impl HeaderCompressor {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).expect("invariant: a fresh zlib stream takes a dictionary");
        Self(compress)
    }

    pub(super) fn compress(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.serialize();
        let mut out = Vec::with_capacity(block.len() + 128);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).expect("invariant: not more than the block");
            let before = out.len();
            self.0
                .compress_vec(&block[done..], &mut out, FlushCompress::Sync)
                .expect("invariant: compressing into memory cannot fail");
            let all_read = self.0.total_in() - start == block.len() as u64;
            if all_read && out.len() < out.capacity() {
                return out;
            }
            if out.len() == before || out.len() == out.capacity() {
                out.reserve(128);
            }
        }
    }
}

/// Decompresses the header blocks that the peer sends.
pub(super) struct HeaderDecompressor(Decompress);

impl HeaderDecompressor {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn decompress(&mut self, mut block: &[u8]) -> Result<Headers, String> {
        let mut out = Vec::with_capacity(1024);
        loop {
            let (read_before, length_before) = (self.0.total_in(), out.len());
            let result = self.0.decompress_vec(block, &mut out, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read_before).unwrap_or(block.len()).min(block.len());
            block = &block[read..];
            let ended = match result {
                Ok(status) => status == Status::StreamEnd,
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| "compressed with another dictionary".to_owned())?;
                    continue;
                }
                Err(error) => return Err(format!("header block: {error}")),
            };
            if out.len() > MAX_BLOCK {
                return Err(format!("header block larger than {MAX_BLOCK} bytes"));
            }
            if ended || (block.is_empty() && out.len() < out.capacity()) {
                return Headers::parse(&out);
            }
            if out.len() == out.capacity() {
                out.reserve(out.len());
            } else if read == 0 && out.len() == length_before {
                return Err("header block cannot be decompressed".to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1_u32, 0_u32);
        for &byte in DICTIONARY.iter() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2, "its Adler-32, which zlib streams of SPDY/3 name");
    }

    #[test]
    fn blocks_round_trip_with_shared_state() {
        let (mut compressor, mut decompressor) = (HeaderCompressor::new(), HeaderDecompressor::new());
        for i in 0..50 {
            let long = "x".repeat(i * 700);
            let headers = Headers::of(&[("streamtype", "stdin"), ("port", &i.to_string()), ("long", &long)]);
            assert_eq!(decompressor.decompress(&compressor.compress(&headers)).unwrap(), headers);
        }
        let empty = Headers::default();
        assert_eq!(decompressor.decompress(&compressor.compress(&empty)).unwrap(), empty);
    }

    #[test]
    fn bombs_and_garbage_are_refused() {
        let bomb = Headers::of(&[("a", &"0".repeat(10 << 20))]);
        let compressed = HeaderCompressor::new().compress(&bomb);
        assert!(compressed.len() < 1 << 18, "{}", compressed.len());
        assert!(HeaderDecompressor::new().decompress(&compressed).is_err());
        assert!(HeaderDecompressor::new().decompress(b"").is_err());
        assert!(HeaderDecompressor::new().decompress(b"garbage").is_err());
        for block in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01\xff\xff\xff\xff", b"\0\0\0\x01\0\0\0\x01a\0\0\0\x09b"] {
            assert!(Headers::parse(block).is_err());
        }
    }
}
