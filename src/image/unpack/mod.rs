//! Unpacks one layer into a directory that overlayfs can use as a lower directory.
//!
//! In comes the tar stream of a layer that nobody vouches for; out goes a tree with owners, modes, times, extended
//! attributes, hard links and holes, in which the layer's whiteouts have become overlayfs' (a character device 0:0; the
//! `trusted.overlay.opaque` attribute). Nothing is ever created outside of that directory: see [`root`].
//!
//! Layers are unpacked independently of each other. What a layer leaves out, the metadata of directories that only a
//! lower layer describes, is copied from below afterwards ([`inherit_directories`]).

mod inherit;
mod root;

use crate::tarball::{Entry, EntryKind, Fragment, TarReader};
pub(crate) use inherit::inherit_directories;
use root::LayerRoot;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Prefix of the files that stand for a deletion in a layer.
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout that hides everything below in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of aufs' bookkeeping, which mean nothing to us.
const AUFS: &[u8] = b".wh..wh.";
const CHUNK: usize = 128 * 1024;

/// How much a layer may hold; a decompression bomb ends here and not with a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one unpacked layer, holes included.
    pub layer_bytes: u64,
    /// Files, directories and links of one layer.
    pub layer_entries: u64,
    /// Bytes of all files in one image archive.
    pub archive_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { layer_bytes: 32 << 30, layer_entries: 4_000_000, archive_bytes: 64 << 30 }
    }
}

/// Why a layer was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A name that is absolute, climbs with `..`, or is no name at all.
    #[error("unsafe path {path:?} in layer: {reason}")]
    UnsafePath {
        /// As the layer has it.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path whose directories lead out of the layer through a symbolic link.
    #[error("path {0:?} in layer leads outside through a symbolic link")]
    Escape(String),
    /// More data than [`Limits::layer_bytes`].
    #[error("layer is larger than {0} bytes unpacked")]
    TooLarge(u64),
    /// More entries than [`Limits::layer_entries`].
    #[error("layer has more than {0} entries")]
    TooManyEntries(u64),
    /// A type of entry that no layer may have.
    #[error("unsupported type {kind:?} of {path:?} in layer")]
    UnsupportedEntry {
        /// Its name.
        path: String,
        /// The tar type flag.
        kind: char,
    },
    /// The tar stream or its compression is damaged.
    #[error("read layer")]
    Read(#[source] io::Error),
    /// The file system refused.
    #[error("{action} {path:?} of layer")]
    Write {
        /// What was tried.
        action: &'static str,
        /// The path inside the layer.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl LayerError {
    /// Whether the disk or the quota was full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Write { source, .. } | Self::Read(source) if full(source.kind()))
    }

    fn write(action: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = lossy(path);
        move |errno| Self::Write { action, path, source: errno.into() }
    }
}

/// What unpacking a layer yields besides the files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes of all files, hard links counted once.
    pub(crate) bytes: u64,
    /// Number of inodes made.
    pub(crate) inodes: u64,
    /// Directories that the layer uses without describing them, parents before children.
    pub(crate) implied: Vec<PathBuf>,
}

/// Unpacks the tar stream `reader` into the empty directory `target`, and reads `reader` to its end (so that whatever
/// hashes it has seen all of it).
pub(crate) fn unpack_layer(reader: impl Read, target: &Path, limits: &Limits) -> Result<Unpacked, LayerError> {
    let mut unpacker = Unpacker {
        root: LayerRoot::open(target)?,
        limits: *limits,
        bytes: 0,
        entries: 0,
        whited_out: BTreeSet::new(),
        created: BTreeSet::new(),
        directory_times: Vec::new(),
        buffer: vec![0; CHUNK],
    };
    let mut tar = TarReader::new(CappedRead { inner: reader, left: limits.layer_bytes });
    while let Some(entry) = tar.next_entry().map_err(|e| unpacker.read_error(e))? {
        unpacker.entry(&entry, &mut tar)?;
    }
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(|e| unpacker.read_error(e))?;
    unpacker.finish()
}

