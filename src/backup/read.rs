//! Reading a backup, with all that can be wrong with it.

use crate::MANIFEST;
use crate::error::{Error, Result};
use crate::manifest::{FORMAT, Manifest, Summing};
use flate2::read::GzDecoder;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path};

/// No manifest is longer, in bytes: some 100,000 files.
const MAX_MANIFEST: u64 = 16 << 20;

/// Reads a whole backup and compares it with what it says of itself. The store in it is only opened by [`crate::restore`].
///
/// # Errors
/// [`Error::Io`], [`Error::NoBackup`], [`Error::Format`], [`Error::Damaged`].
pub fn verify(path: &Path) -> Result<Manifest> {
    read(path, |_, _| Ok(()), |_, _, _| Ok(io::sink()))
}

/// Reads a backup: `begin` learns of the manifest, then `open` gives, for each file, where its content goes. Nothing may be believed before this
/// returns.
pub(crate) fn read<W: Write>(
    path: &Path,
    begin: impl FnOnce(&Manifest, &Path) -> Result<()>,
    mut open: impl FnMut(&str, u32, &Path) -> Result<W>,
) -> Result<Manifest> {
    let damaged = |detail: String| Error::Damaged { path: path.into(), detail };
    let foreign = |detail: &str| Error::NoBackup { path: path.into(), detail: detail.into() };
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut off".into()),
        _ => damaged(error.to_string()),
    };
    let file = File::open(path).map_err(crate::error::at(path))?;
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    let mut entries = archive.entries().map_err(&broken)?;

    let first = entries.next().ok_or_else(|| foreign("it is empty"))?;
    let first = first.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => foreign("it is no gzip-compressed archive"),
        _ => broken(error),
    })?;
    if first.path_bytes().as_ref() != MANIFEST.as_bytes() {
        return Err(foreign(&format!("its first file is not {MANIFEST}")));
    }
    let mut text = Vec::new();
    first.take(MAX_MANIFEST).read_to_end(&mut text).map_err(&broken)?;
    let manifest = parse(path, &text)?;
    begin(&manifest, path)?;

    let mut missing: BTreeSet<&str> = manifest.files.keys().map(String::as_str).collect();
    for entry in entries {
        let mut entry = entry.map_err(&broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let known = manifest.files.get(&name).filter(|_| entry.header().entry_type().is_file());
        let known = known.filter(|_| missing.remove(name.as_str()));
        let known = known.ok_or_else(|| damaged(format!("{name:?} does not belong in it")))?;
        let mut sum = Summing::new(open(&name, known.mode, path)?);
        io::copy(&mut entry, &mut sum).map_err(&broken)?;
        sum.flush().map_err(&broken)?;
        if sum.finish() != (known.size, known.sha256.clone()) {
            return Err(damaged(format!("{name} is not as it was written")));
        }
    }
    if let Some(name) = missing.first() {
        return Err(damaged(format!("{name} and all that follows is missing")));
    }
    // the end of the archive comes before that of the compressed data, which has a checksum
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(&broken)?;
    Ok(manifest)
}

fn parse(path: &Path, text: &[u8]) -> Result<Manifest> {
    let damaged = |detail: String| Error::Damaged { path: path.into(), detail: format!("{MANIFEST}: {detail}") };
    /// What every format has.
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
        #[serde(default)]
        edge: String,
    }
    let version: Version = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
    if version.format > FORMAT {
        let (found, known) = (version.format, FORMAT);
        return Err(Error::Format { path: path.into(), found, known, edge: version.edge });
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
    let plain = |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    let below = |name: &str| Path::new(name).starts_with(crate::SERVER) && name != crate::SERVER && plain(name);
    let inside = |name: &str| name == crate::NODE_PASSWORD || below(name);
    match manifest.files.keys().find(|name| !inside(name)) {
        Some(name) => Err(damaged(format!("{name:?} is no file of a server"))),
        None => Ok(manifest),
    }
}
