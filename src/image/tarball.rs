//! A streaming tar reader for input that nobody vouches for.
//!
//! In comes any byte stream, out go entries with their metadata. It reads ustar, GNU (long names, base-256 numbers, old
//! sparse files) and PAX (long names, times, sizes, extended attributes, sparse format 1.0). Everything that has to be
//! held in memory is limited, which is why it exists: the `tar` crate reads extension headers of any size into memory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Read};

const BLOCK: usize = 512;
/// Largest extension header (PAX records, GNU long name) that is read into memory.
const MAX_EXTENSION: u64 = 1024 * 1024;
/// Most data fragments of a sparse file.
const MAX_FRAGMENTS: usize = 65_536;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A type flag that this reader does not know.
    Unknown(u8),
}

/// A run of data inside a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// Where in the file, in bytes.
    pub(crate) offset: u64,
    /// How many bytes of data.
    pub(crate) length: u64,
}

/// The metadata of one entry. Paths are bytes, as in the file system.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970; seconds may be negative.
    pub(crate) mtime: (i64, u32),
    /// Size of the file once written; for a sparse file larger than what the archive holds.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data belongs, when the file is sparse.
    pub(crate) sparse: Option<Vec<Fragment>>,
}

/// Reads entries one after the other; the data of the current one is what [`Read`] yields.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Data bytes of the current entry not read yet.
    remaining: u64,
    /// Padding after them.
    padding: u64,
    /// PAX records that hold for all following entries.
    globals: HashMap<Vec<u8>, Vec<u8>>,
}

