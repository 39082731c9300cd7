//! What a backup says of itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// The format that this program writes.
pub const FORMAT: u32 = 1;

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the file.
    pub format: u32,
    /// The version of edge that wrote it.
    pub edge: String,
    /// The node that it was made on.
    pub node: String,
    /// When.
    pub time: Timestamp,
    /// The newest revision of the store in it.
    pub revision: u64,
    /// How many keys the store in it has.
    pub keys: u64,
    /// The other members, by their paths in the data directory.
    pub files: BTreeMap<String, Member>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its length in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// SHA-256 of its content, hexadecimal.
    pub sha256: String,
}

impl Member {
    /// Describes what a reader holds.
    pub(crate) fn of(reader: &mut impl Read, mode: u32) -> io::Result<Self> {
        let mut sum = Summing::new(io::sink());
        io::copy(reader, &mut sum)?;
        let (size, sha256) = sum.finish();
        Ok(Self { size, mode, sha256 })
    }
}

/// Counts and hashes what goes through it.
pub(crate) struct Summing<W> {
    to: W,
    size: u64,
    hash: Sha256,
}

impl<W: Write> Summing<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, size: 0, hash: Sha256::new() }
    }

    /// The length and the SHA-256, hexadecimal, of all that was written.
    pub(crate) fn finish(self) -> (u64, String) {
        (self.size, hex::encode(self.hash.finalize()))
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
