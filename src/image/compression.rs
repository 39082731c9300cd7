//! Decompression chosen by what the bytes are, not by a name or a media type.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

const BUFFER: usize = 256 * 1024;

/// The first bytes of a stream, put back before the rest.
type Rewound<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Reads `reader` decompressed: gzip (several members too), zstd, or as it is.
pub(crate) fn decompress<'a, R: Read + 'a>(mut reader: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(6);
    (&mut reader).take(6).read_to_end(&mut magic)?;
    let format = Format::of(&magic);
    let input: Rewound<R> = BufReader::with_capacity(BUFFER, Cursor::new(magic).chain(reader));
    Ok(match format {
        Format::Plain => Box::new(input),
        Format::Gzip => Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(input))),
        Format::Zstd => zstd_reader(input)?,
        Format::Unsupported(name) => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{name} compression is not supported")));
        }
    })
}

fn zstd_reader<'a>(input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(Box::new(BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::with_buffer(input)?)))
}

enum Format {
    Plain,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Format {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A zstd frame, or one of the skippable frames that seekable writers put first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Unsupported("xz"),
            [b'B', b'Z', b'h', ..] => Self::Unsupported("bzip2"),
            _ => Self::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn formats_are_told_by_their_bytes() {
        let text = b"some text".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read(&gzip).unwrap(), text);
        assert_eq!(read(&gzip.repeat(2)).unwrap(), text.repeat(2), "all members of a gzip file are read");
        assert_eq!(read(&zstd::encode_all(text.as_slice(), 1).unwrap()).unwrap(), text);
        assert_eq!(read(&text).unwrap(), text);
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(b"\xfd7zXZ\0...").unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert!(read(&gzip[..gzip.len() / 2]).is_err(), "a truncated stream is an error");
    }
}
