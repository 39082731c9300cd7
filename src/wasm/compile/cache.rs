//! Machine code on disk: `<digest>-<engine key>.code`, and beside it `.json` with what is known of it.
//!
//! The description is written last, so what has one is whole. The directory is private: code is only ever taken from files
//! that this program wrote there. The checksum finds damage by a failing disk, not by an attacker (who would be root).

use super::Compiled;
use super::error::CompileError;
use super::process::Output;
use crate::world::World;
use edge_sys::fsutil;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Version of the description's format.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    version: u32,
    world: World,
    bytes: u64,
    crc32: u32,
}

/// The directory of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
}

/// The name of a module's files, without their endings.
pub(super) fn name(digest: &str, engine_key: &str) -> String {
    format!("{digest}-{engine_key}")
}

/// Whether the file is still as it was when it was checked.
pub(super) fn is_there(compiled: &Compiled) -> bool {
    fs::metadata(&compiled.path).is_ok_and(|metadata| metadata.len() == compiled.bytes)
}

impl Cache {
    pub(super) fn open(directory: &Path) -> Result<Self, CompileError> {
        let made = fsutil::create_dir_all_mode(directory, 0o700);
        made.map_err(CompileError::io("make directory", directory))?;
        let this = Self { directory: directory.to_owned() };
        for path in this.files()? {
            if parts(&path).is_none() {
                remove(&path)?;
            }
        }
        Ok(this)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The machine code of that name, unless it is not there or damaged.
    pub(super) fn load(&self, name: &str) -> Option<Compiled> {
        let path = self.directory.join(format!("{name}.code"));
        match read_description(&self.directory.join(format!("{name}.json"))) {
            Ok(known) => match checksum(&path) {
                Ok(found) if found == (known.bytes, known.crc32) => {
                    Some(Compiled { path, world: known.world, bytes: known.bytes })
                }
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "machine code on disk is damaged; compiling it again");
                    None
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "machine code not readable; compiling it again");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(name, %error, "description of machine code not readable; compiling it again");
                None
            }
        }
    }

    /// Takes what a worker wrote into the cache, durably.
    pub(super) fn store(&self, name: &str, output: Output) -> Result<Compiled, CompileError> {
        let path = self.directory.join(format!("{name}.code"));
        let describing = self.directory.join(format!("{name}.json"));
        // An old description must not describe new code.
        fsutil::remove_file_if_exists(&describing).map_err(CompileError::io("remove", &describing))?;
        // Nobody but root gets into the directory. A program's process, which is not root, opens the descriptor that it was
        // given once more in order to share its pages with the others.
        let readable = output.code.as_file().set_permissions(Permissions::from_mode(0o444));
        let stored = readable.and_then(|()| output.code.as_file().sync_all()).and_then(|()| {
            output.code.persist(&path)?;
            fsutil::sync_dir(&self.directory)
        });
        stored.map_err(CompileError::io("write", &path))?;
        let description =
            Description { version: VERSION, world: output.world, bytes: output.bytes, crc32: output.crc32 };
        let json = serde_json::to_vec(&description).map_err(|error| CompileError::Worker(error.to_string()))?;
        fsutil::write_atomic(&describing, &json, 0o600).map_err(CompileError::io("write", &describing))?;
        Ok(Compiled { path, world: description.world, bytes: description.bytes })
    }

    pub(super) fn is_empty(&self) -> Result<bool, CompileError> {
        Ok(self.files()?.is_empty())
    }

    /// Removes what `keep` (asked with digest and engine key) does not want; returns the bytes.
    pub(super) fn sweep(&self, keep: impl Fn(&str, &str) -> bool) -> Result<u64, CompileError> {
        let mut freed = 0;
        for path in self.files()? {
            let Some((digest, key)) = parts(&path) else { continue };
            if !keep(digest, key) {
                freed += fs::metadata(&path).map_or(0, |metadata| metadata.len());
                remove(&path)?;
            }
        }
        Ok(freed)
    }

    pub(super) fn usage(&self) -> Result<u64, CompileError> {
        let sizes = self.files()?.into_iter().map(|path| fs::metadata(path).map_or(0, |m| m.blocks() * 512));
        Ok(sizes.sum())
    }

    fn files(&self) -> Result<Vec<PathBuf>, CompileError> {
        let listed = fs::read_dir(&self.directory).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect());
        listed.map_err(CompileError::io("list", &self.directory))
    }
}

/// Digest and engine key of a file's name; `None` for a file that is no finished one.
fn parts(path: &Path) -> Option<(&str, &str)> {
    let name = path.file_name()?.to_str()?;
    let (digest, key) = name.strip_suffix(".code").or_else(|| name.strip_suffix(".json"))?.split_once('-')?;
    (digest.len() == 64 && !digest.contains('.')).then_some((digest, key))
}

fn remove(path: &Path) -> Result<(), CompileError> {
    fsutil::remove_file_if_exists(path).map_err(CompileError::io("remove", path))
}

fn read_description(path: &Path) -> io::Result<Description> {
    let description: Description = serde_json::from_slice(&fs::read(path)?)?;
    match description.version {
        VERSION => Ok(description),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("version {other}"))),
    }
}

fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut bytes, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}
