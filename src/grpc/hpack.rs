//! Header blocks of HTTP/2 (RFC 7541), as far as they have to be read and written again: see [`super::lenient`].

use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Most bytes of the dynamic table: what both ends begin with, and nobody here asks for more.
const MAX_TABLE: usize = 4096;
/// Most bytes of the headers of one block, with 32 for each as the protocol counts them.
const MAX_HEADERS: usize = 64 << 10;
/// What an entry costs beside its bytes.
const OVERHEAD: usize = 32;

/// The static table; a name alone has no value.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// How many bits stand for each byte, `A` for 5 and so on: the code is canonical, so nothing more needs to be known of it.
const BITS: &[u8; 256] = b"\
ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJB\
KABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRS\
VVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWV";
/// The longest code, which is that of the end.
const MOST_BITS: usize = 30;

/// The headers are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed headers")]
pub(super) struct Malformed;

/// A header.
pub(super) type Header = (Bytes, Bytes);

/// What is known of the headers of a connection, for reading the next ones.
pub(super) struct Decoder {
    /// The youngest first.
    table: VecDeque<Header>,
    size: usize,
    most: usize,
    code: Code,
}

/// For each number of bits the first code, and the bytes whose codes have so many, in their order.
struct Code(Vec<(u32, Vec<u8>)>);

impl Code {
    fn new() -> Self {
        let mut next = 0;
        let of = |bits: usize| {
            let bytes: Vec<u8> =
                (0..=u8::MAX).filter(|b| usize::from(BITS[usize::from(*b)] - b'A') + 5 == bits).collect();
            next <<= 1;
            let first = next;
            next += u32::try_from(bytes.len()).unwrap_or_default();
            (first, bytes)
        };
        Self((0..=MOST_BITS).map(of).collect())
    }

    fn decode(&self, input: &[u8]) -> Result<Bytes, Malformed> {
        let mut out = BytesMut::with_capacity(input.len() * 2);
        let (mut code, mut bits) = (0_u32, 0);
        for byte in input {
            for place in (0..8).rev() {
                code = code << 1 | u32::from(byte >> place & 1);
                bits += 1;
                let (first, bytes) = self.0.get(bits).ok_or(Malformed)?;
                let at = code.checked_sub(*first).and_then(|i| bytes.get(i as usize));
                if let Some(byte) = at {
                    out.put_u8(*byte);
                    (code, bits) = (0, 0);
                }
            }
        }
        // what is left over are the first bits of the end, and less than a byte
        if bits < 8 && code == (1 << bits) - 1 { Ok(out.freeze()) } else { Err(Malformed) }
    }
}

/// A block that is read.
struct Block<'b>(&'b [u8]);