struct Unpacker {
    root: LayerRoot,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// Paths this layer has whited out so far.
    whited_out: BTreeSet<Vec<u8>>,
    /// Paths this layer has created so far; a whiteout does not concern them.
    created: BTreeSet<Vec<u8>>,
    /// Directory times are set last, since making files changes them.
    directory_times: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), LayerError> {
        let path = clean(&entry.path)?;
        self.entries += 1;
        if self.entries > self.limits.layer_entries {
            return Err(LayerError::TooManyEntries(self.limits.layer_entries));
        }
        let (parent, name) = split(&path);
        if name == OPAQUE {
            return self.root.set_opaque(parent);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden, &entry.path);
        }
        if path.is_empty() {
            return match entry.kind {
                EntryKind::Directory => self.directory(&path, entry),
                _ => Err(LayerError::UnsafePath { path: lossy(&entry.path), reason: "not a directory" }),
            };
        }
        match entry.kind {
            EntryKind::Directory => self.directory(&path, entry)?,
            EntryKind::Regular => self.file(&path, entry, data)?,
            EntryKind::HardLink => self.root.hard_link(&path, &clean(&entry.link)?)?,
            EntryKind::Symlink => self.root.symlink(&path, &entry.link)?,
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.root.node(&path, entry.kind, entry.device)?;
            }
            EntryKind::Unknown(flag) => {
                return Err(LayerError::UnsupportedEntry { path: lossy(&path), kind: char::from(flag) });
            }
        }
        // A hard link shares the metadata of its target, which has it already.
        if !matches!(entry.kind, EntryKind::Directory | EntryKind::HardLink) {
            self.root.set_metadata(&path, entry)?;
        }
        self.whited_out.remove(&path);
        self.created.insert(path);
        Ok(())
    }

    fn directory(&mut self, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        self.root.directory(path)?;
        self.root.set_metadata(path, entry)?;
        if self.whited_out.remove(path) {
            // The layer deletes what was here and starts anew: nothing may shine through.
            self.root.set_opaque(path)?;
        }
        self.directory_times.push((path.to_vec(), entry.mtime));
        self.created.insert(path.to_vec());
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], hidden: &[u8], original: &[u8]) -> Result<(), LayerError> {
        if hidden.is_empty() || matches!(hidden, b"." | b"..") {
            return Err(LayerError::UnsafePath { path: lossy(original), reason: "whiteout without a name" });
        }
        let path = join(parent, hidden);
        if self.created.contains(&path) {
            // Whiteouts apply to lower layers only. A file of this layer hides them anyhow; a directory has to be opaque.
            return self.root.set_opaque_if_directory(&path);
        }
        self.root.whiteout(&path)?;
        self.whited_out.insert(path);
        Ok(())
    }

    fn file(&mut self, path: &[u8], entry: &Entry, data: &mut impl Read) -> Result<(), LayerError> {
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.limits.layer_bytes {
            return Err(LayerError::TooLarge(self.limits.layer_bytes));
        }
        let mut file = self.root.create(path)?;
        let whole = [Fragment { offset: 0, length: entry.size }];
        for fragment in entry.sparse.as_deref().unwrap_or(&whole) {
            self.copy(*fragment, data, &mut file, path)?;
        }
        // Sets the size when the file ends with a hole.
        file.set_len(entry.size).map_err(|source| write_error(path, source))
    }

    /// Copies one run of data, leaving holes for chunks of zeros.
    fn copy(&mut self, run: Fragment, data: &mut impl Read, file: &mut File, path: &[u8]) -> Result<(), LayerError> {
        file.seek(SeekFrom::Start(run.offset)).map_err(|source| write_error(path, source))?;
        let mut left = run.length;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = data.read_exact(&mut buffer[..want]).map_err(|e| self.read_error(e));
            self.buffer = buffer;
            read?;
            let chunk = &self.buffer[..want];
            let written = if want == CHUNK && chunk.iter().all(|&b| b == 0) {
                file.seek(SeekFrom::Current(want as i64)).map(drop)
            } else {
                file.write_all(chunk)
            };
            written.map_err(|source| write_error(path, source))?;
            left -= want as u64;
        }
        Ok(())
    }

    fn read_error(&self, error: io::Error) -> LayerError {
        match error.get_ref().is_some_and(|inner| inner.is::<CapReached>()) {
            true => LayerError::TooLarge(self.limits.layer_bytes),
            false => LayerError::Read(error),
        }
    }

    fn finish(mut self) -> Result<Unpacked, LayerError> {
        for (path, mtime) in self.directory_times.iter().rev() {
            self.root.set_directory_time(path, *mtime)?;
        }
        let path = |bytes: Vec<u8>| PathBuf::from(OsStr::from_bytes(&bytes));
        Ok(Unpacked { bytes: self.bytes, inodes: self.entries, implied: self.root.into_implied().map(path).collect() })
    }
}

/// Fails, instead of ending, when more than `left` bytes come.
struct CappedRead<R> {
    inner: R,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more data than allowed")]
struct CapReached;

impl<R: Read> Read for CappedRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other(CapReached))?;
        Ok(n)
    }
}

/// Checks a name of the layer and brings it to `a/b/c`; the layer's root becomes the empty path.
fn clean(path: &[u8]) -> Result<Vec<u8>, LayerError> {
    let refuse = |reason| LayerError::UnsafePath { path: lossy(path), reason };
    if path.is_empty() {
        return Err(refuse("empty"));
    }
    if path[0] == b'/' {
        return Err(refuse("absolute"));
    }
    if path.contains(&0) {
        return Err(refuse("contains a NUL byte"));
    }
    let components: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|c| !matches!(*c, b"" | b".")).collect();
    if components.contains(&b"..".as_slice()) {
        return Err(refuse("contains \"..\""));
    }
    Ok(components.join(&b'/'))
}

/// Parent (empty for the root) and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn write_error(path: &[u8], source: io::Error) -> LayerError {
    LayerError::Write { action: "write", path: lossy(path), source }
}

#[cfg(test)]
mod tests;