/// PAX records, and GNU long names put under their PAX keys.
type Records = HashMap<Vec<u8>, Vec<u8>>;

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, remaining: 0, padding: 0, globals: HashMap::new() }
    }

    /// What was wrapped; it stands after the end-of-archive block.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// Skips what is left of the current entry and reads the next header; `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.skip(self.remaining + self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        let mut records = Records::new();
        loop {
            let Some(block) = self.read_header()? else {
                return if records.is_empty() {
                    Ok(None)
                } else {
                    Err(invalid("archive ends after an extension header"))
                };
            };
            let header = Header(&block);
            let size = header.number(124, 12, "size")?;
            match block[156] {
                b'x' => parse_pax(&self.read_extension(size)?, &mut records)?,
                b'g' => {
                    let data = self.read_extension(size)?;
                    parse_pax(&data, &mut self.globals)?;
                }
                b'L' => drop(records.insert(b"path".to_vec(), self.read_gnu_name(size)?)),
                b'K' => drop(records.insert(b"linkpath".to_vec(), self.read_gnu_name(size)?)),
                _ => {
                    let mut all = self.globals.clone();
                    all.extend(records);
                    return self.entry(&header, size, &all).map(Some);
                }
            }
        }
    }

    /// The next header block; `None` at the end: a zero block, or (as writers get that wrong) the end of the input.
    fn read_header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let sum: u64 =
            block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u64::from(b) }).sum();
        if Header(&block).number(148, 8, "checksum")? != sum {
            return Err(invalid("header checksum does not match"));
        }
        Ok(Some(block))
    }

    fn entry(&mut self, header: &Header<'_>, size: u64, records: &Records) -> io::Result<Entry> {
        let text = |key: &str| records.get(key.as_bytes());
        let kind = header.kind(text("path").map_or(header.path(), |p| Cow::Borrowed(p.as_slice())).as_ref());
        // Only regular files carry data; links may state the size of what they point to.
        let stored = match kind {
            EntryKind::Regular => record_number(records, "size")?.unwrap_or(size),
            EntryKind::Unknown(_) => size,
            _ => 0,
        };
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let mut entry = Entry {
            path: text("path").cloned().unwrap_or_else(|| header.path().into_owned()),
            link: text("linkpath").cloned().unwrap_or_else(|| header.text(157, 100).to_vec()),
            kind,
            mode: u32::try_from(header.number(100, 8, "mode")? & 0o7777).unwrap_or_default(),
            uid: id(record_number(records, "uid")?.map_or_else(|| header.number(108, 8, "uid"), Ok)?)?,
            gid: id(record_number(records, "gid")?.map_or_else(|| header.number(116, 8, "gid"), Ok)?)?,
            mtime: match text("mtime") {
                Some(text) => pax_time(text)?,
                None => (header.signed_number(136, 12, "mtime")?, 0),
            },
            size: stored,
            device: (id(header.number(329, 8, "device")?)?, id(header.number(337, 8, "device")?)?),
            xattrs: xattrs(records),
            sparse: None,
        };
        if header.0[156] == b'S' {
            self.old_gnu_sparse(header, &mut entry)?;
        } else if records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            self.pax_sparse(records, &mut entry)?;
        }
        Ok(entry)
    }

    fn old_gnu_sparse(&mut self, header: &Header<'_>, entry: &mut Entry) -> io::Result<()> {
        let mut fragments = Vec::new();
        let collect = |block: &[u8], at: usize, count: usize, fragments: &mut Vec<Fragment>| -> io::Result<()> {
            for i in 0..count {
                let field = Field(&block[at + 24 * i..at + 24 * i + 24]);
                if field.0.iter().all(|&b| b == 0 || b == b' ') {
                    break;
                }
                fragments.push(Fragment {
                    offset: field.number(0, 12, "sparse offset")?,
                    length: field.number(12, 12, "sparse size")?,
                });
            }
            Ok(())
        };
        collect(header.0, 386, 4, &mut fragments)?;
        let mut more = header.0[482] != 0;
        // The extension blocks stand before the data and do not count into its size.
        while more {
            let mut block = [0; BLOCK];
            self.inner.read_exact(&mut block).map_err(eof)?;
            collect(&block, 0, 21, &mut fragments)?;
            more = block[504] != 0;
            if fragments.len() > MAX_FRAGMENTS {
                return Err(invalid("too many fragments in a sparse file"));
            }
        }
        entry.size = header.number(483, 12, "sparse real size")?;
        entry.sparse = Some(checked(fragments, entry.size, self.remaining)?);
        Ok(())
    }

    fn pax_sparse(&mut self, records: &Records, entry: &mut Entry) -> io::Result<()> {
        let is_1_0 = record_number(records, "GNU.sparse.major")? == Some(1)
            && record_number(records, "GNU.sparse.minor")? == Some(0);
        if !is_1_0 {
            return Err(invalid("sparse file in a format other than GNU.sparse 1.0"));
        }
        let real = record_number(records, "GNU.sparse.realsize")?;
        entry.size = real.ok_or_else(|| invalid("sparse file without its size"))?;
        if let Some(name) = records.get(b"GNU.sparse.name".as_slice()) {
            entry.path.clone_from(name);
        }
        // The map is decimal lines, padded to a whole block, at the start of the data.
        let mut map = MapLines { reader: self, buffer: Vec::new(), at: 0 };
        let count = usize::try_from(map.number()?).unwrap_or(usize::MAX);
        if count > MAX_FRAGMENTS {
            return Err(invalid("too many fragments in a sparse file"));
        }
        let mut fragments = Vec::with_capacity(count);
        for _ in 0..count {
            fragments.push(Fragment { offset: map.number()?, length: map.number()? });
        }
        entry.sparse = Some(checked(fragments, entry.size, self.remaining)?);
        Ok(())
    }

    fn read_extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(invalid("extension header larger than 1 MiB"));
        }
        let mut data = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut data)?;
        if data.len() as u64 != size {
            return Err(truncated());
        }
        self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(data)
    }

    fn read_gnu_name(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut name = self.read_extension(size)?;
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match io::copy(&mut (&mut self.inner).take(bytes), &mut io::sink())? {
            n if n == bytes => Ok(()),
            _ => Err(truncated()),
        }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(truncated());
        }
        self.remaining -= n as u64;
        Ok(n)
    }
}

/// The decimal lines of a sparse map, read block by block.
struct MapLines<'a, R> {
    reader: &'a mut TarReader<R>,
    buffer: Vec<u8>,
    at: usize,
}

impl<R: Read> MapLines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == self.buffer.len() {
                self.buffer.resize(BLOCK, 0);
                self.reader.read_exact(&mut self.buffer).map_err(eof)?;
                self.at = 0;
            }
            let byte = self.buffer[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits);
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(invalid("malformed sparse map"));
            }
        }
    }
}

/// Fixed fields of a block.
struct Field<'a>(&'a [u8]);