impl<'b> Block<'b> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number of which `first` has the lowest bits.
    fn number(&mut self, first: u8, bits: u32) -> Result<usize, Malformed> {
        let most = (1_usize << bits) - 1;
        let mut number = usize::from(first) & most;
        if number < most {
            return Ok(number);
        }
        for place in 0..4 {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn text(&mut self, code: &Code) -> Result<Bytes, Malformed> {
        let first = self.byte()?;
        let length = self.number(first, 7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        if first & 0x80 == 0 { Ok(Bytes::copy_from_slice(text)) } else { code.decode(text) }
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, most: MAX_TABLE, code: Code::new() }
    }

    /// The headers of the next block.
    ///
    /// # Errors
    /// [`Malformed`]: the connection is of no use any more.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<Vec<Header>, Malformed> {
        let (mut block, mut out, mut size) = (Block(block), Vec::new(), 0);
        while !block.0.is_empty() {
            let first = block.byte()?;
            let header = match first {
                0x80.. => {
                    let index = block.number(first, 7)?;
                    self.at(index)?
                }
                0x20..0x40 => {
                    let most = block.number(first, 5)?;
                    if most > MAX_TABLE {
                        return Err(Malformed);
                    }
                    self.most = most;
                    self.evict(0);
                    continue;
                }
                0x40..0x80 => {
                    let header = self.literal(&mut block, first, 6)?;
                    self.insert(header.clone());
                    header
                }
                0..0x20 => self.literal(&mut block, first, 4)?,
            };
            size += header.0.len() + header.1.len() + OVERHEAD;
            if size > MAX_HEADERS {
                return Err(Malformed);
            }
            out.push(header);
        }
        Ok(out)
    }

    fn literal(&self, block: &mut Block<'_>, first: u8, bits: u32) -> Result<Header, Malformed> {
        let name = match block.number(first, bits)? {
            0 => block.text(&self.code)?,
            index => self.at(index)?.0,
        };
        Ok((name, block.text(&self.code)?))
    }

    fn at(&self, index: usize) -> Result<Header, Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())));
        }
        self.table.get(index - STATIC.len()).cloned().ok_or(Malformed)
    }

    fn insert(&mut self, header: Header) {
        let size = header.0.len() + header.1.len() + OVERHEAD;
        self.evict(size);
        if size <= self.most {
            self.size += size;
            self.table.push_front(header);
        }
    }

    /// Makes room.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.most
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// Writes headers so that no table is needed to read them.
pub(super) fn encode(headers: &[Header]) -> Bytes {
    let mut out = BytesMut::new();
    for (name, value) in headers {
        out.put_u8(0);
        for text in [name, value] {
            let mut length = text.len();
            if length < 0x7f {
                out.put_u8(length as u8);
            } else {
                out.put_u8(0x7f);
                length -= 0x7f;
                while length >= 0x80 {
                    out.put_u8((length & 0x7f) as u8 | 0x80);
                    length >>= 7;
                }
                out.put_u8(length as u8);
            }
            out.put_slice(text);
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
    }

    fn text(headers: &[Header]) -> String {
        let one = |(n, v): &Header| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v));
        headers.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_examples_of_the_specification() {
        // RFC 7541, C.3 and C.4: the same three requests without and with the code
        for blocks in [
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
        ] {
            let mut decoder = Decoder::new();
            let mut of = |i: usize| text(&decoder.decode(&hex(blocks[i])).unwrap());
            assert_eq!(of(0), ":method=GET :scheme=http :path=/ :authority=www.example.com");
            assert_eq!(of(1), ":method=GET :scheme=http :path=/ :authority=www.example.com cache-control=no-cache");
            assert_eq!(
                of(2),
                ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value"
            );
            assert_eq!((decoder.table.len(), decoder.size), (3, 164));
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = Bytes::from("x".repeat(5000));
        let headers = [(Bytes::from_static(b"a"), long), (Bytes::from_static(b"bb"), Bytes::new())];
        assert_eq!(Decoder::new().decode(&encode(&headers)).unwrap(), headers);
    }

    #[test]
    fn the_table_keeps_its_size() {
        let mut decoder = Decoder::new();
        for n in 0..200 {
            let value = format!("{n:0100}");
            let block = [&[0x40, 1, b'k', 100][..], value.as_bytes()].concat();
            decoder.decode(&block).unwrap();
            assert!(decoder.size <= MAX_TABLE);
        }
        // an index beyond what is left, a smaller table, and one that is larger than allowed
        assert_eq!(decoder.decode(&[0xff, 0]), Err(Malformed));
        assert!(decoder.decode(&[0xbe]).is_ok());
        decoder.decode(&[0x20]).unwrap();
        assert_eq!((decoder.size, decoder.decode(&[0xbe])), (0, Err(Malformed)));
        assert_eq!(decoder.decode(&[0x3f, 0xe2, 0x1f]), Err(Malformed));
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        for bad in ["80", "00", "0001", "000161", "00016105", "ffffffffffff", "00 81ff 00", "00 01 61 84ffffffff"] {
            assert_eq!(Decoder::new().decode(&hex(bad)), Err(Malformed), "{bad}");
        }
        let mut seed = 1_u64;
        for _ in 0..2000 {
            let noise: Vec<u8> = (0..40)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 40) as u8
                })
                .collect();
            let _ = Decoder::new().decode(&noise);
        }
    }
}