impl Field<'_> {
    /// An octal number, or GNU's base-256 when the top bit is set.
    fn number(&self, at: usize, length: usize, what: &str) -> io::Result<u64> {
        u64::try_from(self.signed_number(at, length, what)?).map_err(|_| invalid(format!("negative {what}")))
    }

    fn signed_number(&self, at: usize, length: usize, what: &str) -> io::Result<i64> {
        let field = &self.0[at..at + length];
        let malformed = || invalid(format!("malformed {what} in header"));
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let mut value: i128 = if negative { -1 } else { 0 };
            for (i, &byte) in field.iter().enumerate() {
                let byte = if i == 0 && !negative { byte & 0x7f } else { byte };
                value = (value << 8) | i128::from(byte);
            }
            return i64::try_from(value).map_err(|_| malformed());
        }
        let digits = field.split(|&b| b == 0).next().unwrap_or_default().trim_ascii();
        if digits.is_empty() {
            return Ok(0);
        }
        if !digits.iter().all(|b| (b'0'..=b'7').contains(b)) {
            return Err(malformed());
        }
        digits.iter().try_fold(0_i64, |n, b| n.checked_mul(8)?.checked_add(i64::from(b - b'0'))).ok_or_else(malformed)
    }
}

/// A header block.
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn number(&self, at: usize, length: usize, what: &str) -> io::Result<u64> {
        Field(self.0).number(at, length, what)
    }

    fn signed_number(&self, at: usize, length: usize, what: &str) -> io::Result<i64> {
        Field(self.0).signed_number(at, length, what)
    }

    fn text(&self, at: usize, length: usize) -> &[u8] {
        self.0[at..at + length].split(|&b| b == 0).next().unwrap_or_default()
    }

    fn path(&self) -> Cow<'_, [u8]> {
        let name = self.text(0, 100);
        // POSIX ustar splits long names; GNU's magic is `ustar  ` and uses the same bytes for times.
        let prefix = if &self.0[257..263] == b"ustar\0" { self.text(345, 155) } else { &[] };
        if prefix.is_empty() { Cow::Borrowed(name) } else { Cow::Owned([prefix, b"/", name].concat()) }
    }

    fn kind(&self, path: &[u8]) -> EntryKind {
        match self.0[156] {
            // Before ustar a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::Regular,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => EntryKind::Unknown(other),
        }
    }
}

/// Parses `<length> <key>=<value>\n` records; an empty value takes a key back.
fn parse_pax(mut data: &[u8], records: &mut Records) -> io::Result<()> {
    let malformed = || invalid("malformed PAX header");
    while !data.is_empty() {
        let space = data.iter().position(|&b| b == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(decimal(&data[..space])?).map_err(|_| malformed())?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if matches!(key, b"path" | b"linkpath") && value.contains(&0) {
            return Err(malformed());
        }
        if value.is_empty() {
            records.remove(key);
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
        data = &data[length..];
    }
    Ok(())
}

fn record_number(records: &Records, key: &str) -> io::Result<Option<u64>> {
    records.get(key.as_bytes()).map(|text| decimal(text)).transpose()
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let number = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    number.and_then(|t| t.parse().ok()).ok_or_else(|| invalid("malformed number in PAX header"))
}

/// `[-]seconds[.fraction]`.
fn pax_time(text: &[u8]) -> io::Result<(i64, u32)> {
    let malformed = || invalid("malformed time in PAX header");
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| malformed())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let nanoseconds = format!("{fraction:0<9.9}").parse().map_err(|_| malformed())?;
    Ok(match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => (seconds.checked_sub(1).ok_or_else(malformed)?, 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
}

fn xattrs(records: &Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    let xattr = |key: &[u8]| key.strip_prefix(b"SCHILY.xattr.").map(<[u8]>::to_vec);
    records.iter().filter_map(|(key, value)| Some((xattr(key)?, value.clone()))).collect()
}

fn id(number: u64) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| invalid("number out of range in header"))
}

/// Fragments must be in order, inside the file, and account for all the data there is.
fn checked(mut fragments: Vec<Fragment>, size: u64, stored: u64) -> io::Result<Vec<Fragment>> {
    let (mut end, mut data) = (0_u64, 0_u64);
    for fragment in &fragments {
        let next = fragment.offset.checked_add(fragment.length).filter(|&n| fragment.offset >= end && n <= size);
        end = next.ok_or_else(|| invalid("sparse map out of order or outside the file"))?;
        data += fragment.length;
    }
    if data > stored {
        return Err(invalid("sparse map needs more data than the archive holds"));
    }
    fragments.retain(|fragment| fragment.length > 0);
    Ok(fragments)
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "archive is truncated")
}

fn eof(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { truncated() } else { error }
}
